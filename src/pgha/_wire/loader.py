"""Conversion of libpq's results to Python rows, by psycopg's loaders and row factories."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import psycopg
from psycopg._column import Column
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.rows import scalar_row, tuple_row

from pgha._core.statements import Entry
from pgha._rows.columns import NO_COLUMNS, Columns, Raw
from pgha._rows.result import Result

FEW = 16
"""The largest number of values that are copied out of libpq's result, so that the result can be freed."""
AT_ONCE = 4096
"""The number of values that are loaded at a time: about a millisecond, unless single values are large."""
_TUPLES_OK = ExecStatus.TUPLES_OK


class CursorView:
    """The part of a cursor that psycopg's row factories use."""

    def __init__(self, pgresult: PGresult, connection: psycopg.AsyncConnection[Any]) -> None:
        self.pgresult = pgresult
        self.connection = connection
        self.adapters = connection.adapters
        self._encoding = "utf-8"

    @property
    def description(self) -> list[Column] | None:
        """The columns of the result; None if the result has no rows."""
        if self.pgresult.status != _TUPLES_OK:
            return None
        return [Column(self, index) for index in range(self.pgresult.nfields)]  # type: ignore[arg-type]


class Loader:
    """Loads the results of one connection, whose settings (DateStyle, TimeZone) say how to read values."""

    def __init__(self, pgconn: PGconn, adapters: AdaptersMap) -> None:
        handler = pgconn.notice_handler
        self.connection = psycopg.AsyncConnection[Any](pgconn)
        pgconn.notice_handler = handler
        self.adapters = adapters
        self._transformer = Transformer(self)

    def load(
        self, pgresult: PGresult, entry: Entry | None, row_factory: Callable[[Any], Any], node: str,
        attempts: int, latency: float,
    ) -> Result[Any]:  # fmt: skip
        """Return the `Result` for ``pgresult``; raise what a loader or the row factory raises.

        ``entry`` belongs to the prepared statement that was reused, None if there is none.
        """
        if pgresult.status != _TUPLES_OK:
            count = pgresult.command_tuples
            command = pgresult.command_status or b""
            touched = -1 if count is None else count
            return Result((), NO_COLUMNS, touched, command, node, attempts, latency)
        make = tuple if row_factory is tuple_row else self._maker(pgresult, row_factory)
        transformer = self._transformer
        transformer.set_pgresult(pgresult)
        try:
            rows = transformer.load_rows(0, pgresult.ntuples, make)
        finally:
            # Otherwise the last result of each lane would stay in memory.
            transformer.set_pgresult(None)
        return self._result(pgresult, entry, rows, row_factory, node, attempts, latency)

    @staticmethod
    def many(pgresult: PGresult) -> bool:
        """Return whether the result has so many values that `load` would stop the event loop for long."""
        return pgresult.status == _TUPLES_OK and pgresult.ntuples * max(pgresult.nfields, 1) > AT_ONCE

    def load_in_parts(
        self, pgresult: PGresult, entry: Entry | None, row_factory: Callable[[Any], Any], node: str,
        attempts: int, latency: float, values: int = AT_ONCE,
    ) -> Generator[None, None, Result[Any]]:  # fmt: skip
        """Do what `load` does, in parts of about ``values`` values; yield between two parts.

        The generator returns the `Result`. Other results of the connection may be loaded between two parts.
        A generator that is closed early keeps nothing.
        """
        count = pgresult.ntuples if pgresult.status == _TUPLES_OK else 0
        step = max(values // max(pgresult.nfields, 1), 1)
        if count <= step:
            return self.load(pgresult, entry, row_factory, node, attempts, latency)
        make = self._maker(pgresult, row_factory)
        rows: list[Any] = []
        for start in range(0, count, step):
            if start:
                yield
            rows += self._rows(pgresult, make, start, min(start + step, count))
        return self._result(pgresult, entry, rows, row_factory, node, attempts, latency)

    def _result(
        self, pgresult: PGresult, entry: Entry | None, rows: list[Any], row_factory: Callable[[Any], Any],
        node: str, attempts: int, latency: float,
    ) -> Result[Any]:  # fmt: skip
        # The columns of a prepared statement never change: the server would refuse the statement (0A000).
        columns = None if entry is None else entry.columns
        if columns is None:
            columns = self._columns(pgresult, entry)
        raw: Raw = pgresult
        count, width = len(rows), len(columns.names)
        if count * width <= FEW:
            value = pgresult.get_value
            raw = [value(row, column) for row in range(count) for column in range(width)]
        command = pgresult.command_status or b""
        scalar = row_factory is scalar_row
        return Result(rows, columns, count, command, node, attempts, latency, raw, scalar)

    def _columns(self, pgresult: PGresult, entry: Entry | None) -> Columns:
        fname, ftype, indexes = pgresult.fname, pgresult.ftype, range(pgresult.nfields)
        names = tuple([(fname(i) or b"").decode("utf-8", "replace") for i in indexes])
        columns = Columns(names, tuple([ftype(i) for i in indexes]), self.adapters.types)
        if entry is not None:
            entry.columns = columns
        return columns

    def _maker(self, pgresult: PGresult, row_factory: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return tuple if row_factory is tuple_row else row_factory(CursorView(pgresult, self.connection))

    def _rows(self, pgresult: PGresult, make: Callable[[Any], Any], start: int, end: int) -> list[Any]:
        transformer = self._transformer
        transformer.set_pgresult(pgresult)
        try:
            return transformer.load_rows(start, end, make)
        finally:
            transformer.set_pgresult(None)
