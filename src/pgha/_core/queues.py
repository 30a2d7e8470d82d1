"""Data structures for waiting: queues from which any operation can be removed, and a heap of timers."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Queue(OrderedDict[T, None]):
    """A first-in, first-out queue from which any item can be removed at once.

    An operation that is run again goes to the front. The queue is an ordered dictionary: a deque cannot
    forget a cancelled operation in its middle, so a million operations that timed out while no node was
    usable would stay in memory.
    """

    def push(self, item: T) -> None:
        """Append ``item``."""
        self[item] = None

    def push_front(self, item: T) -> None:
        """Insert ``item`` at the front."""
        self[item] = None
        self.move_to_end(item, last=False)

    def take(self) -> T:
        """Remove and return the first item; raise KeyError if the queue is empty."""
        return self.popitem(last=False)[0]

    def remove(self, item: T) -> bool:
        """Remove ``item``; return False if ``item`` was not in the queue."""
        try:
            del self[item]
        except KeyError:
            return False
        return True

    def drain(self) -> list[T]:
        """Remove and return all items, first item first."""
        items = list(self)
        self.clear()
        return items


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
