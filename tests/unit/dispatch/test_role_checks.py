"""Tests of the writes that got 25006: which ping answers for them, and how many pings they cause."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

from hypothesis import given
from hypothesis import strategies as st
from support.failures import quick

from pgha._dispatch.role_checks import RoleChecks
from pgha._dispatch.timers import Timers
from pgha._node.node import ManagedNode

INTERVAL = 0.5


class FakeNode:
    """The part of a node that role checks use."""

    def __init__(self, request_ping: Callable[[], None]) -> None:
        self.usable = True
        self.health = SimpleNamespace(writable=True)
        self.pinged_at = float("-inf")
        self.request_ping = request_ping


class Bench:
    """Role checks of one node, with a clock and timers that the test moves."""

    def __init__(self) -> None:
        self.now = 10.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.pings: list[float] = []
        self.told: list[tuple[int, bool]] = []
        self.state = FakeNode(lambda: self.pings.append(self.now))
        self.checks = RoleChecks(cast(Timers, self), lambda: self.now, INTERVAL)

    @property
    def node(self) -> ManagedNode:
        return cast(ManagedNode, self.state)

    def at(self, when: float, call: Callable[[], None]) -> None:
        self.timers.append((when, call))

    def ask(self, number: int) -> None:
        self.checks.ask(self.node, lambda changed: self.told.append((number, changed)))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        due, self.timers = self.timers, [one for one in self.timers if one[0] > self.now]
        for when, call in due:
            if when <= self.now:
                call()

    def answer(self, sent: float, role: str = "primary") -> None:
        self.state.pinged_at = sent
        self.state.health.writable = role == "primary"
        self.checks.observed(self.node)


def test_a_ping_that_was_sent_before_the_error_proves_nothing() -> None:
    bench = Bench()
    bench.ask(1)
    bench.answer(9.5)
    assert bench.told == []
    bench.answer(10.5)
    assert bench.told == [(1, False)]
    bench.answer(11.0)
    assert bench.told == [(1, False)], "only once"


def test_any_ping_tells_that_the_role_has_changed() -> None:
    bench = Bench()
    bench.ask(1)
    bench.ask(2)
    bench.answer(9.5, "standby")
    assert bench.told == [(1, True), (2, True)]
    bench.ask(3)
    assert bench.told[2:] == [(3, True)], "known already"
    assert len(bench.pings) == 1


def test_a_lost_node_takes_no_writes() -> None:
    bench = Bench()
    bench.ask(1)
    bench.state.usable = False
    bench.checks.observed(bench.node)
    assert bench.told == [(1, True)]


def test_a_removed_node_keeps_nobody_waiting() -> None:
    bench = Bench()
    bench.ask(1)
    bench.checks.forget(bench.node)
    bench.checks.forget(bench.node)
    assert bench.told == [(1, True)]


def test_one_ping_answers_for_all_that_wait() -> None:
    bench = Bench()
    for number in range(100):
        bench.ask(number)
    assert len(bench.pings) == 1
    bench.answer(10.0)
    assert bench.told == [(number, False) for number in range(100)]


def test_many_errors_cause_one_ping_per_interval() -> None:
    """A program that gets 25006 all the time, as soon as it is told."""
    bench = Bench()
    for number in range(64):
        bench.ask(number)
        bench.answer(bench.now)
        bench.pass_time(INTERVAL / 8)
    assert len(bench.told) == 64
    assert len(bench.pings) <= 1 + 64 / 8


def test_who_comes_while_a_ping_is_due_later_is_answered_by_it() -> None:
    bench = Bench()
    bench.ask(1)
    bench.answer(10.0)
    bench.pass_time(INTERVAL / 2)
    bench.ask(2)
    assert len(bench.pings) == 1
    bench.pass_time(INTERVAL / 2)
    assert bench.pings == [10.0, 10.5]
    bench.answer(10.5)
    assert bench.told == [(1, False), (2, False)]


def test_a_report_may_ask_again() -> None:
    bench = Bench()
    bench.checks.ask(bench.node, lambda changed: bench.ask(2))
    bench.answer(10.0)
    assert bench.told == []
    bench.pass_time(INTERVAL)
    bench.answer(10.5)
    assert bench.told == [(2, False)]


steps = st.lists(st.tuples(st.sampled_from(["ask", "ping", "wait"]), st.floats(0.0, 2.0)), max_size=40)


@quick
@given(steps)
def test_everybody_is_told_by_a_later_ping_and_pings_are_rare(history: list[tuple[str, float]]) -> None:
    bench = Bench()
    asked: dict[int, float] = {}
    answered: dict[int, float] = {}
    for number, (step, seconds) in enumerate(history):
        bench.pass_time(seconds)
        if step == "ask":
            asked[number] = bench.now
            bench.ask(number)
        elif step == "ping" and bench.pings:
            # The monitor answers the newest request.
            bench.answer(bench.pings[-1])
        for told, changed in bench.told:
            assert not changed
            answered.setdefault(told, bench.state.pinged_at)
    bench.pass_time(INTERVAL)
    if bench.pings:
        bench.answer(max(bench.pings[-1], bench.now))
    assert {number for number, _ in bench.told} == set(asked)
    assert all(answered.get(number, bench.now) >= since for number, since in asked.items())
    # Not as a difference, which may round to less than the interval.
    pairs = zip(bench.pings, bench.pings[1:], strict=False)
    assert all(later >= sooner + INTERVAL for sooner, later in pairs)
