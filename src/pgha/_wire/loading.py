"""From libpq's results to Python rows, by psycopg's loaders and row factories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg._column import Column
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.rows import tuple_row

from pgha._result import Result

_TUPLES_OK = ExecStatus.TUPLES_OK


class CursorView:
    """What psycopg's row factories look at in a cursor."""

    def __init__(self, pgresult: PGresult, connection: psycopg.AsyncConnection[Any]) -> None:
        self.pgresult = pgresult
        self.connection = connection
        self.adapters = connection.adapters
        self._encoding = "utf-8"

    @property
    def description(self) -> list[Column] | None:
        if self.pgresult.status != _TUPLES_OK:
            return None
        return [Column(self, index) for index in range(self.pgresult.nfields)]  # type: ignore[arg-type]


class Loader:
    """Loads what one connection answered: its settings (DateStyle, TimeZone) tell how to read values."""

    def __init__(self, pgconn: PGconn, adapters: AdaptersMap) -> None:
        handler = pgconn.notice_handler
        self.connection = psycopg.AsyncConnection[Any](pgconn)
        pgconn.notice_handler = handler
        self.adapters = adapters
        self._transformer = Transformer(self)

    def load(
        self, pgresult: PGresult, row_factory: Callable[[Any], Any], node: str, attempts: int, latency: float
    ) -> Result[Any]:
        """The `Result`; raises what a loader or the row factory raises."""
        rows: Sequence[Any] = ()
        columns: tuple[str, ...] = ()
        if pgresult.status == _TUPLES_OK:
            fname = pgresult.fname
            columns = tuple([(fname(i) or b"").decode("utf-8", "replace") for i in range(pgresult.nfields)])
            rows = self._rows(pgresult, row_factory)
            rowcount = len(rows)
        else:
            count = pgresult.command_tuples
            rowcount = -1 if count is None else count
        return Result(rows, columns, rowcount, pgresult.command_status or b"", node, attempts, latency)

    def _rows(self, pgresult: PGresult, row_factory: Callable[[Any], Any]) -> list[Any]:
        make = tuple if row_factory is tuple_row else row_factory(CursorView(pgresult, self.connection))
        transformer = self._transformer
        transformer.set_pgresult(pgresult)
        try:
            return transformer.load_rows(0, pgresult.ntuples, make)
        finally:
            # Or the last result of each lane would stay in memory.
            transformer.set_pgresult(None)
