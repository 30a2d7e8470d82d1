"""Results: what the rows of an operation become, and its end.

A large result is loaded in parts, so that the event loop gets a turn between two of them.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from pgha._core.backoff import RetryBudgets
from pgha._core.outcome import Outcome
from pgha._core.statements import Entry
from pgha._dispatch.common import Common
from pgha._node.lane import Lane
from pgha._operation.operation import DONE, Operation
from pgha._rows.result import Result
from pgha._wire import PGresult
from pgha._wire.loops import Loop

Parts = Generator[None, None, Result[Any]]
_APPLIED: Final = Outcome.APPLIED  # see `pgha._operation.operation.DONE`
_FEW_ROWS = 64
"""A result with so few rows is loaded at once."""


@dataclass(slots=True, eq=False)
class _Load:
    operation: Operation[Any]
    parts: Parts


class Results:
    """Loads results, and ends their operations; see the head of this file."""

    def __init__(self, common: Common, loop: Loop, budgets: RetryBudgets) -> None:
        self._tracker = common.tracker
        self._clock = common.clock
        self._enter = common.enter
        self._loop = loop
        self._budgets = budgets
        self._running: dict[Lane, list[_Load]] = {}

    def succeeded(
        self, lane: Lane, operation: Operation[Any], results: Sequence[PGresult], entry: Entry | None
    ) -> None:
        """Load the results of an operation, and end the operation."""
        request = operation.request
        attempts = operation.attempts
        attempts[-1].outcome = _APPLIED
        if request.raw:
            values = [one.get_value(0, 0) if one.ntuples else None for one in results]
            self._tracker.succeed(operation, values)
            return
        self._budgets.successes += 1
        operation.ended_at = now = self._clock()
        latency = now - operation.started_at
        make, load, count = request.row_factory, lane.link.load, len(attempts)
        # A row factory or loader is the user's code. What it starts and cancels is put in line at the door.
        try:
            if not request.batch and results[0].ntuples > _FEW_ROWS and lane.link.many(results[0]):
                parts = lane.link.load_in_parts(results[0], entry, make, lane.node, count, latency)
                self._begin(lane, operation, parts)
                return
            if request.batch:
                loaded: Any = [load(result, None, make, lane.node, count, latency) for result in results]
            else:
                loaded = load(results[0], entry, make, lane.node, count, latency)
        except BaseException as error:  # noqa: BLE001 - the user's code: its error goes to its operation
            self._tracker.fail(operation, error, Outcome.APPLIED)
            return
        self._tracker.succeed(operation, loaded)

    def _begin(self, lane: Lane, operation: Operation[Any], parts: Parts) -> None:
        """Load the first part of a result now, and the others later."""
        load = _Load(operation, parts)
        self._running.setdefault(lane, []).append(load)
        self._next((lane, load))

    def _next(self, what: tuple[Lane, _Load]) -> None:
        lane, load = what
        if load not in self._running.get(lane, ()):
            return  # done, because the connection ended
        if self._advance(load):
            self._loop.soon(partial(self._enter, self._next, what))
            return
        loads = self._running[lane]
        loads.remove(load)
        if not loads:
            del self._running[lane]

    def _advance(self, load: _Load) -> bool:
        """Load one part; return whether there is another."""
        operation = load.operation
        if operation.stage is DONE:
            load.parts.close()
            return False
        try:
            next(load.parts)
        except StopIteration as stop:
            self._tracker.succeed(operation, stop.value)
            return False
        except BaseException as error:  # noqa: BLE001 - the user's code: its error goes to its operation
            self._tracker.fail(operation, error, Outcome.APPLIED)
            return False
        return True

    def finish(self, lane: Lane) -> None:
        """Load the rest now: the connection's settings, which say how to read values, end with it."""
        for load in self._running.pop(lane, []):
            while self._advance(load):
                pass
