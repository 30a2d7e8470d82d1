"""The record of all operations: the open ones, the statistics, and the events about how operations ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import anyio

from pgha._core.outcome import Outcome
from pgha._dispatch.events import EventHub
from pgha._dispatch.failure import Decision, final_outcome, note
from pgha._dispatch.timers import Timers
from pgha._errors import CommitInDoubt, OperationCancelled, OperationTimeout, error_info
from pgha._operation.in_doubt import InDoubtOutcome
from pgha._operation.operation import Operation
from pgha._telemetry.log import ClusterLog
from pgha._types import FailureUnretrieved, OperationInDoubt, OperationResolved, OperationRetried
from pgha._types import Outcome as PublicOutcome


@dataclass(slots=True)
class Counters:
    """The counters that are documented in `Statistics`."""

    operations: int = 0
    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    replayed: int = 0
    in_doubt: int = 0
    cancelled: int = 0
    timed_out: int = 0
    unretrieved: int = 0
    cancels_sent: int = 0
    connections_lost: int = 0


class Tracker:
    """Ends operations, and counts and reports how they ended. Legs of races do not count as operations."""

    def __init__(self, times: Timers, clock: Callable[[], float], log: ClusterLog) -> None:
        self.counters = Counters()
        self.events = EventHub()
        self.open: set[Operation[Any]] = set()
        """The operations that were started and are not done."""
        self._times = times
        self._clock = clock
        self.log = log
        self._idle: anyio.Event | None = None

    def begin(self, operation: Operation[Any]) -> None:
        """Record the start of an operation."""
        self.counters.operations += 1
        self.open.add(operation)

    def retried(self, operation: Operation[Any], decision: Decision) -> None:
        """Record that an operation is run again."""
        self.counters.retried += 1
        attempts = operation.attempts
        node = attempts[-1].node if attempts else None
        self.log.retried(node, decision.reason)
        if self.events.has_subscribers:
            self.events.emit(
                OperationRetried(at=self._clock(), node=node, attempt=len(attempts), reason=decision.reason)
            )

    def fail(
        self, operation: Operation[Any], error: BaseException, outcome: Outcome, *, noted: bool = False
    ) -> None:
        """End an operation with ``error``.

        ``noted`` says that ``error`` already has the information for `pgha.error_info`.
        """
        if not noted:
            note(error, operation, final_outcome(operation, outcome))
        if operation.counted:
            self._count_failure(operation, error)
        self._close(operation)
        operation.ended_at = self._clock()
        if isinstance(error, CommitInDoubt):
            error.record = operation.record
        if operation.gave_up == "cancelled":
            self._emit_resolved_later(operation, error_info(error).outcome)
        operation.finish(None, error)

    def succeed(self, operation: Operation[Any], result: Any) -> None:
        """End an operation with ``result``."""
        if operation.counted:
            self.counters.succeeded += 1
            self.open.discard(operation)
        if operation.timer is not None or self._idle is not None:
            self._close(operation)
        if operation.gave_up == "cancelled":
            self._emit_resolved_later(operation, "applied")
        operation.finish(result, None)

    def _emit_resolved_later(self, operation: Operation[Any], outcome: PublicOutcome) -> None:
        """Emit the outcome of a write whose caller does not wait for it any more."""
        attempts, request = operation.attempts, operation.request
        if operation.counted and attempts and not request.read and self.events.has_subscribers:
            self._emit_resolved(attempts[-1].node, outcome, len(attempts), operation.key)

    def left(self, operation: Operation[Any]) -> None:
        """Emit the outcome of an operation whose caller was cancelled just when the operation was done."""
        failure = operation.failure
        self._emit_resolved_later(operation, "applied" if failure is None else error_info(failure).outcome)

    def resolved(self, doubt: InDoubtOutcome) -> None:
        """Emit the outcome of a write that had ended in doubt."""
        if doubt.outcome is not None:
            key = None if doubt.keyed is None else doubt.keyed.key
            self._emit_resolved(doubt.node, doubt.outcome.value, doubt.attempts, key)
            self.log.resolved(doubt.node, doubt.outcome.value)

    def _emit_resolved(
        self, node: str | None, outcome: PublicOutcome, attempt: int, key: UUID | None
    ) -> None:
        self.events.emit(
            OperationResolved(
                at=self._clock(), node=node, outcome=outcome, attempt=attempt, idempotency_key=key
            )
        )

    def _close(self, operation: Operation[Any]) -> None:
        if operation.timer is not None:
            self._times.cancel(operation.timer)
            operation.timer = None
        if operation.counted:
            self.open.discard(operation)
            if self._idle is not None and not self.open:
                self._idle.set()

    def _count_failure(self, operation: Operation[Any], error: BaseException) -> None:
        counters = self.counters
        counters.failed += 1
        if isinstance(error, CommitInDoubt):
            counters.in_doubt += 1
            attempts = operation.attempts
            node = attempts[-1].node if attempts else None
            self.events.emit(
                OperationInDoubt(at=self._clock(), node=node, attempt=len(attempts), reason=str(error))
            )
            evidence = error.evidence
            self.log.in_doubt(node, evidence.reason if evidence is not None else "no evidence")
        elif isinstance(error, OperationCancelled):
            counters.cancelled += 1
        elif isinstance(error, OperationTimeout):
            counters.timed_out += 1

    def unretrieved(self, error: BaseException) -> None:
        """Count, log and emit a failure that was not retrieved.

        Only for the loop's thread, and not while sending: log handlers run.
        """
        self.log.unretrieved(error)
        self.counters.unretrieved += 1
        self.events.emit(FailureUnretrieved(at=self._clock(), node=None, error=error))

    async def idle(self) -> None:
        """Wait until every operation is done."""
        while self.open:
            self._idle = anyio.Event()
            await self._idle.wait()
        self._idle = None
