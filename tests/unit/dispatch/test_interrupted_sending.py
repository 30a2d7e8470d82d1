"""Somebody submits or cancels between any two bytecodes of a send, of an answer, and of a cancellation.

A finalizer, a handler of a signal or of the log may run there. The lanes are in memory, so that every
position can be tried. The server answers what it was handed, in its own order: a misplaced answer shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.in_memory import InMemory
from support.interruption import Interruption

import pgha
from pgha._operation.operation import Operation

pytestmark = pytest.mark.anyio


class Scene:
    """One lane for reads and one for writes, each with an operation in flight, and one that waits."""

    def __init__(self) -> None:
        self.world = InMemory()
        self.lanes = {kind: self.world.open("a", kind) for kind in ("read", "write")}
        self.operations: list[Operation[Any]] = []
        self.texts: dict[Operation[Any], str] = {}
        self.cancelled: set[Operation[Any]] = set()
        for read in (True, False):
            self.submit(read=read)

    def submit(self, **more: Any) -> Operation[Any]:
        text = f"SELECT {len(self.operations)}"
        operation = self.world.make(text, **more)
        self.operations.append(operation)
        self.texts[operation] = text
        self.world.dispatcher.start(operation)
        return operation

    def cancel(self, operation: Operation[Any]) -> None:
        self.cancelled.add(operation)
        operation.cancel()

    def answer_all(self, times: int = 10) -> None:
        for _ in range(times):
            for lane, link in self.lanes.values():
                self.world.answer(lane, link)

    def check(self) -> None:
        """Check that everybody got an own answer, and that no key was sent without its write."""
        self.answer_all()
        for operation in self.operations:
            assert operation.done
            if operation in self.cancelled and operation.failure is not None:
                assert isinstance(operation.failure, pgha.OperationCancelled)
            else:
                assert operation.failure is None
                assert operation.value is not None
                assert operation.value[0] == self.texts[operation]
            operation.retrieve()
        for _, link in self.lanes.values():
            self._in_order(link.handed)
            assert link.written == link.answered == len(link.sent)
        assert self.world.dispatcher.queued == 0
        assert not self.world.dispatcher.tracker.open
        self.world.close()

    @staticmethod
    def _in_order(handed: list[str]) -> None:
        """Check that each segment is whole: perhaps the ledger's statement, a statement, its Sync."""
        segments = "\n".join(handed).split("Sync")
        assert segments.pop().strip() == ""
        for segment in segments:
            pieces = segment.split("\n")
            statements = [one for one in pieces if one.startswith("SELECT")]
            assert len(statements) == 1, handed
            assert pieces.count("ledger") <= 1, handed


ACTS: dict[str, Callable[[Scene], object]] = {
    "submit a read": lambda scene: scene.submit(read=True),
    "submit a write": lambda scene: scene.submit(),
    "submit a keyed write": lambda scene: scene.submit(keyed=True),
    "cancel the oldest write": lambda scene: scene.cancel(scene.operations[1]),
    "cancel the newest": lambda scene: scene.cancel(scene.operations[-1]),
}
MEANWHILE: dict[str, Callable[[Scene], object]] = {
    "a read is sent": lambda scene: scene.submit(read=True),
    "a keyed write is sent": lambda scene: scene.submit(keyed=True),
    "answers are read": lambda scene: scene.answer_all(times=1),
    "a write is cancelled": lambda scene: scene.cancel(scene.operations[1]),
}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("meanwhile", [one for one in MEANWHILE if "sent" in one])
async def test_between_some_bytecodes(act: str, meanwhile: str) -> None:
    """Each third position, so that what differs with the loop or the act is tried at once."""
    between_bytecodes(act, meanwhile, first=list(ACTS).index(act) % 3, step=3)


@pytest.mark.thorough
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("meanwhile", MEANWHILE)
async def test_between_any_two_bytecodes(act: str, meanwhile: str) -> None:
    between_bytecodes(act, meanwhile, first=0, step=1)


def between_bytecodes(act: str, meanwhile: str, first: int, step: int) -> None:
    position = first
    while True:
        scene = Scene()
        interruption = Interruption(position, lambda: ACTS[act](scene))  # noqa: B023 - called in this round
        with interruption.lurking():
            MEANWHILE[meanwhile](scene)
        scene.check()
        if not interruption.happened:
            break
        position += step
    assert position > 100
