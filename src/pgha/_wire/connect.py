"""Opening of connections, for lanes, monitors and, later, sessions; the only place that opens them."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

import anyio
import psycopg
from anyio import to_thread
from psycopg import capabilities, errors, generators, pq
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Ready, Wait

from pgha._options import NodeConfig, OnConnect
from pgha._wire.addresses import targets

T = TypeVar("T")

_COPIES = (pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH)

_REJECTIONS = (
    "password authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "does not exist",
    "is not permitted to log in",
    "permission denied for database",
    "is not currently accepting connections",
    "root certificate",
    "certificate verify failed",
    "does not match host name",
    "server does not support SSL",
    "unsupported frontend protocol",
    "unrecognized configuration parameter",
    "invalid value for parameter",
    "cannot be changed",
    "cannot be set",
    "permission denied to set parameter",
)
"""Parts of the messages of failures that waiting does not mend. libpq keeps no SQLSTATE of a failed
connection (psycopg 3.3, libpq 18), so the text must do; after a text in another language pgha tries again."""


class ConnectFailed(Exception):
    """The connection could not be opened; with ``rejected``, trying again will not help."""

    def __init__(self, reason: str, *, rejected: bool = False) -> None:
        super().__init__(reason)
        self.rejected = rejected


async def open_pgconn(config: NodeConfig, timeout: float, **params: str | int) -> PGconn:
    """Open a non-blocking libpq connection.

    Host names are resolved in a thread. Each address gets its share of the time, so that a first address
    that swallows packets does not use up all of the time. Cancellation closes the half-open connection.

    Raises:
        ConnectFailed: The connection failed, or was not open after ``timeout`` seconds.
    """
    deadline = anyio.current_time() + timeout
    try:
        with anyio.fail_after(timeout):
            found = await targets(config)
    except TimeoutError:
        raise ConnectFailed(f"resolving the host took more than {timeout:g} s") from None
    except OSError as error:
        raise ConnectFailed(f"the host cannot be resolved: {error}") from None
    failure = ConnectFailed("the host has no address")
    for index, target in enumerate(found):
        share = max(0.0, deadline - anyio.current_time()) / (len(found) - index)
        conninfo = config.conninfo(client_encoding="utf8", **target, **params)
        try:
            with anyio.fail_after(share):
                return await drive_connecting(generators.connect(conninfo))
        except TimeoutError:
            failure = ConnectFailed(f"no answer to the connection within {share:.3g} s")
        except psycopg.Error as error:
            failure = _failure(error)
    raise failure


def _failure(error: psycopg.Error) -> ConnectFailed:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ConnectFailed(reason, rejected=any(word in reason for word in _REJECTIONS))


async def drive_connecting(generator: Generator[tuple[int, Wait], Any, T]) -> T:
    """Run one of psycopg's generators that may change its socket: for connecting or for cancelling."""
    try:
        fd, wait = next(generator)
        while True:
            if wait == Wait.R:
                await anyio.wait_readable(fd)
                ready = Ready.R
            else:
                await anyio.wait_writable(fd)
                ready = Ready.W
            fd, wait = generator.send(ready)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        generator.close()


async def cancel(pgconn: PGconn) -> None:
    """Ask the server to cancel what ``pgconn`` runs; return once the request was delivered.

    The caller sets the deadline.

    Raises:
        psycopg.OperationalError: The request could not be delivered.
    """
    if capabilities.has_cancel_safe():
        request = pgconn.cancel_conn()
        request.start()
        try:
            await drive_connecting(generators.cancel(request))
        finally:
            request.finish()
    else:
        await to_thread.run_sync(pgconn.get_cancel().cancel, abandon_on_cancel=True)


async def run_simple(pgconn: PGconn, query: bytes) -> list[PGresult]:
    """Run a query by the simple protocol, on a connection that is not in pipeline mode.

    All answers are read, also behind an error: the connection can be used again. A call that cannot read them
    (it was cancelled, or the query was a COPY) closes the connection.

    Raises:
        psycopg.Error: The first error of the query.
    """
    try:
        results = await _exchange(pgconn, query)
    except BaseException:
        pgconn.finish()
        raise
    for result in results:
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise errors.error_from_result(result)
    return results


async def _exchange(pgconn: PGconn, query: bytes) -> list[PGresult]:
    pgconn.send_query(query)
    results: list[PGresult] = []
    while pgconn.flush() != 0:
        await anyio.wait_writable(pgconn.socket)
    while True:
        while pgconn.is_busy():
            await anyio.wait_readable(pgconn.socket)
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            return results
        if result.status in _COPIES:
            raise errors.NotSupportedError("COPY cannot be used here")
        results.append(result)


class Setup:
    """The argument of an ``on_connect`` callable; see `pgha.SetupConnection`."""

    def __init__(self, pgconn: PGconn) -> None:
        self._pgconn = pgconn

    async def execute(self, query: str, /) -> list[tuple[str | None, ...]]:
        """Run one statement without parameters, and return its rows as text."""
        rows: list[tuple[str | None, ...]] = []
        for result in await run_simple(self._pgconn, query.encode()):
            rows = [_text_row(result, row) for row in range(result.ntuples)]
        return rows


def _text_row(result: PGresult, row: int) -> tuple[str | None, ...]:
    values = (result.get_value(row, column) for column in range(result.nfields))
    return tuple(None if value is None else bytes(value).decode() for value in values)


SYSTEM = b"SELECT system_identifier FROM pg_catalog.pg_control_system()"
_LISTENING = b"SELECT 1 FROM pg_catalog.pg_listening_channels() LIMIT 1"
TELL_WARNINGS = b"SET client_min_messages = warning"
"""The server tells only by a warning that a commit did not wait for its synchronous standby."""


async def system_of(pgconn: PGconn) -> int | None:
    """Return the server's system identifier, which a primary shares with any standby that takes over from it.

    Return None if the role may not ask (every role may call the function unless that right was revoked).
    """
    result = await _if_allowed(pgconn, SYSTEM)
    return None if result is None else int(result.get_value(0, 0) or 0) or None


async def listening(pgconn: PGconn) -> bool:
    """Return whether the session listens on any channel."""
    result = await _if_allowed(pgconn, _LISTENING)
    return result is not None and result.ntuples > 0


async def _if_allowed(pgconn: PGconn, query: bytes) -> PGresult | None:
    """Return the result of one query, or None if the server refuses the query."""
    try:
        (result,) = await run_simple(pgconn, query)
    except psycopg.Error:
        if pgconn.status != pq.ConnStatus.OK:
            raise
        return None
    return result


def idle(pgconn: PGconn) -> bool:
    """Return whether no transaction is open."""
    return pgconn.transaction_status == pq.TransactionStatus.IDLE


async def set_up(pgconn: PGconn, on_connect: OnConnect | None) -> None:
    """Run the user's ``on_connect`` on a new connection."""
    if on_connect is None:
        return
    setup = Setup(pgconn)
    if callable(on_connect):
        await on_connect(setup)
        return
    for query in (on_connect,) if isinstance(on_connect, str) else on_connect:
        await setup.execute(query)
