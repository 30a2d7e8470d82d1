"""Writes stay with a node that lives, and of two primaries of one lineage, with the newer one."""

from __future__ import annotations

from collections import Counter

import anyio
import pytest
from support.common import PATIENCE, backends, cluster_of, eventually, unique
from support.servers import standalone

import pgha
from pgha._options import Tuning
from pgha.chaos import Replicas, replicas

pytestmark = pytest.mark.anyio

INSERT = "INSERT INTO t VALUES (%s)"


async def test_a_lost_read_connection_moves_no_write_to_another_master() -> None:
    application = unique("one")
    async with standalone(2) as nodes:
        await nodes.execute("CREATE TABLE t (id int)")
        async with (
            cluster_of(*nodes, min_ready=2, application_name=application) as cluster,
            cluster.events(buffer=-1) as events,
        ):
            await cluster.wait_ready()
            home = nodes[(await cluster.execute(INSERT, [0])).node]
            written = Counter[str]()
            done = anyio.Event()

            async def write() -> None:
                while not done.is_set():
                    written[(await cluster.execute(INSERT, [1])).node] += 1

            with anyio.fail_after(PATIENCE):
                async with anyio.create_task_group() as group:
                    group.start_soon(write)
                    for _ in range(3):
                        (idle,) = await home.execute(
                            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                            " WHERE application_name = %s AND query = '' LIMIT 1",
                            [application],
                        )
                        assert idle[0]
                        async for event in events:
                            if isinstance(event, pgha.NodeStateChanged) and event.node == home.name:
                                assert event.state in ("suspect", "up")
                                if event.state == "up":
                                    break
                        before = sum(written.values())
                        await eventually(lambda: sum(written.values()) > before + 20)  # noqa: B023
                        await eventually(lambda: cluster.nodes[home.name].read_connections == 2)
                    done.set()
            assert set(written) == {home.name}
            assert len(await backends(home, application)) >= 3


# Two primaries of one lineage


async def promoted_beside(nodes: Replicas) -> tuple[str, str]:
    """Promote the standby while its primary goes on; return the names of the old and the new primary."""
    old, new = nodes.primary.name, nodes.standbys[0].name
    await nodes.promote(new)
    return old, new


async def test_writes_go_to_the_newer_of_two_primaries() -> None:
    async with replicas() as nodes:
        await nodes.primary.execute("CREATE TABLE t (id int)")
        await nodes.wait_replicated()
        async with (
            cluster_of(*nodes, min_ready=2, ping_interval=0.1, failover_timeout=0.5) as cluster,
            cluster.events(buffer=-1) as events,
        ):
            assert (await cluster.execute(INSERT, [0])).node == nodes.primary.name
            assert [status.timeline for status in cluster.nodes.values()] == [1, 1]
            old, new = await promoted_beside(nodes)
            with anyio.fail_after(PATIENCE):
                async for event in events:
                    if isinstance(event, pgha.PrimarySuperseded):
                        assert (event.node, event.timeline, event.newest_timeline) == (old, 1, 2)
                        break
                for number in range(50):
                    assert (await cluster.execute(INSERT, [number])).node == new
            status = cluster.nodes[old]
            assert (status.state, status.role, status.superseded, status.writable) == (
                "up", "primary", True, False,
            )  # fmt: skip
            assert status.reason == "a primary of timeline 1, and a newer timeline was seen"
            assert cluster.nodes[new].writable and cluster.nodes[new].timeline == 2
            assert await cluster.fetch_value("SELECT 1", route=pgha.pin(old)) == 1
            with pytest.raises(pgha.NoNodeAvailable, match="a newer timeline was seen"):
                await cluster.execute(INSERT, [1], route=pgha.pin(old))


async def test_a_new_cluster_does_not_write_to_the_old_primary() -> None:
    """The old primary may answer first, and be nearer: the first write waits for the other one's answer."""
    async with replicas() as nodes:
        await nodes.primary.execute("CREATE TABLE t (id int)")
        await nodes.wait_replicated()
        _, new = await promoted_beside(nodes)
        for turn in range(10):
            names = nodes if turn % 2 else reversed(list(nodes))
            async with cluster_of(*names, min_ready=turn % 3) as cluster:
                with anyio.fail_after(PATIENCE):
                    assert (await cluster.execute(INSERT, [turn])).node == new


async def test_an_old_primary_that_comes_back_gets_no_writes() -> None:
    async with replicas() as nodes:
        old, new = nodes.primary, nodes.standbys[0]
        await old.execute("CREATE TABLE t (id int)")
        await nodes.wait_replicated()
        async with cluster_of(*nodes, min_ready=2, ping_interval=0.1, failover_timeout=1.0) as cluster:
            assert (await cluster.execute(INSERT, [0])).node == old.name
            await old.kill()
            await nodes.promote(new)
            with anyio.fail_after(PATIENCE):
                await eventually(lambda: cluster.nodes[new.name].writable)
                assert (await cluster.execute(INSERT, [1])).node == new.name
                await old.start()
                await eventually(lambda: cluster.nodes[old.name].state == "up")
                assert cluster.nodes[old.name].superseded
                for number in range(20):
                    assert (await cluster.execute(INSERT, [number])).node == new.name
                await new.kill()
                await eventually(lambda: cluster.nodes[new.name].state == "down")
                with pytest.raises(pgha.NoNodeAvailable):
                    await cluster.execute(INSERT, [2])
                await new.start()
                await eventually(lambda: cluster.nodes[new.name].state == "up")
                assert (await cluster.execute(INSERT, [3])).node == new.name


async def test_the_first_write_does_not_wait_for_ever_for_a_node_that_never_answers() -> None:
    """A frozen server accepts connections and does not answer: it is not heard of for connect_timeout."""
    async with standalone(2) as nodes:
        await nodes[0].execute("CREATE TABLE t (id int)")
        await nodes[1].freeze()
        tuning = Tuning(first_look=0.2)
        async with cluster_of(*nodes, connect_timeout=PATIENCE, _tuning=tuning) as cluster:
            with anyio.fail_after(PATIENCE / 2):
                assert (await cluster.execute(INSERT, [1])).node == nodes[0].name
            assert cluster.nodes[nodes[1].name].state == "connecting"
        await nodes[1].thaw()
