"""Tests of retries without a server: what counts as an attempt, and the bound of attempts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from psycopg.rows import tuple_row
from support.failures import failed

from pgha import nearest
from pgha._core.backoff import Budget
from pgha._core.need import WRITE
from pgha._core.outcome import Facts
from pgha._core.statements import Entry
from pgha._dispatch.common import Common
from pgha._dispatch.races import Races
from pgha._dispatch.resolution import Resolver
from pgha._dispatch.retries import Retries
from pgha._dispatch.timers import Timers
from pgha._dispatch.tracker import Tracker
from pgha._node.callbacks import SegmentFailure
from pgha._node.lane import Lane
from pgha._operation.operation import AttemptState, Operation, OperationCallbacks, Request, Stage
from pgha._options import REAL, Options
from pgha._wire import PGresult
from pgha._wire.segment import Answer

LOST = Facts(after_fatal=True)
HIT = failed("57014")
STALE = failed("0A000", reused=True)


class Bench:
    """Retries whose callbacks only record, with a clock and timers that the test moves."""

    def __init__(self) -> None:
        self.now = 10.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.queue: list[Operation[Any]] = []
        self.failed: list[Operation[Any]] = []
        self.lane = cast(
            Lane,
            SimpleNamespace(
                node="n1", link=SimpleNamespace(read_only=lambda: False), server=SimpleNamespace(ledger=True)
            ),
        )
        common = Common(
            cast(OperationCallbacks, self),
            Options(sources=replace(REAL, clock=lambda: self.now)),
            {},
            cast(Timers, self),
            cast(Tracker, self),
            cast(Any, None),
        )
        self.retries = Retries(common, cast(Races, None), cast(Resolver, None), self)

    def at(self, when: float, call: Callable[[], None]) -> None:
        self.timers.append((when, call))

    def run_timers(self) -> None:
        timers, self.timers = self.timers, []
        for _, call in sorted(timers, key=lambda one: one[0]):
            call()

    def place(self, operation: Operation[Any], now: float) -> None:
        operation.stage = Stage.QUEUED
        self.queue.insert(0, operation)

    def succeeded(
        self, lane: Lane, operation: Operation[Any], results: Sequence[PGresult], entry: Entry | None
    ) -> None:
        raise AssertionError("nothing succeeds here")

    def retried(self, operation: Operation[Any], decision: object) -> None:
        assert decision is not None

    def fail(self, operation: Operation[Any], error: BaseException, outcome: object, *, noted: bool) -> None:
        operation.stage = Stage.DONE
        self.failed.append(operation)

    def operation(self, started_at: float = 0.0) -> Operation[Any]:
        request = Request((), WRITE, False, False, nearest(), tuple_row)
        return Operation(cast(OperationCallbacks, None), request, started_at)

    def attempt(self, operation: Operation[Any], facts: Facts, **more: Any) -> None:
        """Send the operation, and let the attempt fail."""
        operation.attempts.append(AttemptState("n1", self.now))
        operation.stage = Stage.SENT
        if operation in self.queue:
            self.queue.remove(operation)
        lost = None if facts.synced else "gone"
        failure = SegmentFailure(facts, Answer(), False, False, False, lost)
        self.retries.segment_failed(self.lane, operation, replace(failure, **more))


def attempts_until_it_fails(bench: Bench, facts: Sequence[Facts], **more: Any) -> int:
    operation = bench.operation()
    for number in range(1, 100):
        bench.attempt(operation, facts[(number - 1) % len(facts)], **more)
        bench.run_timers()
        if bench.failed:
            return number
        assert bench.queue == [operation]
    pytest.fail("it is run again for ever")


def test_no_operation_is_tried_for_ever() -> None:
    assert attempts_until_it_fails(Bench(), [LOST]) == 5
    assert attempts_until_it_fails(Bench(), [failed("40001")]) == 5
    assert attempts_until_it_fails(Bench(), [failed("53100")]) == 5
    assert attempts_until_it_fails(Bench(), [HIT], overlapped=True) == 10
    assert attempts_until_it_fails(Bench(), [STALE]) == 2
    assert attempts_until_it_fails(Bench(), [HIT, LOST], overlapped=True) == 10
    assert attempts_until_it_fails(Bench(), [HIT, LOST, LOST], overlapped=True) == 8


def test_what_pgha_did_itself_is_not_counted() -> None:
    bench = Bench()
    assert attempts_until_it_fails(bench, [STALE, LOST, LOST, LOST, LOST, LOST]) == 6
    assert bench.retries.budgets.exhausted(bench.now) == frozenset()


@pytest.mark.parametrize(
    ("facts", "charged"),
    [
        (LOST, Budget.FAILOVER),
        (failed("53100"), Budget.RESOURCES),
        (failed("40001"), Budget.SERIALIZATION),
        (HIT, None),
        (STALE, None),
    ],
)
def test_each_retry_is_charged_to_its_own_budget(facts: Facts, charged: Budget | None) -> None:
    bench = Bench()
    for _ in range(2100):
        bench.attempt(bench.operation(), facts, overlapped=True)
    exhausted = bench.retries.budgets.exhausted(bench.now)
    assert exhausted == (frozenset() if charged is None else {charged})


def test_a_write_that_got_25006_waits_for_its_nodes_role() -> None:
    """Without the node there is nothing to ask: the write goes to another one."""
    bench = Bench()
    operation = bench.operation()
    bench.attempt(operation, failed("25006"))
    bench.run_timers()
    assert bench.queue == [operation]
