"""What is known of a result's columns, and the server's own text of its values."""

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

Duplicates: TypeAlias = Literal["error", "number"]
Raw: TypeAlias = Any
"""The values as they came: a flat sequence of bytes (None is NULL) for a small result, else libpq's result.

libpq's result takes 3 kB at least, however small (measured), which is too much for a program that keeps many.
"""
AT_ONCE = 1000
"""Rows that are worked on at a time: what is made of them stays in the processor's cache (measured: 79 ms for
100,000 rows, 131 ms all at once)."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Made once for each prepared statement of a connection, and shared by its results."""

    names: tuple[str, ...]
    oids: tuple[int, ...]
    types: TypesRegistry
    """What the cluster's adapters know of the types behind the oids."""


NO_COLUMNS = Columns((), (), psycopg.adapters.types)


def distinct(names: Sequence[str], duplicates: Duplicates) -> list[str]:
    """``names`` as the keys of one object; `psycopg.DataError` for two that are the same, or numbered."""
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
                    f'two columns are called "{name}": name them apart with AS, or pass duplicates="number"'
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
    """A context in which each type is loaded as the server's text."""

    def __init__(self) -> None:
        self.connection = None
        self.adapters = AdaptersMap()
        # Of an unknown oid, so of every oid here.
        self.adapters.register_loader(0, TextLoader)


AS_TEXT = _AsText()


def texts(raw: Raw, width: int) -> Iterator[list[list[str | None]]]:
    """The values as text, column by column, some rows at a time; None is NULL."""
    if isinstance(raw, list):
        cells = [None if cell is None else str(cell, "utf-8") for cell in raw]
        yield [cells[index::width] for index in range(width)]
        return
    transformer = Transformer(AS_TEXT)
    transformer.set_pgresult(raw)
    for start in range(0, raw.ntuples, AT_ONCE):
        rows = transformer.load_rows(start, min(start + AT_ONCE, raw.ntuples), tuple)
        yield [list(map(itemgetter(index), rows)) for index in range(width)]
