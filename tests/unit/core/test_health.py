"""Tests of a node's health: every event in every state, and the rules for any sequence of events."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgha._core.health import Health, Transition, role_of, suspicious_age
from pgha._types import Role, State

quick = settings(deadline=None, max_examples=100)

STATES: tuple[State, ...] = ("connecting", "up", "suspect", "down", "rejected")
EVENTS: dict[str, Callable[[Health, float], Transition]] = {
    "answered": lambda node, now: node.answered(now, "primary", 0.001),
    "suspected": lambda node, now: node.suspected(now, "a lane broke"),
    "failed": lambda node, now: node.failed(now, "no answer"),
    "rejected": lambda node, now: node.failed(now, "bad password", rejected=True),
}
REASONS = {"answered": "", "suspected": "a lane broke", "failed": "no answer", "rejected": "bad password"}
PATHS: dict[State, tuple[str, ...]] = {
    "connecting": (),
    "up": ("answered",),
    "suspect": ("answered", "suspected"),
    "down": ("failed",),
    "rejected": ("rejected",),
}
TABLE: dict[tuple[State, str], State] = {
    ("connecting", "answered"): "up",
    ("connecting", "suspected"): "connecting",
    ("connecting", "failed"): "down",
    ("connecting", "rejected"): "rejected",
    ("up", "answered"): "up",
    ("up", "suspected"): "suspect",
    ("up", "failed"): "down",
    ("up", "rejected"): "rejected",
    ("suspect", "answered"): "up",
    ("suspect", "suspected"): "suspect",
    ("suspect", "failed"): "down",
    ("suspect", "rejected"): "rejected",
    ("down", "answered"): "up",
    ("down", "suspected"): "down",
    ("down", "failed"): "down",
    ("down", "rejected"): "rejected",
    ("rejected", "answered"): "up",
    ("rejected", "suspected"): "rejected",
    ("rejected", "failed"): "down",
    ("rejected", "rejected"): "rejected",
}
IN_USE = ("up", "suspect")


def node_in(state: State) -> Health:
    """Return a node that has been in this state since 1 s."""
    node = Health(0.0 if PATHS[state] else 1.0)
    for event in PATHS[state]:
        EVENTS[event](node, 1.0)
    assert node.state == state
    return node


def test_the_table_is_whole() -> None:
    assert set(TABLE) == {(state, event) for state in STATES for event in EVENTS}


@pytest.mark.parametrize(("before", "event"), TABLE, ids=lambda part: str(part))
def test_transition(before: State, event: str) -> None:
    after = TABLE[before, event]
    node = node_in(before)
    reason = node.reason
    moved = EVENTS[event](node, 5.0)
    assert (moved.before, moved.after, node.state) == (before, after, after)
    assert moved.state_changed == (before != after)
    assert moved.fell == (before in IN_USE and after not in IN_USE)
    assert moved.rose == (before not in IN_USE and after == "up")
    assert node.since == (1.0 if before == after else 5.0)
    kept = event == "suspected" and before != "up"  # a lane knows less than the monitor
    assert node.reason == (reason if kept else REASONS[event])


@pytest.mark.parametrize("state", STATES)
def test_what_may_be_done_in_each_state(state: State) -> None:
    node = node_in(state)
    assert node.usable == (state in IN_USE)
    assert node.sendable == (state == "up")


def test_a_new_node_is_known_by_nothing() -> None:
    node = Health(3.0)
    assert (node.state, node.role, node.since, node.reason) == ("connecting", "unknown", 3.0, "")
    assert node.latency is None
    assert node.p99 == 0.0


def test_only_an_answer_tells_the_role() -> None:
    node = Health(0.0)
    first = node.answered(1.0, "standby", 0.001)
    assert (first.role_before, first.role, first.role_changed) == ("unknown", "standby", True)
    for event in ("suspected", "failed", "rejected"):
        assert not EVENTS[event](node, 2.0).role_changed
        assert node.role == "standby"
    promoted = node.answered(3.0, "primary", 0.001)
    assert (promoted.role_before, promoted.role, promoted.role_changed) == ("standby", "primary", True)
    assert not node.answered(4.0, "primary", 0.001).role_changed


def test_a_promotion_alone_is_no_change_of_state() -> None:
    node = Health(0.0)
    node.answered(1.0, "standby", 0.001)
    moved = node.answered(2.0, "primary", 0.001)
    assert moved.role_changed
    assert not moved.state_changed and not moved.rose and node.since == 1.0


def test_the_latency_is_smoothed() -> None:
    node = Health(0.0)
    node.answered(0.0, "primary", 0.010)
    assert node.latency == 0.010
    node.answered(0.0, "primary", 0.020)
    assert node.latency == pytest.approx(0.012)


def test_one_slow_round_trip_is_forgotten_in_the_end() -> None:
    node = Health(0.0)
    node.answered(0.0, "primary", 9.0)
    for _ in range(Health.WINDOW):
        node.answered(0.0, "primary", 0.001)
    assert node.p99 == 0.001
    assert node.latency == pytest.approx(0.001, rel=0.01)


# Any sequence of events

trips = st.floats(0.0001, 10.0)
roles: st.SearchStrategy[Role] = st.sampled_from(["primary", "standby"])
steps = st.tuples(st.sampled_from(list(EVENTS)), trips, roles, st.floats(0.0, 5.0))


@quick
@given(st.lists(steps, max_size=40))
def test_any_history(history: list[tuple[str, float, Role, float]]) -> None:
    now = 10.0
    node = Health(now)
    entered = now
    for event, trip, role, pause in history:
        now += pause
        before, role_before = node.state, node.role
        moved = node.answered(now, role, trip) if event == "answered" else EVENTS[event](node, now)
        assert (moved.before, moved.after) == (before, node.state)
        assert (moved.role_before, moved.role) == (role_before, node.role)
        assert moved.after == TABLE[before, event]
        entered = now if moved.before != moved.after else entered
        assert node.since == entered
        assert not (moved.fell and moved.rose)
        if moved.fell:
            assert moved.before in IN_USE and moved.after in ("down", "rejected")
        if moved.rose:
            assert moved.after == "up" and moved.before not in IN_USE
        if node.state in ("up", "connecting"):
            assert node.reason == ""
        else:
            assert node.reason != ""
        assert node.role == (role if event == "answered" else role_before)


@quick
@given(st.lists(trips, min_size=1, max_size=100))
def test_the_latency_lies_among_the_round_trips(measured: list[float]) -> None:
    node = Health(0.0)
    for trip in measured:
        node.answered(0.0, "primary", trip)
    window = measured[-Health.WINDOW :]
    assert node.latency is not None
    assert min(measured) * 0.999 <= node.latency <= max(measured) * 1.001
    assert node.p99 in window
    assert sum(trip > node.p99 for trip in window) <= len(window) * 0.01


# The age at which a head is suspicious

seconds = st.floats(0.001, 10.0)
small = st.integers(0, 20)


@quick
@given(seconds, seconds, seconds, small)
def test_the_suspicious_age_doubles(p99: float, floor: float, ceiling: float, asked: int) -> None:
    once = suspicious_age(p99, floor, ceiling, asked)
    assert suspicious_age(p99, floor, ceiling, asked + 1) == 2 * once
    assert min(floor, ceiling) <= once <= ceiling * 2**asked


@quick
@given(seconds, seconds, seconds, seconds, small)
def test_the_suspicious_age_follows_the_p99(
    p99: float, more: float, floor: float, ceiling: float, asked: int
) -> None:
    assert suspicious_age(p99, floor, ceiling, asked) <= suspicious_age(p99 + more, floor, ceiling, asked)


@pytest.mark.parametrize(
    ("p99", "asked", "expected"),
    [
        (0.0, 0, 0.05),  # the floor
        (0.010, 0, 0.05),
        (0.020, 0, 0.08),  # four times the p99
        (0.020, 3, 0.64),
        (5.0, 0, 1.0),  # the ceiling: a ping is due anyway
        (5.0, 2, 4.0),
    ],
)
def test_suspicious_age(p99: float, asked: int, expected: float) -> None:
    assert suspicious_age(p99, 0.05, 1.0, asked) == pytest.approx(expected)


def test_asking_for_ever_is_no_error() -> None:
    # ping_interval=0 is accepted, and asks at each tick as long as the head stays: 1024 times in 20 s.
    assert suspicious_age(0.001, 0.05, 0.0, 1024) >= 0.0


@pytest.mark.parametrize(
    ("in_recovery", "read_only", "role"),
    [
        (False, False, "primary"),
        (True, False, "standby"),
        (False, True, "standby"),
        (True, True, "standby"),
    ],
)
def test_role_of(in_recovery: bool, read_only: bool, role: Role) -> None:
    assert role_of(in_recovery, read_only) == role
