"""Faults of roles: promotions, demotions, two primaries, and interrupted synchronous commits."""

from __future__ import annotations

from dataclasses import replace

from pgha import chaos
from pgha._trials.catalogue import scenario
from pgha._trials.field import Field
from pgha._trials.load import WRITE
from pgha._trials.trial import Setup
from pgha.chaos import Workload

_ASYNCHRONOUS = Setup(topology="replicas", nodes=3)
_SYNCHRONOUS = Setup(topology="replicas", nodes=2, synchronous=1)
# If a scenario's write is to wait for the standby, no write of the load may be waiting before it.
_READERS = replace(_SYNCHRONOUS, workload=Workload(writers=0, batchers=0, cancellers=0))


def _replicas(field: Field) -> chaos.Replicas:
    assert isinstance(field.nodes, chaos.Replicas)
    return field.nodes


async def gathered(field: Field, *lost: chaos.Node) -> None:
    """Make every node that cannot follow the new primary a standby of it again, including `lost` ones."""
    nodes = _replicas(field)
    for stray in {node.name: node for node in (*lost, *nodes.strays)}.values():
        if stray.running:
            await stray.stop("fast")
        await nodes.rejoin(stray)
    for node in nodes.standbys:
        await field.until(
            lambda node=node: field.cluster.nodes[node.name].role == "standby",  # type: ignore[misc]
            f"{node.name} is seen as a standby",
        )


@scenario(
    3,
    "terminate-a-synchronous-wait",
    "A backend is terminated while its commit waits for the synchronous standby (57P01 as a warning): the"
    " write is applied, and not reported as not applied",
    setup=_READERS,
)
async def terminate_a_synchronous_wait(field: Field) -> None:
    await field.more()
    primary, standby = field.nodes[0], field.nodes[1]
    query = f"{WRITE} /* terminated */"
    async with field.struck("freeze", standby), field.writing("terminated", query=query) as ended:
        pid = await field.running(primary, "/* terminated */", "SyncRep")
        await primary.execute("SELECT pg_terminate_backend(%s)", [pid])
    field.claim(ended == ["in doubt"], "verdict", f"a committed write was reported as {ended}")
    await field.more()


@scenario(
    10,
    "lost-tail",
    "An asynchronous standby without the newest writes is promoted, and reuses their transaction ids: the"
    " writes that the new primary acknowledged are there",
    setup=_ASYNCHRONOUS,
)
async def lost_tail(field: Field) -> None:
    nodes = _replicas(field)
    await field.more()
    for standby in nodes.standbys:
        await nodes.disconnect(standby)
    await field.more()
    old, new = nodes.primary, nodes.standbys[0]
    field.forgive(old)
    field.tail = True
    await field.begin("kill", old)
    await nodes.promote(new)
    await field.until(
        lambda: field.cluster.nodes[new.name].role == "primary", f"{new.name} is seen as primary"
    )
    await field.more(node=new)
    for standby in nodes.standbys:
        await nodes.reconnect(standby)
    await gathered(field, old)
    await field.more()


@scenario(
    11,
    "demotion",
    "The primary becomes read-only under load (25006), and a standby is promoted: writes go to the new"
    " primary",
    setup=_ASYNCHRONOUS,
)
async def demotion(field: Field) -> None:
    nodes = _replicas(field)
    await field.more()
    old, new = nodes.primary, nodes.standbys[0]
    await old.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    await old.execute("SELECT pg_reload_conf()")
    await field.until(lambda: field.cluster.nodes[old.name].read_only, f"{old.name} is seen as read-only")
    await nodes.wait_replicated()
    await old.stop("fast")
    await nodes.promote(new)
    await field.more(node=new)
    await gathered(field, old)
    await field.more()


@scenario(
    0,
    "read-only-master",
    "A master becomes read-only under load, and later takes writes again: writes go to the others meanwhile",
)
async def read_only_master(field: Field) -> None:
    await field.more()
    victim = field.victim
    await victim.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    await victim.execute("SELECT pg_reload_conf()")
    await field.until(lambda: field.load.writer != victim.name, "writes go elsewhere")
    await field.more()
    await victim.execute("ALTER SYSTEM RESET ALL")
    await victim.execute("SELECT pg_reload_conf()")
    await field.until(
        lambda: not field.cluster.nodes[victim.name].read_only, f"{victim.name} is seen as writable"
    )
    await field.more()


@scenario(
    12,
    "two-primaries",
    "A standby is promoted while the primary still runs: writes move to the new primary, and wait for it when"
    " it is killed, since nothing goes back to the old timeline",
    setup=_ASYNCHRONOUS,
)
async def two_primaries(field: Field) -> None:
    nodes = _replicas(field)
    await field.more()
    old, new = nodes.primary, nodes.standbys[0]
    await nodes.promote(new)
    field.split(old, new)
    await field.until(lambda: field.cluster.nodes[old.name].superseded, f"{old.name} is seen as superseded")
    await field.until(lambda: field.load.writer == new.name, f"writes go to {new.name}")
    async with field.struck("kill", new):
        await field.pause(1.0)
    await field.up(new)
    await field.more(node=new)
    await field.until(lambda: field.load.writer == new.name, f"writes go to {new.name} again")


@scenario(
    0,
    "synchronous-failover",
    "The synchronous standby is cut off, the primary dies, and the standby is promoted: no acknowledged write"
    " is lost",
    setup=_SYNCHRONOUS,
)
async def synchronous_failover(field: Field) -> None:
    nodes = _replicas(field)
    await field.more()
    old, new = nodes.primary, nodes.standbys[0]
    # The standby receives nothing any more: commits wait, and no write may be acknowledged. This lasts longer
    # than the time after which pgha cancels a slow operation that others wait for.
    await nodes.disconnect(new)
    await field.pause(2.5)
    await field.begin("kill", old)
    await nodes.promote(new)
    await nodes.set_synchronous(0)
    field.survivor(new)
    await field.until(
        lambda: field.cluster.nodes[new.name].role == "primary", f"{new.name} is seen as primary"
    )
    await field.more(node=new)


@scenario(
    0,
    "promotion",
    "The primary dies under load and its synchronous standby is promoted: no acknowledged write is lost",
    setup=replace(_ASYNCHRONOUS, synchronous=1),
)
async def promotion(field: Field) -> None:
    nodes = _replicas(field)
    await field.more()
    old, new = nodes.primary, nodes.standbys[0]
    await field.begin("kill", old)
    await nodes.promote(new)
    await field.more(node=new)
    await gathered(field, old)
    async with field.struck("freeze", nodes.primary):
        await field.pause(1.0)
    await field.more()
