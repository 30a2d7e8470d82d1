"""The field of a trial: servers, proxies, a cluster and its load, and the methods that scenarios use."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, TypeVar

import anyio
import psycopg

import pgha
from pgha import chaos
from pgha._trials.load import WRITE, Load, applied_by, note_failure
from pgha._trials.trial import Setup, Sighting, violation
from pgha.chaos.checkers import Promise, Row, Violation
from pgha.chaos.history import Ending, History, Open, Recorder

T = TypeVar("T")
SLOW_WRITE = "INSERT INTO pgha_trial (key, writer, number) SELECT %s, %s, %s FROM pg_sleep(30)"
_POLL = 0.005
_SIBLING = "SELECT pg_sleep(60) /* sibling */"


@dataclass(slots=True)
class Field:
    """The servers, the cluster and the load of a trial, for a scenario.

    No method here has a time limit of its own. The trial has one, and reports what the scenario was waiting
    for (`waiting_for`).
    """

    setup: Setup
    nodes: chaos.Nodes
    proxies: chaos.Proxies | None
    cluster: pgha.Cluster
    load: Load
    recorder: Recorder
    injector: chaos.Injector
    application: str
    """The cluster's application_name."""
    random: Random
    promise: Promise
    violations: list[Violation] = field(default_factory=list)
    sightings: list[Sighting] = field(default_factory=list)
    expected: set[str] = field(default_factory=set)
    """Keys of operations whose failure the scenario itself provokes."""
    splitted: bool = False
    """Whether there are two primaries, whose data replication no longer makes equal."""
    survivors: set[str] | None = None
    """The nodes whose data is checked at the end; None: all nodes."""
    tail: bool = False
    """Whether the scenario loses the newest writes of a forgiven node (see `forgive`)."""
    shown: list[str] = field(default_factory=list)
    """The texts of pgha's events and log records."""
    serial: int = 0
    waiting_for: str = "the scenario's end"

    # Claims

    def claim(self, holds: bool, rule: str, text: str) -> None:
        """Record a violation of `rule` if `holds` is false."""
        if not holds:
            self.violations.append(violation(rule, text))

    def forgive(self, node: chaos.Node) -> None:
        """Allow that writes of `node` are lost.

        The node is about to be lost with writes that no other node has. Asynchronous replication does not
        prevent that.
        """
        self.promise = replace(self.promise, may_lose=frozenset({*self.promise.may_lose, node.name}))

    def lost_its_tail(self, history: History, rows: Mapping[str, Iterable[Row]]) -> Iterator[str]:
        """Yield the keys of writes that forgiven nodes acknowledged and that are on no node."""
        there = {key for found in rows.values() for key, _ in found}
        return (
            entry.key
            for entry in history
            if entry.kind == "write" and entry.ending == "acknowledged"
            if entry.node in self.promise.may_lose and entry.key not in there
        )

    def survivor(self, node: chaos.Node) -> None:
        """Declare that only the data of `node` is checked at the end."""
        self.survivors = {node.name}
        self.splitted = True

    def split(self, *primaries: chaos.Node) -> None:
        """Declare that there are several primaries now, each with the writes that it acknowledged itself."""
        self.promise = replace(self.promise, everywhere=False)
        self.splitted = True

    # Nodes

    @property
    def victim(self) -> chaos.Node:
        """The node that takes the writes."""
        name = self.load.writer or self.load.reader
        return self.nodes[name] if name is not None else self.nodes[0]

    @property
    def proxy(self) -> chaos.Proxy:
        """The proxy in front of the victim."""
        return self.proxy_of(self.victim)

    def proxy_of(self, node: chaos.Node) -> chaos.Proxy:
        if self.proxies is None:
            raise chaos.ChaosError("this trial has no proxies")
        return self.proxies[node.name]

    async def up(self, node: chaos.Node) -> None:
        """Wait until the cluster uses the node."""
        await self.seen(node, "up")

    async def seen(self, node: chaos.Node, *states: str) -> None:
        """Wait until the cluster sees the node in one of the states."""
        await self.until(
            lambda: self.cluster.nodes[node.name].state in states,
            f"{node.name} becomes {' or '.join(states)}",
        )

    async def connection_refused(self, node: chaos.Node) -> None:
        """Wait until the cluster has tried in vain to connect to a killed node, and its status says so.

        The end of a connection alone says nothing about the conninfo, and the node may be back before the
        cluster tries again.
        """
        await self.until(
            lambda: "connection failed" in self.cluster.nodes[node.name].reason,
            f"a connection to {node.name} is refused",
        )

    async def running(self, node: chaos.Node, text: str, wait_event: str | None = None) -> int:
        """Wait until a backend of the cluster runs a statement that contains `text`; return its process id.

        With `wait_event`, the backend must also wait for that event.
        """
        found: list[int] = []

        async def look() -> bool:
            rows = await node.execute(
                "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND application_name = %s"
                " AND strpos(query, %s) > 0 AND coalesce(wait_event = %s, %s)",
                [self.application, text, wait_event, wait_event is None],
            )
            found[:] = [row[0] for row in rows]
            return bool(found)

        await self.until(look, f"{text!r} runs on {node.name}")
        return found[0]

    async def none_runs(self, node: chaos.Node, text: str) -> None:
        """Wait until none of the cluster's backends runs a statement that contains `text`."""

        async def look() -> bool:
            rows = await node.execute(
                "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND application_name = %s"
                " AND strpos(query, %s) > 0",
                [self.application, text],
            )
            return not rows

        await self.until(look, f"{text!r} ends on {node.name}")

    # Faults

    async def strike(self, kind: chaos.FaultKind, node: chaos.Node) -> None:
        """Inflict a fault and heal it at once (a restart heals itself)."""
        async with self.struck(kind, node):
            pass

    @asynccontextmanager
    async def struck(self, kind: chaos.FaultKind, node: chaos.Node) -> AsyncGenerator[None]:
        """Inflict a fault during the body, and heal it afterwards."""
        await self.begin(kind, node)
        yield
        await self.heal(node)

    async def begin(self, kind: chaos.FaultKind, node: chaos.Node) -> None:
        """Inflict a fault, which `heal` or the end of the trial heals."""
        await self.injector.strike(kind, node.name)

    async def heal(self, node: chaos.Node) -> None:
        await self.injector.heal(node.name)

    async def heal_all(self) -> None:
        """Heal the faults of all nodes and proxies. Cancellation does not interrupt this."""
        with anyio.CancelScope(shield=True):
            for proxy in self.proxies or ():
                proxy.heal()
            for node in self.nodes:
                await self.injector.heal(node.name)

    @asynccontextmanager
    async def sibling(self, node: chaos.Node) -> AsyncGenerator[int]:
        """Open a connection that is not the cluster's, and yield the process id of its busy backend."""
        async with self.crowd(node, 1):
            yield await self.others_run(node, _SIBLING)

    async def others_run(self, node: chaos.Node, query: str) -> int:
        """Wait until any backend runs exactly `query`; return its process id."""
        rows: list[Any] = []

        async def look() -> bool:
            rows[:] = await node.execute(
                "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND query = %s", [query]
            )
            return bool(rows)

        await self.until(look, f"{query[:30]!r} runs on {node.name}")
        return int(rows[0][0])

    @asynccontextmanager
    async def crowd(self, node: chaos.Node, count: int) -> AsyncGenerator[None]:
        """Let `count` other clients try to keep one connection each."""

        async def one() -> None:
            while True:
                try:
                    await node.execute(_SIBLING, timeout=120)
                except psycopg.OperationalError:
                    await anyio.sleep(0.05)  # refused, or disconnected: try again

        async with anyio.create_task_group() as tasks:
            for _ in range(count):
                tasks.start_soon(one)
            yield
            tasks.cancel_scope.cancel()

    async def until_refused(self, node: chaos.Node) -> None:
        """Wait until the node refuses connections because none is left."""

        async def refused() -> bool:
            try:
                await node.execute("SELECT 1")
            except psycopg.OperationalError as error:
                return "too many clients" in str(error) or "remaining connection slots" in str(error)
            return False

        await self.until(refused, f"{node.name} has no connection left")

    # Time

    async def more(self, count: int = 50, *, node: chaos.Node | None = None) -> None:
        """Wait for `count` more acknowledged operations (of `node`, if given)."""
        self.waiting_for = f"{count} more answers{f' of {node.name}' if node is not None else ''}"
        await self.load.more(count, node=None if node is None else node.name)

    async def until(self, condition: Callable[[], bool | Awaitable[bool]], what: str) -> None:
        """Poll `condition` until it is true. `what` describes it."""
        self.waiting_for = what
        while True:
            answer = condition()
            if answer if isinstance(answer, bool) else await answer:
                return
            await anyio.sleep(_POLL)

    async def pause(self, seconds: float) -> None:
        """Sleep while a fault lasts: its duration is a part of the scenario."""
        await anyio.sleep(seconds)

    # Operations of the scenario's own

    async def write(
        self,
        name: str,
        *,
        query: str = WRITE,
        writer: int = 9000,
        may_fail: bool = False,
        alone: bool = False,
        timeout: float | None = None,
        **options: Any,
    ) -> Ending:
        """Do one recorded write, and return its outcome.

        Args:
            name: The key of the write in the history and in the table.
            query: The statement.
            writer: The number of the writer in the table.
            may_fail: Whether the scenario provokes an error.
            alone: Whether `name` is the only parameter of the statement.
            timeout: The caller's deadline in seconds.
            options: More arguments of `Cluster.submit`.
        """
        if may_fail:
            self.expected.add(name)
        keyed = options.get("idempotency_key") is not None
        entry = self.recorder.begin("write", name, keyed=keyed, timeout=timeout)
        params = [name] if alone else [name, writer, 1]
        operation = self.cluster.submit(query, params, timeout=timeout, **options)
        return await self.ending_of(entry, operation)

    @asynccontextmanager
    async def writing(self, name: str, **options: Any) -> AsyncGenerator[list[Ending]]:
        """Run a `write` concurrently with the body. Afterwards, the yielded list holds its outcome."""
        ended: list[Ending] = []

        async def write() -> None:
            ended.append(await self.write(name, **options))

        async with self.aside(write):
            yield ended

    async def ending_of(self, entry: Open, operation: pgha.Operation[Any]) -> Ending:
        """Await the operation, record its outcome, and return it."""
        try:
            result = await operation
        except psycopg.Error as error:
            return note_failure(entry, error, operation)
        record = operation.record
        entry.acknowledged(node=applied_by(result, record), record=record)
        return "acknowledged"

    async def refused(self, query: str, error: type[Exception]) -> None:
        """Run a statement that must be refused with this class of error."""
        try:
            await self.cluster.execute(query)
        except error:
            return
        except psycopg.Error as other:
            self.claim(False, "refused", f"{query!r} ended with {other!r}, not with {error.__name__}")
        else:
            self.claim(False, "refused", f"{query!r} was accepted")

    @asynccontextmanager
    async def aside(self, work: Callable[[], Awaitable[object]]) -> AsyncGenerator[None]:
        """Run `work` concurrently with the body, and wait for its end when the body is left."""
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                await work()

            tasks.start_soon(run)
            yield
            self.waiting_for = "the end of the scenario's own operation"
