"""A state machine over two servers: operations and faults in any order, one at a time, then the checks.

Between two rules the event loop stands still while the servers go on, which the client notices afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any, ClassVar

import anyio
import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from support.common import eventually, unique

import pgha
import pgha.chaos
from pgha._trials.load import READ, ROWS, TABLE, WRITE, applied_by, by_origin, note_failure
from pgha._trials.rules import shown, strayed, torn, undecided, unfounded
from pgha.chaos import Injector, LocalNode, Nodes, Proxies, nothing_left, proxied
from pgha.chaos.checkers import Promise, check
from pgha.chaos.history import Open, Recorder
from pgha.chaos.properties import (
    AsyncRuleBasedStateMachine,
    Backend,
    invariant,
    precondition,
    rule,
    run_async_state_machine_as_test,
)

TIMES = float(os.environ.get("PGHA_SCHEDULES", "1"))
SETTINGS = settings(
    max_examples=max(1, round(12 * TIMES)),
    stateful_step_count=15,
    deadline=None,
    derandomize=bool(os.environ.get("CI")) and os.environ.get("PGHA_LONG") != "1",
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
LASTING = st.sampled_from(["kill", "freeze", "crash", "freeze_backend", "drop_both", "drop_down", "refuse"])
AT_ONCE = st.sampled_from(["terminate", "kill_backend", "reset", "close"])
WHICH = st.integers(0, 1)


class Failover(AsyncRuleBasedStateMachine):
    """At most one node is harmed at any moment, so that no operation may fail except in doubt."""

    nodes: ClassVar[Nodes]

    async def setup(self) -> None:
        self.count = 0
        self.harmed: int | None = None
        self.recorder = Recorder()
        self.doubts: list[tuple[Open, pgha.CommitInDoubt]] = []
        application = unique("machine")
        self.stack = AsyncExitStack()
        enter = self.stack.enter_async_context
        await self.nodes.execute("TRUNCATE pgha_trial")
        self.proxies: Proxies = await enter(proxied(self.nodes))
        left = nothing_left(*self.nodes, *self.proxies, application_name=application)
        self.left = await enter(left)
        named = [pgha.Node(one.dsn, one.name) for one in self.proxies]
        self.cluster = await enter(pgha.open_cluster(*named, min_ready=2, application_name=application))
        await self.cluster.ledger.install()
        self.injector = Injector(self.nodes, self.proxies)

    def key(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    @rule(idempotent=st.booleans())
    async def write(self, idempotent: bool) -> None:
        entry = self.recorder.begin(
            "write", self.key("w"), repeatable=idempotent, writer=0, number=self.count
        )
        operation = self.cluster.submit(WRITE, [entry.key, 0, self.count], idempotent=idempotent)
        await self.noted(entry, operation)

    @rule(timeout=st.sampled_from([2.0, 0.3]), which=st.none() | WHICH)
    async def keyed_write(self, timeout: float, which: int | None) -> None:
        """Submit a keyed write.

        A write in doubt waits for its node, which is not healed meanwhile, and is resolved at the end.
        """
        route = pgha.nearest() if which is None else pgha.pin(self.nodes[which].name)
        entry = self.recorder.begin("write", self.key("k"), keyed=True, timeout=timeout)
        operation = self.cluster.submit(
            WRITE,
            [entry.key, 3, self.count],
            idempotency_key=pgha.new_idempotency_key(),
            timeout=timeout,
            route=route,
        )
        error = await self.noted(entry, operation)
        if isinstance(error, pgha.CommitInDoubt):
            self.doubts.append((entry, error))

    async def noted(self, entry: Open, operation: pgha.Operation[Any]) -> psycopg.Error | None:
        try:
            result = await operation
        except psycopg.Error as error:
            note_failure(entry, error, operation)
            return error
        record = operation.record
        entry.acknowledged(node=applied_by(result, record), record=record)
        return None

    @rule(fastest=st.booleans())
    async def read(self, fastest: bool) -> None:
        entry = self.recorder.begin("read", self.key("r"), writer=0)
        route = pgha.fastest() if fastest else pgha.nearest()
        operation = self.cluster.submit(READ, [entry.key, 0], read=True, route=route)
        try:
            result = await operation
        except psycopg.Error as error:
            note_failure(entry, error, operation)
        else:
            answer, seen = result.one()
            record = None if fastest else operation.record
            entry.acknowledged(node=result.node, record=record, answer=answer, number=seen)

    @rule(rows=st.integers(2, 4))
    async def batch(self, rows: int) -> None:
        name = self.key("b")
        entries = [self.recorder.begin("write", f"{name}.{part}") for part in range(rows)]
        try:
            results = await self.cluster.execute_batch([(WRITE, [one.key, 1, 1]) for one in entries])
        except psycopg.Error as error:
            for one in entries:
                note_failure(one, error)
        else:
            for one, result in zip(entries, results, strict=True):
                one.acknowledged(node=result.node)

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.01]))
    async def change_mind(self, seconds: float) -> None:
        entry = self.recorder.begin("write", self.key("c"))
        with anyio.move_on_after(seconds) as scope:
            try:
                result = await self.cluster.execute(WRITE, [entry.key, 2, 1])
                entry.acknowledged(node=result.node)
            except psycopg.Error as error:
                note_failure(entry, error)
        if scope.cancelled_caught:
            entry.doubt("left by its caller")

    @precondition(lambda self: self.harmed is None)
    @rule(kind=LASTING, which=WHICH)
    async def harm(self, kind: pgha.chaos.FaultKind, which: int) -> None:
        self.harmed = which
        await self.injector.strike(kind, which)

    @precondition(lambda self: self.harmed is not None)
    @rule()
    async def heal(self) -> None:
        assert self.harmed is not None
        await self.mended(self.harmed)
        self.harmed = None

    @precondition(lambda self: self.harmed is None)
    @rule(kind=AT_ONCE, which=WHICH)
    async def strike(self, kind: pgha.chaos.FaultKind, which: int) -> None:
        await self.injector.strike(kind, which)
        await self.mended(which)

    async def mended(self, which: int) -> None:
        """Wait until the node is used again: otherwise the next fault could leave no node for a moment."""
        await self.injector.heal(which)
        name = self.nodes[which].name
        await eventually(lambda: self.cluster.nodes[name].state == "up", 20, f"{name} is up")

    @invariant()
    async def the_cluster_can_be_looked_at(self) -> None:
        status = self.cluster.nodes
        assert list(status) == list(self.nodes.names)
        assert self.cluster.statistics().in_flight >= 0

    async def teardown(self) -> None:
        try:
            await self.injector.heal()
            for entry, error in self.doubts:
                entry.resolved(await error.resolve(20))
        finally:
            await self.stack.aclose()
        ports = {node.port: node.name for node in self.nodes}
        history = self.recorder.history()
        rows = by_origin(await self.nodes.execute(ROWS), ports)
        promise = Promise(everywhere=False, max_attempts=5)
        keyed = [*undecided(history), *unfounded(history), *strayed(history)]
        found = [*check(history, rows, promise), *shown(history), *torn(history, rows), *keyed, *self.left]
        assert not found, "\n".join(map(str, found))


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Nodes]:
    nodes = Nodes([LocalNode(f"n{i}", settings={"log_min_messages": "fatal"}) for i in (1, 2)])

    async def begin() -> None:
        for node in nodes:
            await node.__aenter__()  # type: ignore[attr-defined]
            await node.start()
        await nodes.execute(TABLE)

    async def end() -> None:
        for node in nodes:
            await node.close()

    try:
        anyio.run(begin)
        yield nodes
    finally:
        anyio.run(end)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_any_order_of_operations_and_faults(two_nodes: Nodes, backend: Backend) -> None:
    Failover.nodes = two_nodes
    run_async_state_machine_as_test(Failover, backend=backend, settings=SETTINGS)
