"""One statement on one node, from either event loop: psycopg's blocking connection in a worker thread."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import anyio
import anyio.to_thread
import psycopg
from psycopg.rows import TupleRow

Params: TypeAlias = Sequence[Any] | Mapping[str, Any] | None


class _Call:
    """The whole life of a connection in one thread, which other threads can end."""

    __slots__ = ("_broken", "_lock", "_params", "_socket", "_sql")

    def __init__(self, sql: str, params: Params) -> None:
        self._sql, self._params = sql.encode(), params
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        """A duplicate of libpq's socket, with a file descriptor of its own: libpq closes its descriptor by
        itself at end of file, and the number is then given to the next file that is opened.
        """
        self._broken = False

    def run(self, dsn: str, connect_timeout: int) -> list[TupleRow]:
        """Connect, run the statement and return the rows of its last result."""
        with psycopg.connect(dsn, autocommit=True, connect_timeout=connect_timeout) as connection:
            with self._lock:
                if self._broken:
                    return []
                self._socket = socket.socket(fileno=os.dup(connection.fileno()))
            try:
                cursor = connection.execute(self._sql, self._params)
                while cursor.nextset():
                    pass  # only the last statement's result is wanted
                return cursor.fetchall() if cursor.description is not None else []
            finally:
                with self._lock:
                    self._socket.close()
                    self._socket = None

    def break_off(self) -> None:
        """End the thread's wait: the result is not wanted any more, and the node may be frozen."""
        with self._lock:
            self._broken = True
            if self._socket is None:
                return
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the server has closed the connection already


async def execute(dsn: str, sql: str, params: Params = None, *, timeout: float = 10.0) -> list[TupleRow]:
    """Run `sql` on a new connection, in autocommit mode.

    Returns the rows of the last statement, [] if it has none. Without `params`, `sql` may hold several
    statements. Raises psycopg's errors, and `TimeoutError` after `timeout` seconds. When cancelled, the call
    returns at once and closes the connection: the server may still finish the statement.
    """
    call = _Call(sql, params)
    # This ends an abandoned thread. libpq takes whole seconds, at least 2.
    connect_timeout = max(2, round(timeout))
    with anyio.fail_after(timeout):
        try:
            return await anyio.to_thread.run_sync(
                call.run, dsn, connect_timeout, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
            )
        except anyio.get_cancelled_exc_class():
            call.break_off()
            raise
