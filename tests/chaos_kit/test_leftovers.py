"""`nothing_left` reports everything that a client leaves behind, and nothing else."""

from __future__ import annotations

import re
import socket

import anyio
import psycopg
import pytest
from anyio.lowlevel import checkpoint
from support.common import PATIENCE, eventually, unique, within
from support.servers import standalone

import pgha
from pgha.chaos import Node
from pgha.chaos._proxy.direction import Wire
from pgha.chaos._proxy.proxy import Proxy
from pgha.chaos._verify.leftovers import backends_left, nothing_left, sockets, tasks

pytestmark = pytest.mark.anyio


def connected(node: Node, application: str) -> psycopg.Connection:
    return psycopg.connect(node.dsn, application_name=application)


async def test_a_cluster_leaves_nothing(server: Node) -> None:
    application = unique("app")
    async with nothing_left(server, application_name=application) as left:
        async with pgha.open_cluster(server.dsn, application_name=application) as cluster:
            await cluster.fetch("SELECT 1")
            assert tasks() - {None}
            assert sockets([server.port])
        assert left == [], "nobody has looked yet"
    assert left == []
    assert sockets([server.port]) == {}


async def test_a_task_is_told_by_its_name(server: Node) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever, name="there before")
        async with nothing_left(server) as left:
            group.start_soon(anyio.sleep_forever, name="the forgotten")
            await checkpoint()
        (one,) = left
        assert (one.rule, one.key) == ("leftovers", None)
        assert one.text.startswith("task the forgotten is left")
        group.cancel_scope.cancel()


async def test_a_connection_and_its_backend_are_told(server: Node) -> None:
    application = unique("app")
    with connected(server, unique("other")), within():
        async with nothing_left(server, application_name=application, timeout=3.0) as left:
            forgotten = connected(server, application)
        told = [one.text for one in left]
        assert len(told) == 2
        assert re.fullmatch(rf"backend \d+ of {server.name} is left \(idle; last: .*\)", told[1])
        assert told[0] == f"a connection to {server.name} (port {server.port}) is left: established"
        forgotten.close()
        assert await backends_left(server, application, PATIENCE) == []


async def test_a_connection_that_replaces_another_is_told(server: Node) -> None:
    """Connections are compared by identity, not counted."""
    first = connected(server, unique("app"))
    async with nothing_left(server) as left:
        with connected(server, unique("app")) as second:
            first.close()
    assert left == []
    first = connected(server, unique("app"))
    async with nothing_left(server) as left:
        first.close()
        second = connected(server, unique("app"))
    assert len(left) == 1
    second.close()


async def test_other_ports_are_nobodys_business(server: Node) -> None:
    async with standalone() as nodes:
        async with nothing_left(server) as left:
            other = connected(nodes[0], unique("app"))
        assert left == []
        other.close()


async def test_backends_end_a_moment_later(server: Node) -> None:
    """A sleeping backend does not notice that its client has gone."""
    application = unique("app")
    async with nothing_left(server, application_name=application, timeout=PATIENCE) as left:
        one = connected(server, application)
        with pytest.raises(psycopg.errors.QueryCanceled):
            one.execute("SET statement_timeout = 1; SELECT pg_sleep(1)")
        one.rollback()
        one.pgconn.send_query(b"SET statement_timeout = 0; SELECT pg_sleep(0.5)")
        one.pgconn.finish()
    assert left == []


async def test_nodes_that_cannot_answer() -> None:
    """Down and frozen nodes are not asked; a node that is just coming up is asked until it answers."""
    application = unique("app")
    async with standalone(3) as nodes:
        await nodes[0].kill()
        await nodes[1].freeze()
        with within(30), connected(nodes[2], unique("app")) as victim:
            async with nothing_left(*nodes, application_name=application) as left:
                await nodes[2].kill_backend(victim.info.backend_pid)
        assert left == []
        await nodes[1].thaw()


async def test_what_never_answers_is_told() -> None:
    async with standalone() as nodes:
        await nodes[0].freeze()
        with within(30):
            left = await backends_left(nodes[0], unique("app"), 0.3)
        assert [one.text for one in left] == ["n1 did not answer which backends it has"]
        await nodes[0].thaw()


async def test_an_exception_of_the_body_comes_out_as_itself(server: Node) -> None:
    with pytest.raises(ValueError, match="mine"):
        async with nothing_left(server, application_name=unique("app")) as left:
            raise ValueError("mine")
    assert left == []


async def test_a_proxy_that_goes_on_is_waited_for(server: Node) -> None:
    """A proxy outlives the block: its connections end only when it notices that their clients have gone."""
    application = unique("app")
    async with Proxy(server, name="proxy") as proxy:
        proxy.set(up=Wire(latency=0.1), down=Wire(latency=0.1))
        async with nothing_left(server, proxy, application_name=application) as left:
            node = pgha.Node(proxy.dsn, server.name)
            async with pgha.open_cluster(node, application_name=application) as cluster:
                await cluster.fetch("SELECT 1")
        assert left == []
        await eventually(lambda: not proxy.connections)


async def test_a_client_of_a_proxy_is_told(server: Node) -> None:
    async with Proxy(server, name="proxy") as proxy:
        with within(30):
            async with nothing_left(proxy, timeout=0.2) as left:
                forgotten = socket.create_connection(("127.0.0.1", proxy.port))
                await eventually(lambda: bool(proxy.connections))
        assert any(one.text.startswith("a connection to proxy (port ") for one in left)
        assert {one.text.split()[0] for one in left} == {"a", "task"}
        forgotten.close()
