"""The receiving half of a lane: answers are read, assigned to their segments, and handled.

Everything here is an act; see `pgha._node.lane`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from pgha._core.pipeline import Pipeline
from pgha._node.callbacks import FlightSlot, LaneCallbacks, ServerFacts
from pgha._node.evidence import failure_of, late_outcome
from pgha._operation.operation import SENT, Operation
from pgha._wire import PGresult
from pgha._wire.link import Received
from pgha._wire.protocol import PipelinedConnection
from pgha._wire.segment import Answer, Segment, plain_success, read_answer


class ReceivingLane(Protocol):
    """The lane, as far as the receiving needs it."""

    server: ServerFacts
    link: PipelinedConnection
    pipeline: Pipeline[Operation[Any] | None, Segment]
    usable: bool
    asked: int

    def fail(self, reason: str, *, lost: bool) -> None:
        """Take no more operations, and close the connection in an act of its own."""
        ...

    def give_up_unread(self, slots: Sequence[FlightSlot]) -> None:
        """Close the connection without reading: every operation without a handled answer is in doubt."""
        ...


L = TypeVar("L", bound=ReceivingLane)


def waits_for(operation: Operation[Any], slot: FlightSlot) -> bool:
    """Return whether the operation waits for the answer to this segment, and not to another or to none."""
    return operation.stage is SENT and operation.place[1] is slot


class Receiver(Generic[L]):
    """Reads and handles answers; see the head of this file."""

    def __init__(self, lane: L, owner: LaneCallbacks[L], rollback: Callable[[float], None]) -> None:
        self._lane = lane
        self._owner = owner
        self._observers = owner.observers
        self._rollback = rollback
        self._paired: deque[tuple[FlightSlot, list[PGresult]]] = deque()
        """The answers that are being handled, with their segments."""

    def read(self, limit: int, now: float) -> Received:
        """Read at most ``limit`` answers, and handle them."""
        try:
            received = self._lane.link.receive(len(self._lane.pipeline.slots), limit)
            self._handle(received.answers, now)
        except BaseException:
            # Some answers may be lost, and the next would be taken for them: nothing is read any more.
            self._lane.give_up_unread(self._unhandled())
            raise
        return received

    def _handle(self, answers: Sequence[list[PGresult]], now: float) -> None:
        """Assign each answer to its segment, and handle the answers.

        All answers are assigned before the first is handled.
        """
        slots = self._lane.pipeline.slots
        if not answers:
            return
        self._lane.asked = 0
        share, known = self._share(slots[0], now, len(answers)), None
        paired = self._paired
        # In both places for a moment, rather than in none when an exception comes in between.
        paired += zip(islice(slots, len(answers)), answers, strict=True)
        self._lane.pipeline.take(len(answers), now)
        while paired:
            slot, results = paired[0]
            operation = slot.item
            if operation is not None:
                pace = operation.request.pace
                if pace is not None and pace is not known:
                    pace.took(share)
                    known = pace
            self._answered(slot, results, now)
            # Whoever still has the slot, as an inspection that is on its way, must not keep the result alive.
            slot.item = None
            paired.popleft()
        if slots and (successor := slots[0].item) is not None and waits_for(successor, slots[0]):
            successor.attempts[-1].head_at = slots[0].head_at
            for tell in self._observers.became_head:
                tell(successor, successor.attempts[-1])

    def _unhandled(self) -> list[FlightSlot]:
        """Remove and return all segments whose answers were not handled to the end."""
        slots = self._lane.pipeline.slots
        unhandled = list(dict.fromkeys([*(slot for slot, _ in self._paired), *slots]))
        self._paired.clear()
        slots.clear()
        return unhandled

    def _share(self, head: FlightSlot, now: float, count: int) -> float:
        """Return the seconds for which the server worked on each of the ``count`` segments answered now.

        It worked on them one after another: each gets an equal share. The first of an idle lane also took a
        round trip.
        """
        travelled = self._lane.server.latency if head.head_at == head.sent_at else 0.0
        return max(0.0, now - (head.head_at or now) - travelled) / count

    def _answered(self, slot: FlightSlot, results: list[PGresult], now: float) -> None:
        operation, segment = slot.item, slot.segment
        # As `waits_for`, without the call.
        pending = operation is not None and operation.stage is SENT and operation.place[1] is slot
        if pending and operation is not None:
            attempt = operation.attempts[-1]
            attempt.answered_at = now
            attempt.head_at = slot.head_at
            for tell in self._observers.answered:
                tell(operation, attempt)
            if segment.pieces is None and plain_success(segment, results):
                if segment.keyed:
                    del results[0]
                self._owner.succeeded(self._lane, operation, results, segment.entry)
                return
        answer = read_answer(segment, results)
        self._update_cache(answer)
        if answer.protocol_mismatch:
            self._lane.fail("the answers do not match what was sent", lost=False)
        if segment.framed and answer.commit_tag is None and self._lane.usable:
            # The block is still open, in the failed state.
            self._rollback(now)
        if operation is None:
            if answer.fault is not None and slot.abandoned_at is None:
                self._lane.fail("a transaction could not be rolled back", lost=False)
        elif pending:
            self._tell(slot, operation, answer)
        elif operation.doubt is not None:
            failure = failure_of(slot, answer, synced=not answer.protocol_mismatch)
            operation.doubt.evidence(late_outcome(operation, failure))

    def _tell(self, slot: FlightSlot, operation: Operation[Any], answer: Answer) -> None:
        good = answer.fault is None and not answer.protocol_mismatch and not answer.unreplicated
        if good and (not slot.segment.framed or answer.commit_tag == "COMMIT"):
            self._owner.succeeded(self._lane, operation, answer.results, None)
        else:
            failure = failure_of(slot, answer, synced=not answer.protocol_mismatch)
            self._owner.segment_failed(self._lane, operation, failure)

    def _update_cache(self, answer: Answer) -> None:
        cache = self._lane.link.cache
        for entry in answer.parsed:
            cache.parsed(entry)
        for entry in answer.unparsed:
            cache.failed(entry)
        if answer.spoiled is not None:
            cache.spoiled(answer.spoiled)
