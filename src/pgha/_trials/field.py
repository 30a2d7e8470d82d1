"""The field of a trial: servers, proxies, a cluster and its load, and what a scenario works with."""

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
    """What a scenario has in hand. Nothing in here has a bound of its own: the trial has, and says then what
    was waited for (`waiting_for`).
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
    """Keys of operations whose failure the scenario provokes itself."""
    splitted: bool = False
    """Two primaries: replication does not make them the same any more."""
    survivors: set[str] | None = None
    """The nodes whose data counts in the end; None: all."""
    tail: bool = False
    """The scenario loses the newest writes of a node that it forgives."""
    shown: list[str] = field(default_factory=list)
    """What pgha told, in its own words: events, log records."""
    serial: int = 0
    waiting_for: str = "the scenario's end"

    # Claims

    def claim(self, holds: bool, rule: str, text: str) -> None:
        """A promise that the scenario looks at by itself."""
        if not holds:
            self.violations.append(violation(rule, text))

    def forgive(self, node: chaos.Node) -> None:
        """It is about to be lost with writes that no other has: asynchronous replication promises no more."""
        self.promise = replace(self.promise, may_lose=frozenset({*self.promise.may_lose, node.name}))

    def lost_its_tail(self, history: History, rows: Mapping[str, Iterable[Row]]) -> Iterator[str]:
        """The keys of what was acknowledged by those who were forgiven, and is nowhere."""
        there = {key for found in rows.values() for key, _ in found}
        return (
            entry.key
            for entry in history
            if entry.kind == "write" and entry.ending == "acknowledged"
            if entry.node in self.promise.may_lose and entry.key not in there
        )

    def survivor(self, node: chaos.Node) -> None:
        """The only node whose data counts in the end."""
        self.survivors = {node.name}
        self.splitted = True

    def split(self, *primaries: chaos.Node) -> None:
        """There are several primaries from now on: each keeps what it acknowledged itself."""
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
        """The proxy before the victim."""
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

    async def running(self, node: chaos.Node, text: str, wait_event: str | None = None) -> int:
        """Wait until one of the cluster's backends runs a statement with ``text`` in it (and waits for that
        event); its process id.
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
        """Wait until none of the cluster's backends runs a statement with ``text`` in it."""

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
        """Do it, and heal it at once (a restart comes back by itself)."""
        async with self.struck(kind, node):
            pass

    @asynccontextmanager
    async def struck(self, kind: chaos.FaultKind, node: chaos.Node) -> AsyncGenerator[None]:
        """The fault is there in the body, and healed behind it."""
        await self.begin(kind, node)
        yield
        await self.heal(node)

    async def begin(self, kind: chaos.FaultKind, node: chaos.Node) -> None:
        """Do it; `heal` or the end of the trial heals it."""
        await self.injector.strike(kind, node.name)

    async def heal(self, node: chaos.Node) -> None:
        await self.injector.heal(node.name)

    async def heal_all(self) -> None:
        """Every node runs and every line is clean afterwards; cancellation waits for it."""
        with anyio.CancelScope(shield=True):
            for proxy in self.proxies or ():
                proxy.heal()
            for node in self.nodes:
                await self.injector.heal(node.name)

    @asynccontextmanager
    async def sibling(self, node: chaos.Node) -> AsyncGenerator[int]:
        """The process id of somebody else's backend, busy."""
        async with self.crowd(node, 1):
            yield await self.others_run(node, _SIBLING)

    async def others_run(self, node: chaos.Node, query: str) -> int:
        """Wait until somebody's backend runs just that; its process id."""
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
        """So many others try to have a connection each."""

        async def one() -> None:
            while True:
                try:
                    await node.execute(_SIBLING, timeout=120)
                except psycopg.OperationalError:
                    await anyio.sleep(0.05)  # refused, or thrown out: it comes again

        async with anyio.create_task_group() as tasks:
            for _ in range(count):
                tasks.start_soon(one)
            yield
            tasks.cancel_scope.cancel()

    async def until_refused(self, node: chaos.Node) -> None:
        """Wait until it has no connection left."""

        async def refused() -> bool:
            try:
                await node.execute("SELECT 1")
            except psycopg.OperationalError as error:
                return "too many clients" in str(error) or "remaining connection slots" in str(error)
            return False

        await self.until(refused, f"{node.name} has no connection left")

    # Time

    async def more(self, count: int = 50, *, node: chaos.Node | None = None) -> None:
        """Wait for so many more acknowledged operations (of that node)."""
        self.waiting_for = f"{count} more answers{f' of {node.name}' if node is not None else ''}"
        await self.load.more(count, node=None if node is None else node.name)

    async def until(self, condition: Callable[[], bool | Awaitable[bool]], what: str) -> None:
        """Ask until it is so."""
        self.waiting_for = what
        while True:
            answer = condition()
            if answer if isinstance(answer, bool) else await answer:
                return
            await anyio.sleep(_POLL)

    async def pause(self, seconds: float) -> None:
        """Let a fault last: its length is a part of the scenario."""
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
        """One recorded write, called ``name`` in history and table, and how it ended. ``may_fail``: the
        scenario provokes an error. ``alone``: the name is its only parameter.
        """
        if may_fail:
            self.expected.add(name)
        keyed = options.get("key") is not None
        entry = self.recorder.begin("write", name, keyed=keyed, timeout=timeout)
        params = [name] if alone else [name, writer, 1]
        operation = self.cluster.submit(query, params, timeout=timeout, **options)
        return await self.ending_of(entry, operation)

    @asynccontextmanager
    async def writing(self, name: str, **options: Any) -> AsyncGenerator[list[Ending]]:
        """A `write` goes on beside the body; how it ended is in the list behind it."""
        ended: list[Ending] = []

        async def write() -> None:
            ended.append(await self.write(name, **options))

        async with self.aside(write):
            yield ended

    async def ending_of(self, entry: Open, operation: pgha.Operation[Any]) -> Ending:
        """Await it and write down how it ended."""
        try:
            result = await operation
        except psycopg.Error as error:
            return note_failure(entry, error, operation)
        record = operation.record
        entry.acknowledged(node=applied_by(result, record), record=record)
        return "acknowledged"

    async def refused(self, query: str, error: type[Exception]) -> None:
        """The statement has to be refused, with that class of error."""
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
        """``work`` goes on beside the body; leaving waits for its end."""
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                await work()

            tasks.start_soon(run)
            yield
            self.waiting_for = "the end of the scenario's own operation"
