"""Operations that wait: for how long, for which node, in which order, and for a lane of their own."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from anyio.abc import TaskGroup
from support.fake_link import FakeError
from support.in_memory import InMemory

import pgha
from pgha import pin
from pgha._node.lane import Lane
from pgha._operation.operation import Operation, Stage
from pgha._options import Tuning

pytestmark = pytest.mark.anyio
MakeWorld = Callable[..., InMemory]
ONE_BY_ONE = Tuning(depth=1, max_lanes=1)
TWO_LANES = Tuning(depth=1, max_lanes=2)


def failed(operation: Operation[Any]) -> BaseException | None:
    operation.retrieve()
    return operation.failure


# The bound of the waiting time


async def test_a_write_in_doubt_waits_no_longer_than_others(make_world: MakeWorld) -> None:
    """A keyed write may run on the servers of one lineage only; the last of them falls while it waits."""
    world = make_world(tuning=Tuning(depth=1))
    for _ in range(2):
        world.open("a", "write")
    keyed, other = world.start("INSERT 1", keyed=True), world.start("INSERT 2")
    world.abort(keyed.place[0], "lost on the way")
    assert keyed.stage is Stage.QUEUED
    assert keyed.lineage == 7
    world.fall("a")
    world.wait(29.0, 0.5)
    assert not keyed.done
    world.wait(2.0, 0.5)
    assert isinstance(failed(keyed), pgha.CommitInDoubt)
    failed(other)


async def test_pinned_reads_wait_for_their_node_from_its_fall_on(make_world: MakeWorld) -> None:
    world = make_world("ab", tuning=ONE_BY_ONE)
    for name in "ab":
        world.open(name, "read")
    busy, waiting = (world.start("SELECT 1", read=True, route=pin("a")) for _ in range(2))
    world.wait(35.0, 0.5)
    assert waiting.stage is Stage.QUEUED
    world.fall("a")
    world.wait(29.0, 0.5)
    assert not waiting.done
    world.wait(2.0, 0.5)
    assert isinstance(failed(waiting), pgha.NoNodeAvailable)
    failed(busy)


async def test_a_pinned_read_outlives_a_short_fall_of_its_node(make_world: MakeWorld) -> None:
    world = make_world("ab", tuning=ONE_BY_ONE)
    world.open("a", "read")
    busy, waiting = (world.start("SELECT 1", read=True, route=pin("a")) for _ in range(2))
    world.wait(35.0, 0.5)
    world.fall("a")
    world.wait(1.0)
    world.ping("a")
    lane, link = world.open("a", "read")
    for _ in range(3):
        world.answer(lane, link)
    assert failed(busy) is None
    assert failed(waiting) is None
    assert waiting.done


async def test_reads_wait_for_new_connections_from_the_loss_on(make_world: MakeWorld) -> None:
    world = make_world(tuning=ONE_BY_ONE)
    lane, _ = world.open("a", "read")
    busy, waiting = (world.start("SELECT 1", read=True) for _ in range(2))
    world.wait(35.0, 0.5)
    world.abort(lane, "a statement changed the session")
    world.nodes["a"].sets["read"].failures = 1  # an attempt to connect again
    world.dispatcher.door.enter(world.dispatcher.lanes_changed, world.nodes["a"])
    world.wait(29.0, 0.5)
    assert not waiting.done
    world.wait(2.0, 0.5)
    assert isinstance(failed(waiting), pgha.NoNodeAvailable)
    failed(busy)


async def test_the_oldest_keeps_its_place_in_a_full_line(make_world: MakeWorld) -> None:
    """The connection ends just when the oldest is about to be sent on it."""
    world = make_world(tuning=Tuning(depth=1), max_queued=2)
    lane, link = world.open("a", "write")
    head = world.start("INSERT 0")
    oldest = world.start("INSERT 1", timeout=5.0)
    others = [world.start(f"INSERT {number}", timeout=9.0) for number in range(2, 5)]
    link.answer()
    link.on_received = link.end
    lane._readable()
    assert head.done
    assert lane.broken is not None
    world.wait(6.0, 0.5)
    assert isinstance(failed(oldest), pgha.OperationTimeout)
    world.dispatcher.close()
    errors = [type(failed(one)) for one in others]
    assert errors == [pgha.OperationCancelled] * 2 + [pgha.ClusterClosed]


async def test_only_who_never_had_a_place_is_told_that_the_queue_was_full(make_world: MakeWorld) -> None:
    """Who leaves behind an operation gives it no place, and who had a place keeps it."""
    world = make_world(tuning=ONE_BY_ONE, max_queued=2)
    lane, link = world.open("a", "write")
    world.start("INSERT 0")
    ends = [6.0, 7.0, 4.0, 8.0, 1.0, 2.0, 5.0]
    waiting = [world.start(f"INSERT {number}", timeout=end) for number, end in enumerate(ends, 1)]
    world.answer(lane, link)  # the first is sent, and the third moves up
    world.wait(9.0, 0.5)
    kinds = [type(failed(one)) for one in waiting[1:]]
    full, late = pgha.QueueFull, pgha.OperationTimeout
    # The fourth moves up when the third ends. The last three end before or while others have all places.
    assert kinds == [late, late, late, full, full, full]


# The choice of the node


async def test_a_moved_read_comes_back_if_nothing_moves_where_it_went(make_world: MakeWorld) -> None:
    world = make_world("ab", tuning=ONE_BY_ONE)
    lane, link = world.open("a", "read")
    world.open("b", "read")
    long = world.start("SELECT long", read=True, route=pin("b"))
    read = world.start("SELECT 1", read=True)
    link.answer(FakeError("53200"))
    lane._readable()
    assert read.need.node == "b"
    world.wait(0.5)
    assert read.attempts[-1].node == "a"
    world.answer(lane, link)
    assert failed(read) is None
    assert read.done
    assert not long.done


async def test_reads_go_elsewhere_while_all_lanes_of_their_node_are_stuck(make_world: MakeWorld) -> None:
    world = make_world("ab", tuning=ONE_BY_ONE)
    for name in "ab":
        for kind in ("read", "write"):
            world.open(name, kind)
    for long in (True, False):
        world.start("SELECT long", read=long)
    read, write = world.start("SELECT 1", read=True), world.start("INSERT 1")
    pinned = world.start("SELECT 2", read=True, route=pin("a"))
    world.wait(0.08)
    assert read.stage is Stage.QUEUED
    world.wait(0.1)
    assert read.attempts[-1].node == "b"
    world.wait(1.0)
    assert write.stage is Stage.QUEUED
    assert pinned.stage is Stage.QUEUED


async def test_the_oldest_comes_first_whatever_it_needs(make_world: MakeWorld) -> None:
    world = make_world(tuning=ONE_BY_ONE)
    lane, link = world.open("a", "read")
    routes = [None, pin("a"), None, None, pin("a"), None]
    for number, route in enumerate(routes):
        world.start(f"SELECT {number}", read=True, route=route)
    for _ in routes:
        world.answer(lane, link)
    assert link.sent == [[f"SELECT {number}"] for number in range(len(routes))]


async def test_each_need_has_a_line_of_its_own_length(make_world: MakeWorld) -> None:
    world = make_world(tuning=ONE_BY_ONE, max_queued=1)
    world.open("a", "read")
    world.start("INSERT 1")
    with pytest.raises(pgha.QueueFull):
        world.dispatcher.admit(world.make("INSERT 2").request)
    for _ in range(2):
        world.dispatcher.admit(world.make("SELECT 1", read=True).request)
        world.start("SELECT 1", read=True)
    with pytest.raises(pgha.QueueFull):
        world.dispatcher.admit(world.make("SELECT 1", read=True).request)
    world.dispatcher.admit(world.make("SELECT 1", read=True, route=pin("a")).request)


# A lane of one's own


class Steady:
    """Two lanes for writes under a steady load of ordinary ones."""

    def __init__(self, world: InMemory) -> None:
        self.world = world
        self.lanes = [world.open("a", "write") for _ in range(2)]
        self.started = self.number = 0

    def go_on(self, seconds: float, watched: Operation[Any]) -> None:
        """Start ordinary writes, and answer older ones, until an operation is sent or time is over."""
        end = self.world.now + seconds
        while self.world.now < end and watched.stage is Stage.QUEUED:
            before = [lane.in_flight for lane, _ in self.lanes]
            for _ in range(4):
                self.number += 1
                self.world.start(f"INSERT {self.number}")
            for (lane, link), count in zip(self.lanes, before, strict=True):
                self.world.answer(lane, link, count)
            self.world.wait(0.02)


async def test_one_that_must_be_alone_gets_a_lane_where_no_more_can_be_opened(make_world: MakeWorld) -> None:
    world = make_world()
    load = Steady(world)
    world.nodes["a"].sets["write"].failures = 1  # FATAL 53300: too many connections
    for number in range(6):
        world.start(f"INSERT first {number}")
    call = world.start("CALL p()", exclusive=True)
    load.go_on(5.0, call)
    assert call.stage is Stage.SENT


async def test_one_that_must_be_alone_comes_after_the_older_ones_on_the_only_lane(
    make_world: MakeWorld,
) -> None:
    world = make_world(tuning=Tuning(depth=2, max_lanes=1))
    lane, link = world.open("a", "write")
    for number in range(4):
        world.start(f"INSERT {number}")
    world.start("INSERT alone", exclusive=True)
    world.start("INSERT younger")
    world.wait(1.0)
    for _ in range(6):
        world.answer(lane, link)
    assert [sent for (sent,) in link.sent] == [
        *(f"INSERT {number}" for number in range(4)), "INSERT alone", "INSERT younger"
    ]  # fmt: skip


async def test_ordinary_operations_keep_a_lane_while_others_must_be_alone(make_world: MakeWorld) -> None:
    world = make_world(tuning=TWO_LANES)
    lanes = dict(world.open("a", "write") for _ in range(2))
    first = world.start("CALL 1", exclusive=True)
    ordinary = [world.start(f"INSERT {number}") for number in range(6)]
    second = world.start("CALL 2", exclusive=True)
    busy: Lane = first.place[0]
    (shared,) = set(lanes) - {busy}
    for done, one in enumerate(ordinary):
        assert one.place[0] is shared, f"{done} are done"
        world.wait(0.2)
        world.answer(shared, lanes[shared])
    assert second.stage is Stage.SENT
    assert not first.done


async def test_a_lane_kept_free_is_given_back_when_it_is_of_no_use(make_world: MakeWorld) -> None:
    """The one that it was kept for found another lane that was quiet sooner."""
    world = make_world(tuning=TWO_LANES)
    lanes = dict(world.open("a", "write") for _ in range(2))
    for number in range(2):
        world.start(f"INSERT {number}")
    calls = [world.start(f"CALL {number}", exclusive=True) for number in range(2)]
    waiting = [world.start(f"INSERT {number}") for number in range(2, 4)]
    (leased,) = world.nodes["a"].sets["write"]._leased
    (other,) = set(lanes) - {leased}
    world.answer(other, lanes[other])
    world.answer(leased, lanes[leased])
    assert [one.stage for one in calls] == [Stage.SENT, Stage.QUEUED]
    world.wait(0.1)
    assert waiting[0].stage is Stage.SENT


async def test_one_that_must_be_alone_has_one_more_lane_opened(make_world: MakeWorld) -> None:
    world = make_world()
    opened: list[object] = []
    for _ in range(4):
        world.open("a", "write")
    world.nodes["a"].sets["write"].attach(cast(TaskGroup, SimpleNamespace(start_soon=opened.append)))
    for number in range(4):
        world.start(f"INSERT {number}", exclusive=True)
    call = world.start("CALL p()", exclusive=True)
    world.wait(0.3)
    assert call.stage is Stage.QUEUED
    assert len(opened) == 1
