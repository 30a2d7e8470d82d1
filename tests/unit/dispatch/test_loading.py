"""A large result is loaded in parts, and other tasks have a turn between them."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from support.common import PATIENCE
from support.in_memory import InMemory

import pgha
from pgha._node.lane import Lane
from pgha._operation.operation import Operation

pytestmark = pytest.mark.anyio


def large(*, read: bool = True) -> tuple[InMemory, Lane, Any, Operation[Any]]:
    """Return a world in which an operation has an answer that is loaded in five parts."""
    world = InMemory()
    lane, link = world.open("a", "read" if read else "write")
    link.parts = 5
    operation = world.start("SELECT 1", read=read)
    world.answer(lane, link)
    return world, lane, link, operation


async def test_the_loop_has_a_turn_between_two_parts() -> None:
    world, _, _, operation = large()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while not operation.done:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count)
        with anyio.fail_after(PATIENCE):
            assert (await operation)[0] == "SELECT 1"
    assert turns >= 3
    world.close()


async def test_the_rest_is_loaded_when_the_connection_ends() -> None:
    """The connection's settings say how to read the values."""
    world, lane, link, operation = large()
    assert not operation.done
    link.end()
    lane._readable()
    assert operation.value is not None and operation.value[0] == "SELECT 1"
    world.close()


@pytest.mark.parametrize("read", [True, False])
async def test_cancelled_while_it_is_loaded(read: bool) -> None:
    world, _, _, operation = large(read=read)
    operation.cancel()
    world.now += 10.0
    with anyio.fail_after(PATIENCE):
        if read:
            with pytest.raises(pgha.OperationCancelled):
                await operation
        else:
            # The write is known to be applied: its rows are loaded to the end.
            assert (await operation)[0] == "SELECT 1"
    assert not world.dispatcher.tracker.open
    world.close()


async def test_a_row_factory_that_raises_in_a_later_part() -> None:
    world, _, link, operation = large()

    def fail() -> None:
        raise LookupError("mine")

    link.on_load = fail
    with anyio.fail_after(PATIENCE), pytest.raises(LookupError, match="mine"):
        await operation
    assert pgha.error_info(operation.failure or LookupError()).outcome == "applied"
    world.close()
