"""Classification of failed segments: the facts go to `pgha._core.next_step`, the outcome into the record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pgha._core.backoff import Budget
from pgha._core.ledger_rules import EXISTS, LATE
from pgha._core.next_step import Case, NextStep, budget_of, decide
from pgha._core.outcome import Facts, Handed, Outcome
from pgha._dispatch.failure import Decision
from pgha._node.callbacks import SegmentFailure
from pgha._operation.operation import AttemptState, Operation
from pgha._options import Tuning
from pgha._types import Evidence

_HANDED: dict[Handed, Literal["nothing", "part", "whole"]] = {
    Handed.NOTHING: "nothing",
    Handed.PART: "part",
    Handed.WHOLE: "whole",
}


def classify(
    operation: Operation[Any], failure: SegmentFailure, tuning: Tuning, exhausted: frozenset[Budget],
    role_changed: bool | None = None,
) -> Decision:  # fmt: skip
    """Decide the next step after a failure, and write the outcome into the operation's record.

    Args:
        operation: The operation whose attempt failed.
        failure: The facts that the lane recorded.
        tuning: The limits of attempts.
        exhausted: The retry budgets that have nothing left.
        role_changed: Whether the node takes no writes any more; None if that was not checked.

    Returns:
        The decision. After `NextStep.CHECK_ROLE`, the same failure is classified again.
    """
    if _suspected(operation.attempts, failure):
        operation.attempts[-1].suspected = True
        operation.suspected_crashes += 1
    outcome, next_step = decide(_case(operation, failure, tuning, exhausted, role_changed))
    if next_step is NextStep.FAIL_SQL and failure.lost is not None and failure.ours:
        next_step = NextStep.FAIL_LOST  # pgha terminated the backend, not an administrator
    if operation.attempts:
        operation.attempts[-1].outcome = outcome
    reason = _reason(failure)
    if outcome is Outcome.IN_DOUBT:
        _record_doubt(operation, failure, reason)
    elif failure.facts.at_ledger:
        _refused_by_ledger(operation, failure.facts)
    return Decision(next_step, outcome, reason, budget_of(failure.facts, next_step))


def _case(
    operation: Operation[Any], failure: SegmentFailure, tuning: Tuning, exhausted: frozenset[Budget],
    role_changed: bool | None,
) -> Case:  # fmt: skip
    request, attempts = operation.request, operation.attempts
    keyed = request.keyed
    return Case(
        failure.facts,
        read=request.read,
        idempotent=request.idempotent,
        keyed=operation.lineage is not None or (bool(attempts) and attempts[-1].keyed),
        auto=keyed is not None and keyed.auto,
        doubted=operation.doubted,
        gave_up=operation.gave_up,
        ours=failure.overlapped,
        attempts=len(attempts) - operation.hits,
        max_attempts=tuning.max_attempts,
        total=len(attempts),
        max_total=2 * tuning.max_attempts,
        suspected_crashes=operation.suspected_crashes,
        max_suspected_crashes=tuning.suspected_crashes,
        unprepared=operation.unprepared,
        unkeyed=operation.unkeyed,
        role_changed=role_changed,
        exhausted=exhausted,
    )


def _reason(failure: SegmentFailure) -> str:
    """Return the reason why the attempt ended, on one line."""
    error = failure.facts.error
    if failure.facts.unreplicated:
        return "committed, but the wait for its synchronous standby was broken off"
    # libpq's own errors have no code, and some failures have no message.
    return failure.note or (error.sqlstate if error is not None else "") or failure.lost or "no answer"


def _suspected(attempts: Sequence[AttemptState], failure: SegmentFailure) -> bool:
    """Return whether the operation may have caused the loss of the connection.

    Server shutdowns and connections closed by pgha do not count. Nor does one crash count twice: between the
    death of a backend and the end of all others the server goes on (measured: for milliseconds), and the
    operation of the dead backend may be sent again, to another backend of the same server. Only the attempt
    right after the suspected one is excused: if a parallel worker crashes, the operation that caused the
    crash gets the same message as all others.
    """
    if failure.lost is None or not failure.was_head or failure.not_suspected or not attempts:
        return False
    before = attempts[-2] if len(attempts) > 1 else None
    same_crash = (
        failure.crashed and before is not None and before.suspected and before.node == attempts[-1].node
    )
    return not same_crash


def _record_doubt(operation: Operation[Any], failure: SegmentFailure, reason: str) -> None:
    operation.doubted = True
    facts, error, last = failure.facts, failure.facts.error, operation.attempts[-1]
    operation.evidence = Evidence(
        reason if failure.lost is None else f"{reason}; {failure.lost}" if reason != failure.lost else reason,
        _HANDED[facts.handed],
        facts.completed,
        facts.statements,
        error.sqlstate if error is not None and error.sqlstate else None,
        error.severity if error is not None and error.severity else None,
        facts.unreplicated,
    )
    if last.keyed:
        operation.spread_over_lineages = operation.spread_over_lineages or operation.lineage not in (
            None,
            last.system,
        )
        operation.lineage = last.system


def _refused_by_ledger(operation: Operation[Any], facts: Facts) -> None:
    if facts.error is not None and facts.error.sqlstate == EXISTS:
        # The row is in the lineage where this attempt met the row, whichever attempt inserted it.
        system = operation.attempts[-1].system
        operation.spread_over_lineages = operation.spread_over_lineages or operation.lineage not in (
            None,
            system,
        )
        operation.lineage = system
    elif facts.error is not None and facts.error.sqlstate == LATE:
        operation.refusals += 1
