"""Keyed writes that lose their answers, are cancelled, or are repeated; and clocks that are wrong."""

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
    "A keyed write's backend is frozen and its connection breaks: the next attempt waits for the frozen one,"
    " and the write is applied once",
    setup=_PROXIED,
)
async def keyed_zombie(field: Field) -> None:
    for number in range(3):
        await field.more()
        victim = field.victim
        query, key = _SLOW.format(0.3), pgha.new_idempotency_key()
        async with field.writing(
            f"zombie-{number}", query=query, idempotency_key=key, route=pgha.pin(victim.name)
        ) as ended:
            pid = await field.running(victim, "pg_sleep")
            await victim.freeze_backend(pid)
            field.proxy_of(victim).reset()

            async def waits(victim: chaos.Node = victim) -> bool:
                return bool(await victim.execute(_WAITS))

            await field.until(waits, "the next attempt waits for the frozen one")
            await victim.thaw_backend(pid)
        field.claim(
            ended == ["acknowledged"], "verdict", f"a keyed write with a frozen attempt ended {ended}"
        )
    await field.more()


@scenario(
    14,
    "keyed-lost-acknowledgement",
    "The answers of keyed writes are held back, and then their connections break: each write was applied, and"
    " is not applied again",
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
            # Drop answers only once the write runs: otherwise it could stay unsent behind unanswered writes.
            await field.running(victim, "pg_sleep(0.7)")
            proxy.drop("down")

            # The write is usually applied. On a busy machine pgha may have cancelled it first as too old, for
            # the operations behind it: then it is run again when the connection is back.
            await field.none_runs(victim, "pg_sleep(0.7)")
            proxy.reset()
            proxy.heal()
        field.claim(ended == ["acknowledged"], "verdict", f"{name} ended {ended}")
    await field.more()


@scenario(
    22,
    "keyed-cancels",
    "Keyed writes are cancelled at every moment while their connections break: the outcome that an error or"
    " an event reports is true",
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
            lambda: doubtful.keys() <= resolved.keys(), "an event reports each write that was in doubt"
        )
        tasks.cancel_scope.cancel()
    held = {row[0] for row in await victim.execute("SELECT key FROM pgha_trial WHERE writer = 9000")}
    for key, name in doubtful.items():
        field.claim(
            (resolved[key] == "applied") == (name in held), "event", f"{name} was reported as {resolved[key]}"
        )
    await field.more()


@scenario(
    0,
    "keyed-promotion",
    "The primary dies before it answers keyed writes, and its synchronous standby is promoted: the standby"
    " knows which were applied",
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
        # Drop answers only once the write runs: otherwise it could stay unsent behind unanswered writes.
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
    "A master dies with a keyed write in doubt: the write waits for that master, and other operations"
    " continue on the others",
    setup=Setup(workload=_KEYED),
    kinds=_BOTH,
)
async def keyed_masters(field: Field) -> None:
    await field.more()
    victim = field.victim
    query, key = _SLOW.format(1), pgha.new_idempotency_key()
    async with field.writing("waits", query=query, idempotency_key=key) as ended:
        await field.running(victim, "pg_sleep")
        async with field.struck("kill", victim):
            await field.more()
            field.claim(not ended, "verdict", f"a write that only {victim.name} knows of ended {ended}")
    field.claim(ended == ["acknowledged"], "verdict", f"the write ended {ended} when its node was back")
    await field.more()


@scenario(
    25,
    "key-with-another-body",
    "A key is used again: the same write is not applied again, and another write is rejected",
    setup=Setup(topology="standalone", nodes=1, workload=_KEYED),
)
async def key_with_another_body(field: Field) -> None:
    await field.more()
    for number in range(20):
        key = pgha.new_idempotency_key()
        first = await field.write(f"body-{number}", idempotency_key=key)
        field.claim(first == "acknowledged", "verdict", f"a keyed write ended {first}")
        result = await field.cluster.execute(WRITE, [f"body-{number}", 9000, 1], idempotency_key=key)
        field.claim(result.replayed, "verdict", "the same write was applied again")
        other = await field.write(f"other-{number}", idempotency_key=key, may_fail=True)
        field.claim(other == "refused", "verdict", f"another body with the same key ended {other}")
    await field.more()


@scenario(
    25,
    "clock-skew",
    "A server's clock is set forward and back: the time limits of keyed writes are wrong for a while, but"
    " each write is applied once",
    setup=Setup(topology="standalone", nodes=1, workload=replace(_KEYED, timeout=5.0)),
)
async def clock_skew(field: Field) -> None:
    """Change pgha's measurement of the server's clock, which stays wrong until the next ping."""
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
    await field.until(lambda: any("ClockSkewed" in text for text in field.shown), "an event reports the skew")
    await field.more()
