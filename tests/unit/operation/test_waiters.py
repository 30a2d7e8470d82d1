"""Tests of the tasks that wait for an operation: one that leaves is forgotten, and the others are woken."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import anyio
import pytest
from support.interruption import Interruption

from pgha._core.need import READ
from pgha._operation.operation import Operation, Request
from pgha._types import nearest
from pgha._wire.loops import current_loop

pytestmark = pytest.mark.anyio


class Runner:
    """A stand-in for the dispatcher, which notes what an operation's callers tell it."""

    def __init__(self) -> None:
        self.loop = current_loop()
        self.given_up: list[str] = []

    def give_up(self, operation: Operation[Any], why: str) -> None:
        self.given_up.append(why)

    def left(self, operation: Operation[Any]) -> None:
        self.given_up.append("left")


def operation_of(runner: Any) -> Operation[int]:
    return Operation(runner, Request((), READ, True, False, nearest(), tuple), 0.0)


def waiters(operation: Operation[Any]) -> int:
    return (operation._first is not None) + len(operation._more or ())


async def test_a_wait_that_is_left_leaves_nothing() -> None:
    operation = operation_of(Runner())
    for _ in range(100):
        with anyio.move_on_after(0):
            await operation.wait()
    assert waiters(operation) == 0
    operation.finish(1, None)
    await operation.wait()


@pytest.mark.parametrize("leaving", [[0], [1], [0, 1], [2], [0, 2], [1, 2], [0, 1, 2, 3]])
async def test_who_stays_is_woken(leaving: list[int]) -> None:
    """Whichever of the waiting tasks leave, the others are woken, and newcomers too."""
    operation, woken = operation_of(Runner()), list[int]()
    scopes = [anyio.CancelScope() for _ in range(4)]

    async def wait(number: int) -> None:
        with scopes[number]:
            await operation.wait()
            woken.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(wait, number)
            await anyio.wait_all_tasks_blocked()
        for number in leaving:
            scopes[number].cancel()
        await anyio.wait_all_tasks_blocked()
        assert waiters(operation) == 4 - len(leaving)
        scopes.append(anyio.CancelScope())
        tasks.start_soon(wait, 4)
        await anyio.wait_all_tasks_blocked()
        operation.finish(1, None)
    assert sorted(woken) == sorted({0, 1, 2, 3, 4} - set(leaving))


async def test_an_awaiting_task_that_leaves_others_waiting_is_forgotten() -> None:
    runner = Runner()
    operation, results = operation_of(runner), list[int]()

    async def stay() -> None:
        results.append(await operation)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stay)
        await anyio.wait_all_tasks_blocked()
        for _ in range(100):
            with anyio.move_on_after(0):
                await operation
        assert waiters(operation) == 1
        assert runner.given_up == []
        operation.finish(7, None)
    assert results == [7]


@pytest.mark.parametrize("awaits", [True, False], ids=["await", "wait"])
async def test_an_end_in_the_middle_of_beginning_to_wait_is_noticed(awaits: bool) -> None:
    """A finalizer, say, ends the operation between any two bytecodes of the await."""
    position = 0
    while True:
        operation = operation_of(Runner())
        ending = Interruption(position, partial(operation.finish, 1, None))

        async def waiting(operation: Operation[Any] = operation, ending: Interruption = ending) -> None:
            sys.settrace(ending.trace)
            try:
                await (operation if awaits else operation.wait())
            finally:
                sys.settrace(None)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(waiting)
            await anyio.wait_all_tasks_blocked()
            if not ending.happened:
                tasks.cancel_scope.cancel()
                break
            assert waiters(operation) == 0, ending.where
            with anyio.fail_after(5):
                await operation.wait()
        position += 1
    assert position > 10
