"""`pgha soak`: spikes of operations on running nodes, until the user ends it.

All operations of a spike are submitted at once. The next spike begins when they are all done, so at most one
spike is in flight. With a rate, a spike also waits for its time; lost time is not made up. Every answer is
checked.
"""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import anyio
import psycopg

import pgha
from pgha._options import parse_nodes
from pgha.cli._output import OutputClosed, first_of, output_closed, write
from pgha.cli._soak.tally import Tally

_FAILOVER_TIMEOUT = 5.0
_TIMEOUT = 30.0
"""Seconds for one operation. One that hangs is counted as an error instead of being waited for."""
_DRAIN = 2.0
"""Seconds to wait, at the end, for operations in flight; and again after cancelling the remaining ones."""
_TABLE_TIMEOUT = 5.0

_READ = "SELECT %s::int"
_WRITE = "INSERT INTO pgha_soak (key) VALUES (%s)"
_THERE = "SELECT to_regclass('pgha_soak') IS NOT NULL"
_CREATE = "CREATE TABLE pgha_soak (key uuid PRIMARY KEY, at timestamptz DEFAULT now())"
_DROP = "DROP TABLE pgha_soak"


@dataclass(frozen=True, slots=True)
class SoakOptions:
    """The options of the command."""

    dsns: tuple[str, ...] = field(repr=False)
    """Conninfo strings or URIs. Each names one node or several, and may hold a password."""
    spike: int = 999
    rate: float | None = None
    """Maximum operations per second; None: no limit."""
    pin: str | None = None
    """The name of the node that receives every operation; None: any node."""
    write: bool = False
    seconds: float | None = None
    loop: str = "asyncio"
    json: bool = False


class WrongAnswer(Exception):
    """An operation returned a result that does not belong to its query."""


class _Unusable(Exception):
    """The soak cannot begin, for the reason in the message."""


def soak(options: SoakOptions) -> int:
    """Run until SIGINT, SIGTERM or the end of the requested time, and return the exit code.

    0: no errors. A write in doubt is not an error, because the soak does not declare its writes idempotent.
    1: errors, or no usable node. 2: unusable arguments. 130 or 143: a signal arrived before the load began.
    """
    run = _Run(options)
    try:
        _check(options)
        anyio.run(run.until_ended, backend=options.loop)
    except* OutputClosed as closed:
        run.code = output_closed(closed, "soak")
    except* KeyboardInterrupt:
        run.code = 128 + signal.SIGINT
    except* (pgha.NoNodeAvailable, pgha.ConfigError, _Unusable) as group:
        error = first_of(group)
        sys.stderr.write(f"pgha soak: {' '.join(str(error).split())}\n")
        run.code = 2 if isinstance(error, pgha.ConfigError) else 1
    return run.code


def _check(options: SoakOptions) -> None:
    """Raise `pgha.ConfigError` for unusable options, before any connection is opened."""
    names = [node.name for node in parse_nodes(options.dsns)]
    if options.pin is not None and options.pin not in names:
        raise pgha.ConfigError(f"--pin: no node is named {options.pin!r}; the nodes are {', '.join(names)}")


class _Run:
    """One soak, from its first connection to its summary."""

    def __init__(self, options: SoakOptions) -> None:
        self.code = 1
        self._options = options
        self._tally = Tally(time.monotonic())
        self._pending: set[pgha.Operation[Any]] = set()
        self._all_done = anyio.Event()
        self._opening: anyio.CancelScope | None = None
        self._ending = anyio.Event()
        self._hurry = anyio.Event()
        if options.pin is None:
            self._route: pgha.Pin | pgha.Nearest = pgha.nearest()
        else:
            self._route = pgha.pin(options.pin)

    async def until_ended(self) -> None:
        """Run the soak until a signal ends it.

        The first signal ends the soak in good order. The second ends the wait for operations in flight.
        """
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with anyio.create_task_group() as tasks:
                with anyio.CancelScope() as self._opening:
                    tasks.start_soon(self._listen, signals)
                    await self._soak()
                tasks.cancel_scope.cancel()

    async def _listen(self, signals: AsyncIterable[signal.Signals]) -> None:
        async for number in signals:
            if self._opening is not None:
                self.code = 128 + number
                self._opening.cancel()
            elif self._ending.is_set():
                self._hurry.set()
            else:
                self._ending.set()

    async def _soak(self) -> None:
        options = self._options
        opened = pgha.open_cluster(
            *options.dsns,
            failover_timeout=_FAILOVER_TIMEOUT,
            timeout=_TIMEOUT,
            max_queued=max(65_536, options.spike),
            application_name="pgha soak",
        )
        async with opened as cluster, _table(cluster, wanted=options.write):
            # From here on a signal ends the load; it no longer cancels the opening.
            self._opening = None
            await self._load(cluster)
            now, retried = time.monotonic(), cluster.statistics().retried
        self._tell_end(now, retried)
        self.code = 1 if self._tally.failed else 0

    async def _load(self, cluster: pgha.Cluster) -> None:
        self._tally = Tally(time.monotonic())
        async with anyio.create_task_group() as tasks:
            if not self._options.json:
                tasks.start_soon(self._tell_seconds, cluster)
            with anyio.move_on_after(self._options.seconds):
                async with anyio.create_task_group() as working:
                    working.start_soon(self._spikes, cluster)
                    await self._ending.wait()
                    working.cancel_scope.cancel()
            self._ending.set()
            await self._drain()
            tasks.cancel_scope.cancel()

    async def _spikes(self, cluster: pgha.Cluster) -> None:
        size, rate = self._options.spike, self._options.rate
        due = time.monotonic()
        while True:
            self._all_done = anyio.Event()
            for number in range(size):
                self._submit(cluster, number)
            self._tally.spikes += 1
            await self._all_done.wait()
            if rate is not None:
                now = time.monotonic()
                due = max(due + size / rate, now)
                await anyio.sleep(due - now)

    def _submit(self, cluster: pgha.Cluster, number: int) -> None:
        if self._options.write:
            operation = cluster.submit(_WRITE, [uuid4()], route=self._route)
        else:
            operation = cluster.submit(_READ, [number], read=True, route=self._route)
        self._tally.submitted += 1
        self._pending.add(operation)
        operation.when_done(lambda one: self._done(one, number))

    def _done(self, operation: pgha.Operation[Any], number: int) -> None:
        operation.retrieve()
        self._pending.discard(operation)
        result, error = operation.value, operation.failure
        if isinstance(error, pgha.OperationCancelled):
            self._tally.unfinished += 1  # only `_drain` cancels operations
        elif result is None:
            self._tally.ended_with(error or WrongAnswer(f"operation {number} returned no result"))
        elif self._right(result, number):
            self._tally.succeeded(result.node, result.latency)
        else:
            self._tally.ended_with(WrongAnswer(f"operation {number} returned {result!r}"))
        if not self._pending:
            self._all_done.set()

    def _right(self, result: pgha.Result[Any], number: int) -> bool:
        return result.rowcount == 1 if self._options.write else list(result) == [(number,)]

    async def _drain(self) -> None:
        """Wait for operations in flight, then cancel them. `open_cluster` handles any that still remain."""
        for _ in range(2):
            if not self._pending:
                return
            with anyio.move_on_after(_DRAIN):
                async with anyio.create_task_group() as waiting:
                    waiting.start_soon(self._hurried, waiting.cancel_scope)
                    await self._all_done.wait()
                    waiting.cancel_scope.cancel()
            for operation in tuple(self._pending):
                operation.cancel()

    async def _hurried(self, scope: anyio.CancelScope) -> None:
        await self._hurry.wait()
        scope.cancel()

    async def _tell_seconds(self, cluster: pgha.Cluster) -> None:
        terminal = sys.stdout.isatty()
        second = 0
        while True:
            second += 1
            await anyio.sleep(max(0.0, self._tally.began + second - time.monotonic()))
            line = self._tally.line(time.monotonic(), cluster.nodes)
            if terminal:
                width = shutil.get_terminal_size().columns - 1
                write(f"\r{line[:width]:<{width}}", sys.stdout, end="")
            else:
                write(line, sys.stdout)

    def _tell_end(self, now: float, retried: int) -> None:
        options = self._options
        if options.json:
            asked = {"spike": options.spike, "pin": options.pin, "write": options.write, "loop": options.loop}
            write(self._tally.json(now, retried, asked), sys.stdout)
        else:
            write(f"\n{self._tally.text(now, retried)}", sys.stdout)


@asynccontextmanager
async def _table(cluster: pgha.Cluster, *, wanted: bool) -> AsyncGenerator[None]:
    """Create the table of `--write` on every primary. At the end, drop each table that was created here."""
    made: list[str] = []
    try:
        if wanted:
            await _make_tables(cluster, made)
        yield
    finally:
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                for name in made:
                    tasks.start_soon(_drop_table, cluster, name)


async def _make_tables(cluster: pgha.Cluster, made: list[str]) -> None:
    with anyio.move_on_after(_FAILOVER_TIMEOUT):
        await cluster.wait_ready()
    nodes = cluster.nodes.values()
    # A node that came up later would have no table, and every write sent to it would fail.
    if absent := [f"{node.name} is {node.state} ({node.reason})" for node in nodes if node.state != "up"]:
        raise _Unusable(f"--write needs every node up, to create its table: {', '.join(absent)}")
    primaries = [node.name for node in nodes if node.writable]
    if not primaries:
        raise _Unusable("--write needs a primary, but no node takes writes")
    for name in primaries:
        route = pgha.pin(name)
        try:
            if await cluster.fetch_value(_THERE, route=route):
                continue
            made.append(name)  # before the CREATE, since a cancellation leaves open whether it was applied
            await cluster.execute(_CREATE, route=route, timeout=_TABLE_TIMEOUT)
        except psycopg.Error as error:
            if name in made and not isinstance(error, pgha.CommitInDoubt):
                made.remove(name)
            raise _Unusable(f"table pgha_soak could not be created on {name}: {error}") from error


async def _drop_table(cluster: pgha.Cluster, name: str) -> None:
    try:
        await cluster.execute(_DROP, idempotent=True, route=pgha.pin(name), timeout=_TABLE_TIMEOUT)
    except psycopg.errors.UndefinedTable:
        return  # the DROP was retried after a lost answer, or another program dropped the table
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        sys.stderr.write(f"pgha soak: table pgha_soak could not be dropped on {name}: {reason}\n")
