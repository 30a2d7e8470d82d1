"""Facts about a result's columns, and the values as the server's own text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal, TypeAlias

import psycopg
from psycopg import DataError
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.types import TypesRegistry
from psycopg.types.string import TextLoader

Timestamps: TypeAlias = Literal["iso", "epoch"]
Bytea: TypeAlias = Literal["base64", "hex"]
NonFinite: TypeAlias = Literal["error", "string"]
Duplicates: TypeAlias = Literal["error", "number"]
Raw: TypeAlias = Any
"""The values as received: a flat sequence of bytes (None is NULL) for a small result, else libpq's result. A
libpq result takes at least 3 kB (measured), which is too much for a program that keeps many small results."""
AT_ONCE = 1000
"""Rows processed at a time, so that their data stays in the processor's cache (measured for 100,000 rows: 79
ms, and 131 ms all at once)."""


@dataclass(frozen=True, slots=True)
class Columns:
    """A result's columns. Made once per prepared statement of a connection, and shared by its results."""

    names: tuple[str, ...]
    oids: tuple[int, ...]
    types: TypesRegistry
    """The types that the cluster's adapters know by oid."""


NO_COLUMNS = Columns((), (), psycopg.adapters.types)


def distinct(names: Sequence[str], duplicates: Duplicates) -> list[str]:
    """Return ``names`` as keys of one object; a duplicate raises `psycopg.DataError`, or is numbered."""
    taken = set(names)
    if len(taken) == len(names):
        return list(names)
    keys: list[str] = []
    seen: set[str] = set()
    for name in names:
        key = name
        if name in seen:
            if duplicates == "error":
                raise DataError(
                    f'two columns are called "{name}": rename one with AS, or pass duplicates="number"'
                )
            number = 2
            while f"{name}_{number}" in taken:
                number += 1
            key = f"{name}_{number}"
            taken.add(key)
        seen.add(name)
        keys.append(key)
    return keys


class _AsText:
    """A psycopg context that loads every type as the server's text."""

    def __init__(self) -> None:
        self.connection = None
        self.adapters = AdaptersMap()
        # psycopg uses the loader of oid 0 for unknown oids; here every oid is unknown.
        self.adapters.register_loader(0, TextLoader)


AS_TEXT = _AsText()


def texts(raw: Raw, width: int) -> Iterator[list[list[str | None]]]:
    """Yield the values as text, column by column, some rows at a time; None is NULL."""
    if isinstance(raw, list):
        cells = [None if cell is None else str(cell, "utf-8") for cell in raw]
        yield [cells[index::width] for index in range(width)]
        return
    transformer = Transformer(AS_TEXT)
    transformer.set_pgresult(raw)
    for start in range(0, raw.ntuples, AT_ONCE):
        rows = transformer.load_rows(start, min(start + AT_ONCE, raw.ntuples), tuple)
        yield [list(map(itemgetter(index), rows)) for index in range(width)]
