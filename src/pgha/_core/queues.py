"""Data structures for waiting: queues in the order of age, and a heap of timers."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from heapq import merge
from typing import Generic, TypeVar

T = TypeVar("T")


class AgeQueue(Generic[T]):
    """A queue in the order of age, from which any item can be removed at once.

    The age of an item is a number; the lowest is the oldest. Nearly all items arrive in the order of age.
    Only an item that comes back is older than the last one: such items are kept apart, sorted.

    Fresh items are in an ordered dictionary: a deque cannot forget a cancelled operation in its middle, so a
    million operations that timed out while no node was usable would stay in memory.
    """

    __slots__ = ("_back", "_fresh", "count", "newest")

    def __init__(self) -> None:
        self._fresh: OrderedDict[T, int] = OrderedDict()
        self._back: list[tuple[int, T]] = []
        """The items that came back, the oldest last."""
        self.newest = -1
        """The highest age ever added."""
        self.count = 0
        """The number of items, for those who look often: the same as ``len``."""

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[T]:
        return iter([item for _, item in self._ordered()])

    def _ordered(self) -> list[tuple[int, T]]:
        return list(merge(reversed(self._back), ((age, item) for item, age in self._fresh.items()), key=_age))

    def push(self, item: T, age: int) -> None:
        """Add ``item`` at the place of its age."""
        if age > self.newest:
            self.newest = age
            self._fresh[item] = age
        else:
            insort(self._back, (age, item), key=_youngest_first)
        self.recount()

    def oldest(self) -> T:
        """Return the oldest item; raise an error if the queue is empty."""
        return self._first()[1] if self._back or not self._fresh else next(iter(self._fresh))

    def oldest_age(self) -> int:
        """Return the age of the oldest item; raise an error if the queue is empty."""
        return self._first()[0]

    def _first(self) -> tuple[int, T]:
        if not self._fresh:
            return self._back[-1]
        item, age = next(iter(self._fresh.items()))
        if self._back and self._back[-1][0] < age:
            return self._back[-1]
        return age, item

    def take(self) -> T:
        """Remove and return the oldest item; raise an error if the queue is empty."""
        back = self._back
        item = back.pop()[1] if back and self._first() is back[-1] else self._fresh.popitem(last=False)[0]
        self.count = len(self._fresh) + len(back)
        return item

    def remove(self, item: T, age: int) -> bool:
        """Remove ``item``; return False if ``item`` was not in the queue."""
        if self._fresh.pop(item, None) is None:
            index = self._index(item, age)
            if index is None:
                return False
            del self._back[index]
        self.count = len(self._fresh) + len(self._back)
        return True

    def _index(self, item: T, age: int) -> int | None:
        """Return the position of ``item`` among the items that came back."""
        back = self._back
        index = bisect_left(back, -age, key=_youngest_first)
        while index < len(back) and back[index][0] == age:
            if back[index][1] is item:
                return index
            index += 1
        return None

    def has(self, item: T, age: int) -> bool:
        """Return whether ``item`` is in the queue."""
        return item in self._fresh or self._index(item, age) is not None

    def recount(self) -> None:
        """Count the items anew, after an exception came between a change and its count."""
        self.count = len(self._fresh) + len(self._back)

    def drain(self) -> list[T]:
        """Remove and return all items, the oldest first."""
        items = list(self)
        self._fresh.clear()
        self._back.clear()
        self.count = 0
        return items


def _age(entry: tuple[int, T]) -> int:
    return entry[0]


def _youngest_first(entry: tuple[int, T]) -> int:
    return -entry[0]


class Timer(Generic[T]):
    """An entry of `TimerHeap`; ``item`` is None after cancellation, so that the timer keeps nothing alive."""

    __slots__ = ("item", "when")

    def __init__(self, when: float, item: T) -> None:
        self.when = when
        self.item: T | None = item


class TimerHeap(Generic[T]):
    """A heap of timers, whose cancellation is O(1).

    Cancelled timers stay in the heap until they come up, or until they are more than half of the heap.
    """

    __slots__ = ("_dead", "_heap", "_sequence")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer[T]]] = []
        self._sequence = 0
        self._dead = 0

    def __len__(self) -> int:
        return len(self._heap) - self._dead

    def add(self, when: float, item: T) -> Timer[T]:
        """Add a timer that is due at ``when``."""
        timer = Timer(when, item)
        self._sequence += 1
        heapq.heappush(self._heap, (when, self._sequence, timer))
        return timer

    def cancel(self, timer: Timer[T]) -> None:
        """Cancel ``timer``; do nothing if it is no longer pending."""
        if timer.item is None:
            return
        timer.item = None
        self._dead += 1
        if self._dead > 64 and self._dead * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].item is not None]
            heapq.heapify(self._heap)
            self._dead = 0

    def next(self) -> float | None:
        """Return the time of the earliest timer, or None if there is none."""
        while self._heap and self._heap[0][2].item is None:
            heapq.heappop(self._heap)
            self._dead -= 1
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> Iterator[T]:
        """Remove and yield the due items one by one, earliest first: each may cancel later ones."""
        while (when := self.next()) is not None and when <= now:
            timer = heapq.heappop(self._heap)[2]
            item, timer.item = timer.item, None
            if item is not None:
                yield item
