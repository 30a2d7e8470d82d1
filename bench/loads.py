"""The load: so many tasks or threads, each running one operation after the other, counted for a while."""

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
"""Rows of the table that is selected from, with the keys 1 to so many."""
WARM_UP = 0.3
"""Seconds that count for nothing: pools fill, statements are prepared."""
_DRAWN = 4096


def keys(seed: int) -> Iterator[int]:
    """Random keys without end. Drawn beforehand: a draw costs as much as a twentieth of an operation."""
    draw = random.Random(seed)
    return itertools.cycle([draw.randrange(KEYS) + 1 for _ in range(_DRAWN)])


@dataclass(frozen=True, slots=True)
class Load:
    """So many tasks for so many seconds."""

    tasks: int
    seconds: float

    async def run(self, operation: Callable[[int], Awaitable[object]]) -> float:
        """Operations a second; the operation is given a random key."""
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
        """As `run`, with threads in place of tasks."""
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
                stop.set()  # after Ctrl-C in the main thread
        return count / (time.perf_counter() - started)
