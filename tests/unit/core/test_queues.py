"""Tests of the queue against a list and the timers against a sorted list; removed items are not kept."""

from __future__ import annotations

import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pgha._core.queues import AgeQueue, Timer, TimerHeap


class Item:
    """An item whose destruction can be observed; like an operation, an item equals only itself."""


class Aged(Item):
    """An item with an age."""

    def __init__(self, age: int) -> None:
        self.age = age


class QueueAgainstList(RuleBasedStateMachine):
    """Items are their own ages; 0 may be there several times, as pgha's own questions are."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: AgeQueue[Aged] = AgeQueue()
        self.list: list[Aged] = []
        self.gone: list[Aged] = []
        self.count = 0

    def add(self, item: Aged) -> None:
        self.queue.push(item, item.age)
        # An item of the same age as others comes behind them, or in front of them.
        self.list.append(item)
        self.list.sort(key=lambda one: one.age)

    @rule(how_many=st.integers(1, 4))
    def push(self, how_many: int) -> None:
        for _ in range(how_many):
            self.count += 1
            self.add(Aged(self.count))

    @rule()
    def push_without_an_age(self) -> None:
        self.add(Aged(0))

    @precondition(lambda self: self.list)
    @rule()
    def take(self) -> None:
        assert self.queue.oldest_age() == self.list[0].age
        oldest = self.queue.oldest()
        taken = self.queue.take()
        assert taken is oldest
        assert taken.age == self.list[0].age
        self.list.remove(taken)
        self.gone.append(taken)

    @precondition(lambda self: not self.list)
    @rule()
    def take_from_nothing(self) -> None:
        for call in (self.queue.take, self.queue.oldest, self.queue.oldest_age):
            with pytest.raises(LookupError):
                call()

    @precondition(lambda self: self.list)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.list))
        assert self.queue.has(item, item.age)
        assert self.queue.remove(item, item.age)
        assert not self.queue.has(item, item.age)
        self.list.remove(item)
        self.gone.append(item)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def remove_again(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.gone))
        assert not self.queue.remove(item, item.age)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.gone))
        self.gone.remove(item)
        self.add(item)

    @rule(really=st.integers(0, 5))
    def drain(self, really: int) -> None:
        if really == 0:
            drained = self.queue.drain()
            assert [one.age for one in drained] == [one.age for one in self.list]
            self.gone += drained
            self.list.clear()

    @invariant()
    def the_same(self) -> None:
        assert [one.age for one in self.queue] == [one.age for one in self.list]
        assert set(self.queue) == set(self.list)
        assert len(self.queue) == len(self.list)
        assert bool(self.queue) == bool(self.list)


TestQueue = QueueAgainstList.TestCase
TestQueue.settings = settings(deadline=None, max_examples=60, stateful_step_count=30)


def test_what_one_lost_connection_brings_back_keeps_its_order() -> None:
    queue: AgeQueue[Aged] = AgeQueue()
    items = [Aged(age) for age in range(6)]
    for item in items:
        queue.push(item, item.age)
    taken = [queue.take() for _ in range(4)]
    for item in taken:
        queue.push(item, item.age)
    assert list(queue) == items


def test_the_queue_forgets_what_left_its_middle() -> None:
    queue: AgeQueue[Aged] = AgeQueue()
    items = [Aged(age) for age in range(4)]
    seen = [weakref.ref(item) for item in items]
    for item in items:
        queue.push(item, item.age)
    del item
    assert queue.remove(items[1], 1)
    assert queue.take() is items[0]
    items.clear()
    assert [ref() is None for ref in seen] == [True, True, False, False]
    assert len(queue.drain()) == 2
    assert all(ref() is None for ref in seen)


# TimerHeap


class TimersAgainstList(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.timers: TimerHeap[int] = TimerHeap()
        self.waiting: dict[int, Timer[int]] = {}
        self.over: list[Timer[int]] = []
        self.count = 0
        self.now = 0.0

    def order(self) -> list[int]:
        """Return the timers by time; equal times are in the order in which the timers were added."""
        return sorted(self.waiting, key=lambda number: (self.waiting[number].when, number))

    @rule(after=st.integers(-1, 6), how_many=st.sampled_from([1, 1, 2, 3, 80]))
    def add(self, after: int, how_many: int) -> None:
        for _ in range(how_many):
            self.count += 1
            timer = self.timers.add(self.now + after, self.count)
            assert timer.when == self.now + after
            self.waiting[self.count] = timer

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.cancel_one(data.draw(st.sampled_from(list(self.waiting))))

    @precondition(lambda self: self.waiting)
    @rule(keep=st.sampled_from([2, 3, 10]), last=st.booleans())
    def cancel_most(self, keep: int, last: bool) -> None:
        order = self.order()
        for number in reversed(order) if last else order:
            if number % keep:
                self.cancel_one(number)

    def cancel_one(self, number: int) -> None:
        timer = self.waiting.pop(number)
        self.timers.cancel(timer)
        assert timer.item is None
        self.over.append(timer)

    @precondition(lambda self: self.over)
    @rule(data=st.data())
    def cancel_again(self, data: st.DataObject) -> None:
        self.timers.cancel(data.draw(st.sampled_from(self.over)))

    @rule(seconds=st.integers(0, 4))
    def due(self, seconds: int) -> None:
        self.now += seconds
        expected = [number for number in self.order() if self.waiting[number].when <= self.now]
        assert list(self.timers.due(self.now)) == expected
        for number in expected:
            timer = self.waiting.pop(number)
            assert timer.item is None
            self.over.append(timer)

    @rule()
    def next(self) -> None:
        order = self.order()
        assert self.timers.next() == (self.waiting[order[0]].when if order else None)

    @invariant()
    def as_many(self) -> None:
        assert len(self.timers) == len(self.waiting)
        assert all(timer.item == number for number, timer in self.waiting.items())

    @invariant()
    def the_dead_are_few(self) -> None:
        # The list that grows is `_heap`: a million cancelled deadlines must not stay in it.
        assert len(self.timers._heap) <= 2 * len(self.waiting) + 65


TestTimers = TimersAgainstList.TestCase
TestTimers.settings = settings(deadline=None, max_examples=40, stateful_step_count=25)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 20), max_size=60), st.integers(0, 20))
def test_due_in_order(moments: list[int], now: int) -> None:
    timers: TimerHeap[tuple[int, int]] = TimerHeap()
    for number, moment in enumerate(moments):
        timers.add(moment, (moment, number))
    expected = sorted((moment, number) for number, moment in enumerate(moments) if moment <= now)
    assert list(timers.due(now)) == expected
    assert timers.next() == min((moment for moment in moments if moment > now), default=None)


def test_what_comes_first_may_cancel_what_is_due_with_it() -> None:
    # An operation's deadline and its wait for a node end at the same time: the first ends the operation.
    timers: TimerHeap[str] = TimerHeap()
    timers.add(1.0, "deadline")
    second = timers.add(1.0, "no node")
    timers.add(1.0, "somebody else's")
    called: list[str] = []
    for item in timers.due(1.0):
        called.append(item)
        timers.cancel(second)
    assert called == ["deadline", "somebody else's"]
    assert len(timers) == 0


def test_what_is_added_meanwhile_waits_for_its_moment() -> None:
    timers: TimerHeap[str] = TimerHeap()
    timers.add(1.0, "a")
    called: list[str] = []
    for item in timers.due(2.0):
        called.append(item)
        if item == "a":
            timers.add(2.5, "later")
            timers.add(1.5, "due already")
    assert called == ["a", "due already"]
    assert timers.next() == 2.5


def test_those_left_after_tidying_up_come_in_order() -> None:
    timers: TimerHeap[int] = TimerHeap()
    added = [timers.add(moment, moment) for moment in (number * 37 % 300 for number in range(300))]
    for timer in added:
        if timer.when % 3:
            timers.cancel(timer)
    assert len(timers._heap) < 300
    assert list(timers.due(1000)) == list(range(0, 300, 3))


def test_a_cancelled_timer_keeps_nothing_alive() -> None:
    timers: TimerHeap[Item] = TimerHeap()
    item = Item()
    seen = weakref.ref(item)
    timer = timers.add(1.0, item)
    del item
    assert seen() is not None
    timers.cancel(timer)
    assert seen() is None
    assert len(timers) == 0
    assert list(timers.due(9.0)) == []


def test_a_timer_that_was_due_keeps_nothing_alive() -> None:
    timers: TimerHeap[Item] = TimerHeap()
    item = Item()
    seen = weakref.ref(item)
    timer = timers.add(1.0, item)
    del item
    assert len(list(timers.due(1.0))) == 1
    assert seen() is None
    timers.cancel(timer)
    assert len(timers) == 0


@pytest.mark.parametrize("oldest_first", [True, False])
def test_a_million_deadlines_that_were_met_leave_a_small_heap(oldest_first: bool) -> None:
    # On a small scale: each operation has a distant deadline and is done long before.
    timers: TimerHeap[int] = TimerHeap()
    far = [timers.add(1000.0 + number, number) for number in range(5000)]
    for timer in far if oldest_first else reversed(far):
        timers.cancel(timer)
    assert len(timers) == 0
    assert len(timers._heap) <= 130
    assert timers.next() is None
