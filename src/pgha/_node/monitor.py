"""A node's monitor: a connection of its own for pings; only the monitor tries to reach a node that is down.

The loop of the monitor: connect (with backoff) -> ping -> sleep until the next ping is due, a ping is
requested, or the server sends something unasked (a notice before its end, an end of file) -> ping ...
`pgha._core.health` decides the health of the node; the monitor reports its observations to
`MonitorCallbacks`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import anyio
import psycopg
from psycopg.errors import error_from_result

from pgha._core.backoff import delay
from pgha._core.pipeline import Doing
from pgha._core.server_status import ServerStatus, server_status
from pgha._node.queries import LEDGER, STATUS, activity, columns, doings, limited, termination
from pgha._options import NodeConfig, Options
from pgha._telemetry.log import say
from pgha._wire import OK, PGconn, PGresult
from pgha._wire.connect import ConnectFailed, open_pgconn
from pgha._wire.interrupts import uninterrupted
from pgha._wire.segment import FATAL_ERROR

logger = logging.getLogger("pgha.node")

_FIRST_TIMEOUT = 2.0
"""Seconds for the first answer on a new connection: a server that has just started may answer slowly."""
_LIMITED_TO = 0.5
"""The part of the ping's timeout after which the server itself ends a query that is not the ping."""
_PING = b"pgha_status"
_FORBIDDEN = ("0A", "42", "55")
"""The classes of the errors that say that a part of the status query is forbidden or missing."""
REJECTED_EVERY = 5.0
"""Seconds between attempts to connect to a node that rejects the connection."""


class PingFailed(Exception):
    """No answer to a ping came in time, although the monitor's connection is open."""


@dataclass(frozen=True, slots=True)
class Ping:
    """The answer to a ping."""

    status: ServerStatus
    server_version: int
    sent: float
    """When the ping was sent, by the cluster's clock."""
    received: float
    """When the answer came, by the cluster's clock."""
    wall: float
    """The local clock when the answer came, in seconds since 1970."""


class MonitorCallbacks(Protocol):
    """The receiver of a monitor's observations."""

    def alive(self, ping: Ping) -> None:
        """Take the answer to a ping."""
        ...

    def ledger_seen(self, usable: bool) -> None:
        """Take note whether the server has a usable ledger."""
        ...

    def dead(self, reason: str, *, rejected: bool, silent: bool) -> None:
        """Take note that the node does not answer.

        ``rejected`` says that the server rejected the connection, ``silent`` that a ping had no answer.
        """
        ...

    @property
    def ping_often(self) -> bool:
        """Whether pings are urgent: writes wait, and no node is known to take them."""
        ...


class Monitor:
    """The monitor of one node; see the head of this file."""

    def __init__(
        self, config: NodeConfig, options: Options, owner: MonitorCallbacks, clock: Callable[[], float]
    ) -> None:
        self._config = config
        self._options = options
        self._owner = owner
        self._clock = clock
        self._wall = options.sources.wall
        self._draw = options.sources.draw
        self._level = 0
        """Which query of `STATUS` the server answers, on the present connection."""
        self._prepared = False
        """Whether that query is prepared on the present connection."""
        self._ledger_check_at = 0.0
        """The time of the next check for the ledger."""
        self._sleep: anyio.CancelScope | None = None
        self._ping_requested = False
        self._to_terminate: list[int] = []
        """The backends that are terminated after the next ping."""
        self._to_inspect: dict[int, Callable[[Doing], None]] = {}
        """The backends that are inspected after the next ping, each with its ``report`` function."""

    def request_ping(self) -> None:
        """Ping at once instead of at the next interval. Synchronous."""
        self._ping_requested = True
        if self._sleep is not None:
            self._sleep.cancel()

    def look_at_ledger(self) -> None:
        """Check for the ledger after the next ping, which is requested."""
        self._ledger_check_at = self._clock()
        self.request_ping()

    def terminate(self, pid: int) -> None:
        """Have one of pgha's backends terminated.

        The request is dropped if the node is lost, because the backend is lost, too.
        """
        self._to_terminate.append(pid)
        self.request_ping()

    def inspect(self, pid: int, report: Callable[[Doing], None]) -> None:
        """Ask what one of pgha's backends is doing, and pass the answer to ``report``.

        ``report`` is not called if the node is lost.
        """
        self._to_inspect[pid] = report
        self.request_ping()

    @uninterrupted
    async def run(self) -> None:
        """Connect and ping until cancelled."""
        failures = 0
        while True:
            try:
                pgconn = await open_pgconn(
                    self._config,
                    self._options.connect_timeout,
                    application_name=self._config.application_name(self._options.application_name),
                )
            except ConnectFailed as error:
                self._owner.dead(str(error), rejected=error.rejected, silent=False)
                await self._pause(failures, rejected=error.rejected)
                failures += 1
                continue
            try:
                failures = 0 if await self._watch(pgconn) else failures
            finally:
                pgconn.finish()
            await self._pause(failures, rejected=False)
            failures += 1

    async def _pause(self, failures: int, *, rejected: bool) -> None:
        tuning = self._options.tuning
        wait = delay(failures, self._draw(), tuning.reconnect_first, tuning.reconnect_most)
        await anyio.sleep(REJECTED_EVERY if rejected else wait)

    async def _watch(self, pgconn: PGconn) -> bool:
        """Ping until the connection fails; return whether the server ever answered."""
        answered = False
        try:
            self._level = 0
            # Not used: the first query is slow, and shows what may be asked. The next answer counts.
            self._prepared = False
            await self._prepare(pgconn)
            await self._status(pgconn, _FIRST_TIMEOUT)
            self._ledger_check_at = self._clock()
            while True:
                await self._ping(pgconn)
                answered = True
                if self._options.ledger == "auto" and self._clock() >= self._ledger_check_at:
                    await self._check_ledger(pgconn)
                if self._to_terminate:
                    await self._end_backends(pgconn)
                if self._to_inspect:
                    await self._inspect_backends(pgconn)
                await self._sleep_lightly(pgconn)
        except PingFailed as error:
            self._owner.dead(str(error), rejected=False, silent=True)
        except psycopg.Error as error:
            self._owner.dead(" ".join(str(error).split()), rejected=False, silent=False)
        finally:
            self._to_terminate.clear()
            self._to_inspect.clear()
        return answered

    async def _sleep_lightly(self, pgconn: PGconn) -> None:
        interval = self._options.ping_interval
        if self._owner.ping_often:
            interval = min(interval, self._options.tuning.probe_no_primary)
        if self._ping_requested:
            return
        with anyio.move_on_after(interval) as self._sleep:
            # Readable although nothing was asked: a notice or the end of the connection. The ping decides.
            await anyio.wait_readable(pgconn.socket)
        self._sleep = None

    async def _ping(self, pgconn: PGconn) -> None:
        self._ping_requested = False
        started = self._clock()
        status = await self._status(pgconn, self._options.ping_timeout)
        self._owner.alive(Ping(status, pgconn.server_version, started, self._clock(), self._wall()))

    async def _prepare(self, pgconn: PGconn) -> None:
        """Prepare the query of the pings: a kilobyte of text each time is much on a slow line."""
        pgconn.send_prepare(_PING, STATUS[self._level])
        try:
            await self._read_reply(pgconn, _FIRST_TIMEOUT)
            self._prepared = True
        except psycopg.Error:
            if pgconn.status != OK:
                raise

    async def _status(self, pgconn: PGconn, timeout: float) -> ServerStatus:
        """Ask for the server's status; ask for less on this connection if the server forbids a part."""
        while True:
            if self._prepared:
                pgconn.send_query_prepared(_PING, None)
            else:
                pgconn.send_query(STATUS[self._level])
            try:
                reply = await self._read_reply(pgconn, timeout)
            except psycopg.Error as error:
                if self._prepared and pgconn.status == OK:
                    # A pooler may have put another server behind the connection, or a right was revoked.
                    self._prepared = False
                    continue
                forbidden = (error.sqlstate or "")[:2] in _FORBIDDEN and pgconn.status == OK
                if not forbidden or self._level + 1 == len(STATUS):
                    raise
                if self._level == 0:
                    words = "%s: the server does not tell its whole status: %s"
                    say(logger, logging.WARNING, words, self._config.name, error)
                self._level += 1
            else:
                return server_status(columns(reply))

    async def _check_ledger(self, pgconn: PGconn) -> None:
        self._ledger_check_at = self._clock() + self._options.tuning.ledger_look
        try:
            reply = await self._limited(pgconn, LEDGER)
        except psycopg.errors.QueryCanceled:
            # The server is slow just now: check again after the next ping.
            self._ledger_check_at = self._clock()
            return
        usable = reply is not None and reply.ntuples == 1 and reply.get_value(0, 0) == b"t"
        self._owner.ledger_seen(usable)

    async def _end_backends(self, pgconn: PGconn) -> None:
        pids, self._to_terminate = self._to_terminate, []
        pgconn.send_query(termination(pids))
        try:
            await self._read_reply(pgconn, self._options.ping_timeout)
        except psycopg.Error as error:
            if pgconn.status != OK:
                raise
            # The role may not call the function. The node is well; the lanes are closed from this side.
            say(logger, logging.WARNING, "%s: backends cannot be ended: %s", self._config.name, error)

    async def _inspect_backends(self, pgconn: PGconn) -> None:
        asked, self._to_inspect = self._to_inspect, {}
        found: dict[int, Doing] = {}
        try:
            reply = await self._limited(pgconn, activity(list(asked)))
        except psycopg.Error as error:
            if pgconn.status != OK:
                raise
            # The node is well, but the role may not see backends.
            say(logger, logging.WARNING, "%s: backends cannot be looked at: %s", self._config.name, error)
        else:
            found = doings(reply)
        for pid, report in asked.items():
            report(found.get(pid, Doing.UNKNOWN))

    async def _limited(self, pgconn: PGconn, query: bytes) -> PGresult | None:
        """Run a query that may be slow on a server that is well; a frozen server is noticed as by a ping."""
        timeout = self._options.ping_timeout
        pgconn.send_query(limited(query, timeout * _LIMITED_TO))
        return await self._read_reply(pgconn, timeout)

    async def _read_reply(self, pgconn: PGconn, timeout: float) -> PGresult | None:
        deadline = self._clock() + timeout
        reply: PGresult | None = None
        failure: psycopg.Error | None = None
        while True:
            while pgconn.is_busy():
                late = self._clock() >= deadline
                if not late:
                    with anyio.move_on_after(deadline - self._clock()):
                        await anyio.wait_readable(pgconn.socket)
                # Also after the timer: if the loop was busy, the answer may have arrived long ago.
                pgconn.consume_input()
                if late and pgconn.is_busy():
                    raise PingFailed(f"no answer to a ping in {timeout:g} s")
            result = pgconn.get_result()
            if result is None:
                if failure is not None:
                    raise failure
                return reply
            if result.status == FATAL_ERROR:
                failure = error_from_result(result)
            else:
                reply = result
