"""The next step after an attempt that did not simply succeed: run again, resolve, or fail.

`pgha._core.outcome` decides what a failure proves, `pgha._core.next_step` which step is next; this module
performs that step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pgha._core.backoff import RetryBudgets, delay
from pgha._core.need import PRIMARY_READ
from pgha._core.next_step import OWN_DOING, NextStep
from pgha._core.outcome import Outcome, outcome
from pgha._core.routing import elsewhere
from pgha._core.statements import Entry
from pgha._dispatch.classification import classify
from pgha._dispatch.common import Common
from pgha._dispatch.failure import Decision, LegLost, error_for, if_not_applied, server_error
from pgha._dispatch.proofs import Proofs
from pgha._dispatch.races import Races
from pgha._dispatch.resolution import Resolver
from pgha._dispatch.role_checks import RoleChecks
from pgha._node.callbacks import SegmentFailure
from pgha._node.lane import Lane
from pgha._operation.operation import Operation, Stage
from pgha._types import Pin
from pgha._wire import PGresult


class RetryCallbacks(Protocol):
    """The dispatcher, which places operations and delivers results."""

    def place(self, operation: Operation[Any], now: float) -> None:
        """Send an operation, or put it into a queue."""
        ...

    def succeeded(
        self, lane: Lane, operation: Operation[Any], results: Sequence[PGresult], entry: Entry | None
    ) -> None:
        """Load the results of an operation, and end the operation."""
        ...


class Retries:
    """Performs the next step of operations whose attempt failed."""

    def __init__(self, common: Common, races: Races, resolver: Resolver, callbacks: RetryCallbacks) -> None:
        clock = common.clock
        self.budgets = RetryBudgets(clock())
        self.roles = RoleChecks(common.times, clock, common.tuning.probe_no_primary)
        self.proofs = Proofs(common.runner, self, common.nodes, clock)
        self._nodes = common.nodes
        self._tracker = common.tracker
        self._times = common.times
        self._clock = clock
        self._draw = common.sources.draw
        self._tuning = common.tuning
        self._races = races
        self._resolver = resolver
        self._callbacks = callbacks

    def segment_failed(self, lane: Lane, operation: Operation[Any], failure: SegmentFailure) -> None:
        """Perform the next step after an attempt on ``lane`` that did not simply succeed."""
        if operation.request.raw:
            self._question_failed(lane, operation, failure)
            return
        if failure.facts.unreplicated and failure.overlapped and operation.gave_up is None and lane.usable:
            # The write is committed. pgha's own cancel may have ended its wait: let a later commit prove it.
            self.proofs.begin(lane, operation, failure)
            return
        self._step(lane, operation, failure)

    def delivered(self, lane: Lane, operation: Operation[Any], results: Sequence[PGresult]) -> None:
        """Take the results of a write that a later commit has proven."""
        self._callbacks.succeeded(lane, operation, results, None)

    def unproven(self, lane: Lane, operation: Operation[Any], failure: SegmentFailure) -> None:
        """Perform the next step of a write whose wait for a standby was broken off, and not proven."""
        self._step(lane, operation, failure)

    def _step(
        self,
        lane: Lane,
        operation: Operation[Any],
        failure: SegmentFailure,
        role_changed: bool | None = None,
    ) -> None:
        exhausted = self.budgets.exhausted(self._clock())
        decision = classify(operation, failure, self._tuning, exhausted, role_changed)
        match decision.next_step:
            case NextStep.DELIVER:
                self._callbacks.succeeded(lane, operation, failure.answer.results, None)
            case NextStep.CHECK_ROLE:
                self._check_role(lane, operation, failure)
            case NextStep.RESOLVE:
                self._resolver.begin(operation, if_not_applied(operation, failure, decision))
            case NextStep.AGAIN_ELSEWHERE:
                self._again(operation, decision, away_from=lane.node if failure.lost is None else None)
            case NextStep.AGAIN_LATER:
                if failure.facts.at_ledger and (node := self._nodes.get(lane.node)) is not None:
                    # The guard was too narrow: perhaps the server's clock was set.
                    node.request_ping()
                self._again(operation, decision, pause=True)
            case step if step in OWN_DOING:
                self._prepare(lane, operation, failure, step)
                operation.hits += 1
                self._again(operation, decision)
            case _:
                error = error_for(operation, failure, decision)
                self._tracker.fail(operation, error, decision.outcome, noted=True)

    def _prepare(
        self, lane: Lane, operation: Operation[Any], failure: SegmentFailure, step: NextStep
    ) -> None:
        """Prevent that the next attempt fails for the same reason, which was pgha's own doing."""
        if step is NextStep.AGAIN_NOW:
            operation.exclusive = operation.exclusive or failure.rerun_exclusive
        elif step is NextStep.AGAIN_UNPREPARED:
            operation.unprepared = True
        else:
            lane.server.ledger = False
            operation.unkeyed = True

    def _check_role(self, lane: Lane, operation: Operation[Any], failure: SegmentFailure) -> None:
        """Let the operation wait until it is known whether its node still takes writes.

        A setting of the connection alone (of the role, or changed by a statement) also refuses writes. But
        the ping comes first in any case: as long as the node counts as a primary, writes would come back.
        """
        operation.stage = Stage.PAUSED
        operation.place = None
        read_only = lane.link.read_only()

        def told(changed: bool) -> None:
            if operation.stage is Stage.PAUSED:
                self._step(lane, operation, failure, changed or read_only)

        if (node := self._nodes.get(lane.node)) is not None:
            self.roles.ask(node, told)
        else:
            told(True)

    def _question_failed(self, lane: Lane, operation: Operation[Any], failure: SegmentFailure) -> None:
        """End a question to the ledger; if it failed, the resolver asks again with another one."""
        answer = failure.answer
        if answer.results and (answer.commit_tag == "ROLLBACK" or outcome(failure.facts) is Outcome.APPLIED):
            self._callbacks.succeeded(lane, operation, answer.results, None)
            return
        decision = classify(operation, failure, self._tuning, frozenset())
        error = server_error(operation, failure) or LegLost(f"{lane.node}: {decision.reason}")
        self._tracker.fail(operation, error, decision.outcome)

    def _again(
        self,
        operation: Operation[Any],
        decision: Decision,
        *,
        pause: bool = False,
        away_from: str | None = None,
    ) -> None:
        if operation.parent is not None and decision.next_step is NextStep.AGAIN_ELSEWHERE:
            self._races.lost(operation, decision)
            return
        if decision.budget is not None:
            self.budgets.take(decision.budget)
        self._tracker.retried(operation, decision)
        now = self._clock()
        if operation.parent is None and not isinstance(operation.request.route, Pin):
            need = operation.request.need
            # A read from the primary follows the writes: another master may not have what they wrote.
            any_node = away_from is None or operation.exactly_once or need == PRIMARY_READ
            other = None if any_node else self._elsewhere(operation, away_from or "")
            operation.need = need._replace(node=other) if other is not None else need
        if pause or (away_from is not None and operation.need.node in (None, away_from)):
            operation.stage = Stage.PAUSED
            operation.place = None
            wait = delay(len(operation.attempts) - 1, self._draw(), 0.01, 0.5)
            self._times.at(now + wait, lambda: self._resume(operation))
            return
        self._callbacks.place(operation, now)

    def _elsewhere(self, operation: Operation[Any], away_from: str) -> str | None:
        kind = operation.request.need.access
        views = [node.candidate(kind) for node in self._nodes.values() if not node.leaving]
        return elsewhere(views, away_from, operation.request.need)

    def _resume(self, operation: Operation[Any]) -> None:
        if operation.stage is Stage.PAUSED:
            self._callbacks.place(operation, self._clock())
