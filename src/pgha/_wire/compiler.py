"""Conversion of a query and its parameters for libpq; done once per operation, in the caller's task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

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
"""The largest number of parameters: PostgreSQL's protocol counts them in 16 bits."""
MAX_MESSAGE = 0x3FFFFFFF - 1024
"""The longest message: PostgreSQL refuses a longer one and ends the connection (PQ_LARGE_MESSAGE_LIMIT)."""
REMEMBERED = 4096
"""The longest text that is remembered, in bytes."""
KNOWN = 4096
"""The largest number of remembered texts."""
FEW = 32
"""The largest number of parameters of a remembered text; texts with more are mostly generated, each one
different."""
_QUERIES = (str, bytes, Composable, Template)
_BUFFERS = frozenset({bytes, bytearray, type(None)})

AnyQuery: TypeAlias = Query
AnyParams: TypeAlias = Params
T = TypeVar("T")


@dataclass(slots=True)
class Statement:
    """A statement in the form that libpq takes.

    Never changed; the class is not frozen, because that would cost a microsecond per statement.
    """

    query: bytes
    params: Sequence[Buffer | None] | None
    types: tuple[int, ...]
    formats: Sequence[Any] | None
    kind: StatementKind
    pace: Pace | None = None
    """The measured duration; None for a text too long to remember."""


class _HexDumper(BytesDumper):
    """A dumper of bytes that needs no connection.

    Without a connection, psycopg's own dumper writes a literal, whose quotes are doubled.
    """

    def dump(self, obj: Any) -> bytes:
        """Return ``obj`` in the hexadecimal text form of bytea."""
        return b"\\x" + bytes(obj).hex().encode()


def own_adapters() -> AdaptersMap:
    """Return a copy of psycopg's adapters, for parameters that are dumped before a connection is chosen."""
    adapters = AdaptersMap(psycopg.adapters)
    for kind in (bytes, bytearray, memoryview):
        text = adapters.get_dumper(kind, PyFormat.TEXT)
        if text.__name__ == BytesDumper.__name__ and text.__module__.startswith("psycopg"):
            usual = adapters.get_dumper(kind, PyFormat.AUTO)
            adapters.register_dumper(kind, _HexDumper)
            # A plain %s uses the dumper that was registered last.
            adapters.register_dumper(kind, usual)
    return adapters


class _Known:
    """The result of converting a text, kept because converting the text again would give the same."""

    __slots__ = ("formats", "kind", "pace", "placeholders", "text")

    def __init__(self, compiled: PostgresQuery, pace: Pace) -> None:
        self.text = compiled.query
        self.kind = classify_statement(compiled.query)
        self.pace = pace
        self.formats: Any = compiled._want_formats
        self.placeholders = -1
        """The number of positional placeholders; -1 if they are named or if there were no parameters."""
        if self.formats is not None and compiled._order is None:
            self.placeholders = len(self.formats)


class Compiler:
    """Compiles queries with the cluster's adapters. Synchronous, so that all tasks may share one compiler."""

    def __init__(self, adapters: AdaptersMap) -> None:
        self.adapters = adapters
        self.connection = None
        self._transformer = Transformer(self)
        self._paces = Paces(KNOWN)
        self._known: dict[str, _Known] = {}
        self._plain: dict[str, Statement] = {}
        """The statements without parameters."""

    def compile(self, query: AnyQuery, params: AnyParams | None) -> Statement:
        """Convert a query and its parameters.

        Raises:
            psycopg.Error: The query or the parameters cannot be sent: wrong parameters, NUL bytes, sizes.
            ConfigError: The query is of a wrong type.
        """
        if type(query) is str and (type(params) is list or type(params) is tuple):
            known = self._known.get(query)
            if known is not None and len(params) == known.placeholders:
                # This does the same as psycopg's PostgresQuery, without parsing the text again.
                transformer = self._transformer
                values = transformer.dump_sequence(params, known.formats)
                _check_values(values, len(known.text))
                types, formats = transformer.types or (), transformer.formats
                return Statement(known.text, values, types, formats, known.kind, known.pace)
        elif params is None and type(query) is str and (plain := self._plain.get(query)) is not None:
            return plain
        return self._compile(query, params)

    def _compile(self, query: AnyQuery, params: AnyParams | None) -> Statement:
        if not isinstance(query, _QUERIES):
            raise ConfigError(f"a query must be a str, bytes, psycopg.sql object or t-string, not {query!r}")
        compiled = PostgresQuery(self._transformer)
        compiled.convert(query, params)
        text = compiled.query
        if b"\0" in text:
            # libpq takes a C string, and would silently send only the part before the NUL.
            raise psycopg.DataError("a query cannot contain a NUL character")
        values = compiled.params
        _check_values(values or (), len(text))
        if len(text) > REMEMBERED:
            return Statement(text, values, compiled.types, compiled.formats, classify_statement(text))
        known = _Known(compiled, self._paces.of(text))
        statement = Statement(text, values, compiled.types, compiled.formats, known.kind, known.pace)
        if type(query) is str and params is None:
            _remember(self._plain, query, statement)
        elif type(query) is str and 0 <= known.placeholders <= FEW:
            _remember(self._known, query, known)
        return statement


def _remember(known: dict[str, T], query: str, found: T) -> None:
    if len(known) >= KNOWN:
        known.clear()
    known[query] = found


def _check_values(values: Sequence[Any], size: int) -> None:
    """Raise psycopg's errors if the values cannot be sent behind a text of ``size`` bytes."""
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
        if type(value) is memoryview and not value.c_contiguous:
            # libpq would refuse it in the middle of a segment, at its neighbours' expense.
            raise psycopg.ProgrammingError(
                "a memoryview with gaps (a slice with a step, say) cannot be sent: pass bytes(view)"
            )
