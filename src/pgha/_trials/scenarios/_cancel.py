"""Operations that are cancelled, and cancel requests that arrive late or never."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import anyio
import psycopg
import sniffio
from anyio.lowlevel import checkpoint

import pgha
from pgha import chaos
from pgha._options import Tuning
from pgha._trials.catalogue import scenario
from pgha._trials.field import Field
from pgha._trials.load import WRITE, note_failure
from pgha._trials.trial import Setup
from pgha.chaos import Workload

_PROXIED = Setup(proxied=True)
_SENT_EARLY = 0.3
"""Seconds for a statement to be seen running that may not run yet."""
_PROMPT = 2.0
"""Seconds within which a cancelled operation must end, whatever the state of its node."""


async def _slow_read(field: Field, victim: chaos.Node, seconds: float) -> pgha.Operation[Any]:
    """Return a read that is running on the server.

    Its connection is open already, so that a fault of the proxy for new connections hits the cancel request
    alone.
    """
    operation = field.cluster.submit(f"SELECT pg_sleep({seconds})", read=True, route=pgha.pin(victim.name))
    await field.running(victim, f"pg_sleep({seconds})")
    return operation


async def _cancelled_promptly(field: Field, operation: pgha.Operation[Any]) -> None:
    operation.cancel()
    with anyio.move_on_after(_PROMPT) as scope:
        try:
            await operation
            field.claim(False, "prompt", "a cancelled read of 20 s gave a result")
        except pgha.OperationCancelled:
            pass
    field.claim(not scope.cancelled_caught, "prompt", f"a cancelled read did not end in {_PROMPT} s")


@scenario(
    20,
    "late-cancel",
    "A cancel request is delayed until its operation is over: no other operation is cancelled",
    # All reads of a node are on the connection whose operation is cancelled.
    setup=replace(_PROXIED, options={"read_connections": 1, "_tuning": Tuning(max_lanes=1)}),
)
async def late_cancel(field: Field) -> None:
    for held in (0.1, 0.3, 0.5):
        await field.more()
        victim = field.victim
        operation = await _slow_read(field, victim, 0.25)
        proxy, route = field.proxy_of(victim), pgha.pin(victim.name)
        proxy.mute()
        neighbours = [
            field.cluster.submit(
                "SELECT %s::int, pg_sleep(0.3) /* neighbour */", [number], read=True, route=route
            )
            for number in range(3)
        ]
        operation.cancel()
        await field.pause(held)
        # pgha must not send a neighbour before the cancel request has arrived. If it does, let it be hit.
        with anyio.move_on_after(_SENT_EARLY):
            await field.running(victim, "/* neighbour */")
        proxy.heal()
        for number, one in enumerate(neighbours):
            try:
                answer = (await one).one()[0]
            except psycopg.Error as error:
                field.claim(False, "neighbour", f"a cancel hit a neighbour: {error!r}")
            else:
                field.claim(answer == number, "crossed", "a neighbour got another's answer")
        try:
            await operation
        except pgha.OperationCancelled:
            pass
    await field.more()


@scenario(
    21,
    "no-cancel",
    "The connection for a cancel request is refused or not answered: the caller leaves at once, and the"
    " statement ends",
    setup=_PROXIED,
)
async def no_cancel(field: Field) -> None:
    for fault in ("refuse", "mute"):
        await field.more()
        victim = field.victim
        operation = await _slow_read(field, victim, 20)
        proxy = field.proxy_of(victim)
        proxy.refuse() if fault == "refuse" else proxy.mute()
        await _cancelled_promptly(field, operation)
        await field.more()
        # pgha ends the statement through the monitor's connection, which is open already.
        await field.none_runs(victim, "pg_sleep(20)")
        proxy.heal()
        await field.more()


@scenario(
    0,
    "left-scopes",
    "Scopes around slow statements are cancelled, even on a frozen node: they are left at once, and the"
    " statements end",
    setup=Setup(options={"failover_timeout": 5.0}),
)
async def left_scopes(field: Field) -> None:
    await field.more()
    victim = field.victim
    for frozen in (False, True):
        with anyio.move_on_after(_PROMPT) as bound:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_sleeper, field, victim.name)
                await field.running(victim, "pg_sleep(10)")
                if frozen:
                    await field.begin("freeze", victim)
                tasks.cancel_scope.cancel()
        field.claim(not bound.cancelled_caught, "prompt", f"a scope was not left within {_PROMPT} s")
        await field.heal(victim)
        await field.none_runs(victim, "pg_sleep(10)")
    await field.more()


async def _sleeper(field: Field, node: str) -> None:
    try:
        await field.cluster.fetch("SELECT pg_sleep(10)", route=pgha.pin(node))
    except pgha.NoNodeAvailable as error:
        field.claim(False, "prompt", f"the cancelled read ended only when the node was given up: {error}")


@scenario(
    4,
    "cancel-a-synchronous-wait",
    "A commit that waits for its synchronous standby is cancelled, by its caller and by an administrator: the"
    " write is applied but may be lost, so it is in doubt",
    setup=Setup(
        topology="replicas",
        nodes=2,
        synchronous=1,
        workload=Workload(writers=0, batchers=0, cancellers=0),  # no write of the load may run before it
    ),
)
async def cancel_a_synchronous_wait(field: Field) -> None:
    await field.more()
    primary, standby = field.nodes[0], field.nodes[1]
    async with field.struck("freeze", standby):
        for number, who in enumerate(("caller", "administrator")):
            entry = field.recorder.begin("write", who)
            operation = field.cluster.submit(f"{WRITE} /* {who} */", [entry.key, 9000, number])
            pid = await field.running(primary, f"/* {who} */", "SyncRep")
            if who == "caller":
                # pgha leaves the wait alone: to end it would help nobody.
                operation.cancel()
            else:
                await primary.execute("SELECT pg_cancel_backend(%s)", [pid])
            ended = await field.ending_of(entry, operation)
            field.claim(
                ended == "in doubt",
                "verdict",
                f"a write that the standby does not have was reported as {ended}",
            )
    await field.more()


@scenario(
    22,
    "cancel-everywhere",
    "Reads, writes and batches are cancelled at every checkpoint, by a scope and by Task.cancel",
)
async def cancel_everywhere(field: Field) -> None:
    await field.more()
    for steps in range(30):
        for kind in ("read", "write", "batch"):
            for cancelled in _ways():
                await _cancelled_after(field, kind, steps, cancelled)
    await field.more()


def _ways() -> list[Callable[[Callable[[], Awaitable[None]], int], Awaitable[None]]]:
    if sniffio.current_async_library() == "asyncio":
        return [_by_scope, _by_task]
    return [_by_scope]


async def _by_scope(work: Callable[[], Awaitable[None]], steps: int) -> None:
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            await work()

        tasks.start_soon(run)
        for _ in range(steps):
            await checkpoint()
        tasks.cancel_scope.cancel()


async def _by_task(work: Callable[[], Awaitable[None]], steps: int) -> None:
    async def run() -> None:
        await work()

    task = asyncio.create_task(run())
    for _ in range(steps):
        await checkpoint()
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise  # the current task itself was cancelled


async def _cancelled_after(
    field: Field, kind: str, steps: int, way: Callable[[Callable[[], Awaitable[None]], int], Awaitable[None]]
) -> None:
    field.serial += 1
    key = f"x{field.serial}"
    parts = [f"{key}.{part}" for part in range(3)] if kind == "batch" else [key]
    entries = [] if kind == "read" else [field.recorder.begin("write", part) for part in parts]

    async def work() -> None:
        if kind == "read":
            answer = await field.cluster.fetch_value("SELECT %s::text", [key])
            field.claim(answer == key, "crossed", f"asked for {key}, got {answer}")
            return
        try:
            if kind == "batch":
                await field.cluster.execute_batch([(WRITE, [part, 9000, 1]) for part in parts])
            else:
                await field.cluster.execute(WRITE, [key, 9000, 1])
        except psycopg.Error as error:
            for entry in entries:
                note_failure(entry, error)
        else:
            for entry in entries:
                entry.acknowledged(node=None)

    await way(work, steps)
    for entry in entries:
        if entry.entry.ending is None:
            entry.doubt("left by its caller")
