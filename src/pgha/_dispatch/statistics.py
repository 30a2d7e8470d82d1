"""The counters of a cluster, and the events and log lines about how its operations fared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pgha._dispatch.events import EventHub
from pgha._errors import CommitInDoubt, OperationCancelled, OperationTimeout
from pgha._operation.observer import Observer
from pgha._operation.operation import Operation
from pgha._telemetry.log import ClusterLog
from pgha._types import OperationInDoubt, OperationRetried


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


class Counting(Observer):
    """Counts operations. Legs of races and pgha's own queries do not count."""

    def __init__(self) -> None:
        self.counters = Counters()

    def began(self, operation: Operation[Any]) -> None:
        """Count an operation."""
        self.counters.operations += 1

    def retried(self, operation: Operation[Any], reason: str) -> None:
        """Count a retry."""
        self.counters.retried += 1

    def ended(self, operation: Operation[Any], error: BaseException | None) -> None:
        """Count the outcome."""
        if not operation.counted:
            return
        counters = self.counters
        if error is None:
            counters.succeeded += 1
            return
        counters.failed += 1
        if isinstance(error, CommitInDoubt):
            counters.in_doubt += 1
        elif isinstance(error, OperationCancelled):
            counters.cancelled += 1
        elif isinstance(error, OperationTimeout):
            counters.timed_out += 1


class Reporting(Observer):
    """Emits events and writes the log, about retries and doubt."""

    def __init__(self, events: EventHub, log: ClusterLog, clock: Callable[[], float]) -> None:
        self._events = events
        self._log = log
        self._clock = clock

    def retried(self, operation: Operation[Any], reason: str) -> None:
        """Report a retry."""
        attempts = operation.attempts
        node = attempts[-1].node if attempts else None
        self._log.retried(node, reason)
        if self._events.has_subscribers:
            self._events.emit(
                OperationRetried(at=self._clock(), node=node, attempt=len(attempts), reason=reason)
            )

    def failed(self, operation: Operation[Any], error: BaseException) -> None:
        """Report a write in doubt."""
        if not isinstance(error, CommitInDoubt) or not operation.counted:
            return
        attempts = operation.attempts
        node = attempts[-1].node if attempts else None
        self._events.emit(
            OperationInDoubt(at=self._clock(), node=node, attempt=len(attempts), reason=str(error))
        )
        evidence = error.evidence
        self._log.in_doubt(node, evidence.reason if evidence is not None else "no evidence")
