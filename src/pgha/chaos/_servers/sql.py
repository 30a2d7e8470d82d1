"""One statement on one node, from either loop: psycopg's blocking connection in a worker thread."""

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
    """A connection's whole life in one thread, breakable from outside."""

    __slots__ = ("_broken", "_lock", "_params", "_socket", "_sql")

    def __init__(self, sql: str, params: Params) -> None:
        self._sql, self._params = sql.encode(), params
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        """On a number of our own: libpq closes its socket by itself when it meets the end, and the number
        goes to whoever opens something next.
        """
        self._broken = False

    def run(self, dsn: str, connect_timeout: int) -> list[TupleRow]:
        with psycopg.connect(dsn, autocommit=True, connect_timeout=connect_timeout) as connection:
            with self._lock:
                if self._broken:
                    return []
                self._socket = socket.socket(fileno=os.dup(connection.fileno()))
            try:
                cursor = connection.execute(self._sql, self._params)
                while cursor.nextset():
                    pass  # the last statement's result is the one
                return cursor.fetchall() if cursor.description is not None else []
            finally:
                with self._lock:
                    self._socket.close()
                    self._socket = None

    def break_off(self) -> None:
        """End the thread's wait: nobody is interested any more, and the node may be frozen."""
        with self._lock:
            self._broken = True
            if self._socket is None:
                return
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the server was faster


async def execute(dsn: str, sql: str, params: Params = None, *, timeout: float = 10.0) -> list[TupleRow]:
    """Run `sql` on a connection of its own, in autocommit mode; the last statement's rows, [] if it has none.

    Without `params` it may hold several statements. Raises psycopg's errors, and `TimeoutError` after
    `timeout` seconds. When cancelled it leaves at once and breaks the connection (what it was doing on the
    server may still be done).
    """
    call = _Call(sql, params)
    connect_timeout = max(2, round(timeout))  # libpq knows whole seconds from 2 on; for an abandoned thread
    with anyio.fail_after(timeout):
        try:
            return await anyio.to_thread.run_sync(
                call.run, dsn, connect_timeout, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
            )
        except anyio.get_cancelled_exc_class():
            call.break_off()
            raise
