"""Faults of the network between client and node, made by a proxy in front of every node."""

from __future__ import annotations

from dataclasses import replace

import pgha
from pgha._trials.catalogue import scenario
from pgha._trials.field import Field
from pgha._trials.trial import Setup
from pgha.chaos import Cut, CutHow, FaultKind, NodeKind, Wire, Workload

_PROXIED = Setup(proxied=True)
_TLS = Setup(topology="standalone", nodes=2, version=15, tls=True, proxied=True)
_BOTH: tuple[NodeKind, ...] = ("local", "container")


async def _dropped(field: Field, kind: FaultKind) -> None:
    await field.more()
    victim = field.victim
    async with field.struck(kind, victim):
        await field.more()
        await field.seen(victim, "down")
        await field.more()
    await field.up(victim)
    await field.more()


@scenario(13, "drop-up", "Nothing passes from the client to the node; connections stay open", setup=_PROXIED)
async def drop_up(field: Field) -> None:
    await _dropped(field, "drop_up")


@scenario(
    14,
    "drop-down",
    "Nothing passes from the node to the client: acknowledgements are lost, and writes are in doubt",
    setup=_PROXIED,
)
async def drop_down(field: Field) -> None:
    await field.more()
    victim = field.victim
    query = "INSERT INTO pgha_trial (key, writer, number) SELECT %s, %s, %s FROM pg_sleep(0.3)"
    async with field.writing("unacknowledged", query=query, route=pgha.pin(victim.name), timeout=1) as ended:
        await field.running(victim, "pg_sleep")
        field.proxy_of(victim).drop("down")
        await field.none_runs(victim, "pg_sleep")
    field.claim(ended == ["in doubt"], "verdict", f"a write whose acknowledgement was lost is {ended}")
    field.proxy_of(victim).heal()
    await field.up(victim)
    await _dropped(field, "drop_down")


@scenario(
    0, "cut-off", "Nothing passes in either direction; connections stay open", setup=_PROXIED, kinds=_BOTH
)
async def cut_off(field: Field) -> None:
    await _dropped(field, "drop_both")


@scenario(15, "reset-at-byte", "Connections are reset, closed or stalled after N bytes", setup=_PROXIED)
async def reset_at_byte(field: Field) -> None:
    hows: tuple[CutHow, ...] = ("reset", "eof", "stall")
    for how in hows:
        for direction in ("up", "down"):
            await field.more(20)
            proxy = field.proxy
            proxy.cut(Cut(field.random.randrange(100, 5_000), how, direction))
            proxy.reset()
            await field.more(20)
            await field.pause(0.2)
            proxy.heal()
    for node in field.nodes:
        await field.up(node)
    await field.more()


@scenario(16, "one-byte-packets", "Every byte is a packet of its own, in both directions", setup=_PROXIED)
async def one_byte_packets(field: Field) -> None:
    await field.more()
    for node in field.nodes:
        field.proxy_of(node).set(up=Wire(chunk=1), down=Wire(chunk=1))
    await field.more(100)
    for node in field.nodes:
        field.proxy_of(node).reset()
    await field.more(100)
    for node in field.nodes:
        field.proxy_of(node).heal()
    await field.more()


@scenario(
    18,
    "big-through-tls",
    "Parameters of 10 MB are sent through pipelines over TLS, while answers are held up again and again",
    # 80 MB keep two processors busy: what is held up must not be taken for a node that is down.
    setup=replace(_TLS, options={"ping_timeout": 1.0}),
)
async def big_through_tls(field: Field) -> None:
    await field.more()
    big = "x" * (10 << 20)

    async def big_reads() -> None:
        async with field.cluster.group() as group:
            reads = [
                group.submit("SELECT length(%s), %s::text", [big, str(number)], read=True)
                for number in range(8)
            ]
        for number, one in enumerate(reads):
            length, nonce = (await one).one()
            field.claim((length, nonce) == (len(big), str(number)), "crossed", f"{length}, {nonce}")

    async with field.aside(big_reads):
        for _ in range(6):
            for node in field.nodes:
                field.proxy_of(node).drop("down")
            await field.pause(0.1)
            for node in field.nodes:
                field.proxy_of(node).heal()
            await field.pause(0.1)
    await field.more()


@scenario(
    19,
    "coalesced-tls",
    "TLS records arrive together, more than 8 kB at once: no data may be left unread in OpenSSL's buffers",
    setup=_TLS,
)
async def coalesced_tls(field: Field) -> None:
    await field.more()
    for node in field.nodes:
        field.proxy_of(node).set(down=Wire(coalesce=(24_000, 0.03)), up=Wire(coalesce=(24_000, 0.01)))
    for size in (100, 4_000, 8_191, 8_192, 9_000, 16_384, 40_000):
        results = [
            field.cluster.submit("SELECT repeat('x', %s), %s::int", [size, number], read=True)
            for number in range(20)
        ]
        for number, one in enumerate(results):
            text, answer = (await one).one()
            field.claim((len(text), answer) == (size, number), "crossed", f"{len(text)}, {answer}")
    await field.more(20)
    for node in field.nodes:
        field.proxy_of(node).heal()
    await field.more()


@scenario(
    0,
    "slow-network",
    "The node that takes the writes has latency with jitter, little bandwidth, and slow closes",
    setup=Setup(proxied=True, workload=Workload(readers=20)),
)
async def slow_network(field: Field) -> None:
    await field.more()
    victim = field.victim
    slow = Wire(latency=0.1, jitter=0.1, bandwidth=50_000, close_delay=0.2)
    field.proxy_of(victim).set(up=slow, down=slow)
    await field.more(100)
    field.proxy_of(victim).close_all()
    await field.more(100)
    field.proxy_of(victim).heal()
    await field.up(victim)
    await field.more()
