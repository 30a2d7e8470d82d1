"""Callers that give up: how long a write may go on without them, and what they find out later."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.in_memory import InMemory

import pgha

pytestmark = pytest.mark.anyio
MakeWorld = Callable[..., InMemory]


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_deadline_ends_a_write_that_waits_for_its_standby(
    make_world: MakeWorld, cancelled: bool
) -> None:
    world = make_world()
    world.open("a", "write")
    write = world.start("INSERT 1", timeout=1.0)
    world.wait(0.5)
    if cancelled:
        write.cancel()
    world.wait(0.4)
    assert not write.done
    world.wait(0.3)
    assert isinstance(write.failure, pgha.CommitInDoubt)
    write.retrieve()


async def test_a_cancelled_write_without_a_deadline_ends_too(make_world: MakeWorld) -> None:
    world = make_world()
    world.open("a", "write")
    write = world.start("INSERT 1")
    write.cancel()
    world.wait(4.5)
    assert not write.done
    world.wait(1.0)
    assert isinstance(write.failure, pgha.CommitInDoubt)
    write.retrieve()


async def test_a_cancelled_write_that_is_answered_in_time_has_its_result(make_world: MakeWorld) -> None:
    world = make_world()
    lane, link = world.open("a", "write")
    write = world.start("INSERT 1")
    write.cancel()
    world.wait(1.5)
    world.answer(lane, link)
    assert write.done
    assert write.failure is None
    world.wait(2.0)
    assert write.failure is None


async def test_the_question_for_an_outcome_is_sent_at_once(make_world: MakeWorld) -> None:
    world = make_world()
    lane, link = world.open("a", "write")
    write = world.start("INSERT 1", keyed=True, timeout=1.0)
    world.wait(1.2)
    error = write.failure
    assert isinstance(error, pgha.CommitInDoubt)
    write.retrieve()
    world.abort(lane, "a cancel had no effect in time")
    _, link = world.open("a", "write")
    assert not link.sent
    assert await error.resolve(0) == "in doubt"
    assert link.written == 1
