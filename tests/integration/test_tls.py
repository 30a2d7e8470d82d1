"""TLS with Debian's PostgreSQL 15: verification, large results, restarts and prompt rejection."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from psycopg.conninfo import make_conninfo
from support.common import PATIENCE, eventually, nothing_left, unique
from support.servers import standalone

import pgha
from pgha.chaos import LocalNode, Node, StopMode

pytestmark = pytest.mark.anyio

VERSION = 15
"""Debian's PostgreSQL, which is built with OpenSSL; the embedded servers are not."""
BIG = 10_000_000


@dataclass(frozen=True)
class Papers:
    """Files of a certificate authority and of the certificate that it signed."""

    root: Path
    certificate: Path
    key: Path

    @property
    def tls(self) -> tuple[Path, Path]:
        return self.certificate, self.key


def _papers(folder: Path, *names: str) -> Papers:
    folder.mkdir()
    authority = trustme.CA()
    signed = authority.issue_cert(*names)
    papers = Papers(folder / "root.pem", folder / "server.pem", folder / "server.key")
    authority.cert_pem.write_to_path(papers.root)
    signed.cert_chain_pems[0].write_to_path(papers.certificate)
    signed.private_key_pem.write_to_path(papers.key)
    return papers


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    assert Path(f"/usr/lib/postgresql/{VERSION}/bin/postgres").exists(), (
        f"these tests need a PostgreSQL with TLS: install Debian's postgresql-{VERSION}"
    )
    return _papers(tmp_path_factory.mktemp("tls") / "right", "127.0.0.1", "localhost")


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    """Return the files of an untrusted certificate authority."""
    return _papers(tmp_path_factory.mktemp("tls") / "wrong", "127.0.0.1")


@pytest.fixture(scope="module")
def server(papers: Papers) -> Iterator[Node]:
    node = LocalNode("tls", version=VERSION, tls=papers.tls, settings={"log_min_messages": "fatal"})

    async def start() -> None:
        await node.__aenter__()
        await node.start()

    try:
        anyio.run(start)
        yield node
    finally:
        anyio.run(node.close)


def verified(node: Node, root: Path, **more: Any) -> pgha.Node:
    options = {"sslmode": "verify-full", "sslrootcert": str(root), **more}
    return pgha.Node(make_conninfo(node.dsn, **options), node.name)


@asynccontextmanager
async def cluster_by_tls(node: Node, root: Path, **options: Any) -> AsyncGenerator[pgha.Cluster]:
    async with (
        nothing_left(node) as application,
        pgha.open_cluster(verified(node, root), application_name=application, **options) as cluster,
    ):
        yield cluster


async def test_every_connection_is_encrypted(server: Node, papers: Papers) -> None:
    mine = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    async with nothing_left(server) as application:
        node = verified(server, papers.root)
        async with pgha.open_cluster(node, application_name=application) as cluster:
            for call in (cluster.fetch, cluster.execute):
                ssl, version = (await call(mine)).one()
                assert ssl is True
                assert version.startswith("TLSv1.")
            rows = await server.execute(
                "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = %s",
                [application],
            )
            assert len(rows) >= 3, "lanes for reads and writes, and the monitor"
            assert all(row == (True,) for row in rows)


async def test_many_small_ones(server: Node, papers: Papers) -> None:
    table = unique("t")
    async with cluster_by_tls(server, papers.root) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int PRIMARY KEY)")
        with anyio.fail_after(60):
            reads = [cluster.submit("SELECT %s::int", [i], read=True) for i in range(1000)]
            writes = [cluster.submit(f"INSERT INTO {table} VALUES (%s)", [i]) for i in range(1000)]
            assert [(await one).value() for one in reads] == list(range(1000))
            assert [(await one).rowcount for one in writes] == [1] * 1000
        assert await cluster.fetch_value(f"SELECT count(*) FROM {table}") == 1000
        assert cluster.statistics().connections_lost == 0


async def test_big_parameters_and_results(server: Node, papers: Papers) -> None:
    big, table = "x" * BIG, unique("t")
    async with cluster_by_tls(server, papers.root) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int, body text)")
        with anyio.fail_after(60):
            assert await cluster.fetch_value("SELECT length(%s::text)", [big]) == BIG
            assert len(await cluster.fetch_value("SELECT repeat('y', %s)", [BIG])) == BIG
            await cluster.execute(f"INSERT INTO {table} VALUES (1, %s)", [big])
            echoed = [cluster.submit("SELECT %s::text", [big], read=i % 2 == 0) for i in range(4)]
            small = [cluster.submit("SELECT %s::int", [i], read=i % 2 == 0) for i in range(100)]
            assert [(await one).value() for one in small] == list(range(100))
            for one in echoed:
                assert (await one).value() == big
        assert await cluster.fetch_value(f"SELECT body = repeat('x', %s) FROM {table}", [BIG]) is True
        assert cluster.statistics().connections_lost == 0


async def test_results_of_every_size_around_a_record(server: Node, papers: Papers) -> None:
    """Results of every size around a TLS record arrive.

    TLS carries 16 kB per record and libpq reads 8 kB at a time: data that OpenSSL holds back does not wake
    the loop.
    """
    sizes = [base + step for base in (8192, 16384, 32768, 65536) for step in range(-64, 65, 4)]
    async with cluster_by_tls(server, papers.root, read_connections=1) as cluster:
        with anyio.fail_after(60):
            for size in sizes:
                assert len(await cluster.fetch_value("SELECT repeat('x', %s)", [size])) == size
            pipelined = [cluster.submit("SELECT repeat('x', %s)", [size], read=True) for size in sizes]
            assert [len((await one).value()) for one in pipelined] == sizes


RESTARTS: list[StopMode | None] = [None, "fast", "immediate"]
"""None stands for SIGKILL."""


@pytest.mark.parametrize("restarts", [3, pytest.param(10, marks=pytest.mark.thorough)])
async def test_restarts_under_load(papers: Papers, restarts: int) -> None:
    """Reads and idempotent writes, large reads among them, see no error across restarts."""
    async with standalone(version=VERSION, tls=papers.tls) as nodes:
        node = nodes[0]
        await node.execute("CREATE TABLE t (id text)")
        async with cluster_by_tls(node, papers.root) as cluster:
            turns: dict[str, int] = {}
            written: list[str] = []
            done = anyio.Event()
            body = "x" * 1_000_000

            async def read(name: str) -> None:
                query = "SELECT %s::text"
                assert (await cluster.fetch(query, [name])).value() == name

            async def read_large(name: str) -> None:
                assert (
                    len(await cluster.fetch_value("SELECT %s || repeat('y', 1000000)", [body])) == 2_000_000
                )

            async def write(name: str) -> None:
                await cluster.execute("INSERT INTO t VALUES (%s)", [name], idempotent=True)
                written.append(name)

            async def repeat(what: Any, label: str) -> None:
                for turn in itertools.count():
                    if done.is_set():
                        return
                    await what(f"{label}-{turn}")
                    turns[label] = turn

            async def everybody_went_on() -> None:
                # Two turns each, so that no operation meets two restarts in a row, after which pgha gives the
                # operation up.
                before = dict(turns)
                labels = [f"{what.__name__}{i}" for what, count in load for i in range(count)]
                await eventually(
                    lambda: all(turns.get(one, -1) >= before.get(one, -1) + 2 for one in labels), 30
                )

            load = ((read, 8), (read_large, 2), (write, 5))
            with anyio.fail_after(120):
                async with anyio.create_task_group() as group:
                    for what, count in load:
                        for number in range(count):
                            group.start_soon(repeat, what, f"{what.__name__}{number}")
                    await everybody_went_on()
                    for mode in itertools.islice(itertools.cycle(RESTARTS), restarts):
                        if mode is None:
                            await node.kill()
                            await node.start()
                        else:
                            await node.restart(mode)
                        await everybody_went_on()
                    done.set()
            assert cluster.statistics().failed == 0
            assert await cluster.fetch_value("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            rows = {row[0] for row in await node.execute("SELECT id FROM t")}
            assert set(written) <= rows


async def refused(node: pgha.Node, words: str) -> None:
    """Check that a rejection is raised at once, with the node's name and the reason.

    The error comes long before failover_timeout, since waiting would not help.
    """
    with pytest.raises(pgha.NoNodeAvailable) as caught, anyio.fail_after(PATIENCE):
        async with pgha.open_cluster(node):
            pytest.fail("entered")
    (report,) = caught.value.nodes
    assert (report.name, report.state) == (node.name, "rejected")
    assert words in report.reason
    assert report.reason in str(caught.value)


async def test_a_wrong_root_certificate(server: Node, strangers: Papers) -> None:
    await refused(verified(server, strangers.root), "certificate verify failed")


async def test_no_root_certificate(server: Node, tmp_path: Path) -> None:
    await refused(verified(server, tmp_path / "nowhere.pem"), "root certificate")


async def test_a_certificate_for_another_host(tmp_path: Path) -> None:
    other = _papers(tmp_path / "other", "db.example")
    async with standalone(version=VERSION, tls=other.tls) as nodes:
        await refused(verified(nodes[0], other.root), "does not match host name")


async def test_a_server_without_tls() -> None:
    async with standalone() as nodes:
        await refused(
            pgha.Node(make_conninfo(nodes[0].dsn, sslmode="require"), "n1"), "server does not support SSL"
        )


async def test_a_server_that_insists_on_tls(papers: Papers) -> None:
    hba = ["hostssl all all 127.0.0.1/32 trust"]
    async with standalone(version=VERSION, tls=papers.tls, hba=hba) as nodes:
        node = nodes[0]
        await refused(
            pgha.Node(make_conninfo(node.dsn, sslmode="disable"), node.name), "no pg_hba.conf entry"
        )
        async with cluster_by_tls(node, papers.root) as cluster:
            assert await cluster.fetch_value("SELECT 1") == 1


async def test_one_node_of_two_with_a_wrong_certificate(
    server: Node, papers: Papers, strangers: Papers
) -> None:
    """A node with a wrong certificate is left out with its reason, and the other node does the work."""
    async with standalone(version=VERSION, tls=strangers.tls) as nodes:
        wrong = nodes[0]
        async with (
            nothing_left(server, wrong) as application,
            pgha.open_cluster(
                verified(wrong, papers.root), verified(server, papers.root), application_name=application
            ) as cluster,
        ):
            for _ in range(10):
                assert (await cluster.fetch("SELECT 1")).node == server.name
                assert (await cluster.execute("SELECT 1")).node == server.name
            await eventually(lambda: cluster.nodes[wrong.name].state == "rejected")
            assert "certificate" in cluster.nodes[wrong.name].reason
