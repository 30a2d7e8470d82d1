"""The fault proxy in front of PostgreSQL, with pgha as the client; also through TLS."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import psycopg
import pytest
import trustme
from anyio.from_thread import BlockingPortal
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support.common import PATIENCE, eventually, nothing_left, unique, within
from support.servers import standalone

import pgha
from pgha.chaos import Cut, Direction, LocalNode, Proxy, Wire, proxied

pytestmark = pytest.mark.anyio

DEBIAN = 15
"""Debian's major version of PostgreSQL, which has OpenSSL; the embedded servers have not."""
DIRECTIONS: list[Direction] = ["up", "down"]
BIG = 3_000_000
SHORT = 0.1


def through(proxy: Proxy, application: str, **more: str) -> pgha.Node:
    return pgha.Node(make_conninfo(proxy.dsn, application_name=application, **more), proxy.name)


async def answers(cluster: pgha.Cluster, size: int = 10) -> None:
    with within(30):
        text = "x" * size
        assert await cluster.fetch_value("SELECT %s::text", [text]) == text


WIRES = [
    Wire(),
    Wire(chunk=1),
    Wire(coalesce=(20_000, 0.01)),
    Wire(latency=0.01, jitter=0.02),
    Wire(bandwidth=200_000),
]


@pytest.mark.parametrize("wire", WIRES, ids=str)
async def test_pgha_through_every_wire(server: LocalNode, wire: Wire) -> None:
    async with nothing_left(server) as application, Proxy(server) as proxy:
        proxy.set(up=wire, down=wire)
        async with pgha.open_cluster(through(proxy, application), ping_timeout=PATIENCE) as cluster:
            for size in (1, 1000):
                await answers(cluster, size)
            proxy.heal()
            await answers(cluster, BIG)
            assert cluster.statistics().connections_lost == 0


async def test_pgha_after_each_end(server: LocalNode) -> None:
    """However its connections ended, pgha opens new ones."""
    async with nothing_left(server) as application, Proxy(server) as proxy:
        cut = Cut(600, "reset", "down")
        ends: list[Callable[[], None]] = [proxy.reset, proxy.close_all, lambda: proxy.cut(cut)]
        async with pgha.open_cluster(through(proxy, application)) as cluster:
            for end in ends:
                await answers(cluster)
                end()
                await anyio.sleep(0.01)
                proxy.heal()
                await answers(cluster)


@pytest.mark.parametrize("direction", DIRECTIONS)
async def test_the_lost_question_and_the_lost_answer(server: LocalNode, direction: Direction) -> None:
    """The statement arrives or not, according to the direction; nothing is lost once the proxy is healed."""
    table = unique("lost")
    await server.execute(f"CREATE TABLE {table} (id int)")

    async def arrived() -> bool:
        return bool(await server.execute(f"SELECT FROM {table}"))

    async with nothing_left(server) as application, Proxy(server) as proxy:
        dsn = make_conninfo(proxy.dsn, application_name=application)
        connection = await anyio.to_thread.run_sync(lambda: psycopg.connect(dsn, autocommit=True))
        done = anyio.Event()

        async def insert() -> None:
            await anyio.to_thread.run_sync(connection.execute, f"INSERT INTO {table} VALUES (1)")
            done.set()

        with closing(connection), within(30):
            async with anyio.create_task_group() as group:
                proxy.drop(direction)
                group.start_soon(insert)
                if direction == "down":
                    await eventually(arrived)
                await anyio.sleep(SHORT)
                assert await arrived() == (direction == "down")
                assert not done.is_set()
                proxy.heal()
            assert await arrived()
    await server.execute(f"DROP TABLE {table}")


async def test_a_query_cut_at_every_byte(server: LocalNode) -> None:
    """The server runs the query if, and only if, all bytes of it got through."""
    table = unique("cut")
    await server.execute(f"CREATE TABLE {table} (id int)")
    async with nothing_left(server) as application, Proxy(server) as proxy:
        dsn = make_conninfo(proxy.dsn, application_name=application)
        statement = f"INSERT INTO {table} VALUES (%s)"

        def attempt(number: int, cut: int | None) -> int:
            """Return the number of bytes sent for the query."""
            with psycopg.connect(dsn, autocommit=True) as connection:
                begun = proxy.connections[-1].up
                if cut is not None:
                    portal(proxy.cut, Cut(begun + cut, "reset", "up"))
                connection.execute(statement, [number])
                return proxy.connections[-1].up - begun

        async with BlockingPortal() as blocking:
            portal = blocking.call
            whole = await anyio.to_thread.run_sync(attempt, -1, None)
            for cut in range(0, whole + 1, 3):
                with pytest.raises(psycopg.OperationalError):
                    await anyio.to_thread.run_sync(attempt, cut, cut)
                proxy.heal()
        rows = {row[0] for row in await server.execute(f"SELECT id FROM {table}")}
        assert rows <= {-1, whole, whole - 1}
    await server.execute(f"DROP TABLE {table}")


def up(cluster: pgha.Cluster, name: str) -> bool:
    return cluster.nodes[name].state == "up"


async def test_a_node_restarts_behind_its_proxy() -> None:
    async with standalone(2) as nodes, proxied(nodes) as proxies:
        assert proxies.names == nodes.names == ("n1", "n2")
        assert proxies["n2"] is proxies[1] is proxies[1:][0]
        for node, dsn in zip(nodes, proxies.dsns, strict=True):
            own, given = conninfo_to_dict(node.dsn), conninfo_to_dict(dsn)
            assert own.pop("port") != given.pop("port")
            assert own == given
        with pytest.raises(KeyError):
            proxies["n3"]
        named = [pgha.Node(proxy.dsn, proxy.name) for proxy in proxies]
        async with pgha.open_cluster(*named) as cluster:
            for node in itertools.chain(nodes, nodes):
                await node.kill()
                await answers(cluster)
                await node.start()
                await eventually(partial(up, cluster, node.name))
            for proxy in proxies:
                proxy.refuse()
                proxy.reset()
            proxies.heal()
            await answers(cluster)


async def test_tls_passes_through(tmp_path: Path) -> None:
    """TLS with full verification works in one-byte packets and in coalesced records."""
    papers = [tmp_path / name for name in ("server.pem", "server.key", "root.pem")]
    authority = trustme.CA()
    signed = authority.issue_cert("127.0.0.1")
    signed.cert_chain_pems[0].write_to_path(papers[0])
    signed.private_key_pem.write_to_path(papers[1])
    authority.cert_pem.write_to_path(papers[2])
    async with (
        standalone(version=DEBIAN, tls=(papers[0], papers[1])) as nodes,
        nothing_left(nodes[0]) as application,
        Proxy(nodes[0]) as proxy,
    ):
        node = through(proxy, application, sslmode="verify-full", sslrootcert=str(papers[2]))
        async with pgha.open_cluster(node, ping_timeout=PATIENCE) as cluster:
            for wire in WIRES:
                proxy.set(up=wire, down=wire)
                await answers(cluster, 1000 if wire.chunk else 20_000)
            proxy.heal()
            await answers(cluster, BIG)
            assert await cluster.fetch_value("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            assert cluster.statistics().connections_lost == 0
