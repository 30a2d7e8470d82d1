"""From a query and its parameters to what libpq is given. Done once an operation, in its caller's task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import psycopg
from psycopg._compat import Template
from psycopg._queries import PostgresQuery
from psycopg.abc import Buffer, Params, Query
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.sql import Composable

from pgha._core.pace import Pace, Paces
from pgha._core.sqlwords import Words, words
from pgha._errors import ConfigError

MAX_PARAMS = 65535
"""PostgreSQL's protocol counts parameters in 16 bits."""
MAX_MESSAGE = 0x3FFFFFFF - 1024
"""PostgreSQL refuses a longer message, and ends the connection for it (PQ_LARGE_MESSAGE_LIMIT)."""
REMEMBERED = 4096
KNOWN = 4096
"""Texts whose pace is remembered: their longest, and how many of them."""
_QUERIES = (str, bytes, Composable, Template)
_BUFFERS = frozenset({bytes, bytearray, memoryview, type(None)})

AnyQuery: TypeAlias = Query
AnyParams: TypeAlias = Params


@dataclass(slots=True)
class Statement:
    """One statement as libpq wants it; never changed (not frozen: that would cost a microsecond each)."""

    query: bytes
    params: Sequence[Buffer | None] | None
    types: tuple[int, ...]
    formats: Sequence[Any] | None
    words: Words
    pace: Pace | None = None
    """What is known of its duration; None for a text too long to remember."""


class Compiler:
    """Dumps parameters with the cluster's adapters. Synchronous, so it may be shared by all tasks."""

    def __init__(self, adapters: AdaptersMap) -> None:
        self.adapters = adapters
        self.connection = None
        self._transformer = Transformer(self)
        self._paces = Paces(KNOWN)

    def compile(self, query: AnyQuery, params: AnyParams | None) -> Statement:
        """Raises psycopg's own errors for what cannot be sent: wrong parameters, NUL bytes, sizes."""
        if not isinstance(query, _QUERIES):
            raise ConfigError(f"a query is a string, bytes, psycopg.sql or a t-string, not {query!r}")
        compiled = PostgresQuery(self._transformer)
        compiled.convert(query, params)
        text = compiled.query
        if b"\0" in text:
            # libpq takes a C string: it would silently run the part before the NUL.
            raise psycopg.DataError("a query cannot contain a NUL character")
        values = compiled.params
        if values is not None and not _BUFFERS.issuperset(map(type, values)):
            _check_kinds(values)
        if len(text) + sum(map(len, filter(None, values or ()))) > MAX_MESSAGE:
            raise psycopg.DataError(
                "statement and parameters take more than the 1 GiB that PostgreSQL accepts"
            )
        if values is not None and len(values) > MAX_PARAMS:
            raise psycopg.ProgrammingError(
                f"a statement takes at most {MAX_PARAMS} parameters, and {len(values)} were given: "
                "send an array, or several statements with execute_batch"
            )
        pace = self._paces.of(text) if len(text) <= REMEMBERED else None
        return Statement(text, values, compiled.types, compiled.formats, words(text), pace)


def _check_kinds(values: Sequence[Any]) -> None:
    for value in values:
        if value is not None and not isinstance(value, (bytes, bytearray, memoryview)):
            raise psycopg.ProgrammingError(
                f"a dumper gave {type(value).__name__}, not bytes: a Dumper's dump() returns a buffer or None"
            )
