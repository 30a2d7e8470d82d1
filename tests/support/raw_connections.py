"""A libpq connection in pipeline mode without pgha, with the server's messages as words; no event loop."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import anyio
import psycopg
import pytest
from psycopg import pq
from psycopg.pq.abc import PGresult

from pgha.chaos import LocalNode

PATIENCE = 20.0
"""Seconds until a test gives up. No measurement depends on it."""
LOST = "the end"
"""The word for the end of the connection: libpq's own error, without a field from the server."""
SKIPPED = "skipped"
SYNC = "Sync"

_DONE = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)
_FIELD = pq.DiagnosticField
Query = str | tuple[str, Sequence[object]]


class Wire:
    """A connection. Statements use the extended protocol; each Sync ends a segment."""

    def __init__(self, dsn: str) -> None:
        self.pgconn = pq.PGconn.connect(dsn.encode())
        assert self.pgconn.status == pq.ConnStatus.OK, self.pgconn.error_message
        self.pgconn.nonblocking = 1
        self.pgconn.enter_pipeline_mode()
        self.pgconn.notice_handler = self._on_notice
        self.pid = self.pgconn.backend_pid
        self.rows: list[tuple[str | None, ...]] = []
        """The rows of all statements whose results were read."""
        self.constraint: str | None = None
        """The constraint in the last error."""
        self._words: list[str] = []

    def send(self, *queries: Query, sync: bool = True) -> None:
        """Send the statements and a Sync; without `sync`, only a request to flush the results so far."""
        for one in queries:
            text, params = one if isinstance(one, tuple) else (one, ())
            self.pgconn.send_query_params(text.encode(), _encoded(params))
        self._close(sync)

    def prepare(self, name: str, text: str) -> list[str]:
        self.pgconn.send_prepare(name.encode(), text.encode())
        self._close(True)
        return self.hear()

    def send_prepared(self, name: str, params: Sequence[object], *more: Query, sync: bool = True) -> None:
        self.pgconn.send_query_prepared(name.encode(), _encoded(params))
        self.send(*more, sync=sync)

    def _close(self, sync: bool) -> None:
        if sync:
            self.pgconn.pipeline_sync()
        else:
            self.pgconn.send_flush_request()
        deadline = time.monotonic() + PATIENCE
        while self.pgconn.flush():
            assert time.monotonic() < deadline, "the statements could not be sent"
            select.select([self.pgconn.socket], [self.pgconn.socket], [], 0.1)
            self.pgconn.consume_input()

    def hear(self, count: int | None = None) -> list[str]:
        """Return the server's messages as words: up to the Sync or the end, or at least `count` of them."""
        deadline = time.monotonic() + PATIENCE
        nulls = 0
        while nulls < 2 and (count is None or len(self._words) < count):
            self._wait(deadline)
            result = self.pgconn.get_result()
            if result is None:
                nulls += 1
                continue
            nulls = 0
            self._words.append(self._word(result))
            if self._words[-1] in (SYNC, LOST):
                break
        words, self._words = self._words, []
        return words

    def silent(self) -> bool:
        """Return whether no data has arrived."""
        return not select.select([self.pgconn.socket], [], [], 0)[0]

    def _wait(self, deadline: float) -> None:
        while self.pgconn.is_busy():
            left = deadline - time.monotonic()
            if not select.select([self.pgconn.socket], [], [], max(0.0, left))[0]:
                pytest.fail(f"the server said only {self._words}")
            try:
                self.pgconn.consume_input()
            except psycopg.OperationalError:
                return  # the results from before the end can still be read

    def _word(self, result: PGresult) -> str:
        if result.status == pq.ExecStatus.PIPELINE_SYNC:
            return SYNC
        if result.status == pq.ExecStatus.PIPELINE_ABORTED:
            return SKIPPED
        if result.status in _DONE:
            for row in range(result.ntuples):
                self.rows.append(tuple(_decoded(result, row, column) for column in range(result.nfields)))
            return (result.command_status or b"").decode() or "Parse"
        assert result.status == pq.ExecStatus.FATAL_ERROR
        constraint = result.error_field(_FIELD.CONSTRAINT_NAME)
        self.constraint = None if constraint is None else constraint.decode()
        return _fields(result) or LOST

    def _on_notice(self, result: PGresult) -> None:
        self._words.append(f"notice: {_fields(result)}")

    def close(self) -> None:
        self.pgconn.finish()


def _encoded(params: Sequence[object]) -> list[bytes | None]:
    return [None if value is None else str(value).encode() for value in params]


def _decoded(result: PGresult, row: int, column: int) -> str | None:
    value = result.get_value(row, column)
    return None if value is None else bytes(value).decode()


def _fields(result: PGresult) -> str:
    fields = (result.error_field(one) for one in (_FIELD.SEVERITY_NONLOCALIZED, _FIELD.SQLSTATE))
    return b" ".join(filter(None, fields)).decode()


@contextmanager
def wire(dsn: str) -> Iterator[Wire]:
    one = Wire(dsn)
    try:
        yield one
    finally:
        one.close()


def ask(dsn: str, sql: str, params: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
    """Run `sql` on a new connection, and return the rows of its last statement."""
    with psycopg.connect(dsn, autocommit=True, connect_timeout=int(PATIENCE)) as connection:
        cursor = connection.execute(sql.encode(), params)
        while cursor.nextset():
            pass
        return cursor.fetchall() if cursor.description is not None else []


def until(condition: Callable[[], object], what: str) -> None:
    """Poll `condition` until it is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not true within {PATIENCE:g} s: {what}")
        time.sleep(0.005)


def waiting(dsn: str, pid: int, event: str) -> None:
    """Wait until the backend `pid` waits for `event`."""
    sql = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = %s"
    until(lambda: ask(dsn, sql, [pid, event]), f"{pid} waits for {event}")


def gone(dsn: str, pid: int) -> None:
    """Wait until the backend `pid` is gone."""
    until(lambda: not ask(dsn, "SELECT 1 FROM pg_stat_activity WHERE pid = %s", [pid]), f"{pid} is gone")


@contextmanager
def gate(dsn: str) -> Iterator[Callable[[], None]]:
    """Make statements `ENTER` wait until the yielded function was called."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(7)")

        def open_it() -> None:
            connection.execute("SELECT pg_advisory_unlock(7)")

        yield open_it


ENTER = "SELECT pg_advisory_xact_lock_shared(7)"


@contextmanager
def raw_server(version: int, schema: str) -> Iterator[LocalNode]:
    """Start a server for tests without an event loop."""
    node = LocalNode("facts", version=version)

    async def start() -> None:
        await node.__aenter__()
        await node.start()

    try:
        anyio.run(start)
        ask(node.dsn, schema)
        yield node
    finally:
        anyio.run(node.close)
