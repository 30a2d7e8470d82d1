"""From a query and its parameters to what libpq is given. Done once an operation, in its caller's task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import psycopg
from psycopg._compat import Template
from psycopg._queries import PostgresQuery
from psycopg.abc import Buffer, Params, Query
from psycopg.adapt import AdaptersMap, PyFormat, Transformer
from psycopg.sql import Composable
from psycopg.types.string import BytesDumper

from pgha._core.pace import Pace, Paces
from pgha._core.statement_kind import StatementKind, classify_statement
from pgha._errors import ConfigError

MAX_PARAMS = 65535
"""PostgreSQL's protocol counts parameters in 16 bits."""
MAX_MESSAGE = 0x3FFFFFFF - 1024
"""PostgreSQL refuses a longer message, and ends the connection for it (PQ_LARGE_MESSAGE_LIMIT)."""
REMEMBERED = 4096
KNOWN = 4096
"""Texts that are remembered: their longest, and how many of them."""
FEW = 32
"""Parameters of a text that is remembered; those with more are mostly made by programs, each another."""
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
    kind: StatementKind
    pace: Pace | None = None
    """What is known of its duration; None for a text too long to remember."""


class _HexDumper(BytesDumper):
    """psycopg's own needs a connection: without one it writes a literal, whose quotes are doubled."""

    def dump(self, obj: Any) -> bytes:
        return b"\\x" + bytes(obj).hex().encode()


def own_adapters() -> AdaptersMap:
    """psycopg's, as they are now, for parameters that are dumped before any connection is chosen."""
    adapters = AdaptersMap(psycopg.adapters)
    for kind in (bytes, bytearray, memoryview):
        text = adapters.get_dumper(kind, PyFormat.TEXT)
        if text.__name__ == BytesDumper.__name__ and text.__module__.startswith("psycopg"):
            usual = adapters.get_dumper(kind, PyFormat.AUTO)
            adapters.register_dumper(kind, _HexDumper)
            # What is registered last is what a plain %s takes.
            adapters.register_dumper(kind, usual)
    return adapters


class _Known:
    """What was learned of a text that was sent before: converting it again would give the same."""

    __slots__ = ("formats", "kind", "pace", "placeholders", "text")

    def __init__(self, compiled: PostgresQuery, pace: Pace) -> None:
        self.text = compiled.query
        self.kind = classify_statement(compiled.query)
        self.pace = pace
        self.formats: Any = compiled._want_formats
        self.placeholders = -1
        """Positional ones; -1: named ones, or parameters were not given."""
        if self.formats is not None and compiled._order is None:
            self.placeholders = len(self.formats)


class Compiler:
    """Dumps parameters with the cluster's adapters. Synchronous, so it may be shared by all tasks."""

    def __init__(self, adapters: AdaptersMap) -> None:
        self.adapters = adapters
        self.connection = None
        self._transformer = Transformer(self)
        self._paces = Paces(KNOWN)
        self._known: dict[str, _Known] = {}

    def compile(self, query: AnyQuery, params: AnyParams | None) -> Statement:
        """Raises psycopg's own errors for what cannot be sent: wrong parameters, NUL bytes, sizes."""
        if type(query) is str and (type(params) is list or type(params) is tuple):
            known = self._known.get(query)
            if known is not None and len(params) == known.placeholders:
                # What psycopg's PostgresQuery would do, without looking at the text once more.
                transformer = self._transformer
                values = transformer.dump_sequence(params, known.formats)
                _check_values(values, len(known.text))
                types, formats = transformer.types or (), transformer.formats
                return Statement(known.text, values, types, formats, known.kind, known.pace)
        return self._compile(query, params)

    def _compile(self, query: AnyQuery, params: AnyParams | None) -> Statement:
        if not isinstance(query, _QUERIES):
            raise ConfigError(f"a query is a string, bytes, psycopg.sql or a t-string, not {query!r}")
        compiled = PostgresQuery(self._transformer)
        compiled.convert(query, params)
        text = compiled.query
        if b"\0" in text:
            # libpq takes a C string: it would silently run the part before the NUL.
            raise psycopg.DataError("a query cannot contain a NUL character")
        values = compiled.params
        _check_values(values or (), len(text))
        if len(text) > REMEMBERED:
            return Statement(text, values, compiled.types, compiled.formats, classify_statement(text))
        known = _Known(compiled, self._paces.of(text))
        if type(query) is str and 0 <= known.placeholders <= FEW:
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[query] = known
        return Statement(text, values, compiled.types, compiled.formats, known.kind, known.pace)


def _check_values(values: Sequence[Any], size: int) -> None:
    """``size``: of the text."""
    if len(values) <= FEW:
        for value in values:
            if value is not None:
                if type(value) not in _BUFFERS:
                    _check_kinds(values)
                size += len(value)
    elif len(values) > MAX_PARAMS:
        raise psycopg.ProgrammingError(
            f"a statement takes at most {MAX_PARAMS} parameters, and {len(values)} were given: "
            "send an array, or several statements with execute_batch"
        )
    else:
        _check_kinds(values)
        size += sum(map(len, filter(None, values)))
    if size > MAX_MESSAGE:
        raise psycopg.DataError("statement and parameters take more than the 1 GiB that PostgreSQL accepts")


def _check_kinds(values: Sequence[Any]) -> None:
    if _BUFFERS.issuperset(map(type, values)):
        return
    for value in values:
        if value is not None and not isinstance(value, (bytes, bytearray, memoryview)):
            raise psycopg.ProgrammingError(
                f"a dumper gave {type(value).__name__}, not bytes: a Dumper's dump() returns a buffer or None"
            )
