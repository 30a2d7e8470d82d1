"""Tests of one lane's rules against a model server.

The server runs segments in order, and a cancel hits the segment that is running when the cancel arrives. No
drawn delay of answers, cancels and ticks may hurt a segment for which a cancel was not meant. Times are
multiples of 0.5 s, which are exact as floats. All bounds differ, so that confusing two of them is noticed.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pgha._core.pipeline import Act, Bounds, Doing, Gate, Pipeline, Slot

BOUNDS = Bounds(
    depth=4, behind=0.25, hold_behind=2.0, head_of_line=5.0, ask_again=2.5, cancel_grace=1.0,
    cancel_again=1.5, cancel_deadline=7.0,
)  # fmt: skip


# Examples of the table of states.


def filled(*items: str, bounds: Bounds = BOUNDS) -> Pipeline[str, str]:
    """Return a lane with these segments in flight since 0 s."""
    lane: Pipeline[str, str] = Pipeline(bounds)
    for item in items:
        lane.sent(item, f"SELECT {item}", 0.0)
    return lane


def gate_of(lane: Pipeline[str, str]) -> Gate:
    """Return the gate; mypy assumes that an attribute does not change between two assertions."""
    return lane.gate


def test_a_new_lane_is_open_and_quiet() -> None:
    lane = filled()
    assert gate_of(lane) is Gate.OPEN
    assert lane.quiet and lane.has_capacity(0.0) and not lane.stuck(99.0) and not lane.draining
    assert lane.tick(99.0) is Act.NOTHING


def test_room_up_to_the_depth() -> None:
    lane = filled("a", "b", "c")
    assert lane.has_capacity(0.0) and not lane.quiet
    lane.sent("d", "SELECT d", 0.0)
    assert not lane.has_capacity(0.0) and not lane.stuck(0.0)
    lane.answered(0.5)
    assert lane.has_capacity(0.5)


def test_nothing_behind_an_old_head() -> None:
    lane = filled("a", "b")
    assert lane.has_capacity(1.5) and not lane.stuck(1.5)
    assert not lane.has_capacity(2.0) and lane.stuck(2.0)
    lane.answered(2.0)
    assert lane.has_capacity(2.0) and not lane.stuck(2.0)


def test_nothing_behind_what_is_known_to_be_slow() -> None:
    lane = filled()
    lane.sent("a", "SELECT a", 0.0, expected=0.125)
    lane.sent("b", "SELECT b", 0.0, expected=0.125)
    assert lane.has_capacity(0.0) and not lane.stuck(0.0)
    lane.sent("c", "SELECT c", 0.0, expected=0.125)
    assert not lane.has_capacity(0.0) and lane.stuck(0.0)
    lane.answered(0.0)
    assert lane.has_capacity(0.0) and not lane.stuck(0.0)
    for _ in range(2):
        lane.answered(0.0)
    lane.sent("d", "SELECT d", 0.0, expected=20.0)
    assert not lane.has_capacity(0.0) and lane.stuck(0.0)
    lane.behind = 25.0  # a round trip takes that long
    assert lane.has_capacity(0.0) and not lane.stuck(0.0)


def test_nothing_behind_what_is_alone() -> None:
    lane = filled()
    lane.sent("v", "VACUUM", 0.0, exclusive=True)
    assert not lane.has_capacity(0.0) and lane.stuck(0.0)
    lane.answered(9.0)
    assert lane.quiet and lane.has_capacity(9.0)


def test_who_becomes_head_is_dated_then() -> None:
    lane = filled("a", "b")
    head, second = lane.slots
    assert (head.sent_at, head.head_at, second.head_at) == (0.0, 0.0, None)
    assert lane.answered(3.0) is head
    assert (second.sent_at, second.head_at) == (0.0, 3.0)
    assert lane.answered(4.0) is second
    assert lane.sent("c", "SELECT c", 6.0).head_at == 6.0


@pytest.mark.parametrize("answer_first", [True, False])
def test_the_gate_opens_when_the_cancel_is_done_and_its_target_answered(answer_first: bool) -> None:
    lane = filled("a", "b")
    assert lane.abandon(lane.slots[0], 0.0, urgent=True) is Act.CANCEL
    assert gate_of(lane) is Gate.GATED
    assert not lane.has_capacity(0.0) and not lane.quiet and lane.stuck(0.0)
    if answer_first:
        lane.answered(0.5)
    else:
        lane.cancel_done(0.5)
    assert not lane.has_capacity(0.5)
    if answer_first:
        lane.cancel_done(1.0)
    else:
        lane.answered(1.0)
    assert gate_of(lane) is Gate.OPEN and lane.has_capacity(1.0)


def test_what_was_in_flight_is_marked_and_what_comes_later_is_not() -> None:
    lane = filled("a", "b")
    lane.abandon(lane.slots[0], 0.0, urgent=True)
    assert [slot.overlapped for slot in lane.slots] == [True, True]
    lane.cancel_done(0.5)
    lane.answered(0.5)
    assert not lane.sent("c", "SELECT c", 0.5).overlapped


def test_only_the_head_is_cancelled() -> None:
    lane = filled("a", "b")
    head, second = lane.slots
    assert lane.abandon(second, 0.0, urgent=True) is Act.NOTHING
    assert second.abandoned_at == 0.0 and lane.gate is Gate.OPEN
    assert lane.tick(4.5) is Act.NOTHING
    lane.answered(4.5)
    assert not head.overlapped
    assert lane.tick(5.0) is Act.NOTHING  # the grace period begins when "b" becomes the head
    assert lane.tick(5.5) is Act.CANCEL
    assert not second.rerun_exclusive


def writes(*items: str) -> Pipeline[str, str]:
    """Return a lane for writes with these segments in flight since 0 s."""
    lane: Pipeline[str, str] = Pipeline(BOUNDS, ask_first=True)
    for item in items:
        lane.sent(item, f"SELECT {item}", 0.0)
    return lane


@pytest.mark.parametrize("doing", [Doing.RUNNING, Doing.SYNCHRONOUS, Doing.UNKNOWN])
def test_a_write_is_cancelled_when_the_server_says_that_it_runs(doing: Doing) -> None:
    lane = writes("a")
    assert lane.abandon(lane.slots[0], 0.0, urgent=True) is Act.INSPECT
    assert gate_of(lane) is Gate.OPEN and not lane.cancelling
    assert not lane.has_capacity(0.0)  # nothing more behind it
    assert lane.inspected(lane.slots[0], doing, 0, 0.5) is Act.CANCEL
    assert gate_of(lane) is Gate.GATED and not lane.slots[0].rerun_exclusive


def test_a_write_that_waits_for_its_standby_is_left_alone() -> None:
    lane = writes("a", "b")
    assert lane.abandon(lane.slots[0], 0.0, urgent=True) is Act.INSPECT
    for at in (0.5, 50.0, 500.0):
        assert lane.inspected(lane.slots[0], Doing.REPLICATING, 0, at) is Act.NOTHING
    assert not lane.slots[1].overlapped


@pytest.mark.parametrize("doing", [Doing.SYNCHRONOUS, Doing.UNKNOWN])
def test_no_cancel_before_a_commit_that_waits_for_a_standby_unless_the_head_is_old(doing: Doing) -> None:
    lane = writes("a", "b")
    lane.abandon(lane.slots[0], 0.0, urgent=True)
    assert lane.inspected(lane.slots[0], doing, 0, 4.5) is Act.NOTHING
    assert lane.inspected(lane.slots[0], doing, 0, 5.0) is Act.CANCEL


def test_where_no_commit_waits_the_others_behind_do_not_matter() -> None:
    lane = writes("a", "b")
    lane.abandon(lane.slots[0], 0.0, urgent=True)
    assert lane.inspected(lane.slots[0], Doing.RUNNING, 0, 0.5) is Act.CANCEL


def test_the_server_is_asked_again_about_a_write_that_nobody_waits_for() -> None:
    lane = writes("a", "b")
    assert lane.abandon(lane.slots[0], 0.0, urgent=False) is Act.NOTHING
    assert lane.tick(0.5) is Act.NOTHING  # the grace
    asked = [at / 2 for at in range(2, 41) if lane.tick(at / 2) is Act.INSPECT]
    assert asked == [1.0, 2.5, 5.5, 11.5]


def test_an_old_head_is_not_cancelled_for_those_behind_it_that_nobody_waits_for() -> None:
    lane = filled("a", "b")
    lane.abandon(lane.slots[1], 1.0, urgent=False)
    assert lane.tick(5.0) is Act.INSPECT
    assert lane.inspected(lane.slots[0], Doing.RUNNING, 0, 5.5) is Act.NOTHING


def test_an_old_head_is_not_cancelled_if_it_cannot_be_run_again_in_time() -> None:
    lane = filled("a", "b")
    assert lane.tick(5.0) is Act.INSPECT
    assert lane.inspected(lane.slots[0], Doing.RUNNING, 0, 5.5, time_to_rerun=False) is Act.NOTHING
    assert lane.inspected(lane.slots[0], Doing.RUNNING, 0, 5.5, time_to_rerun=True) is Act.CANCEL


def test_the_grace_of_a_head_counts_from_when_it_was_abandoned() -> None:
    lane = filled("a")
    assert lane.abandon(lane.slots[0], 3.0, urgent=False) is Act.NOTHING
    lane.abandon(lane.slots[0], 3.5, urgent=False)  # abandoned again: the first time counts
    assert lane.tick(3.5) is Act.NOTHING
    assert lane.tick(4.0) is Act.CANCEL


def test_the_ladder_of_a_cancel_without_effect() -> None:
    lane = filled("a")
    assert lane.abandon(lane.slots[0], 0.0, urgent=True) is Act.CANCEL
    assert lane.tick(3.0) is Act.NOTHING  # the cancel is still being delivered
    lane.cancel_done(3.0)
    assert lane.tick(4.0) is Act.NOTHING
    assert lane.tick(4.5) is Act.CANCEL
    assert lane.tick(6.5) is Act.NOTHING
    assert lane.tick(7.0) is Act.DISCARD  # whether the cancel was delivered or not


def test_a_new_cancel_has_a_deadline_of_its_own() -> None:
    lane = filled("a", "b")
    lane.abandon(lane.slots[0], 0.0, urgent=True)
    lane.cancel_done(0.5)
    lane.answered(6.0)
    assert lane.abandon(lane.slots[0], 6.5, urgent=True) is Act.CANCEL
    assert lane.tick(7.0) is Act.NOTHING
    lane.cancel_done(7.0)
    assert lane.tick(8.5) is Act.CANCEL
    assert lane.tick(13.5) is Act.DISCARD


def test_who_becomes_head_while_gated_gets_its_cancel_later() -> None:
    lane = filled("a", "b")
    second = lane.slots[1]
    lane.abandon(lane.slots[0], 0.0, urgent=True)
    lane.answered(0.5)
    assert lane.abandon(second, 0.5, urgent=True) is Act.NOTHING  # the first cancel may still arrive
    assert lane.tick(3.0) is Act.NOTHING
    lane.cancel_done(3.0)
    assert lane.tick(3.0) is Act.CANCEL


def test_a_head_that_blocks_others_is_cancelled_to_run_alone() -> None:
    lane = filled("a", "b")
    head = lane.slots[0]
    assert lane.tick(4.5) is Act.NOTHING
    assert lane.tick(5.0) is Act.INSPECT
    assert lane.inspected(head, Doing.RUNNING, 0, 5.5) is Act.CANCEL
    assert head.rerun_exclusive and head.abandoned_at is None
    assert not lane.slots[1].rerun_exclusive


def test_a_head_that_could_not_be_run_again_may_take_its_time() -> None:
    """While its node is being removed, a head may take any time, but lost connections are still found."""
    lane = filled("a", "b")
    lane.patient = True
    assert lane.tick(5.0) is Act.INSPECT
    assert lane.inspected(lane.slots[0], Doing.RUNNING, 0, 5.5) is Act.NOTHING
    assert not lane.slots[0].rerun_exclusive
    assert lane.inspected(lane.slots[0], Doing.IDLE, 0, 6.0) is Act.NOTHING
    assert lane.inspected(lane.slots[0], Doing.IDLE, 0, 7.0) is Act.DISCARD


def test_where_the_server_tells_nothing_a_blocking_head_is_cancelled() -> None:
    lane = filled("a", "b")
    assert lane.tick(5.0) is Act.INSPECT
    assert lane.inspected(lane.slots[0], Doing.UNKNOWN, 0, 5.0) is Act.CANCEL


@pytest.mark.parametrize("doing", [Doing.RUNNING, Doing.UNKNOWN, Doing.REPLICATING])
def test_a_head_that_blocks_nobody_may_take_its_time(doing: Doing) -> None:
    lane = filled("a")
    assert lane.tick(500.0) is Act.INSPECT
    assert lane.inspected(lane.slots[0], doing, 0, 500.0) is Act.NOTHING
    assert not lane.slots[0].rerun_exclusive


def test_a_commit_that_waits_for_its_standby_is_never_cancelled() -> None:
    lane = filled("a", "b")
    for at in (5.0, 7.5, 12.5):
        assert lane.tick(at) is Act.INSPECT
        assert lane.inspected(lane.slots[0], Doing.REPLICATING, 0, at) is Act.NOTHING
    assert gate_of(lane) is Gate.OPEN and not lane.slots[0].overlapped


def test_the_server_is_asked_more_and_more_seldom() -> None:
    lane = filled("a")
    asked = [at / 2 for at in range(1000) if lane.tick(at / 2) is Act.INSPECT]
    assert asked[0] == 5.0
    assert [later - sooner for sooner, later in itertools.pairwise(asked)][:8] == [
        2.5,
        5,
        10,
        20,
        40,
        80,
        80,
        80,
    ]


def test_an_idle_backend_proves_a_loss_the_second_time() -> None:
    lane = filled("a", "b")
    head = lane.slots[0]
    assert lane.inspected(head, Doing.IDLE, 0, 5.0) is Act.NOTHING
    assert lane.inspected(head, Doing.IDLE, 0, 7.5) is Act.DISCARD


def test_what_still_moves_is_not_lost() -> None:
    lane = filled("a", "b")
    head = lane.slots[0]
    for moved in (300, 700, 900):
        assert lane.inspected(head, Doing.IDLE, moved, 5.0) is Act.NOTHING
    assert lane.inspected(head, Doing.IDLE, 900, 7.5) is Act.DISCARD


def test_a_large_request_has_time_to_arrive() -> None:
    lane = filled("a", "b")
    head = lane.slots[0]
    for at in (5.0, 7.5, 12.5):
        assert lane.inspected(head, Doing.IDLE, 900, at, travelling=True) is Act.NOTHING
    assert lane.inspected(head, Doing.IDLE, 900, 22.5) is Act.NOTHING
    assert lane.inspected(head, Doing.IDLE, 900, 42.5) is Act.DISCARD


def test_idle_counts_only_twice_in_a_row_and_for_the_same_head() -> None:
    lane = filled("a", "b")
    head, second = lane.slots
    assert lane.inspected(head, Doing.IDLE, 0, 5.0) is Act.NOTHING
    assert lane.inspected(head, Doing.REPLICATING, 0, 6.0) is Act.NOTHING
    assert lane.inspected(head, Doing.IDLE, 0, 7.0) is Act.NOTHING
    lane.answered(7.5)
    assert lane.inspected(head, Doing.IDLE, 0, 8.0) is Act.NOTHING
    assert lane.inspected(second, Doing.IDLE, 0, 8.0) is Act.NOTHING


def test_an_answer_to_a_question_that_a_cancel_overtook_changes_nothing() -> None:
    lane = filled("a", "b")
    assert lane.tick(5.0) is Act.INSPECT
    assert lane.abandon(lane.slots[0], 5.0, urgent=True) is Act.CANCEL
    assert lane.inspected(lane.slots[0], Doing.RUNNING, 0, 5.5) is Act.NOTHING
    assert not lane.slots[0].rerun_exclusive


def test_a_retired_lane_takes_nothing_and_ends_what_it_has() -> None:
    lane = filled("a", "b")
    lane.stop_sending()
    assert not lane.has_capacity(0.0) and lane.stuck(0.0)
    assert lane.abandon(lane.slots[0], 0.0, urgent=True) is Act.CANCEL
    assert gate_of(lane) is Gate.DRAINING and lane.slots[1].overlapped
    lane.cancel_done(0.5)
    lane.answered(0.5)
    lane.answered(1.0)
    assert lane.draining and not lane.quiet and not lane.has_capacity(1.0) and lane.stuck(1.0)


def test_retiring_while_gated_is_for_good() -> None:
    lane = filled("a")
    lane.abandon(lane.slots[0], 0.0, urgent=True)
    lane.stop_sending()
    lane.cancel_done(0.5)
    lane.answered(0.5)
    assert gate_of(lane) is Gate.DRAINING and not lane.quiet


def test_a_retired_lane_cancels_nobody_after_the_target_answered() -> None:
    lane = filled("a", "b")
    lane.stop_sending()
    lane.abandon(lane.slots[0], 0.0, urgent=True)
    lane.cancel_done(0.5)
    lane.answered(0.5)
    # "b" is young, and its caller still waits.
    assert lane.tick(2.0) is Act.NOTHING
    assert lane.tick(5.0) is Act.NOTHING
    assert lane.tick(7.0) is Act.INSPECT
    assert lane.inspected(lane.slots[0], Doing.RUNNING, 0, 7.0) is Act.NOTHING


def test_a_retired_lane_has_one_cancel_out_at_a_time() -> None:
    lane = filled("a", "b")
    lane.stop_sending()
    assert lane.tick(5.0) is Act.INSPECT
    assert lane.inspected(lane.slots[0], Doing.RUNNING, 0, 5.0) is Act.CANCEL
    assert lane.abandon(lane.slots[0], 5.5, urgent=True) is Act.NOTHING
    assert lane.tick(12.0) is Act.DISCARD


# The state machine.


@dataclass(eq=False)
class Sent:
    """One segment, in the view of the client and of the server."""

    number: int
    sent_at: float
    exclusive: bool
    slot: Slot[int, str]
    head_at: float | None = None
    abandoned_at: float | None = None
    asked: int = 0
    asked_at: float = 0.0
    idle: int | None = None


@dataclass(eq=False)
class Flight:
    """One cancel request under way."""

    could_hit: frozenset[int]
    arrived: bool = False
    done: bool = False


@dataclass
class Server:
    running: deque[Sent] = field(default_factory=deque)
    """Segments that were received and have not finished; the running segment is the first."""
    transit: deque[Sent] = field(default_factory=deque)
    """Segments whose answers are on their way."""

    def finish(self) -> None:
        self.transit.append(self.running.popleft())


class LaneAndServer(RuleBasedStateMachine):
    """The rules are the allowed calls of the shell; `expected_act` follows the module's docstring."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.lane: Pipeline[int, str] = Pipeline(BOUNDS)
        self.bounds = BOUNDS
        self.server = Server()
        self.mine: deque[Sent] = deque()
        self.flights: list[Flight] = []
        self.target: Sent | None = None
        self.cancel_at = 0.0
        self.done_at = 0.0
        self.count = 0
        self.draining = False
        self.discarded = False

    @initialize(depth=st.sampled_from([4, 3, 2, 1]), burst=st.integers(1, 4), exclusive=st.booleans())
    def begin(self, depth: int, burst: int, exclusive: bool) -> None:
        # Hypothesis disables some rules for whole runs; without a first segment, nothing would be tested.
        self.bounds = replace(BOUNDS, depth=depth)
        self.lane = Pipeline(self.bounds)
        self.send(burst, exclusive)

    # The model's own view

    @property
    def delivering(self) -> bool:
        return any(not flight.done for flight in self.flights)

    @property
    def gated(self) -> bool:
        return self.delivering or self.target is not None

    def has_capacity(self) -> bool:
        if self.gated or self.draining:
            return False
        if not self.mine:
            return True
        head = self.mine[0]
        assert head.head_at is not None
        young = self.now - head.head_at < self.bounds.hold_behind
        return len(self.mine) < self.bounds.depth and not head.exclusive and young

    # The shell sends and hears

    @precondition(lambda self: not self.discarded and self.lane.has_capacity(self.now))
    @rule(burst=st.integers(1, 4), exclusive=st.booleans())
    def send(self, burst: int, exclusive: bool) -> None:
        if exclusive and self.lane.quiet:
            self.put(exclusive=True)
            return
        for _ in range(burst):
            if self.lane.has_capacity(self.now):
                self.put(exclusive=False)

    @precondition(lambda self: not self.discarded and self.mine)
    @rule(answers=st.integers(1, 4), burst=st.integers(0, 4), exclusive=st.booleans())
    def hear_and_send(self, answers: int, burst: int, exclusive: bool) -> None:
        for _ in range(min(answers, len(self.mine))):
            if not self.server.transit:
                self.server.finish()
            self.hear()
        if burst:
            self.send(burst, exclusive)

    def put(self, *, exclusive: bool) -> None:
        assert self.has_capacity()
        assert not (exclusive and self.mine)
        slot = self.lane.sent(self.count, f"segment {self.count}", self.now, exclusive=exclusive)
        sent = Sent(self.count, self.now, exclusive, slot, head_at=None if self.mine else self.now)
        self.count += 1
        self.mine.append(sent)
        self.server.running.append(sent)

    @precondition(lambda self: self.server.running)
    @rule(how_many=st.integers(1, 3))
    def server_finishes(self, how_many: int) -> None:
        for _ in range(min(how_many, len(self.server.running))):
            self.server.finish()

    @precondition(lambda self: not self.discarded and self.server.transit)
    @rule()
    def hear(self) -> None:
        sent = self.server.transit.popleft()
        assert sent is self.mine.popleft()
        slot = self.lane.answered(self.now)
        assert slot is sent.slot
        assert (slot.item, slot.segment) == (sent.number, f"segment {sent.number}")
        if self.mine:
            self.mine[0].head_at = self.now
        if sent is self.target:
            self.target = None

    @rule(halves=st.integers(1, 8))
    def time_passes(self, halves: int) -> None:
        self.now += halves / 2

    @precondition(lambda self: not self.discarded)
    @rule(halves=st.integers(1, 8))
    def time_passes_and_ticks(self, halves: int) -> None:
        self.now += halves / 2
        self.tick()

    # Cancels

    def perform(self, act: Act) -> None:
        if act is Act.DISCARD:
            self.discarded = True
        elif act is Act.INSPECT:
            head = self.mine[0]
            head.asked, head.asked_at = head.asked + 1, self.now
        elif act is Act.CANCEL:
            assert not self.delivering, "two cancels at once"
            head = self.mine[0]
            assert head.head_at is not None
            blocks = len(self.mine) > 1 and self.now - head.head_at >= self.bounds.head_of_line
            assert head.abandoned_at is not None or blocks or head is self.target, "nobody wants this cancel"
            if self.target is None:
                self.target, self.cancel_at = head, self.now
            assert head is self.target
            self.flights.append(Flight(frozenset(sent.number for sent in self.mine)))

    def expected_act(self) -> Act:
        if self.target is not None:
            if self.now - self.cancel_at >= self.bounds.cancel_deadline:
                return Act.DISCARD
            again = not self.delivering and self.now >= self.done_at + self.bounds.cancel_again
            return Act.CANCEL if again else Act.NOTHING
        if self.delivering or not self.mine:
            return Act.NOTHING
        head = self.mine[0]
        assert head.head_at is not None
        if head.abandoned_at is not None:
            due = max(head.head_at, head.abandoned_at) + self.bounds.cancel_grace
        else:
            due = head.head_at + self.bounds.head_of_line
            if head.asked:
                due = head.asked_at + self.bounds.ask_again * 2 ** min(head.asked - 1, 5)
            return Act.INSPECT if self.now >= due else Act.NOTHING
        return Act.CANCEL if self.now >= due else Act.NOTHING

    @precondition(lambda self: not self.discarded)
    @rule()
    def tick(self) -> None:
        expected = self.expected_act()
        act = self.lane.tick(self.now)
        assert act is expected
        self.perform(act)

    @precondition(lambda self: not self.discarded and any(sent.asked for sent in self.mine))
    @rule(doing=st.sampled_from(Doing), moved=st.sampled_from([0, 0, 5]), travelling=st.booleans())
    def the_server_tells(self, doing: Doing, moved: int, travelling: bool) -> None:
        """Deliver the server's report on a head that the lane asked about, after any delay."""
        sent = next(sent for sent in self.mine if sent.asked)
        act = self.lane.inspected(sent.slot, doing, moved, self.now, travelling=travelling)
        idle_before, sent.idle = sent.idle, moved if doing is Doing.IDLE and not travelling else None
        if self.gated:
            sent.idle = idle_before
            assert act is Act.NOTHING
        elif doing is Doing.IDLE:
            assert act is (Act.DISCARD if idle_before == moved and not travelling else Act.NOTHING)
        else:
            waited_for = any(one.slot.abandoned_at is None for one in list(self.mine)[1:])
            blocks = waited_for and doing is not Doing.REPLICATING
            assert act is (Act.CANCEL if blocks else Act.NOTHING)
            assert not blocks or sent.slot.rerun_exclusive
        self.perform(act)

    @precondition(lambda self: not self.discarded and self.mine)
    @rule(index=st.integers(0, 4), urgent=st.booleans())
    def abandon(self, index: int, urgent: bool) -> None:
        sent = self.mine[index % len(self.mine)]
        if sent.abandoned_at is None:
            sent.abandoned_at = self.now
        at_once = urgent and sent is self.mine[0] and not self.gated
        act = self.lane.abandon(sent.slot, self.now, urgent=urgent)
        assert act is (Act.CANCEL if at_once else Act.NOTHING)
        self.perform(act)

    @precondition(lambda self: any(not flight.arrived for flight in self.flights))
    @rule()
    def cancel_arrives(self) -> None:
        flight = next(flight for flight in self.flights if not flight.arrived)
        self.arrive(flight)

    def arrive(self, flight: Flight) -> None:
        flight.arrived = True
        if self.server.running:
            victim = self.server.running[0]
            assert victim.number in flight.could_hit, "a cancel hit what was sent after it"
            assert victim.slot.overlapped, "its 57014 would pass for somebody else's"
            self.server.finish()

    @precondition(lambda self: not self.discarded and self.delivering)
    @rule(lost=st.booleans())
    def cancel_is_done(self, lost: bool) -> None:
        """The server closed the cancel's connection: the cancel has arrived, or never will."""
        for flight in self.flights:
            if not flight.arrived and not flight.done and not lost:
                self.arrive(flight)
        self.done(arrived=True)

    @precondition(lambda self: not self.discarded and self.delivering)
    @rule()
    def cancel_is_uncertain(self) -> None:
        """The cancel's connection broke: the cancel may arrive at any time, so the lane stops sending."""
        self.lane.stop_sending()
        self.draining = True
        self.done(arrived=False)

    def done(self, *, arrived: bool) -> None:
        for flight in self.flights:
            flight.done = True
            flight.arrived = flight.arrived or arrived
        self.flights = [flight for flight in self.flights if not flight.arrived]
        self.done_at = self.now
        self.lane.cancel_done(self.now)

    @precondition(lambda self: not self.discarded)
    @rule(really=st.integers(0, 5))
    def stop_sending(self, really: int) -> None:
        if really == 0:
            self.lane.stop_sending()
            self.draining = True

    # Invariants

    @invariant()
    def the_lane_agrees_with_the_model(self) -> None:
        if self.discarded:
            return
        lane = self.lane
        assert [slot.item for slot in lane.slots] == [sent.number for sent in self.mine]
        assert len(lane.slots) <= self.bounds.depth
        for sent in self.mine:
            slot = sent.slot
            assert (slot.sent_at, slot.exclusive) == (sent.sent_at, sent.exclusive)
            assert (slot.head_at, slot.abandoned_at) == (sent.head_at, sent.abandoned_at)
            assert (slot.head_at is not None) == (sent is self.mine[0])
        if any(sent.exclusive for sent in self.mine):
            assert len(self.mine) == 1

    @invariant()
    def what_may_be_sent(self) -> None:
        if self.discarded:
            return
        lane = self.lane
        assert lane.has_capacity(self.now) == self.has_capacity()
        assert lane.quiet == (self.has_capacity() and not self.mine)
        assert lane.draining == self.draining
        if not self.draining:
            assert lane.gate is (Gate.GATED if self.gated else Gate.OPEN)
        if not lane.stuck(self.now) and self.mine:
            assert lane.has_capacity(self.now) or len(self.mine) == self.bounds.depth
        if lane.stuck(self.now):
            assert not lane.has_capacity(self.now)


TestLaneAndServer = LaneAndServer.TestCase
TestLaneAndServer.settings = settings(deadline=None, max_examples=300, stateful_step_count=50)
