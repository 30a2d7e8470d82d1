"""`fastest` asks every node at once: the first good answer wins, and only if all fail is there an error."""

from __future__ import annotations

import time

import anyio
import psycopg
import pytest
from support.common import PATIENCE, cluster_of, eventually, gate, running, started, stopped, unique
from support.servers import standalone

import pgha

pytestmark = pytest.mark.anyio


async def test_one_node_slow_one_frozen_one_fast() -> None:
    async with standalone(3) as nodes:
        for number, node in enumerate(nodes):
            await node.execute(
                f"CREATE FUNCTION turn() RETURNS text LANGUAGE sql AS $$SELECT '{node.name}'$$"
            )
            sleep = f"PERFORM pg_sleep({60 if number == 0 else 0})"
            await node.execute(
                "CREATE FUNCTION slow() RETURNS text LANGUAGE plpgsql AS"
                f" $$BEGIN {sleep}; RETURN turn(); END$$"
            )
        async with cluster_of(*nodes, min_ready=3) as cluster:
            for _ in range(20):
                with anyio.fail_after(PATIENCE):
                    result = await cluster.fetch("SELECT slow()", route=pgha.fastest())
                assert result.value() == result.node != "n1"
            await nodes[1].freeze()
            with anyio.fail_after(PATIENCE):
                for _ in range(20):
                    result = await cluster.fetch("SELECT slow()", route=pgha.fastest())
                    assert (result.value(), result.node) == ("n3", "n3")
            await stopped(nodes[0], "slow()")
            await nodes[1].thaw()
            await cluster.wait_ready()
            assert await cluster.fetch_value("SELECT 1", route=pgha.fastest()) == 1


async def test_sent_to_each_node_once_at_most() -> None:
    """The winner ends the race: nothing is sent again, and legs that were not sent yet are never sent."""
    async with standalone(2) as nodes, cluster_of(*nodes, min_ready=2) as cluster:
        sent: list[str] = []
        for _ in range(50):
            before = len(sent)
            result = await cluster.fetch(
                "SELECT 1", route=pgha.fastest(), on_send=lambda one: sent.append(one.node)
            )
            assert result.node in sent[before:]
            assert len(sent[before:]) == len(set(sent[before:]))
        assert set(sent) == {"n1", "n2"}
        statistics = cluster.statistics()
        assert (statistics.operations, statistics.succeeded, statistics.retried) == (50, 50, 0)
        await eventually(lambda: cluster.statistics().in_flight == 0)
        assert cluster.statistics().queued == 0
        assert len(sent) <= 100


async def test_losers_are_cancelled_in_the_end() -> None:
    async with standalone(2) as nodes:
        await nodes[0].execute("CREATE FUNCTION wait() RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(60)'")
        await nodes[1].execute("CREATE FUNCTION wait() RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(0)'")
        async with cluster_of(*nodes, min_ready=2) as cluster:
            await cluster.wait_ready()
            with anyio.fail_after(PATIENCE):
                result = await cluster.fetch("SELECT wait()", route=pgha.fastest())
            assert result.node == "n2"
            await stopped(nodes[0], "wait()")


async def test_an_error_of_one_node_does_not_win() -> None:
    async with standalone(2) as nodes:
        await nodes[1].execute("CREATE TABLE only_here (id int); INSERT INTO only_here VALUES (7)")
        async with cluster_of(*nodes, min_ready=2) as cluster:
            await cluster.wait_ready()
            for _ in range(10):
                result = await cluster.fetch("SELECT id FROM only_here", route=pgha.fastest())
                assert (result.value(), result.node) == (7, "n2")


async def test_an_error_of_all_comes_out() -> None:
    async with standalone(2) as nodes, cluster_of(*nodes, min_ready=2) as cluster:
        await cluster.wait_ready()
        with pytest.raises(psycopg.errors.UndefinedTable) as caught, anyio.fail_after(PATIENCE):
            await cluster.fetch("SELECT * FROM nowhere", route=pgha.fastest())
        assert pgha.error_info(caught.value).node in ("n1", "n2")
        assert pgha.error_info(caught.value).outcome == "not applied"
        assert cluster.statistics().failed == 1
        assert cluster.statistics().unretrieved == 0


async def test_every_node_lost_is_tried_again() -> None:
    async with standalone(2) as nodes, cluster_of(*nodes, min_ready=2) as cluster:
        await cluster.wait_ready()
        text = unique("sleep")
        with gate(nodes[0]) as (wait_one, one_goes_on), gate(nodes[1]) as (wait_two, two_goes_on):
            # A lock key that the test holds on one server is free on the other.
            query = f"SELECT {wait_one}, {wait_two}, 3 /* {text} */"
            operation = cluster.submit(query, read=True, route=pgha.fastest())
            pids = [await started(node, text) for node in nodes]
            for node, pid in zip(nodes, pids, strict=True):
                await node.execute("SELECT pg_terminate_backend(%s)", [pid])
            one_goes_on()
            two_goes_on()
        with anyio.fail_after(PATIENCE):
            assert (await operation)[0][2] == 3


@pytest.mark.parametrize("way", ["scope", "cancel", "timeout"])
async def test_giving_up_stops_every_backend(way: str) -> None:
    async with standalone(2) as nodes, cluster_of(*nodes, min_ready=2) as cluster:
        await cluster.wait_ready()
        text = unique("sleep")
        query, route = f"SELECT pg_sleep(60) /* {text} */", pgha.fastest()
        if way == "scope":
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: cluster.fetch(query, route=route))
                for node in nodes:
                    await started(node, text)
                group.cancel_scope.cancel()
        elif way == "cancel":
            operation = cluster.submit(query, read=True, route=route)
            for node in nodes:
                await started(node, text)
            operation.cancel()
            with pytest.raises(pgha.OperationCancelled):
                await operation
        else:
            with pytest.raises(pgha.OperationTimeout):
                await cluster.fetch(query, route=route, timeout=0.2)
        for node in nodes:
            await stopped(node, text)
        assert cluster.statistics().operations == 1


async def test_with_one_node_down_and_with_all_down() -> None:
    async with standalone(2) as nodes, cluster_of(*nodes, min_ready=2) as cluster:
        await nodes[0].kill()
        await eventually(lambda: cluster.nodes["n1"].state == "down")
        assert (await cluster.fetch("SELECT 1", route=pgha.fastest())).node == "n2"
        await nodes[1].kill()
        await eventually(lambda: cluster.nodes["n2"].state == "down")
        with pytest.raises(pgha.OperationTimeout), anyio.fail_after(PATIENCE):
            await cluster.fetch("SELECT 1", route=pgha.fastest(), timeout=0.1)
        operation = cluster.submit("SELECT 1", read=True, route=pgha.fastest())
        await nodes[1].start()
        with anyio.fail_after(PATIENCE):
            assert (await operation).node == "n2"


async def test_every_node_frozen_and_one_thaws() -> None:
    async with standalone(2) as nodes, cluster_of(*nodes, min_ready=2) as cluster:
        await cluster.wait_ready()
        for node in nodes:
            await node.freeze()
        operation = cluster.submit("SELECT 1", read=True, route=pgha.fastest())
        begun = time.monotonic()
        await eventually(lambda: all(status.state == "down" for status in cluster.nodes.values()))
        assert time.monotonic() - begun < 5
        await nodes[1].thaw()
        with anyio.fail_after(PATIENCE):
            assert (await operation).node == "n2"
        await nodes[0].thaw()
        assert await running(nodes[0], "nothing") == []
