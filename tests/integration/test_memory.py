"""Thousands of operations in flight take a bounded amount of memory, and give the memory back."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator

import anyio
import pytest
from support.common import cluster_of

from pgha.chaos import LocalNode

pytestmark = pytest.mark.anyio

PER_OPERATION = 10_000
"""Bytes per operation, with its parameters, its place in the queue and its result: a generous limit."""

BY_CHANCE = 500_000
"""Bytes for what may be made once in either round: a few connections, larger tables. 2,000 operations that
are kept take 4 MB."""


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def held() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.mark.parametrize("most", [2_000, pytest.param(20_000, marks=pytest.mark.thorough)])
async def test_thousands_submitted(server: LocalNode, traced: None, most: int) -> None:
    async with cluster_of(server) as cluster:

        async def round_of(count: int) -> None:
            operations = [cluster.submit("SELECT %s::int", [i], read=i % 2 == 0) for i in range(count)]
            # Answers that arrive while other operations are submitted are read at once.
            assert cluster.statistics().queued + cluster.statistics().in_flight > count / 2
            for index, operation in enumerate(operations):
                assert (await operation).value() == index

        with anyio.fail_after(90):
            await round_of(2_000)  # for what is made once: caches, prepared statements, lanes
            before = held()
            tracemalloc.reset_peak()
            await round_of(most)
            peak = tracemalloc.get_traced_memory()[1] - before
            assert peak < most * PER_OPERATION
            assert held() - before < max(peak / 10, BY_CHANCE)
        assert cluster.statistics().succeeded == most + 2_000


async def test_operations_that_are_dropped(server: LocalNode, traced: None) -> None:
    """Operations that the program drops are freed as they finish."""
    async with cluster_of(server) as cluster:
        with anyio.fail_after(90):
            for turn in range(4):
                async with cluster.group() as group:
                    for number in range(500):
                        group.submit("SELECT %s::text", [str(number)], read=True)
                del group
                if turn == 0:
                    before = held()
            assert held() - before < BY_CHANCE
