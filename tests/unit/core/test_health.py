"""Tests of a node's health: every event in every state, and the rules for any sequence of events."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgha._core.health import Health, Transition, suspicious_age
from pgha._core.server_status import ServerStatus
from pgha._types import State

quick = settings(deadline=None, max_examples=100)

STATES: tuple[State, ...] = ("connecting", "up", "suspect", "down", "rejected")
PRIMARY = ServerStatus()
STANDBY = ServerStatus(in_recovery=True)
READ_ONLY = ServerStatus(read_only=True)
EVENTS: dict[str, Callable[[Health, float], Transition]] = {
    "answered": lambda node, now: node.answered(now, PRIMARY, 0.001),
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


def test_a_new_node_is_known_by_nothing() -> None:
    node = Health(3.0)
    assert (node.state, node.role, node.since, node.reason) == ("connecting", "unknown", 3.0, "")
    assert node.latency is None
    assert node.p99 == 0.0


def test_only_an_answer_tells_the_role() -> None:
    node = Health(0.0)
    first = node.answered(1.0, STANDBY, 0.001)
    assert (first.role_before, first.role, first.role_changed) == ("unknown", "standby", True)
    for event in ("suspected", "failed", "rejected"):
        assert not EVENTS[event](node, 2.0).role_changed
        assert node.role == "standby"
    promoted = node.answered(3.0, PRIMARY, 0.001)
    assert (promoted.role_before, promoted.role, promoted.role_changed) == ("standby", "primary", True)
    assert not node.answered(4.0, PRIMARY, 0.001).role_changed


def test_a_promotion_alone_is_no_change_of_state() -> None:
    node = Health(0.0)
    node.answered(1.0, STANDBY, 0.001)
    moved = node.answered(2.0, PRIMARY, 0.001)
    assert moved.role_changed
    assert not moved.state_changed and not moved.rose and node.since == 1.0


def test_a_server_that_becomes_read_only_keeps_its_role() -> None:
    node = Health(0.0)
    node.answered(1.0, PRIMARY, 0.001)
    moved = node.answered(2.0, READ_ONLY, 0.001)
    assert (moved.role_before, moved.role) == ("primary", "primary")
    assert (moved.read_only_before, moved.read_only, moved.role_changed) == (False, True, True)
    assert not moved.state_changed and node.status is READ_ONLY
    assert not node.answered(3.0, READ_ONLY, 0.001).role_changed
    assert not node.suspected(3.0, "a lane broke").role_changed
    assert not node.failed(3.0, "no answer").role_changed
    back = node.answered(4.0, PRIMARY, 0.001)
    assert (back.read_only_before, back.read_only, back.role_changed) == (True, False, True)


def test_what_is_writable() -> None:
    node = Health(0.0)
    assert not node.writable, "unknown yet"
    for status, writable in ((PRIMARY, True), (READ_ONLY, False), (STANDBY, False), (PRIMARY, True)):
        node.answered(1.0, status, 0.001)
        assert node.writable == writable


def test_a_superseded_primary_is_not_writable() -> None:
    node = Health(0.0)
    node.answered(1.0, PRIMARY, 0.001)
    seen = []
    for superseded in (False, True, True, False):
        changed = node.supersede(superseded)
        node.answered(2.0, PRIMARY, 0.001)
        seen.append((changed, node.writable))
    assert seen == [(False, True), (True, False), (False, False), (True, True)]


def test_the_latency_is_the_least_of_the_last_round_trips() -> None:
    node = Health(0.0)
    for trip in (0.010, 0.020, 0.005):
        node.answered(0.0, PRIMARY, trip)
    assert node.latency == 0.005
    for _ in range(Health.RECENT - 1):
        node.answered(0.0, PRIMARY, 0.030)
    assert node.latency == 0.005
    node.answered(0.0, PRIMARY, 0.030)
    assert node.latency == 0.030, "a longer way is learned"


def test_stalls_of_this_process_do_not_look_like_a_longer_way() -> None:
    node = Health(0.0)
    node.answered(0.0, PRIMARY, 0.001)
    for number in range(100):
        node.answered(0.0, PRIMARY, 0.001 if number % 9 == 0 else 0.3)
        assert node.latency == 0.001


def test_one_slow_round_trip_is_forgotten_in_the_end() -> None:
    node = Health(0.0)
    node.answered(0.0, PRIMARY, 9.0)
    for _ in range(Health.WINDOW):
        node.answered(0.0, PRIMARY, 0.001)
    assert node.p99 == 0.001


# Any sequence of events

trips = st.floats(0.0001, 10.0)
statuses = st.sampled_from([PRIMARY, STANDBY, READ_ONLY, ServerStatus(in_recovery=True, read_only=True)])
steps = st.tuples(st.sampled_from(list(EVENTS)), trips, statuses, st.floats(0.0, 5.0))


@quick
@given(st.lists(steps, max_size=40))
def test_any_history(history: list[tuple[str, float, ServerStatus, float]]) -> None:
    now = 10.0
    node = Health(now)
    entered = now
    for event, trip, status, pause in history:
        now += pause
        before, role_before = node.state, node.role
        known = node.status
        moved = node.answered(now, status, trip) if event == "answered" else EVENTS[event](node, now)
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
        if event == "answered":
            assert (node.role, node.status) == (status.role, status)
            assert node.writable == (status.role == "primary" and not status.read_only)
        else:
            assert (node.role, node.status) == (role_before, known)


@quick
@given(st.lists(trips, min_size=1, max_size=100))
def test_the_latency_lies_among_the_round_trips(measured: list[float]) -> None:
    node = Health(0.0)
    for trip in measured:
        node.answered(0.0, PRIMARY, trip)
    window = measured[-Health.WINDOW :]
    assert node.latency is not None
    assert node.latency == min(measured[-Health.RECENT :])
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
