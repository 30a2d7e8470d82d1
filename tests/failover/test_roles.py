"""Writes go to primaries only: nodes that become read-only and writable again, and a real standby."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import psycopg
import pytest
from support.common import PATIENCE, cluster_of, eventually, unique
from support.servers import standalone

import pgha
from pgha._wire.link import Link
from pgha.chaos import Node, replicas

pytestmark = pytest.mark.anyio


async def demote(node: Node) -> None:
    """Make a node read-only by default: it takes no writes, and is no standby."""
    await node.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    await node.execute("SELECT pg_reload_conf()")


async def promote(node: Node) -> None:
    await node.execute("ALTER SYSTEM RESET default_transaction_read_only")
    await node.execute("SELECT pg_reload_conf()")


async def writable(cluster: pgha.Cluster, node: Node, expected: bool) -> None:
    await eventually(lambda: cluster.nodes[node.name].writable == expected, what=f"{node.name}: {expected}")


class Written:
    """Writes that succeeded: the keys written, and the node of each."""

    def __init__(self) -> None:
        self.acknowledged: list[tuple[str, str]] = []

    @property
    def node(self) -> str:
        return self.acknowledged[-1][1]

    async def more(self, count: int = 50, *, node: str | None = None) -> None:
        before = len(self.acknowledged)
        await eventually(lambda: len(self.acknowledged) >= before + count, 30, "writes go on")
        if node is not None:
            await eventually(lambda: self.node == node)


@asynccontextmanager
async def writing(cluster: pgha.Cluster, tasks: int = 5) -> AsyncGenerator[Written]:
    """Run tasks that write into table t all the time, none of it idempotent. An error fails the test."""
    written, done = Written(), anyio.Event()

    async def write(number: int) -> None:
        for turn in itertools.count():
            if done.is_set():
                return
            key = f"{number}-{turn}"
            result = await cluster.execute("INSERT INTO t VALUES (%s)", [key])
            written.acknowledged.append((key, result.node))

    async with anyio.create_task_group() as group:
        for number in range(tasks):
            group.start_soon(write, number)
        await written.more()
        yield written
        done.set()


async def rows(*nodes: Node) -> list[tuple[str, str]]:
    return [(row[0], node.name) for node in nodes for row in await node.execute("SELECT id FROM t")]


async def test_writes_move_away_from_a_node_that_becomes_read_only() -> None:
    async with standalone(2) as nodes:
        await nodes.execute("CREATE TABLE t (id text)")
        async with (
            cluster_of(*nodes, min_ready=2, ping_interval=0.2) as cluster,
            cluster.events(buffer=100_000) as events,
        ):
            with anyio.fail_after(60):
                async with writing(cluster) as written:
                    for _ in range(3):
                        victim = nodes[written.node]
                        (other,) = (node for node in nodes if node is not victim)
                        await demote(victim)
                        await written.more(node=other.name)
                        await writable(cluster, victim, False)
                        assert cluster.nodes[other.name].writable
                        assert cluster.nodes[victim.name].read_only
                        assert cluster.nodes[victim.name].state == "up", "it can be read from"
                        result = await cluster.fetch("SELECT 1", route=pgha.pin(victim.name))
                        assert result.node == victim.name
                        await written.more(node=other.name)
                        await promote(victim)
                        await writable(cluster, victim, True)
                        await written.more()
            moves: list[tuple[str | None, str, bool]] = []
            with anyio.fail_after(PATIENCE):
                async for event in events:
                    if isinstance(event, pgha.RoleChanged):
                        moves.append((event.node, event.before, event.read_only))
                        assert event.role == "primary"
                        if sum(move[1:] == ("primary", False) for move in moves) == 3:
                            break
            for node in nodes:
                mine = [move[2] for move in moves if move[0] == node.name and move[1] != "unknown"]
                assert mine == [True, False] * (len(mine) // 2)
            assert sum(move[2] for move in moves) == 3
            assert cluster.statistics().failed == 0
        assert sorted(await rows(*nodes)) == sorted(written.acknowledged), "each exactly once"


async def test_all_read_only_and_one_back() -> None:
    """Writes wait while all nodes are read-only, and reads go on."""
    async with standalone(2) as nodes:
        await nodes.execute("CREATE TABLE t (id text)")
        async with cluster_of(*nodes, min_ready=2, ping_interval=0.2) as cluster:
            with anyio.fail_after(60):
                async with writing(cluster) as written:
                    for node in nodes:
                        await demote(node)
                    for node in nodes:
                        await writable(cluster, node, False)
                    count = len(written.acknowledged)
                    for _ in range(20):
                        assert await cluster.fetch_value("SELECT 1") == 1
                    assert len(written.acknowledged) == count
                    await promote(nodes[1])
                    await written.more(node="n2")
            assert cluster.statistics().failed == 0
        assert sorted(await rows(*nodes)) == sorted(written.acknowledged)


@pytest.mark.parametrize("reported", [True, False])
async def test_a_read_only_node_that_no_ping_has_told_of(
    reported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write itself gets the error 25006, which proves "not applied": the write goes to another node.

    A ping tells the role, also if the write's connection does not report it.
    """
    if not reported:
        monkeypatch.setattr(Link, "read_only", lambda link: False)
    async with standalone(2) as nodes, cluster_of(*nodes, min_ready=2, ping_interval=60) as cluster:
        await nodes.execute("CREATE TABLE t (id text)")
        first = nodes[(await cluster.execute("INSERT INTO t VALUES ('a')")).node]
        await demote(first)

        async def refused() -> bool:
            return bool((await first.execute("SHOW default_transaction_read_only"))[0][0] == "on")

        await eventually(refused)
        with anyio.fail_after(PATIENCE):
            for number in range(20):
                await cluster.execute("INSERT INTO t VALUES (%s)", [str(number)])
            batch = await cluster.execute_batch(["SAVEPOINT a", "INSERT INTO t VALUES ('b')"])
            assert batch[1].node != first.name or (await rows(first))
        assert len(await rows(*nodes)) == 22


async def test_no_primary_at_all() -> None:
    async with (
        standalone(2) as nodes,
        cluster_of(*nodes, min_ready=2, ping_interval=0.2, failover_timeout=0.5) as cluster,
    ):
        await nodes.execute("CREATE TABLE t (id text)")
        await cluster.execute("SELECT 1")
        for node in nodes:
            await demote(node)
        for node in nodes:
            await writable(cluster, node, False)
        for route in (pgha.nearest(), pgha.pin("n1")):
            begun = time.monotonic()
            with pytest.raises(pgha.NoNodeAvailable) as caught, anyio.fail_after(PATIENCE):
                await cluster.execute("INSERT INTO t VALUES ('a')", route=route)
            assert time.monotonic() - begun > 0.4
            assert [report.name for report in caught.value.nodes] == ["n1", "n2"]
            assert pgha.error_info(caught.value).outcome == "not applied"
            with pytest.raises(pgha.OperationTimeout):
                await cluster.execute("INSERT INTO t VALUES ('a')", route=route, timeout=0.1)
        with pytest.raises(pgha.NoNodeAvailable), anyio.fail_after(PATIENCE):
            await cluster.execute_batch(["INSERT INTO t VALUES ('a')"])
        assert await rows(*nodes) == []
        await promote(nodes[0])
        with anyio.fail_after(PATIENCE):
            assert (await cluster.execute("INSERT INTO t VALUES ('b')")).node == "n1"


async def test_a_write_that_asks_for_read_only_is_told_so() -> None:
    """A caller whose own statement asked for read-only gets 25006 soon, and no node is demoted."""
    async with standalone(2) as nodes, cluster_of(*nodes, min_ready=2) as cluster:
        await nodes.execute("CREATE TABLE t (id text)")
        for _ in range(3):
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), anyio.fail_after(PATIENCE):
                await cluster.execute_batch(["SET TRANSACTION READ ONLY", "INSERT INTO t VALUES ('a')"])
        assert [status.role for status in cluster.nodes.values()] == ["primary", "primary"]
        assert (await cluster.execute("INSERT INTO t VALUES ('b')")).rowcount == 1


async def test_opened_with_read_only_servers_only() -> None:
    settings = {"default_transaction_read_only": "on"}
    async with standalone(settings=settings) as nodes, cluster_of(*nodes, failover_timeout=0.5) as cluster:
        status = cluster.nodes["n1"]
        assert (status.role, status.read_only, status.writable) == ("primary", True, False)
        assert status.reason == "read-only by default"
        assert await cluster.fetch_value("SELECT 1") == 1
        with pytest.raises(pgha.NoNodeAvailable), anyio.fail_after(PATIENCE):
            await cluster.execute("CREATE TABLE t (id int)")


# A real standby


async def test_a_standby_gets_reads_and_no_writes() -> None:
    async with replicas() as nodes:
        primary, standby = nodes
        async with cluster_of(standby, primary, min_ready=2, failover_timeout=0.5) as cluster:
            assert cluster.nodes[standby.name].role == "standby"
            assert cluster.nodes[primary.name].role == "primary"
            await cluster.execute("CREATE TABLE t (id text)")
            operations = [cluster.submit("INSERT INTO t VALUES (%s)", [str(i)]) for i in range(200)]
            for one in operations:
                assert (await one).node == primary.name
            await nodes.wait_replicated()
            count = "SELECT count(*), pg_is_in_recovery() FROM t"
            for node in (standby, primary):
                rows = await cluster.fetch(count, route=pgha.pin(node.name))
                assert rows.one() == (200, node is standby)
            assert await cluster.fetch_value("SELECT count(*) FROM t", route=pgha.fastest()) == 200
            assert cluster.nodes[standby.name].write_connections == 0
            with pytest.raises(pgha.NoNodeAvailable, match=standby.name), anyio.fail_after(PATIENCE):
                await cluster.execute("INSERT INTO t VALUES ('x')", route=pgha.pin(standby.name))


async def test_reads_by_the_primary_route_see_what_was_written() -> None:
    """The standby applies late, then the primary dies and the standby is promoted."""
    async with replicas() as nodes:
        primary, standby = nodes
        await primary.execute("CREATE TABLE t (id int)")
        await nodes.wait_replicated()
        async with cluster_of(standby, primary, min_ready=2) as cluster:
            await standby.execute("SELECT pg_wal_replay_pause()")
            for number in range(50):
                await cluster.execute("INSERT INTO t VALUES (%s)", [number], route=pgha.primary())
                rows = await cluster.fetch("SELECT count(*) FROM t", route=pgha.primary())
                assert (rows.value(), rows.node) == (number + 1, primary.name)
            assert await cluster.fetch_value("SELECT count(*) FROM t", route=pgha.pin(standby.name)) == 0
            await standby.execute("SELECT pg_wal_replay_resume()")
            await nodes.wait_replicated()
            await primary.kill()
            await eventually(lambda: cluster.nodes[primary.name].state == "down")
            waiting = cluster.submit("SELECT count(*) FROM t", read=True, route=pgha.primary())
            assert (await cluster.fetch("SELECT 1")).node == standby.name
            assert not waiting.done
            await nodes.promote(standby)
            with anyio.fail_after(PATIENCE):
                result = await waiting
            assert (result.value(), result.node) == (50, standby.name)


async def test_promotion() -> None:
    """The primary is killed, writes wait, and the promoted standby takes them."""
    async with replicas() as nodes:
        primary, standby = nodes
        await primary.execute("CREATE TABLE t (id text)")
        await nodes.wait_replicated()
        async with cluster_of(primary, standby, min_ready=2) as cluster, cluster.events() as events:
            await cluster.execute("INSERT INTO t VALUES ('before')")
            await nodes.wait_replicated()
            await primary.kill()
            await eventually(lambda: cluster.nodes[primary.name].state == "down")
            waiting = [cluster.submit("INSERT INTO t VALUES (%s)", [str(i)]) for i in range(20)]
            pinned = cluster.submit("SELECT 1", route=pgha.pin(standby.name))
            for _ in range(20):
                assert (await cluster.fetch("SELECT 1")).node == standby.name
            assert not any(one.done for one in (*waiting, pinned))
            begun = time.monotonic()
            await nodes.promote(standby)
            with anyio.fail_after(PATIENCE):
                for one in (*waiting, pinned):
                    result: pgha.Result[Any] = await one
                    assert result.node == standby.name
            assert time.monotonic() - begun < 5
            assert cluster.nodes[standby.name].role == "primary"
            found = {row[0] for row in await standby.execute("SELECT id FROM t")}
            assert found == {"before", *map(str, range(20))}
            with anyio.fail_after(PATIENCE):
                async for event in events:
                    if isinstance(event, pgha.RoleChanged) and event.before == "standby":
                        assert (event.node, event.role) == (standby.name, "primary")
                        break


async def test_a_standby_started_alone_waits_for_its_promotion() -> None:
    async with replicas() as nodes:
        primary, standby = nodes
        await primary.execute(f"CREATE TABLE {unique('t')} (id int)")
        async with cluster_of(standby) as cluster:
            operation = cluster.submit("CREATE TABLE t (id int)")
            assert await cluster.fetch_value("SELECT pg_is_in_recovery()") is True
            assert not operation.done
            await nodes.promote(standby)
            with anyio.fail_after(PATIENCE):
                await operation
                assert await cluster.fetch_value("SELECT pg_is_in_recovery()") is False
