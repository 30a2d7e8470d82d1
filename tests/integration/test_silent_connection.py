"""One connection that stalls while its node is healthy: a request or its answer is lost on the way.

Both ends believe the connection to be alive, and pings on another connection are answered. pgha asks the
server about the backend: the backend has nothing to do.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest
from psycopg.conninfo import make_conninfo
from support.common import unique

import pgha
from pgha.chaos import Cut, Direction, LocalNode, Proxy, Wire, nothing_left

pytestmark = pytest.mark.anyio

BOUND = 30.0
"""Seconds; detection takes about two."""


@asynccontextmanager
async def proxied_cluster(node: LocalNode) -> AsyncGenerator[tuple[pgha.Cluster, Proxy]]:
    application = unique("flow")
    async with Proxy(node) as proxy:
        async with nothing_left(node, proxy, application_name=application) as left:
            named = pgha.Node(proxy.dsn, node.name)
            async with pgha.open_cluster(named, read_connections=1, application_name=application) as cluster:
                yield cluster, proxy
            proxy.heal()  # the server does not learn that a stalled connection has ended
        assert left == []


def stalled(proxy: Proxy, direction: Direction) -> None:
    """Stall the newest connection in that direction; all other connections go on."""
    newest = proxy.connections[-1]
    assert newest.number == proxy.total - 1
    proxy.cut(Cut(getattr(newest, direction), "stall", direction, newest.number))


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_read_without_a_timeout_is_run_again(server: LocalNode, direction: Direction) -> None:
    async with proxied_cluster(server) as (cluster, proxy):
        assert await cluster.fetch_value("SELECT 1") == 1
        stalled(proxy, direction)
        with anyio.fail_after(BOUND):
            result = await cluster.fetch("SELECT 2")
        assert (result.value(), result.attempts) == (2, 2)
        assert cluster.nodes[server.name].state == "up"


async def test_a_read_that_arrived_in_part_is_run_again(server: LocalNode) -> None:
    """A read is run again if its request arrived only in part: its backend waits for the rest."""
    async with proxied_cluster(server) as (cluster, proxy):
        assert await cluster.fetch_value("SELECT 1") == 1
        newest = proxy.connections[-1]
        proxy.cut(Cut(newest.up + 30, "stall", "up", newest.number))
        with anyio.fail_after(BOUND):
            result = await cluster.fetch("SELECT 'long enough to be cut in the middle'")
        assert result.attempts == 2


async def test_the_answer_of_a_frame_that_failed_got_lost(server: LocalNode) -> None:
    """The lost answer of a failed frame ends in doubt; its backend is in a block that failed."""
    async with proxied_cluster(server) as (cluster, proxy):
        await cluster.execute("SELECT 1")
        stalled(proxy, "down")
        with anyio.fail_after(BOUND), pytest.raises(pgha.CommitInDoubt):
            await cluster.execute_batch(["SAVEPOINT s", "SELECT 1/0"])
        assert (await cluster.execute("SELECT 1")).value() == 1


async def test_a_long_text_is_no_lost_one(server: LocalNode) -> None:
    async with proxied_cluster(server) as (cluster, proxy):
        assert await cluster.fetch_value("SELECT 1") == 1
        proxy.set(up=Wire(bandwidth=5_000))
        with anyio.fail_after(30):
            result = await cluster.fetch(f"SELECT length('{'x' * 20_000}')")
        assert (result.value(), result.attempts) == (20_000, 1)


async def test_a_role_that_may_not_look_at_backends(server: LocalNode) -> None:
    """If the role may not look at backends, a slow read goes on; the healthy node is not taken for dead."""
    await server.execute(
        "REVOKE EXECUTE ON FUNCTION pg_stat_get_activity FROM PUBLIC; CREATE ROLE blind LOGIN"
    )
    try:
        dsn = make_conninfo(server.dsn, user="blind")
        async with pgha.open_cluster(dsn, read_connections=1) as cluster:
            with anyio.fail_after(BOUND):
                result = await cluster.fetch("SELECT pg_sleep(2.5)")
            assert result.attempts == 1
            assert cluster.statistics().connections_lost == 0
    finally:
        await server.execute("GRANT EXECUTE ON FUNCTION pg_stat_get_activity TO PUBLIC; DROP ROLE blind")


async def test_a_write_that_got_lost_is_run_again(server: LocalNode) -> None:
    """A lost write is run again.

    Its backend is ended, and reports that it began with nothing: proof enough.
    """
    await server.execute("CREATE TABLE IF NOT EXISTS flow (id int); TRUNCATE flow")
    async with proxied_cluster(server) as (cluster, proxy):
        await cluster.execute("INSERT INTO flow VALUES (1)")
        stalled(proxy, "up")
        with anyio.fail_after(BOUND):
            result = await cluster.execute("INSERT INTO flow VALUES (2)")
        assert result.attempts == 2
    assert await server.execute("SELECT id FROM flow ORDER BY id") == [(1,), (2,)]


async def test_a_write_whose_answer_got_lost_is_in_doubt(server: LocalNode) -> None:
    await server.execute("CREATE TABLE IF NOT EXISTS flow (id int); TRUNCATE flow")
    async with proxied_cluster(server) as (cluster, proxy):
        await cluster.execute("INSERT INTO flow VALUES (1)")
        stalled(proxy, "down")
        with anyio.fail_after(BOUND), pytest.raises(pgha.CommitInDoubt):
            await cluster.execute("INSERT INTO flow VALUES (2)")
        await cluster.execute("INSERT INTO flow VALUES (3)")
    assert await server.execute("SELECT id FROM flow ORDER BY id") == [(1,), (2,), (3,)]


async def test_a_slow_statement_is_not_taken_for_a_lost_one(server: LocalNode) -> None:
    async with proxied_cluster(server) as (cluster, _):
        with anyio.fail_after(BOUND):
            result = await cluster.fetch("SELECT pg_sleep(4)")
        assert result.attempts == 1
        assert cluster.statistics().connections_lost == 0


async def test_a_request_in_the_buffer_of_a_slow_gateway_is_not_taken_for_a_lost_one(
    server: LocalNode,
) -> None:
    """A request in the buffer of a slow gateway is not taken for lost.

    The gateway has confirmed the request to pgha, but the server has not received it yet.
    """
    async with proxied_cluster(server) as (cluster, proxy):
        assert await cluster.fetch_value("SELECT 1") == 1
        big = "x" * 20_000
        proxy.set(up=Wire(bandwidth=5_000))
        with anyio.fail_after(30):
            result = await cluster.fetch("SELECT length(%s)", [big], route=pgha.pin(server.name))
        assert (result.value(), result.attempts) == (len(big), 1)


async def test_a_slow_answer_is_not_taken_for_a_lost_one(server: LocalNode) -> None:
    async with proxied_cluster(server) as (cluster, proxy):
        assert await cluster.fetch_value("SELECT 1") == 1
        proxy.set(down=Wire(bandwidth=5_000))
        with anyio.fail_after(30):
            result = await cluster.fetch("SELECT repeat('x', 20000)")
        assert (len(result.value()), result.attempts) == (20_000, 1)


async def test_a_slow_upload_is_not_taken_for_a_lost_one(server: LocalNode) -> None:
    """A slow upload is not taken for lost, although the backend is idle until the whole message is there."""
    async with proxied_cluster(server) as (cluster, proxy):
        assert await cluster.fetch_value("SELECT 1") == 1
        big = "x" * 12_000_000
        wire = Wire(bandwidth=4_000_000)
        proxy.set(up=wire)
        with anyio.fail_after(30):
            result = await cluster.fetch("SELECT length(%s)", [big])
        assert (result.value(), result.attempts) == (len(big), 1)
