"""pgha under `asyncio.run`, without anyio: in a callback nothing tells which event loop is running."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

import pgha
from pgha.chaos import LocalNode

PATIENCE = 20.0


async def more_lanes(cluster: pgha.Cluster) -> None:
    """Check that further lanes open, from whichever callback received an answer."""
    slow = [cluster.submit("SELECT pg_sleep(0.3)", read=read) for read in (True, False) for _ in range(8)]
    quick = [cluster.submit("SELECT %s::int", [i], read=i % 2 == 0) for i in range(200)]
    assert [(await one).value() for one in quick] == list(range(200))
    for one in slow:
        await one
    (status,) = cluster.nodes.values()
    assert status.read_connections > 1 and status.write_connections > 1


async def cancels(cluster: pgha.Cluster) -> None:
    for read in (True, False):
        operations = [cluster.submit("SELECT pg_sleep(30)", read=read) for _ in range(5)]
        await asyncio.sleep(0.1)
        for one in operations:
            one.cancel()
            with pytest.raises(pgha.OperationCancelled):
                await one
        task = asyncio.create_task(cluster.execute("SELECT pg_sleep(30)"))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def large_ones(cluster: pgha.Cluster) -> None:
    """Send more than the socket accepts at once, after an answer."""
    big = "x" * 4_000_000
    operations = [cluster.submit("SELECT length(%s)", [big], read=True) for _ in range(12)]
    assert [(await one).value() for one in operations] == [len(big)] * 12


@pytest.mark.parametrize("use", [more_lanes, cancels, large_ones])
def test_a_cluster_in_a_loop_that_anyio_did_not_start(
    server: LocalNode, use: Callable[[pgha.Cluster], Awaitable[None]]
) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE), pgha.open_cluster(server.dsn, read_connections=1) as cluster:
            await use(cluster)

    asyncio.run(main())
