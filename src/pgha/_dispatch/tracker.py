"""The open operations of a cluster, and how they end; the observers are told of each beginning and end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import anyio

from pgha._core.outcome import Outcome
from pgha._dispatch.events import EventHub
from pgha._dispatch.failure import Decision, final_outcome, note
from pgha._dispatch.statistics import Counting, Reporting
from pgha._dispatch.timers import Timers
from pgha._errors import CommitInDoubt, error_info
from pgha._operation.in_doubt import InDoubtOutcome
from pgha._operation.observer import Observers
from pgha._operation.operation import Operation
from pgha._telemetry.log import ClusterLog
from pgha._types import FailureUnretrieved, OperationResolved
from pgha._types import Outcome as PublicOutcome


class Tracker:
    """Begins and ends operations, and has the observers told."""

    def __init__(self, times: Timers, clock: Callable[[], float], log: ClusterLog) -> None:
        self.events = EventHub()
        counting = Counting()
        self.counters = counting.counters
        self.observers = Observers(counting, Reporting(self.events, log, clock))
        self.open: set[Operation[Any]] = set()
        """The operations that were started and are not done."""
        self._times = times
        self._clock = clock
        self.log = log
        self._idle: anyio.Event | None = None

    def retried(self, operation: Operation[Any], decision: Decision) -> None:
        """Record that an operation is run again."""
        for tell in self.observers.retried:
            tell(operation, decision.reason)

    def fail(
        self, operation: Operation[Any], error: BaseException, outcome: Outcome, *, noted: bool = False
    ) -> None:
        """End an operation with ``error``.

        ``noted`` says that ``error`` already has the information for `pgha.error_info`.
        """
        if not noted:
            note(error, operation, final_outcome(operation, outcome))
        self._close(operation)
        operation.ended_at = self._clock()
        for tell in self.observers.ended:
            tell(operation, error)
        for tell_failure in self.observers.failed:
            tell_failure(operation, error)
        if isinstance(error, CommitInDoubt):
            error.record = operation.record
        if operation.gave_up == "cancelled":
            self._emit_resolved_later(operation, error_info(error).outcome)
        operation.finish(None, error)

    def succeed(self, operation: Operation[Any], result: Any) -> None:
        """End an operation with ``result``."""
        for tell in self.observers.ended:
            tell(operation, None)
        if operation.counted:
            self.open.discard(operation)
        if operation.timer is not None or operation.expiry is not None or self._idle is not None:
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
        if operation.expiry is not None:
            self._times.cancel(operation.expiry)
            operation.expiry = None
        if operation.counted:
            self.open.discard(operation)
            if self._idle is not None and not self.open:
                self._idle.set()

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
