"""Ending of operations that are no longer wanted: cancelled, past their deadline, or beaten in a race."""

from __future__ import annotations

from typing import Any, Protocol

from pgha._core.outcome import GaveUp, Outcome
from pgha._dispatch.common import Common
from pgha._dispatch.failure import LegLost, given_up, in_doubt
from pgha._dispatch.races import Races
from pgha._dispatch.resolution import Resolver
from pgha._operation.operation import Operation, Stage


class CancellationCallbacks(Protocol):
    """The owner of the queues."""

    def leave_queue(self, operation: Operation[Any]) -> BaseException | None:
        """Remove an operation from its line; return its error if it never had a place there."""
        ...


class Cancellation:
    """Ends operations that are no longer wanted, in whatever stage they are."""

    def __init__(
        self, common: Common, races: Races, resolver: Resolver, queues: CancellationCallbacks
    ) -> None:
        self._tracker = common.tracker
        self._times = common.times
        self._clock = common.clock
        self._tuning = common.tuning
        self._races = races
        self._resolver = resolver
        self._queues = queues

    def give_up(self, operation: Operation[Any], why: GaveUp) -> None:
        """End an operation that its caller cancelled, or whose deadline passed."""
        if operation.stage is Stage.SENT and why == "timeout":
            # The loop may have been busy, and the answer may have arrived in time.
            operation.place[0].receive(self._clock())
        if operation.stage is Stage.RESOLVING:
            operation.gave_up = operation.gave_up or why
            self._resolver.drop(operation)
            ended = "timed out" if operation.gave_up == "timeout" else "cancelled"
            error = in_doubt(operation, f"{ended} while the ledger was asked")
            self._tracker.fail(operation, error, Outcome.IN_DOUBT)
        if operation.stage is Stage.SENT and operation.gave_up == "cancelled" and why == "timeout":
            self._await_proof(operation, self._tuning.proof_time)
        if operation.stage is Stage.DONE or operation.gave_up is not None:
            return
        operation.gave_up = why
        if operation.stage is Stage.SENT:
            self._give_up_sent(operation, why)
            return
        refused: BaseException | None = None
        if operation.stage is Stage.RACING:
            self._races.drop(operation)
        elif operation.stage is Stage.QUEUED:
            refused = self._queues.leave_queue(operation)
        self._tracker.fail(operation, refused or given_up(operation), Outcome.NOT_APPLIED)

    def _give_up_sent(self, operation: Operation[Any], why: GaveUp) -> None:
        lane, slot = operation.place
        now = self._clock()
        if operation.request.read:
            self._tracker.fail(operation, given_up(operation), Outcome.NOT_APPLIED)
        else:
            bound = self._tuning.proof_time if why == "timeout" else self._tuning.cancelled_proof_time
            self._await_proof(operation, bound)
        lane.abandon(slot, now, urgent=True)

    def _await_proof(self, operation: Operation[Any], seconds: float) -> None:
        if operation.expiry is not None:
            self._times.cancel(operation.expiry)
        operation.expiry = self._times.at(self._clock() + seconds, lambda: self._no_proof(operation))

    def _no_proof(self, operation: Operation[Any]) -> None:
        if operation.attempts and operation.attempts[-1].outcome is Outcome.APPLIED:
            return  # its rows are being loaded
        if operation.stage is Stage.SENT:
            operation.place[0].receive(self._clock())
        if operation.stage is Stage.RESOLVING:
            self._resolver.drop(operation)
        if operation.stage is not Stage.DONE:
            timeout = operation.request.timeout
            ended = f"no answer within {timeout:g} s" if timeout is not None else "cancelled"
            reason = f"{ended}, and no answer to the cancel request"
            self._tracker.fail(operation, in_doubt(operation, reason), Outcome.IN_DOUBT)

    def abandon_leg(self, operation: Operation[Any]) -> None:
        """End a leg of a race that is over."""
        place, stage = operation.place, operation.stage
        if stage is Stage.QUEUED:
            self._queues.leave_queue(operation)
        operation.finish(None, LegLost("another node was faster"))
        if stage is Stage.SENT:
            place[0].abandon(place[1], self._clock(), urgent=False)
