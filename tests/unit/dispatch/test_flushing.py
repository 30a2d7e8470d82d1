"""What is to be written later is written, also if the moment for it was missed."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest
from support.in_memory import InMemory

pytestmark = pytest.mark.anyio
MakeWorld = Callable[..., InMemory]


async def test_a_tick_writes_what_a_missed_rest_left(make_world: MakeWorld) -> None:
    """An exception of a signal's handler came just before the writing: nothing waits for it for ever."""
    world = make_world()
    _, link = world.open("a", "read")
    rests: list[str] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.dispatcher.loop.serve_rests, lambda: rests.append("missed"))
        await anyio.wait_all_tasks_blocked()
        world.start("SELECT 0", read=True)
        world.start("SELECT 1", read=True)
        await anyio.wait_all_tasks_blocked()
        assert rests == ["missed"]
        assert link.written < len(link.sent)
        for _ in range(3):
            world.start("SELECT 2", read=True)
            world.wait(0.05)
            await anyio.wait_all_tasks_blocked()
        assert link.written == len(link.sent)
        tasks.cancel_scope.cancel()
