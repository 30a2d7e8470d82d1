"""Nothing keeps an operation that is done, and with it a result that may be large.

Questions about its connection may still be on their way, its timers may still be far in the future, and the
connection may still work on something older.
"""

from __future__ import annotations

import gc

import pytest
from support.in_memory import InMemory

import pgha

pytestmark = pytest.mark.anyio


def alive() -> int:
    gc.collect()
    return sum(type(one) is pgha.Operation for one in gc.get_objects())


@pytest.fixture(autouse=True)
def nothing_of_others() -> None:
    gc.collect()


async def test_while_the_server_is_asked_what_it_does() -> None:
    world, others = InMemory(), alive()
    lane, link = world.open("a", "read")
    read = world.start("SELECT 1", read=True)
    world.wait(1.5)
    assert world.nodes["a"]._monitor._to_inspect, "the head is old"
    world.answer(lane, link)
    assert read.done
    del read
    assert alive() == others
    world.close()


async def test_while_the_server_is_asked_about_a_lost_connection() -> None:
    world, others = InMemory("ab"), alive()
    lane, link = world.open("a", "read")
    other, its_link = world.open("b", "read")
    read = world.start("SELECT 1", read=True)
    world.wait(1.5)
    assert world.nodes["a"]._monitor._to_inspect, "the head is old"
    link.end()
    lane._readable()
    world.fall("a")
    world.wait(0.1)
    world.answer(other, its_link)
    assert read.done
    del read
    assert alive() == others
    world.close()


async def test_while_its_first_connection_is_held_up() -> None:
    world, others = InMemory(), alive()
    world.open("a", "read")
    slow = world.start("SELECT slow", read=True)
    quick = world.start("SELECT quick", read=True)
    other, its_link = world.open("a", "read")
    world.wait(0.3)
    world.answer(other, its_link)
    assert quick.done
    assert not slow.done
    del quick
    assert alive() == others + 1
    world.close()


async def test_when_it_was_cancelled_and_applied() -> None:
    world, others = InMemory(), alive()
    lane, link = world.open("a", "write")
    write = world.start("INSERT 1", timeout=60.0)
    write.cancel()
    world.answer(lane, link)
    assert write.done
    assert write.failure is None
    del write
    assert alive() == others
    world.close()


async def test_when_its_deadline_passed_before_its_answer() -> None:
    world, others = InMemory(), alive()
    lane, link = world.open("a", "write")
    write = world.start("INSERT 1", timeout=0.5)
    world.wait(0.55)
    assert world.dispatcher.tracker.open, "the proof of its outcome is waited for"
    world.answer(lane, link)
    assert write.done
    assert write.failure is None
    del write
    assert alive() == others
    world.close()
