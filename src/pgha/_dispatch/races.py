"""The route `fastest`: one operation runs on every node at once; the first success wins.

The parts of the operation are legs: operations pinned to their nodes, never run again by themselves. If all
legs fail, the operation fails. Losers are removed from the queue, or left to finish: a cancel costs a lane
several milliseconds (200 cancels per second cut a lane from 24.6 k/s to 3.0 k/s, measured), so losers are
cancelled only when they have run for long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import psycopg

from pgha._core.outcome import Outcome
from pgha._dispatch.failure import Decision, LegLost, note
from pgha._dispatch.tracker import Tracker
from pgha._errors import NoNodeAvailable, error_info
from pgha._operation.operation import Operation, OperationCallbacks, Stage


def _without_answer(failure: BaseException) -> bool:
    """Return whether the error says only that a node was lost, and nothing about the operation."""
    lost = isinstance(failure, psycopg.OperationalError) and failure.sqlstate is None
    return lost or isinstance(failure, NoNodeAvailable)


class RaceCallbacks(Protocol):
    """The owner of the queues, which places and ends the legs."""

    def place(self, operation: Operation[Any], now: float) -> None:
        """Send an operation, or put it into a queue."""
        ...

    def abandon_leg(self, operation: Operation[Any]) -> None:
        """End a leg of a race that is over."""
        ...


class Races:
    """Runs operations with the route `fastest`; see the head of this file."""

    def __init__(
        self,
        runner: OperationCallbacks,
        callbacks: RaceCallbacks,
        tracker: Tracker,
        clock: Callable[[], float],
        most: int,
    ) -> None:
        self._runner = runner
        self._callbacks = callbacks
        self._tracker = tracker
        self._clock = clock
        self._most = most
        """The number of attempts, over all legs, after which lost connections fail the operation."""

    def start(self, operation: Operation[Any], names: Iterable[str], now: float) -> None:
        """Run ``operation`` on each of the nodes ``names``."""
        operation.stage = Stage.RACING
        operation.legs = [self._leg(operation, name, now) for name in names]
        for leg in tuple(operation.legs):
            if operation.stage is Stage.RACING:
                self._callbacks.place(leg, now)

    def _leg(self, operation: Operation[Any], name: str, now: float) -> Operation[Any]:
        leg: Operation[Any] = Operation(self._runner, operation.request, now)
        leg.need = operation.request.need._replace(node=name)
        leg.number = operation.number
        leg.parent = operation
        leg.counted = False
        leg.when_done(self._leg_done)
        return leg

    def _leg_done(self, leg: Operation[Any]) -> None:
        leg.retrieve()
        operation = leg.parent
        if operation is None or operation.stage is not Stage.RACING:
            return
        legs = operation.legs or []
        if leg.failure is None:
            self.drop(operation)
            operation.ended_at = leg.ended_at
            self._tracker.succeed(operation, leg.value)
        elif all(one.done for one in legs):
            for one in legs:
                operation.attempts.extend(one.attempts)
            self._all_failed(operation, legs)

    def _all_failed(self, operation: Operation[Any], legs: Sequence[Operation[Any]]) -> None:
        """Fail with the first SQL error; if all legs only lost their connections, run the operation again."""
        for leg in legs:
            if leg.failure is not None and not _without_answer(leg.failure):
                note(leg.failure, operation, Outcome.NOT_APPLIED, error_info(leg.failure).statement)
                self._tracker.fail(operation, leg.failure, Outcome.NOT_APPLIED, noted=True)
                return
        operation.legs = None
        # One race counts once: if all nodes were cut off at the same moment, no leg was the cause.
        operation.suspected_crashes = max(leg.suspected_crashes for leg in legs)
        if len(operation.attempts) >= self._most:
            self._tracker.fail(operation, legs[-1].failure or LegLost("lost"), Outcome.NOT_APPLIED)
        else:
            self._callbacks.place(operation, self._clock())

    def lost(self, leg: Operation[Any], decision: Decision) -> None:
        """Fail a leg whose connection was lost; its operation goes on with the other legs."""
        error = LegLost(f"{leg.need.node}: {decision.reason}")
        note(error, leg, decision.outcome)
        self._tracker.fail(leg, error, decision.outcome, noted=True)

    def drop(self, operation: Operation[Any]) -> None:
        """End the race, and abandon the legs that still run."""
        legs, operation.legs = operation.legs or [], None
        # Set before any leg ends: the end of a leg must not count as the end of the race.
        operation.stage = Stage.NEW
        for leg in legs:
            operation.attempts.extend(leg.attempts)
            if leg.stage is not Stage.DONE:
                self._callbacks.abandon_leg(leg)
