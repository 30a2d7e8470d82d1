"""Keyed writes that are frozen before they begin, while their callers are told an outcome."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import psycopg

import pgha
from pgha import chaos
from pgha._trials.catalogue import scenario
from pgha._trials.field import Field
from pgha._trials.load import WRITE, note_failure
from pgha._trials.trial import Setup
from pgha.chaos import Workload
from pgha.chaos.history import Open

# A single connection for writes, on which the load has no writes.
_ALONE = Setup(
    topology="standalone",
    nodes=1,
    proxied=True,
    workload=Workload(writers=0, batchers=0, cancellers=0),
    ledger=True,
    options={"read_connections": 1},
)
_PID = "SELECT pg_backend_pid()"
_TIMEOUT = 0.5
"""Seconds. A keyed write's guard lets the write begin for one second more."""


async def _frozen(field: Field) -> int:
    """Freeze the backend that will receive the next write, and return its process id."""
    pid = (await field.cluster.execute(_PID)).value()
    await field.victim.freeze_backend(pid)
    return int(pid)


def _submitted(field: Field, name: str, key: UUID) -> tuple[Open, pgha.Operation[Any]]:
    entry = field.recorder.begin("write", name, keyed=True, timeout=_TIMEOUT)
    field.expected.add(name)
    return entry, field.cluster.submit(WRITE, [name, 9000, 1], idempotency_key=key, timeout=_TIMEOUT)


async def _doubt(field: Field, entry: Open, operation: pgha.Operation[Any]) -> pgha.CommitInDoubt | None:
    """Await an operation that must end in doubt, and return its error."""
    try:
        await operation
    except psycopg.Error as error:
        note_failure(entry, error, operation)
        if isinstance(error, pgha.CommitInDoubt):
            return error
    else:
        entry.acknowledged(node=None, record=operation.record)
    field.claim(False, "verdict", f"a write with an unknowable outcome ended {entry.entry.ending}")
    return None


async def _thawed(field: Field, pid: int) -> None:
    """Thaw the backend, and wait until it has finished its statements."""
    node = field.victim
    await node.thaw_backend(pid)

    async def over() -> bool:
        rows = await node.execute("SELECT state, query FROM pg_stat_activity WHERE pid = %s", [pid])
        return all(state == "idle" and query != _PID for state, query in rows)

    await field.until(over, f"backend {pid} has finished its statements")


@scenario(
    8,
    "keyed-resolved",
    "A keyed write's backend is frozen past the deadline, and resolve() returns the outcome: it stays true"
    " when the backend thaws at once",
    # Without a proxy, the frozen server also has the write after pgha has closed the connection.
    setup=replace(_ALONE, proxied=False),
)
async def keyed_resolved(field: Field) -> None:
    for number in range(3):
        await field.more()
        pid = await _frozen(field)
        entry, operation = _submitted(field, f"resolved-{number}", pgha.new_idempotency_key())
        if error := await _doubt(field, entry, operation):
            entry.resolved(await error.resolve())
        await _thawed(field, pid)
    await field.more()


@scenario(
    14,
    "keyed-resolved-late",
    "The answer of a keyed write is held back past the caller's deadline: resolve() finds that the write was"
    " applied",
    setup=_ALONE,
)
async def keyed_resolved_late(field: Field) -> None:
    for number in range(3):
        await field.more()
        node, name = field.victim, f"late-{number}"
        proxy = field.proxy_of(node)
        proxy.drop("down")
        entry, operation = _submitted(field, name, pgha.new_idempotency_key())
        error = await _doubt(field, entry, operation)

        async def there(node: chaos.Node = node, name: str = name) -> bool:
            return bool(await node.execute("SELECT 1 FROM pgha_trial WHERE key = %s", [name]))

        await field.until(there, f"{name} is applied")
        proxy.reset()
        proxy.heal()
        if error is not None:
            said = await error.resolve()
            entry.resolved(said)
            field.claim(
                said == "applied", "verdict", f"{name} is in the table, but resolve() returned {said}"
            )
    await field.more()


@scenario(
    8,
    "keyed-left",
    "A keyed write's backend is frozen, its caller leaves and its connection ends: when its time limit is"
    " over, an event reports that it was not applied; the thawed backend applies nothing, and the key can be"
    " used",
    setup=replace(_ALONE, proxied=False),
)
async def keyed_left(field: Field) -> None:
    lanes = field.cluster._nodes[field.victim.name].sets["write"].lanes
    for number in range(2):
        await field.more()
        pid, key = await _frozen(field), pgha.new_idempotency_key()
        async with field.cluster.events() as events:
            entry, operation = _submitted(field, f"left-{number}", key)
            operation.cancel()
            # The server gets an end of file right after the write. A proxy might lose either.
            next(lane for lane in lanes if lane.link.pid == pid).abort("the trial says so", lost=True)
            await _doubt(field, entry, operation)
            field.waiting_for = "an event that reports the write's outcome"
            async for event in events:
                if isinstance(event, pgha.OperationResolved) and event.outcome != "in doubt":
                    field.claim(event.idempotency_key == key, "event", "the event has another key")
                    entry.resolved(event.outcome)
                    break
        await _thawed(field, pid)
        again = await field.write(f"again-{number}", idempotency_key=key)
        field.claim(again == "acknowledged", "verdict", f"a write with an unused key ended {again}")
    await field.more()
