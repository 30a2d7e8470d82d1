"""The loads: each opens its client as its documentation says, warms up, and counts for a while."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio
import asyncpg
from psycopg.conninfo import conninfo_to_dict

import pgha

KEYS = 10_000
WARM_UP = 0.3


@dataclass(frozen=True)
class Load:
    """So many tasks, each running one operation after the other."""

    tasks: int
    seconds: float

    async def run(self, operation: Callable[[int], Awaitable[object]]) -> float:
        """Operations a second."""
        await self._count(operation, WARM_UP)
        return await self._count(operation, self.seconds)

    async def _count(self, operation: Callable[[int], Awaitable[object]], seconds: float) -> float:
        count = 0
        started = time.perf_counter()
        end = started + seconds

        async def work(seed: int) -> None:
            nonlocal count
            key = random.Random(seed).randrange
            while time.perf_counter() < end:
                await operation(key(KEYS) + 1)
                count += 1

        async with anyio.create_task_group() as tasks:
            for seed in range(self.tasks):
                tasks.start_soon(work, seed)
        return count / (time.perf_counter() - started)


async def asyncpg_pool(dsn: str, load: Load) -> float:
    """asyncpg with a pool of 10, as its documentation has it."""
    params = conninfo_to_dict(dsn)
    async with asyncpg.create_pool(
        host=params["host"],
        port=int(params["port"] or 5432),
        user=params["user"],
        database=params["dbname"],
        min_size=10,
        max_size=10,
    ) as pool:

        async def operation(key: int) -> None:
            rows = await pool.fetch("SELECT id, name FROM item WHERE id = $1", key)
            assert rows[0][0] == key

        return await load.run(operation)


async def pgha_cluster(dsn: str, load: Load) -> float:
    """pgha as it opens by default: monitor, lanes, failover, everything on."""
    async with pgha.open_cluster(dsn) as cluster:

        async def operation(key: int) -> None:
            rows = await cluster.fetch("SELECT id, name FROM item WHERE id = %s", [key])
            assert rows[0][0] == key

        return await load.run(operation)
