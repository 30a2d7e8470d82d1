"""Reads behind a head that holds them up are sent on another connection, and answered once."""

from __future__ import annotations

import pytest
from support.in_memory import InMemory

pytestmark = pytest.mark.anyio


def tick(world: InMemory) -> None:
    """Let a moment pass, and do what is due by time."""
    world.now += 0.02
    world.nodes["a"]._tick_now(None)
    world.dispatcher.door.enter(world.dispatcher.pump, world.nodes["a"])


async def test_a_read_behind_a_slow_one_goes_elsewhere() -> None:
    world = InMemory()
    lane, link = world.open("a", "read")
    slow = world.start("SELECT slow", read=True)
    quick = world.start("SELECT quick", read=True)
    assert lane.in_flight == 2
    other, its_link = world.open("a", "read")
    for _ in range(4):
        tick(world)
    assert other.in_flight == 0, "the head is not old yet"
    for _ in range(2):
        tick(world)
    assert other.in_flight == 1
    world.answer(other, its_link)
    assert quick.value is not None and quick.value[0] == "SELECT quick"
    assert not slow.done
    # The first connection answers both in the end: the second answer has nobody any more.
    world.answer(lane, link)
    assert slow.value is not None and slow.value[0] == "SELECT slow"
    assert quick.value[0] == "SELECT quick"
    assert [one.node for one in quick.record.attempts] == ["a", "a"]
    assert world.dispatcher.tracker.counters.retried == 0
    world.close()


async def test_without_another_connection_they_wait_in_their_line() -> None:
    world = InMemory()
    lane, link = world.open("a", "read")
    slow = world.start("SELECT slow", read=True)
    quick = [world.start(f"SELECT {number}", read=True) for number in range(3)]
    for _ in range(10):
        tick(world)
    assert world.dispatcher.queued == 3
    for _ in range(3):
        world.answer(lane, link)
    assert slow.value is not None and slow.value[0] == "SELECT slow"
    assert [one.value[0] for one in quick if one.value is not None] == ["SELECT 0", "SELECT 1", "SELECT 2"]
    world.close()


async def test_the_connection_ends_with_the_read_that_left_it() -> None:
    world = InMemory()
    lane, link = world.open("a", "read")
    world.start("SELECT slow", read=True)
    quick = world.start("SELECT quick", read=True)
    other, its_link = world.open("a", "read")
    for _ in range(6):
        tick(world)
    assert other.in_flight == 1
    link.end()
    lane._readable()
    assert other.in_flight == 1 and not quick.done
    world.answer(other, its_link)
    assert quick.value is not None and quick.value[0] == "SELECT quick"
    assert quick.suspected_crashes == 0
    world.close()


async def test_writes_stay_where_they_are() -> None:
    world = InMemory()
    lane, link = world.open("a", "write")
    operations = [world.start(f"SELECT {number}") for number in range(2)]
    world.open("a", "write")
    for _ in range(10):
        tick(world)
    assert lane.in_flight == 2
    world.answer(lane, link)
    assert all(one.done for one in operations)
    world.close()
