"""An observer is told of each step of an operation, in order, with its identity and its caller's context."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest
from support.fake_link import FakeError
from support.in_memory import InMemory

import pgha
from pgha._operation.observer import Observer, Observers
from pgha._operation.operation import AttemptState, Operation

pytestmark = pytest.mark.anyio
CALLER: ContextVar[str] = ContextVar("CALLER", default="nobody")


class Noting(Observer):
    """Notes every step, with the number of the operation and the name of its caller."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.act: Callable[[], object] | None = None

    def note(self, step: str, operation: Operation[Any]) -> None:
        self.steps.append(f"{operation.context.run(CALLER.get)}{operation.number} {step}")
        act, self.act = self.act, None
        if act is not None:
            act()

    def began(self, operation: Operation[Any]) -> None:
        self.note("began", operation)

    def queued(self, operation: Operation[Any]) -> None:
        self.note("queued", operation)

    def sent(self, operation: Operation[Any], attempt: AttemptState) -> None:
        self.note(f"sent to {attempt.node}", operation)

    def became_head(self, operation: Operation[Any], attempt: AttemptState) -> None:
        assert attempt.head_at is not None
        self.note("head", operation)

    def answered(self, operation: Operation[Any], attempt: AttemptState) -> None:
        assert attempt.answered_at is not None
        self.note("answered", operation)

    def retried(self, operation: Operation[Any], reason: str) -> None:
        self.note(f"retried: {reason}", operation)

    def ended(self, operation: Operation[Any], error: BaseException | None) -> None:
        self.note("ended" if error is None else f"ended: {type(error).__name__}", operation)


def observed(**options: Any) -> tuple[InMemory, Noting]:
    world, noting = InMemory(**options), Noting()
    world.dispatcher.observers.add(noting)
    return world, noting


def start(world: InMemory, caller: str, **more: Any) -> Operation[Any]:
    token = CALLER.set(caller)
    try:
        return world.start(f"SELECT '{caller}'", **more)
    finally:
        CALLER.reset(token)


async def test_two_on_one_connection() -> None:
    world, noting = observed()
    lane, link = world.open("a", "read")
    start(world, "ann", read=True)
    start(world, "bob", read=True)
    world.now += 1.0
    world.answer(lane, link)
    assert noting.steps == [
        "ann1 began", "ann1 queued", "ann1 sent to a", "ann1 head",
        "bob2 began", "bob2 sent to a",
        "ann1 answered", "ann1 ended", "bob2 answered", "bob2 ended",
    ]  # fmt: skip
    world.close()


async def test_one_that_waits_and_becomes_the_head_later() -> None:
    world, noting = observed()
    start(world, "ann", read=True)
    assert noting.steps == ["ann1 began", "ann1 queued"]
    lane, link = world.open("a", "read")
    start(world, "bob", read=True)
    world.answer(lane, link, 1)
    assert noting.steps[2:] == [
        "ann1 sent to a", "ann1 head", "bob2 began", "bob2 sent to a", "ann1 answered", "ann1 ended",
        "bob2 head",
    ]  # fmt: skip
    world.answer(lane, link)
    world.close()


async def test_a_retry_and_a_failure() -> None:
    world, noting = observed()
    lane, link = world.open("a", "write")
    operation = start(world, "ann")
    noting.steps.clear()
    link.answer(FakeError("40001"))
    lane._readable()
    assert noting.steps == ["ann1 answered", "ann1 retried: 40001"]
    operation.cancel()
    assert noting.steps[-1] == "ann1 ended: OperationCancelled"
    with pytest.raises(pgha.OperationCancelled):
        await operation
    world.close()


async def test_what_an_observer_starts_and_cancels_is_done_when_the_act_is_over() -> None:
    world, noting = observed()
    lane, link = world.open("a", "read")
    started: list[Operation[Any]] = []
    noting.act = lambda: started.append(start(world, "bob", read=True))
    ann = start(world, "ann", read=True)
    world.answer(lane, link)
    world.answer(lane, link)
    assert ann.value is not None and ann.value[0] == "SELECT 'ann'"
    assert started[0].value is not None and started[0].value[0] == "SELECT 'bob'"
    world.close()


async def test_a_step_that_nobody_wants_has_nobody_to_tell() -> None:
    class Ending(Observer):
        def ended(self, operation: Operation[Any], error: BaseException | None) -> None: ...

    observers = Observers(Ending())
    assert len(observers.ended) == 1
    assert not (observers.began or observers.queued or observers.sent or observers.became_head)
    observers.add(Noting())
    assert [len(observers.ended), len(observers.sent)] == [2, 1]
