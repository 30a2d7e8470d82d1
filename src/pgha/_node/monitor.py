"""A node's monitor: a connection of its own for pings; only the monitor tries to reach a node that is down.

The loop of the monitor: connect (with backoff) -> ping -> sleep until the next ping is due, a ping is
requested, or the server sends something unasked (a notice before its end, an end of file) -> ping ...
`pgha._core.health` decides the health of the node; the monitor reports its observations to
`MonitorCallbacks`.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import anyio
import psycopg
from psycopg.errors import error_from_result

from pgha._core.backoff import delay
from pgha._core.health import role_of
from pgha._core.pipeline import Doing
from pgha._options import NodeConfig, Options
from pgha._telemetry.log import say
from pgha._types import Role
from pgha._wire import OK, PGconn, PGresult
from pgha._wire.connect import SYSTEM, ConnectFailed, open_pgconn
from pgha._wire.interrupts import uninterrupted
from pgha._wire.segment import FATAL_ERROR

logger = logging.getLogger("pgha.node")

PING = b"SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())"
"""A query as cheap as SELECT 1, which also returns the role, on every version, and the server's clock."""
_LEDGER = (
    b"SELECT pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE')"
    b" AND pg_catalog.has_table_privilege(c.oid, 'INSERT')"
    b" AND pg_catalog.has_table_privilege(c.oid, 'UPDATE')"
    b" AND pg_catalog.has_table_privilege(c.oid, 'SELECT')"
    b" AND EXISTS (SELECT FROM pg_catalog.pg_attribute a"
    b" WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid"
    b" AND a.attname OPERATOR(pg_catalog.=) 'fingerprint' AND NOT a.attisdropped)"
    b" FROM pg_catalog.pg_class c"
    b" JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace"
    b" WHERE n.nspname OPERATOR(pg_catalog.=) 'pgha' AND c.relname OPERATOR(pg_catalog.=) 'ledger'"
)
"""A query that says whether the ledger is usable. The query reads the catalogue, since to_regclass fails if
the role may not use the schema."""
_ACTIVITY = (
    b"SELECT a.pid, a.state, a.wait_event FROM pg_catalog.unnest(ARRAY[%s]) AS asked (pid),"
    b" pg_catalog.pg_stat_get_activity(asked.pid) AS a"
)
"""A query for the state of backends. The query avoids the view pg_stat_activity, which looks up names of
roles and databases, and needs a right of its own."""
_QUERY_TIMEOUT = 2.0
REJECTED_EVERY = 5.0
"""Seconds between attempts to connect to a node that rejects the connection."""


class PingFailed(Exception):
    """No answer to a ping came in time, although the monitor's connection is open."""


@dataclass(frozen=True, slots=True)
class Ping:
    """The answer to a ping."""

    role: Role
    server_version: int
    sent: float
    """When the ping was sent, by the cluster's clock."""
    received: float
    """When the answer came, by the cluster's clock."""
    clock: float
    """The server's clock, in seconds since 1970."""
    wall: float
    """The local clock when the answer came, in seconds since 1970."""


class MonitorCallbacks(Protocol):
    """The receiver of a monitor's observations."""

    def alive(self, ping: Ping) -> None:
        """Take the answer to a ping."""
        ...

    def identified(self, system: int | None) -> None:
        """Take the system identifier of the server behind a new connection; None if unreadable."""
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
        self._wall = time.time
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
        wait = delay(failures, random.random(), tuning.reconnect_first, tuning.reconnect_most)
        await anyio.sleep(REJECTED_EVERY if rejected else wait)

    async def _watch(self, pgconn: PGconn) -> bool:
        """Ping until the connection fails; return whether the server ever answered."""
        answered = False
        try:
            await self._identify(pgconn)
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
        pgconn.send_query(PING)
        reply = await self._read_reply(pgconn, started + self._options.ping_timeout)
        in_recovery = reply is not None and reply.get_value(0, 0) == b"t"
        read_only = pgconn.parameter_status(b"default_transaction_read_only") == b"on"
        clock = float(reply.get_value(0, 1) or 0) if reply is not None else 0.0
        role, version = role_of(in_recovery, read_only), pgconn.server_version
        self._owner.alive(Ping(role, version, started, self._clock(), clock, self._wall()))

    async def _identify(self, pgconn: PGconn) -> None:
        system: int | None = None
        pgconn.send_query(SYSTEM)
        try:
            # The connection is not in use yet, and a server that has just started may answer slowly.
            reply = await self._read_reply(pgconn, self._clock() + _QUERY_TIMEOUT)
            system = int(reply.get_value(0, 0) or 0) or None if reply is not None else None
        except psycopg.Error as error:
            if pgconn.status != OK:
                raise
            name = self._config.name
            say(logger, logging.WARNING, "%s: the server does not tell who it is: %s", name, error)
        self._owner.identified(system)
        self._ledger_check_at = self._clock()

    async def _check_ledger(self, pgconn: PGconn) -> None:
        self._ledger_check_at = self._clock() + self._options.tuning.ledger_look
        pgconn.send_query(_LEDGER)
        reply = await self._read_reply(pgconn, self._clock() + _QUERY_TIMEOUT)
        usable = reply is not None and reply.ntuples == 1 and reply.get_value(0, 0) == b"t"
        self._owner.ledger_seen(usable)

    async def _end_backends(self, pgconn: PGconn) -> None:
        pids, self._to_terminate = self._to_terminate, []
        ends = b", ".join(b"pg_catalog.pg_terminate_backend(%d)" % pid for pid in pids)
        pgconn.send_query(b"SELECT " + ends)
        try:
            await self._read_reply(pgconn, self._clock() + self._options.ping_timeout)
        except psycopg.Error as error:
            if pgconn.status != OK:
                raise
            # The role may not call the function. The node is well; the lanes are closed from this side.
            say(logger, logging.WARNING, "%s: backends cannot be ended: %s", self._config.name, error)

    async def _inspect_backends(self, pgconn: PGconn) -> None:
        asked, self._to_inspect = self._to_inspect, {}
        pids = b", ".join(b"%d" % pid for pid in asked)
        pgconn.send_query(_ACTIVITY % pids)
        found: dict[int, Doing] = {}
        try:
            # The ping was answered just now; this query may take longer if there are many backends.
            reply = await self._read_reply(pgconn, self._clock() + _QUERY_TIMEOUT)
        except psycopg.Error as error:
            if pgconn.status != OK:
                raise
            # The node is well, but the role may not see backends.
            say(logger, logging.WARNING, "%s: backends cannot be looked at: %s", self._config.name, error)
        else:
            rows = range(reply.ntuples) if reply is not None else ()
            found = {
                int(reply.get_value(row, 0) or 0): _doing(reply, row) for row in rows if reply is not None
            }
        for pid, report in asked.items():
            report(found.get(pid, Doing.UNKNOWN))

    async def _read_reply(self, pgconn: PGconn, deadline: float) -> PGresult | None:
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
                    raise PingFailed(f"no answer to a ping in {self._options.ping_timeout:g} s")
            result = pgconn.get_result()
            if result is None:
                if failure is not None:
                    raise failure
                return reply
            if result.status == FATAL_ERROR:
                failure = error_from_result(result)
            else:
                reply = result


def _doing(reply: PGresult, row: int) -> Doing:
    state, event = reply.get_value(row, 1), reply.get_value(row, 2)
    if state is None:
        return Doing.UNKNOWN  # another role's backend: the server does not say
    if event == b"SyncRep":
        return Doing.REPLICATING
    # A backend with a part of a request waits for the rest (ClientRead); after a failed frame it is idle in a
    # transaction block.
    return Doing.IDLE if state.startswith(b"idle") or event == b"ClientRead" else Doing.RUNNING
