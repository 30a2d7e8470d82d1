"""The load: a number of tasks or threads, each running one operation after the other for some seconds."""

from __future__ import annotations

import gc
import itertools
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import anyio

KEYS = 10_000
"""The number of rows in the table that selects read. Their keys begin at 1."""
WARM_UP = 0.3
"""Seconds that are not counted, in which pools fill and statements are prepared."""
_DRAWN = 4096


def keys(seed: int) -> Iterator[int]:
    """Return an endless iterator of random keys.

    They are drawn beforehand, since a draw costs as much as a twentieth of an operation.
    """
    draw = random.Random(seed)
    return itertools.cycle([draw.randrange(KEYS) + 1 for _ in range(_DRAWN)])


@dataclass(frozen=True, slots=True)
class Load:
    """A load of a number of tasks for some seconds."""

    tasks: int
    seconds: float

    async def run(self, operation: Callable[[int], Awaitable[object]]) -> float:
        """Run the load, and return the operations per second. The operation is given a random key."""
        await self._count(operation, min(WARM_UP, self.seconds))
        gc.collect()
        return await self._count(operation, self.seconds)

    async def _count(self, operation: Callable[[int], Awaitable[object]], seconds: float) -> float:
        count = 0
        given = keys(self.tasks)
        started = time.perf_counter()
        end = started + seconds

        async def work() -> None:
            nonlocal count
            while time.perf_counter() < end:
                await operation(next(given))
                count += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(self.tasks):
                tasks.start_soon(work)
        return count / (time.perf_counter() - started)

    def run_threads(self, operation: Callable[[int], object]) -> float:
        """Run the load with threads instead of tasks, and return the operations per second."""
        self._count_threads(operation, min(WARM_UP, self.seconds))
        gc.collect()
        return self._count_threads(operation, self.seconds)

    def _count_threads(self, operation: Callable[[int], object], seconds: float) -> float:
        stop = threading.Event()
        started = time.perf_counter()
        end = started + seconds

        def work(seed: int) -> int:
            count = 0
            given = keys(seed)
            while time.perf_counter() < end and not stop.is_set():
                operation(next(given))
                count += 1
            return count

        with ThreadPoolExecutor(self.tasks) as threads:
            try:
                count = sum(threads.map(work, range(self.tasks)))
            finally:
                stop.set()  # ends the threads after a Ctrl-C in the main thread
        return count / (time.perf_counter() - started)
