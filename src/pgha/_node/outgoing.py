"""What goes out with an operation besides its statements: the ledger's statement, or a refusal instead."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pgha._core.outcome import Facts, Handed, ServerError
from pgha._node.callbacks import SegmentFailure, ServerFacts
from pgha._operation.key import Keyed
from pgha._operation.operation import AttemptState, Operation
from pgha._wire.link import Extras, LedgerPart
from pgha._wire.segment import Answer


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason why an operation must not be sent on a lane, in the form of an error of its server."""

    sqlstate: str
    reason: str

    def failure(self) -> SegmentFailure:
        """Return the failure that the owner of the lane gets."""
        at_ledger = self.sqlstate == "42501"
        severity = "ERROR" if at_ledger else "FATAL"
        facts = Facts(Handed.NOTHING, error=ServerError(self.sqlstate, severity), at_ledger=at_ledger)
        return SegmentFailure(facts, Answer(), False, False, False, None, note=self.reason)


def extras_of(operation: Operation[Any]) -> Extras:
    """Return the parts of the segment besides the statements, without prepared ones if they were stale."""
    extras = operation.request.extras
    return replace(extras, unprepared=True) if operation.unprepared else extras


def ledger_part(
    operation: Operation[Any], attempt: AttemptState, server: ServerFacts, now: float
) -> LedgerPart | Refusal | None:
    """Return the ledger's statement for an attempt, None without one, or why nothing may be sent."""
    system = attempt.system
    if operation.exactly_once and operation.lineage != system:
        return Refusal("57P01", "another server has taken the node's place")
    keyed = operation.request.keyed
    if keyed is None or operation.unkeyed:
        return None
    # Once an attempt may have been applied, only the ledger keeps the next from applying it twice.
    use_ledger = server.ledger or not keyed.auto or operation.exactly_once
    if system is not None and use_ledger:
        return _insert(keyed, system, operation, attempt, server, now)
    if not keyed.auto:
        return Refusal("42501", "the server did not give its system identifier")
    return None


def _insert(
    keyed: Keyed, system: int, operation: Operation[Any], attempt: AttemptState, server: ServerFacts,
    now: float,
) -> LedgerPart:  # fmt: skip
    attempt.keyed = True
    until, deadline = server.clock.guard(now, operation.started_at, operation.deadline, operation.refusals)
    operation.guarded_until = max(operation.guarded_until, until)
    operation.guard = max(operation.guard, deadline)
    return LedgerPart(keyed.insert(system, deadline), keyed.behind)
