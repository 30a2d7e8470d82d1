"""A trial, from the start of its servers to the final checks.

The order at the end matters. The load is told to stop, all faults are healed, and every operation ends. Then
the cluster is closed, and must leave nothing behind. Then replication catches up, and only then the rows of
all nodes are read and checked.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random

import anyio
import sniffio
from psycopg.rows import TupleRow

import pgha
from pgha import chaos
from pgha._trials.field import Field
from pgha._trials.load import ROWS, TABLE, Load, by_origin
from pgha._trials.rules import (
    betrayed,
    fickle,
    logged,
    promise_of,
    shown,
    strayed,
    torn,
    undecided,
    unfounded,
)
from pgha._trials.servers import servers
from pgha._trials.trial import Setup, Sighting, Trial, Watch, unwatched, violation
from pgha.chaos.checkers import check
from pgha.chaos.history import Recorder

_ACT_BOUND = 60.0
"""Seconds that a scenario may take. They are generous, so that only a scenario that hangs exceeds them."""
_FAILOVER = 30.0
"""The clusters' `failover_timeout`."""
_END_BOUND = 40.0
"""Seconds within which every operation must end once all faults are healed: above `_FAILOVER`."""
_SETTLE_BOUND = 30.0
"""Seconds for resolving all writes in doubt by the ledger, once all faults are healed."""


async def play(
    title: str,
    setup: Setup,
    act: Callable[[Field], Awaitable[None]],
    *,
    seed: int = 0,
    watch: Watch = unwatched,
    bound: float = _ACT_BOUND,
    schedule: chaos.Schedule | None = None,
) -> Trial:
    """Run `act` on a field made from `setup`, and check the results.

    Broken promises of pgha are returned as violations, not raised.

    Raises:
        ChaosError: The servers cannot be started.
    """
    async with AsyncExitStack() as stack:
        nodes = await stack.enter_async_context(servers(setup))
        await _create(nodes, TABLE + (";" + setup.schema if setup.schema else ""))
        proxies = await stack.enter_async_context(chaos.proxied(nodes)) if setup.proxied else None
        application = f"pgha_trial_{secrets.token_hex(4)}"
        began = time.monotonic()
        async with (
            chaos.nothing_left(*nodes, *(proxies or ()), application_name=application) as left,
            _fielded(setup, nodes, proxies, application, seed) as field,
        ):
            watch(field.cluster, field.recorder, field.injector.done)
            with logged(field.shown):
                await _perform(field, act, bound)
                await field.load.settle(_SETTLE_BOUND)
            statistics = field.cluster.statistics()
        ended = time.monotonic()
        await _settle(field)
        rows = by_origin(await _rows(field), {node.port: node.name for node in nodes})
    history = field.recorder.history()
    found = check(history, rows, field.promise)
    secret = betrayed(setup.password, [*field.shown, *(str(entry.error) for entry in history)])
    if field.tail and not any(field.lost_its_tail(history, rows)):
        field.claim(False, "setup", "no write was lost with the former primary, so the trial tested nothing")
    doubts = [*undecided(history, field.expected), *unfounded(history), *fickle(history)]
    if setup.topology == "masters":
        doubts += strayed(history)
    more = [*field.violations, *shown(history, field.expected), *torn(history, rows), *doubts, *secret, *left]
    return Trial(
        title,
        seed,
        sniffio.current_async_library(),
        setup.kind,
        tuple(nodes.names),
        began,
        ended,
        history,
        tuple(field.injector.done),
        tuple(field.sightings),
        (*found, *more),
        schedule,
        statistics.retried,
        statistics.replayed,
    )


async def _create(nodes: chaos.Nodes, ddl: str) -> None:
    if isinstance(nodes, chaos.Masters):
        await nodes.create(ddl)
    elif isinstance(nodes, chaos.Replicas):
        await nodes.primary.execute(ddl)
        await nodes.wait_replicated()
    else:
        await nodes.execute(ddl)


@asynccontextmanager
async def _fielded(
    setup: Setup, nodes: chaos.Nodes, proxies: chaos.Proxies | None, application: str, seed: int
) -> AsyncGenerator[Field]:
    """Open the cluster, and yield the field around it."""
    reached = [(one.name, one.dsn) for one in (proxies or nodes)]
    named = [pgha.Node(dsn, name) for name, dsn in reached]
    options = {"min_ready": len(named), "failover_timeout": _FAILOVER, **setup.options}
    injector = chaos.Injector(nodes, proxies)
    async with pgha.open_cluster(*named, application_name=application, **options) as cluster:
        if setup.keyed:
            await cluster.ledger.install()
            await _create(nodes, "SELECT 1")  # so that masters also replicate the new table
        recorder = Recorder()
        load = Load(cluster, recorder, setup.workload, seed)
        field = Field(
            setup,
            nodes,
            proxies,
            cluster,
            load,
            recorder,
            injector,
            application,
            Random(seed),
            promise_of(setup),
        )
        async with cluster.events() as events, anyio.create_task_group() as watchers:
            watchers.start_soon(_watch, events, field)
            yield field
            watchers.cancel_scope.cancel()


async def _watch(events: AsyncIterable[pgha.Event], field: Field) -> None:
    now = time.monotonic()
    for name, status in field.cluster.nodes.items():
        field.sightings.append(Sighting(now, name, status.state, status.role))
    async for event in events:
        field.shown.append(repr(event))
        if isinstance(event, pgha.OperationResolved):
            field.load.told(event)
        if isinstance(event, pgha.NodeStateChanged | pgha.RoleChanged) and event.node is not None:
            status = field.cluster.nodes[event.node]
            field.sightings.append(Sighting(event.at, event.node, status.state, status.role))


async def _perform(field: Field, act: Callable[[Field], Awaitable[None]], bound: float) -> None:
    """Run the load, and `act` under it. All faults are healed before the last operations must end."""
    ended = anyio.Event()

    async def load() -> None:
        await field.load.run()
        ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(load)
        with anyio.move_on_after(bound) as scope:
            try:
                await act(field)
            finally:
                field.load.stop()
                await field.heal_all()
        if scope.cancelled_caught:
            text = f"after {bound:g} s the scenario was still waiting for this: {field.waiting_for}"
            field.violations.append(violation("stuck", text))
        with anyio.move_on_after(_END_BOUND):
            await ended.wait()
        if not ended.is_set():
            # The history shows the operations that did not end.
            tasks.cancel_scope.cancel()


async def _rows(field: Field) -> dict[str, list[TupleRow]]:
    wanted = [node for node in field.nodes if field.survivors is None or node.name in field.survivors]
    return {node.name: await node.execute(ROWS, timeout=60.0) for node in wanted}


async def _settle(field: Field) -> None:
    """Wait until the writes are replicated to every node, unless the primaries have diverged."""
    nodes = field.nodes
    if isinstance(nodes, chaos.Masters | chaos.Replicas) and not field.splitted:
        await nodes.wait_replicated(60.0)
