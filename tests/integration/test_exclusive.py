"""An exclusive statement gets a lane for itself, even when all lanes are busy all the time."""

from __future__ import annotations

import anyio
import pytest
from support.common import cluster_of, eventually, unique, within

import pgha
from pgha._options import Tuning
from pgha.chaos import LocalNode

pytestmark = pytest.mark.anyio


async def test_under_steady_load_with_no_lane_to_spare(server: LocalNode) -> None:
    tuning = Tuning(max_lanes=1)
    async with pgha.open_cluster(server.dsn, read_connections=1, _tuning=tuning) as cluster:
        done = 0

        async def write() -> None:
            nonlocal done
            while True:
                # These writes are answered one at a time, so the lane is never idle between two of them.
                await cluster.execute("SELECT pg_sleep(0.001)")
                done += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(30):
                tasks.start_soon(write)
            while done < 100:
                await cluster.fetch("SELECT 1")
            with within():
                for _ in range(20):
                    await cluster.execute("DO $$ BEGIN PERFORM 1; END $$")
            before = done
            # The load goes on after the exclusive statements.
            with within():
                while done < before + 100:
                    await cluster.fetch("SELECT 1")
            tasks.cancel_scope.cancel()
        assert cluster.nodes[next(iter(cluster.nodes))].write_connections == 1


async def test_a_slow_operation_alone_does_not_hold_the_others_up(server: LocalNode) -> None:
    async with pgha.open_cluster(server.dsn, read_connections=1) as cluster, cluster.group() as group:
        slow = [group.submit("DO $$ BEGIN PERFORM pg_sleep(60); END $$") for _ in range(2)]
        with within():
            for number in range(200):
                assert (await cluster.execute("SELECT %s::int", [number])).value() == number
        assert not any(one.done for one in slow)
        for one in slow:
            one.cancel()
            with pytest.raises((pgha.OperationCancelled, pgha.CommitInDoubt)):
                await one


async def test_slow_ones_do_not_share_a_lane_with_quick_ones_packed_on_it(server: LocalNode) -> None:
    """Quick statements are packed onto one lane; slow statements and statements not known yet are spread."""
    # This tuning switches off the remedy for statements that were packed by mistake.
    tuning = Tuning(head_of_line=60.0)
    async with cluster_of(server, read_connections=2, _tuning=tuning) as cluster:
        await eventually(lambda: all(node.read_connections == 2 for node in cluster.nodes.values()))
        for _ in range(20):
            await cluster.fetch("SELECT 1")
        text = unique("sleep")
        async with cluster.group() as group:
            slow = [group.submit(f"SELECT pg_sleep(60) /* {text} */", read=True) for _ in range(2)]
            await eventually(lambda: running(server, text, 2))
            for one in slow:
                one.cancel()
                with pytest.raises(pgha.OperationCancelled):
                    await one


async def running(server: LocalNode, text: str, count: int) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE %s"
    rows = await server.execute(query, [f"SELECT pg_sleep(60) /* {text} */"])
    return bool(rows[0][0] == count)
