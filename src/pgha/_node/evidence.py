"""The facts that a lane knows about a segment that did not simply succeed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pgha._core.ledger_rules import EXISTS
from pgha._core.outcome import Facts, Handed, Outcome, ServerError, outcome
from pgha._node.callbacks import FlightSlot, SegmentFailure
from pgha._operation.operation import Operation
from pgha._wire.link import ADMIN_SHUTDOWN
from pgha._wire.protocol import PipelinedConnection
from pgha._wire.segment import Answer, read_answer


def failure_of(
    slot: FlightSlot, answer: Answer, *, synced: bool, was_head: bool = True, after_fatal: bool = False,
    lost: str | None = None,
) -> SegmentFailure:  # fmt: skip
    """Return what is known about a segment."""
    operation, segment = slot.item, slot.segment
    facts = Facts(
        handed=slot.handed,
        synced=synced,
        error=answer.fault,
        completed=answer.completed,
        statements=segment.expected(),
        framed=segment.framed,
        commit_tag=answer.commit_tag,
        self_committing=operation is not None and operation.request.self_committing,
        unreplicated=answer.unreplicated,
        at_ledger=answer.at_ledger,
        after_fatal=after_fatal,
    )
    return SegmentFailure(facts, answer, slot.overlapped, was_head, slot.rerun_exclusive, lost)


def failures_after_loss(
    slots: Sequence[FlightSlot], link: PipelinedConnection, reason: str, *, lost: bool, terminated: bool
) -> list[SegmentFailure]:
    """Return what is known about each segment in flight on a connection that ended, the oldest first.

    ``lost`` says that pgha did not end the connection, ``terminated`` that pgha had the backend terminated.
    """
    failures: list[SegmentFailure] = []
    after_fatal = False
    ordered, crashed = link.ended_by_order(), link.ended_by_crash()
    for index, slot in enumerate(slots):
        head = index == 0
        answer = read_answer(slot.segment, link.unfinished() if head else ())
        answer.unreplicated = head and link.unreplicated
        was_head = head and slot.handed is Handed.WHOLE
        failure = failure_of(
            slot, answer, synced=False, was_head=was_head, after_fatal=after_fatal, lost=reason
        )
        failure.ours = terminated
        failure.not_suspected = not terminated and (ordered or not lost or _by_order(answer.fault))
        failure.crashed = crashed
        failures.append(failure)
        after_fatal = after_fatal or _ends_all(answer.fault)
    return failures


def late_outcome(operation: Operation[Any], failure: SegmentFailure) -> Outcome:
    """Return the outcome of an operation whose caller already got `CommitInDoubt`."""
    found, error = outcome(failure.facts), failure.facts.error
    if found is Outcome.NOT_APPLIED:
        exists = failure.facts.at_ledger and error is not None and error.sqlstate == EXISTS
        if operation.doubted or exists:
            return Outcome.IN_DOUBT  # another attempt may have been applied, or was
    return found


def request_size(operation: Operation[Any]) -> int:
    """Return the number of bytes of an operation's statements, with their parameters."""
    size = 0
    for one in operation.request.statements:
        size += len(one.query) + sum(len(value) for value in one.params or () if value is not None)
    return size


def _by_order(fault: ServerError | None) -> bool:
    return fault is not None and fault.fatal and fault.sqlstate == ADMIN_SHUTDOWN


def _ends_all(fault: ServerError | None) -> bool:
    """Return whether the error ends the backend, so that it never begins with the segments behind."""
    return fault is not None and fault.genuine and fault.fatal and not fault.broken_connection


def one_line(error: BaseException) -> str:
    """Return the error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__
