"""An exception of a signal's handler, at any moment of a send, of an answer, and of a cancellation.

Handlers of signals may raise: for Ctrl-C, for the end of a job. Whatever pgha was doing then, no write is run
twice, no answer reaches another caller, and nobody waits for ever.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from support.fake_link import FakeError, FakeLink
from support.in_memory import InMemory
from support.interruption import Interruption

import pgha
from pgha._node.lane import Lane
from pgha._operation.operation import Operation, Stage
from pgha._options import Tuning

pytestmark = pytest.mark.anyio


class JobTimeout(Exception):
    """What the handler of an alarm raises."""


class Interrupt(BaseException):
    """What nobody catches, as KeyboardInterrupt and SystemExit."""


class Scene:
    """A lane for reads and one for writes, which are opened anew when they end."""

    def __init__(self, *, depth: int = 16) -> None:
        self.world = InMemory(tuning=Tuning(depth=depth))
        self.lanes: dict[str, tuple[Lane, FakeLink]] = {}
        self.links: list[FakeLink] = []
        self.operations: dict[str, Operation[Any]] = {}
        self.left: set[Operation[Any]] = set()
        """The operations whose callers got the exception."""
        self.refused: list[str] = []
        """The operations that the server has refused, once for each time."""
        self.reopen()

    def reopen(self) -> None:
        for kind in ("read", "write"):
            if kind not in self.lanes or self.lanes[kind][0].broken is not None:
                self.lanes[kind] = self.world.open("a", kind)
                self.links.append(self.lanes[kind][1])

    def submit(self, **more: Any) -> Operation[Any]:
        text = f"SELECT {len(self.operations)}"
        self.operations[text] = operation = self.world.make(text, **more)
        try:
            self.world.dispatcher.start(operation)
        except BaseException:
            self.left.add(operation)
            raise
        return operation

    def answer_all(self) -> None:
        for lane, link in self.lanes.values():
            self.world.answer(lane, link)

    def refuse_all(self) -> None:
        """Answer everything with an error that makes pgha run it again."""
        for lane, link in self.lanes.values():
            for _ in range(link.unanswered):
                self.refused.append(link.sent[link.answered][-1])
                link.answer(FakeError("53200"))
            lane._readable()

    def end_all(self) -> None:
        """Answer the first of each connection, and end the connections."""
        for lane, link in self.lanes.values():
            link.answer()
            link.end()
            lane._readable()

    def finish(self) -> None:
        """Let the program go on: connections are opened anew, answers arrive, time passes."""
        for _ in range(4):
            self.world.wait(0.06)
            self.world.ping("a")
            self.reopen()
            self.answer_all()

    def check(self) -> None:
        """Check that everybody has an answer of their own, and that no write was sent twice."""
        self.finish()
        for text, operation in self.operations.items():
            assert operation.done or operation in self.left, f"{text} waits for ever: {operation}"
            sent = sum(one[-1] == text for link in self.links for one in link.sent) - self.refused.count(text)
            failure = operation.failure
            if operation in self.left:
                pass
            elif failure is None:
                assert operation.value is not None
                assert operation.value[0] == text, f"{text} got {operation.value[0]}"
                assert sent >= 1, "never sent"
            elif isinstance(failure, pgha.OperationCancelled):
                assert operation.request.read or not sent, "cancelled, yet sent"
            else:
                assert isinstance(failure, (pgha.CommitInDoubt, JobTimeout, Interrupt)), repr(failure)
            assert sent <= 1 or operation.request.read, f"{text} was sent {sent} times"
            operation.retrieve()
        assert self.world.dispatcher.queued == 0
        assert not self.world.dispatcher.tracker.open
        self.world.close()
        for link in self.links:
            link.finish()


MEANWHILE: dict[str, Callable[[Scene], object]] = {
    "a read is sent": lambda scene: scene.submit(read=True),
    "a write is sent": lambda scene: scene.submit(),
    "a keyed write is sent": lambda scene: scene.submit(keyed=True),
    "answers are read": lambda scene: scene.answer_all(),
    "errors are read": lambda scene: scene.refuse_all(),
    "connections end": lambda scene: scene.end_all(),
    "time passes": lambda scene: scene.world.wait(0.06),
    "a write is cancelled": lambda scene: scene.operations["SELECT 1"].cancel(),
}


def at_every_position(meanwhile: str, failure: type[BaseException], depth: int) -> tuple[int, list[str]]:
    """Raise ``failure`` at every position; return the number of positions, and what went wrong."""
    position, wrong = 0, []
    while True:
        scene = Scene(depth=depth)
        for read in (True, False, True, False):
            scene.submit(read=read)

        def fail() -> None:
            raise failure("made up")

        interruption = Interruption(position, fail, raises=True)
        try:
            with interruption.lurking():
                MEANWHILE[meanwhile](scene)
        except failure:
            pass
        try:
            scene.check()
        except (AssertionError, IndexError) as error:
            wrong.append(f"{position} {interruption.where}: {repr(error).splitlines()[0]}")
        if not interruption.happened:
            return position, wrong
        position += 1


LONG = ("errors are read", "connections end", "time passes")


def rounds() -> Iterator[object]:
    for meanwhile in MEANWHILE:
        for depth, name in ((16, "pipelined"), (1, "queued")):
            marks = [pytest.mark.thorough] if meanwhile in LONG else []
            yield pytest.param(meanwhile, depth, id=f"{meanwhile}, {name}", marks=marks)


@pytest.mark.parametrize("failure", [pytest.param(JobTimeout, marks=pytest.mark.thorough), Interrupt])
@pytest.mark.parametrize(("meanwhile", "depth"), [*rounds()])
async def test_at_any_moment(meanwhile: str, depth: int, failure: type[BaseException]) -> None:
    positions, wrong = at_every_position(meanwhile, failure, depth)
    assert positions > 15
    assert wrong == []


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    made = Scene(depth=1)
    yield made
    made.world.close()


def interrupt() -> None:
    raise Interrupt


@pytest.mark.parametrize("kind", ["read", "write"])
async def test_a_lane_that_cannot_be_written_keeps_no_other_from_being_written(kind: str) -> None:
    scene = Scene()

    def act(_: None) -> None:
        scene.submit(read=True)
        scene.submit()

    scene.lanes[kind][1].on_flush = interrupt
    with pytest.raises(Interrupt):
        scene.world.dispatcher.door.enter(act, None)
    for name, (_, link) in scene.lanes.items():
        link.on_flush = None
        if name != kind:
            scene.submit(read=name == "read")
            assert link.written == len(link.sent) == 2
    scene.check()


async def test_answers_that_are_lost_leave_no_place_for_the_next(scene: Scene) -> None:
    """The next answer on that connection would reach the wrong caller."""
    scene = Scene()
    first, second = scene.submit(), scene.submit()
    lane, link = scene.lanes["write"]
    link.answer()
    link.on_received = interrupt
    with pytest.raises(Interrupt):
        lane._readable()
    link.on_received = None
    link.answer()
    lane._readable()
    for operation in (first, second):
        assert isinstance(operation.failure, pgha.CommitInDoubt)
    scene.check()


async def test_an_answer_that_fails_takes_no_other_along(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene()
    for _ in range(3):
        scene.submit()
    lane, link = scene.lanes["write"]
    tracker = scene.world.dispatcher.tracker
    succeed, calls = tracker.succeed, [0]

    def interrupted(operation: Operation[Any], value: Any) -> None:
        succeed(operation, value)
        calls[0] += 1
        if calls[0] == 1:
            raise Interrupt

    monkeypatch.setattr(tracker, "succeed", interrupted)
    with pytest.raises(Interrupt):
        scene.world.answer(lane, link)
    first, *others = scene.operations.values()
    assert first.failure is None
    assert first.value is not None
    for operation in others:
        assert isinstance(operation.failure, pgha.CommitInDoubt)
    scene.check()


async def test_nobody_is_lost_while_a_lane_is_read_before_it_is_written(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.submit()
    waiting = scene.submit()
    lane, link = scene.lanes["write"]
    with monkeypatch.context() as patched:
        patched.setattr(link, "readable", interrupt)
        with pytest.raises(Interrupt):
            scene.world.answer(lane, link)
    assert waiting.stage is Stage.QUEUED
    scene.check()
    assert waiting.failure is None
