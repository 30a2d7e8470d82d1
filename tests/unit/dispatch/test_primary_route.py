"""`primary()`: a read goes to the primary that has the writes, and waits for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.fake_link import FakeError
from support.in_memory import InMemory

import pgha
from pgha._core.server_status import ServerStatus
from pgha._operation.operation import Operation, Stage
from pgha._options import Tuning

pytestmark = pytest.mark.anyio
MakeWorld = Callable[..., InMemory]
STANDBY = ServerStatus(in_recovery=True, system=7)


def says(world: InMemory, name: str, status: ServerStatus, latency: float = 0.0001) -> None:
    """Have a node answer a ping with this status."""
    node = world.nodes[name]
    moved = node.health.answered(world.now, status, latency)
    node.server.system = status.system
    world.dispatcher.door.enter(lambda _: world.dispatcher.health_changed(node, moved, ""), None)


def read(world: InMemory) -> Operation[Any]:
    return world.start("SELECT 1", read=True, route=pgha.primary())


def node_of(operation: Operation[Any]) -> str:
    assert operation.stage is Stage.SENT
    return operation.attempts[-1].node


@pytest.mark.parametrize("standby", ["a", "b"])
async def test_a_standby_never_gets_it(make_world: MakeWorld, standby: str) -> None:
    world = make_world("ab")
    for name in "ab":
        world.open(name, "read")
    says(world, standby, STANDBY)
    (primary,) = {"a", "b"} - {standby}
    assert node_of(read(world)) == primary
    world.open(primary, "write")
    assert node_of(world.start("INSERT 1", route=pgha.primary())) == primary


async def test_it_waits_for_a_primary(make_world: MakeWorld) -> None:
    world = make_world("ab")
    lanes = {}
    for name in "ab":
        lanes[name] = world.open(name, "read")
        says(world, name, STANDBY)
    waiting, late = read(world), world.start("SELECT 2", read=True, route=pgha.primary(), timeout=60.0)
    world.answer(*lanes[node_of(world.start("SELECT 3", read=True))])
    world.wait(1.0)
    assert waiting.stage is Stage.QUEUED
    says(world, "b", ServerStatus(system=7, timeline=2))
    world.wait(0.04)
    assert (node_of(waiting), node_of(late)) == ("b", "b")


async def test_it_waits_no_longer_than_the_failover_timeout(make_world: MakeWorld) -> None:
    world = make_world("a", failover_timeout=5.0)
    world.open("a", "read")
    says(world, "a", STANDBY)
    waiting = read(world)
    world.wait(6.0, 0.5)
    waiting.retrieve()
    assert isinstance(waiting.failure, pgha.NoNodeAvailable)
    assert "no primary was usable for reads within 5 s" in str(waiting.failure)


async def test_of_several_masters_it_is_the_one_with_the_writes(make_world: MakeWorld) -> None:
    """Also when another master is nearer, or when its connections are stuck."""
    world = make_world("ab", tuning=Tuning(depth=1, max_lanes=1))
    for system, name in enumerate("ab"):
        world.open(name, "read")
        world.open(name, "write")
        says(world, name, ServerStatus(system=system))
    write = world.start("INSERT 1")
    first = node_of(write)
    (other,) = {"a", "b"} - {first}
    held, waiting = read(world), read(world)
    assert node_of(held) == first
    world.wait(2.0)
    assert waiting.stage is Stage.QUEUED
    # The writes leave their master when it is down, and the reads with them.
    world.fall(first)
    world.wait(0.5)
    assert node_of(world.start("INSERT 2")) == other
    assert node_of(held) == other
    assert waiting.stage is Stage.QUEUED


async def test_a_superseded_primary_is_none(make_world: MakeWorld) -> None:
    world = make_world("ab")
    for name, timeline in (("a", 1), ("b", 2)):
        world.open(name, "read")
        world.ping(name, timeline)
    assert node_of(read(world)) == "b"


async def test_a_read_only_primary_is_better_than_none(make_world: MakeWorld) -> None:
    world = make_world("ab")
    for name in "ab":
        world.open(name, "read")
    says(world, "a", STANDBY)
    says(world, "b", ServerStatus(system=7, read_only=True))
    assert node_of(read(world)) == "b"


async def test_after_an_error_of_its_node_it_follows_the_writes(make_world: MakeWorld) -> None:
    """Another master may lack what was written: a full disk sends no such read there."""
    world = make_world("ab")
    lanes = {}
    for system, name in enumerate("ab", 1):
        lanes[name, "read"], lanes[name, "write"] = world.open(name, "read"), world.open(name, "write")
        says(world, name, ServerStatus(system=system))
    writes = node_of(world.start("INSERT 1"))
    one = read(world)
    assert node_of(one) == writes
    lane, link = lanes[writes, "read"]
    link.answer(FakeError("53200"))
    lane._readable()
    assert one.stage is Stage.PAUSED
    world.wait(1.0)
    assert [attempt.node for attempt in one.attempts] == [writes, writes]
