"""The memory of a node and of an operation, measured in a new process.

Usage: ``python -m bench.memory NAME DSN``
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import gc
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeAlias

import anyio

import pgha
from bench.peers import AsyncContestant
from bench.peers.with_asyncpg import ASYNCPG_POOL
from bench.peers.with_pgha import SELECT_BY_KEY
from bench.peers.with_psycopg import PSYCOPG_POOL

_NODES = 8
_OPERATIONS = 4_000

Measured: TypeAlias = tuple[float, float, float]
"""KiB per node, bytes per waiting operation, bytes per finished operation."""


def measured(name: str, dsn: str) -> Sequence[float]:
    """Run this module in a new process, and return its measurements."""
    command = [sys.executable, "-m", "bench.memory", name, dsn]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"bench.memory failed: {done.stderr}")
    return [float(one) for one in json.loads(done.stdout)]


def _resident() -> float:
    """Return the resident memory in KiB.

    Free memory is returned to the system first: otherwise the growth could use memory that earlier work left
    free.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024


async def _of_operations(
    start: Callable[[int], Awaitable[object]], all_started: Callable[[], Awaitable[object]]
) -> tuple[float, float]:
    """Return the bytes of Python's memory per waiting operation, and per finished operation."""
    for key in range(100):
        await start(key + 1)
    gc.collect()
    held = []
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for key in range(_OPERATIONS):
        held.append(start(key + 1))
    await all_started()
    waiting = tracemalloc.get_traced_memory()[0] - before
    for one in held:
        await one
    gc.collect()
    finished = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return waiting / _OPERATIONS, finished / _OPERATIONS


async def _of_pgha(dsn: str) -> Measured:
    async with pgha.open_cluster(dsn) as cluster:
        await cluster.fetch(SELECT_BY_KEY, [1])
    before = _resident()
    nodes = [pgha.Node(dsn, f"n{number}") for number in range(_NODES)]
    async with pgha.open_cluster(*nodes, min_ready=_NODES) as cluster:
        for node in nodes:
            await cluster.fetch(SELECT_BY_KEY, [1], route=pgha.pin(str(node.name)))
        of_node = (_resident() - before) / _NODES
    async with pgha.open_cluster(dsn) as cluster:

        async def submitted() -> None:
            """Return at once: an operation is started when `submit` returns."""

        waiting, finished = await _of_operations(
            lambda key: cluster.submit(SELECT_BY_KEY, [key], read=True), submitted
        )
    return of_node, waiting, finished


async def _of_pool(contestant: AsyncContestant, dsn: str) -> Measured:
    async with contestant.open(dsn) as client:
        await client.select(1)
    before = _resident()
    async with AsyncExitStack() as stack:
        for _ in range(_NODES):
            client = await stack.enter_async_context(contestant.open(dsn))
            # Use every connection of the pool once.
            async with anyio.create_task_group() as tasks:
                for key in range(50):
                    tasks.start_soon(client.select, key + 1)
        of_node = (_resident() - before) / _NODES
    async with contestant.open(dsn) as client:

        def start(key: int) -> asyncio.Task[Any]:
            return asyncio.ensure_future(_told(client.select(key)))

        # After one iteration of the event loop every task has begun.
        waiting, finished = await _of_operations(start, functools.partial(asyncio.sleep, 0))
    return of_node, waiting, finished


async def _told(operation: Awaitable[object]) -> object:
    return await operation


HOLDERS: dict[str, tuple[Callable[[str], Awaitable[Measured]], str]] = {
    "pgha asyncio": (_of_pgha, "asyncio"),
    "pgha trio": (_of_pgha, "trio"),
    ASYNCPG_POOL.name: (functools.partial(_of_pool, ASYNCPG_POOL), "asyncio"),
    PSYCOPG_POOL.name: (functools.partial(_of_pool, PSYCOPG_POOL), "asyncio"),
}


if __name__ == "__main__":
    measure, loop = HOLDERS[sys.argv[1]]
    print(json.dumps(anyio.run(measure, sys.argv[2], backend=loop)))
