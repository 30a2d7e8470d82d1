"""Operations that an act left nowhere, because an exception of a signal's handler ended it half-way.

Such an exception may come between any two steps. After an act that failed, each open operation is looked
at. One that is in no line, on no lane and in no other hands is put back into its line if it certainly was not
sent or may be run again; otherwise it fails in doubt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from pgha._core.outcome import Outcome
from pgha._dispatch.failure import given_up, in_doubt
from pgha._dispatch.tracker import Tracker
from pgha._operation.operation import Operation, Stage

_REASON = "interrupted in the middle of the work on it"


class OrphansCallbacks(Protocol):
    """The dispatcher, which places operations."""

    def place(self, operation: Operation[Any], now: float) -> None:
        """Put an operation into its line."""
        ...


def is_orphan(operation: Operation[Any]) -> bool:
    """Return whether nobody has the operation, although it is open."""
    place = operation.place
    match operation.stage:
        case Stage.QUEUED:
            number = operation.number
            return place is None or not (
                place.waiting.has(operation, number) or place.behind.has(operation, number)
            )
        case Stage.SENT:
            if place is None:
                return True
            lane, slot = place
            gone = lane.broken is not None or slot not in lane.pipeline.slots
            return gone and operation.attempts[-1].answered_at is None
        case Stage.NEW | Stage.PAUSED:
            # A pause has a timer: it only ends early.
            return True
    return False


def adopt(
    operations: Iterable[Operation[Any]], tracker: Tracker, owner: OrphansCallbacks, now: Callable[[], float]
) -> None:
    """Put back or end the operations that are orphans."""
    for operation in sorted(operations, key=lambda one: one.number):
        if not is_orphan(operation):
            continue
        attempts = operation.attempts
        sent = operation.stage is Stage.SENT or (bool(attempts) and attempts[-1].outcome is None)
        repeatable = operation.request.read or operation.request.idempotent
        if operation.stage is Stage.QUEUED and operation.place is not None:
            operation.place.waiting.remove(operation, operation.number)
            operation.place.behind.remove(operation, operation.number)
        operation.stage, operation.place = Stage.NEW, None
        if sent and not repeatable:
            operation.doubted = True
            tracker.fail(operation, in_doubt(operation, _REASON), Outcome.IN_DOUBT)
        elif operation.gave_up is not None:
            tracker.fail(operation, given_up(operation), Outcome.NOT_APPLIED)
        else:
            owner.place(operation, now())
