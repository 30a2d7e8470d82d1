"""The decision about a failed attempt, and the errors that callers get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.errors import error_from_result

from pgha._core.backoff import Budget
from pgha._core.ledger_rules import EXISTS, LATE, LIFE, UNUSABLE
from pgha._core.next_step import READ_ONLY, NextStep
from pgha._core.outcome import Outcome
from pgha._errors import (
    CommitInDoubt,
    ConfigError,
    Error,
    ErrorInfo,
    LedgerError,
    OperationCancelled,
    OperationTimeout,
    annotate,
)  # fmt: skip
from pgha._node.callbacks import SegmentFailure
from pgha._operation.operation import Operation
from pgha._types import Outcome as _Outcome

_LAST_MINUTE = 60.0
"""An attempt sent this many seconds before the end of `LIFE`, or later, may be refused because of its end."""


class LegLost(psycopg.OperationalError):
    """A leg of `fastest` ended without an answer; the caller sees this error only if all legs did."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The next step of an operation after an attempt."""

    next_step: NextStep
    outcome: Outcome
    reason: str
    """The reason why the attempt ended, on one line."""
    budget: Budget | None = None
    """The retry budget to which the next step is charged; None if it is charged to none."""


def if_not_applied(
    operation: Operation[Any], failure: SegmentFailure, decision: Decision
) -> psycopg.Error | None:
    """Return the error to raise if the ledger says *not applied*; None if the key itself was refused."""
    facts, cause = failure.facts, server_error(operation, failure)
    error: psycopg.Error
    state = facts.error.sqlstate if facts.at_ledger and facts.error is not None else ""
    if state == EXISTS:
        return None
    if state == LATE or state in UNUSABLE:
        error = ledger_error(operation, failure, cause)
    elif facts.error is not None and facts.error.genuine and not facts.tells_of_loss and cause:
        error = cause
    else:
        error = psycopg.OperationalError(
            f"{_where(operation)}: the connection was lost, and the write certainly not applied:"
            f" {decision.reason}"
        )
    if error is not cause and cause is not None:
        error.__cause__ = cause
    note(error, operation, Outcome.NOT_APPLIED, failure.answer.statement)
    return error


def final_outcome(operation: Operation[Any], last: Outcome) -> Outcome:
    """Return the outcome over all attempts: after doubt, an operation stays in doubt unless it succeeded."""
    doubted = operation.doubted and not operation.request.read
    return Outcome.IN_DOUBT if last is Outcome.NOT_APPLIED and doubted else last


def error_for(operation: Operation[Any], failure: SegmentFailure, decision: Decision) -> psycopg.Error:
    """Return the exception that the caller gets."""
    cause = server_error(operation, failure)
    error: psycopg.Error
    outcome = final_outcome(operation, decision.outcome)
    next_step = decision.next_step
    if outcome is Outcome.IN_DOUBT and next_step is not NextStep.FAIL_SQL and not operation.request.read:
        next_step = NextStep.FAIL_IN_DOUBT
    match next_step:
        case NextStep.FAIL_SQL if cause is not None:
            error = cause
        case NextStep.FAIL_LOST if cause is not None and failure.lost is None:
            # This connection is well: a pooler reported the loss of its own connection to the server.
            error = cause
        case NextStep.FAIL_LEDGER:
            error = ledger_error(operation, failure, cause)
        case NextStep.FAIL_TIMEOUT:
            error = timed_out(operation)
        case NextStep.FAIL_CANCELLED:
            error = cancelled()
        case NextStep.FAIL_IN_DOUBT:
            error = in_doubt(operation, decision.reason)
        case _:
            error = psycopg.OperationalError(
                f"{_where(operation)}: the connection was lost: {decision.reason}"
            )
    if error is not cause and cause is not None:
        error.__cause__ = cause
    note(error, operation, outcome, failure.answer.statement)
    return error


def server_error(operation: Operation[Any], failure: SegmentFailure) -> psycopg.Error | None:
    """Return the server's error as an instance of psycopg's class, with a hint if pgha has one."""
    result = failure.answer.error
    if result is None:
        return None
    error = error_from_result(result)
    if operation.request.read and error.sqlstate == READ_ONLY:
        error.add_note("fetch runs read-only; use execute, it returns rows too")
    if error.sqlstate == "42601" and b"multiple commands" in result.error_message:
        error.add_note("a string may hold one statement: use execute_batch for several in one transaction")
    return error


def ledger_error(
    operation: Operation[Any], failure: SegmentFailure, cause: psycopg.Error | None
) -> LedgerError:
    """Return the error that says why the ledger cannot be used, and what to do."""
    node = _where(operation)
    state = failure.facts.error.sqlstate if failure.facts.error is not None else ""
    if failure.note:
        return LedgerError(f"{node}: {failure.note}: grant EXECUTE on pg_control_system() to the role")
    match state:
        case "42P01" | "3F000":
            what = "there is no ledger: `pgha ledger install` or Cluster.ledger.install() makes one"
        case "42501":
            what = (
                f"the role may not use the ledger ({_first_line(cause)}): `pgha ledger install --grant ROLE`"
            )
        case "23502" if operation.attempts[-1].sent_at - operation.started_at > LIFE - _LAST_MINUTE:
            what = (
                f"the write waited for {LIFE / 60:.0f} minutes, and no attempt of a keyed write begins later:"
                " call again with the same key"
            )
        case "23502":
            what = "its clock moves: the server refused the write as too late although the write was in time"
        case _:
            what = f"the ledger has another layout ({_first_line(cause)}): see `pgha ledger status`"
    return LedgerError(f"{node}: {what}")


def _first_line(error: psycopg.Error | None) -> str:
    return str(error).split("\n")[0] if error is not None else "no message"


def timed_out(operation: Operation[Any]) -> OperationTimeout:
    """Return the error of an operation that was not applied before its deadline."""
    return OperationTimeout(f"no answer within {operation.request.timeout:g} s, and certainly not applied")


def given_up(operation: Operation[Any]) -> Error:
    """Return the error of an operation that its caller gave up on while no node was running it."""
    if operation.doubted and not operation.request.read:
        return in_doubt(operation, "an earlier attempt ended in doubt")
    return timed_out(operation) if operation.gave_up == "timeout" else cancelled()


def cancelled() -> OperationCancelled:
    """Return the error of an operation that was cancelled before it was applied."""
    return OperationCancelled("the operation was cancelled, and certainly not applied")


def in_doubt(operation: Operation[Any], reason: str) -> CommitInDoubt:
    """Return the error of an operation whose outcome is unknown, for ``reason``."""
    doubt = operation.doubt = operation.runner.in_doubt(operation)
    loop = operation.runner.loop

    async def resolve(timeout: float | None) -> _Outcome:
        if doubt.pending and not loop.here():
            raise ConfigError(
                "resolve() must be called in the event loop of its cluster:"
                " from other threads call pgha.blocking.Cluster.resolve"
            )
        return (await doubt.resolve(timeout)).value

    advice = "call resolve() to find out" if doubt.resolvable else "check the data before you run it again"
    return CommitInDoubt(
        f"{_where(operation)}: nothing proves whether the write was applied ({reason}); {advice}",
        idempotency_key=operation.key,
        node=operation.attempts[-1].node if operation.attempts else None,
        attempts=len(operation.attempts),
        evidence=operation.evidence,
        _resolve=resolve,
    )


def note(
    error: BaseException, operation: Operation[Any], outcome: Outcome, statement: int | None = None
) -> None:
    """Attach the known facts to the error, for `pgha.error_info`."""
    attempts = operation.attempts
    node = attempts[-1].node if attempts else None
    if not operation.request.batch:
        statement = None if statement is None else 0
    annotate(error, ErrorInfo(node, statement, len(attempts), outcome.value))


def _where(operation: Operation[Any]) -> str:
    return operation.attempts[-1].node if operation.attempts else "no node"
