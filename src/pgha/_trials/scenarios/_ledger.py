"""Keyed writes whose answers are lost, cancelled, or met again; and clocks that are off."""

from __future__ import annotations

import time
from dataclasses import replace

import anyio
import psycopg

import pgha
from pgha import chaos
from pgha._trials.catalogue import scenario
from pgha._trials.field import Field
from pgha._trials.load import WRITE, applied_by, note_failure
from pgha._trials.trial import Setup
from pgha.chaos import NodeKind, Workload

_KEYED = Workload(keyed=1.0, idempotent=0.0)
_PROXIED = Setup(proxied=True, workload=_KEYED)
_BOTH: tuple[NodeKind, ...] = ("local", "container")
_SLOW = (
    "WITH slept AS (SELECT pg_sleep({0}))"
    " INSERT INTO pgha_trial (key, writer, number) SELECT %s, %s, %s FROM slept"
)
_WAITS = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND strpos(query, 'pgha.ledger') > 0"


@scenario(
    8,
    "keyed-zombie",
    "A keyed write's backend is frozen and its line breaks: the next attempt waits for the zombie on"
    " the ledger, and the write is applied once",
    setup=_PROXIED,
)
async def keyed_zombie(field: Field) -> None:
    for number in range(3):
        await field.more()
        victim = field.victim
        query, key = _SLOW.format(0.3), pgha.new_idempotency_key()
        async with field.writing(
            f"zombie-{number}", query=query, key=key, route=pgha.pin(victim.name)
        ) as ended:
            pid = await field.running(victim, "pg_sleep")
            await victim.freeze_backend(pid)
            field.proxy_of(victim).reset()

            async def waits(victim: chaos.Node = victim) -> bool:
                return bool(await victim.execute(_WAITS))

            await field.until(waits, "the next attempt waits for the zombie")
            await victim.thaw_backend(pid)
        field.claim(ended == ["acknowledged"], "verdict", f"a keyed write with a zombie ended {ended}")
    await field.more()


@scenario(
    14,
    "keyed-lost-acknowledgement",
    "The answers of keyed writes are swallowed, and then their lines break: each was applied, and is"
    " not again",
    setup=_PROXIED,
    kinds=_BOTH,
)
async def keyed_lost_acknowledgement(field: Field) -> None:
    for number in range(3):
        await field.more()
        victim = field.victim
        proxy = field.proxy_of(victim)
        name, query = f"swallowed-{number}", _SLOW.format(0.7)
        async with field.writing(
            name, query=query, idempotency_key=pgha.new_idempotency_key(), route=pgha.pin(victim.name)
        ) as ended:
            # It has been sent: behind writes without an answer it would wait in line.
            await field.running(victim, "pg_sleep(0.7)")
            proxy.drop("down")

            # Applied, as a rule. On a busy machine it may have grown old first, and have been cancelled for
            # those behind it: then it is run again when the line is back.
            await field.none_runs(victim, "pg_sleep(0.7)")
            proxy.reset()
            proxy.heal()
        field.claim(ended == ["acknowledged"], "verdict", f"{name} ended {ended}")
    await field.more()


@scenario(
    22,
    "keyed-cancels",
    "Keyed writes are cancelled at every moment while their backends die: what is told of each is"
    " what is there, then or by an event",
    setup=replace(_PROXIED, topology="standalone", nodes=1),
)
async def keyed_cancels(field: Field) -> None:
    await field.more()
    resolved: dict[object, str] = {}
    doubtful: dict[object, str] = {}
    victim = field.victim

    async def cancelled(number: int) -> None:
        key = pgha.new_idempotency_key()
        entry = field.recorder.begin("write", f"cancelled-{number}", keyed=True, timeout=1.0)
        field.expected.add(entry.key)
        operation = field.cluster.submit(WRITE, [entry.key, 9000, number], idempotency_key=key, timeout=1.0)
        await anyio.sleep(0.0004 * (number % 12))
        operation.cancel()
        try:
            result = await operation
        except psycopg.Error as error:
            note_failure(entry, error, operation)
            if isinstance(error, pgha.CommitInDoubt):
                doubtful[key] = entry.key
        else:
            record = operation.record
            entry.acknowledged(node=applied_by(result, record), record=record)

    async def listen() -> None:
        async with field.cluster.events() as events:
            async for event in events:
                if isinstance(event, pgha.OperationResolved) and event.outcome != "in doubt":
                    resolved[event.idempotency_key] = event.outcome

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        async with anyio.create_task_group() as writers:
            for number in range(240):
                writers.start_soon(cancelled, number)
                if number % 12 == 11:
                    await anyio.sleep(0.005)
                if number % 60 == 40:
                    field.proxy_of(victim).reset()
                    await field.more(5)
        await field.until(
            lambda: doubtful.keys() <= resolved.keys(), "an event tells of each that was in doubt"
        )
        tasks.cancel_scope.cancel()
    held = {row[0] for row in await victim.execute("SELECT key FROM pgha_trial WHERE writer = 9000")}
    for key, name in doubtful.items():
        field.claim(
            (resolved[key] == "applied") == (name in held), "event", f"{name} was told to be {resolved[key]}"
        )
    await field.more()


@scenario(
    0,
    "keyed-promotion",
    "The primary dies with the answers of keyed writes, its synchronous standby takes over: it knows what was"
    " applied",
    setup=Setup(topology="replicas", nodes=2, synchronous=1, proxied=True, workload=_KEYED),
)
async def keyed_promotion(field: Field) -> None:
    nodes = field.nodes
    assert isinstance(nodes, chaos.Replicas)
    await field.more()
    old, new = nodes.primary, nodes.standbys[0]
    async with field.writing(
        "in-flight", query=_SLOW.format(0.7), idempotency_key=pgha.new_idempotency_key()
    ) as ended:
        # It has been sent: behind writes without an answer it would wait in line.
        await field.running(old, "pg_sleep(0.7)")
        field.proxy_of(old).drop("down")

        await field.none_runs(old, "pg_sleep(0.7)")
        await field.begin("kill", old)
        await nodes.promote(new)
        field.survivor(new)
    field.claim(ended == ["acknowledged"], "verdict", f"a write that the new primary has ended {ended}")
    await field.more(node=new)


@scenario(
    0,
    "keyed-masters",
    "A master dies with a keyed write in doubt: that waits for it, and goes to no other; the rest goes"
    " on there",
    setup=Setup(workload=_KEYED),
    kinds=_BOTH,
)
async def keyed_masters(field: Field) -> None:
    await field.more()
    victim = field.victim
    query, key = _SLOW.format(1), pgha.new_idempotency_key()
    async with field.writing("waits", query=query, key=key) as ended:
        await field.running(victim, "pg_sleep")
        async with field.struck("kill", victim):
            await field.more()
            field.claim(not ended, "verdict", f"a write that only {victim.name} knows of ended {ended}")
    field.claim(ended == ["acknowledged"], "verdict", f"it ended {ended} when its node was back")
    await field.more()


@scenario(
    25,
    "key-with-another-body",
    "A key comes again: with the same body the write is not applied again, with another it is refused",
    setup=Setup(topology="standalone", nodes=1, workload=_KEYED),
)
async def key_with_another_body(field: Field) -> None:
    await field.more()
    for number in range(20):
        key = pgha.new_idempotency_key()
        first = await field.write(f"body-{number}", key=key)
        field.claim(first == "acknowledged", "verdict", f"a keyed write ended {first}")
        result = await field.cluster.execute(WRITE, [f"body-{number}", 9000, 1], idempotency_key=key)
        field.claim(result.replayed, "verdict", "the same again was applied again")
        other = await field.write(f"other-{number}", key=key, may_fail=True)
        field.claim(other == "refused", "verdict", f"another body with the same key ended {other}")
    await field.more()


@scenario(
    25,
    "clock-skew",
    "A server's clock is set, forth and back: guards are too narrow or too wide for a while, keyed writes are"
    " applied once all the same",
    setup=Setup(topology="standalone", nodes=1, workload=replace(_KEYED, timeout=5.0)),
)
async def clock_skew(field: Field) -> None:
    """As pgha sees it: what it has measured is wrong until its next ping."""
    await field.more()
    node = field.cluster._nodes[field.victim.name]
    for shift in (-900.0, 30.0, -5.0, 900.0):
        assert node.server.clock._offset is not None
        node.server.clock._offset += shift
        await field.more()
        async with field.struck("restart", field.victim):
            pass
        await field.more()
    node._monitor._wall = lambda: time.time() + 3
    await field.until(lambda: any("ClockSkewed" in text for text in field.shown), "the difference is told")
    await field.more()
