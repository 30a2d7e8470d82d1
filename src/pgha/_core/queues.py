"""What waits: queues from which operations can be taken out anywhere, and one heap of deadlines."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Queue(OrderedDict[T, None]):
    """First in, first out; an operation that is run again goes to the front; any may leave at once.

    An ordered dictionary: a deque could not forget a cancelled operation in its middle, and a million
    operations that timed out while no node was there would stay in memory.
    """

    def push(self, item: T) -> None:
        self[item] = None

    def push_front(self, item: T) -> None:
        self[item] = None
        self.move_to_end(item, last=False)

    def take(self) -> T:
        """Take the oldest out; KeyError when empty."""
        return self.popitem(last=False)[0]

    def remove(self, item: T) -> bool:
        """Take ``item`` out; False when it was not there."""
        try:
            del self[item]
        except KeyError:
            return False
        return True

    def drain(self) -> list[T]:
        """Take all out, oldest first."""
        items = list(self)
        self.clear()
        return items


class Timer(Generic[T]):
    """An entry of `TimerHeap`; ``item`` is None once it was cancelled, so that nothing is kept alive."""

    __slots__ = ("item", "when")

    def __init__(self, when: float, item: T) -> None:
        self.when = when
        self.item: T | None = item


class TimerHeap(Generic[T]):
    """A heap of moments. Cancelling is O(1): dead entries are dropped when they come up, or when they
    are more than half of the heap."""

    __slots__ = ("_dead", "_heap", "_sequence")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer[T]]] = []
        self._sequence = 0
        self._dead = 0

    def __len__(self) -> int:
        return len(self._heap) - self._dead

    def add(self, when: float, item: T) -> Timer[T]:
        timer = Timer(when, item)
        self._sequence += 1
        heapq.heappush(self._heap, (when, self._sequence, timer))
        return timer

    def cancel(self, timer: Timer[T]) -> None:
        if timer.item is None:
            return
        timer.item = None
        self._dead += 1
        if self._dead > 64 and self._dead * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].item is not None]
            heapq.heapify(self._heap)
            self._dead = 0

    def next(self) -> float | None:
        """The earliest moment, or None."""
        while self._heap and self._heap[0][2].item is None:
            heapq.heappop(self._heap)
            self._dead -= 1
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> Iterator[T]:
        """Take out what is due, earliest first, one by one: what comes first may cancel what follows."""
        while (when := self.next()) is not None and when <= now:
            timer = heapq.heappop(self._heap)[2]
            item, timer.item = timer.item, None
            if item is not None:
                yield item
