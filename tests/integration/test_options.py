"""Bad input is rejected at once with advice; passwords stay secret; options shape the connections."""

from __future__ import annotations

import dataclasses
import logging
import math
import socket
import time
import traceback
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from support.common import (
    PATIENCE,
    PROVEN,
    backends,
    cluster_of,
    eventually,
    gate,
    nothing_left,
    started,
    unique,
)
from support.servers import standalone

import pgha
from pgha._options import NodeConfig
from pgha.chaos import LocalNode, Node

pytestmark = pytest.mark.anyio

SECRET = "s3cr3tQZ"
NOBODY = "host=127.0.0.1 port=1"


async def rejected(*nodes: Any, match: str, **options: Any) -> pgha.ConfigError:
    """Return the `ConfigError` that `open_cluster` raises before connecting to anything."""
    with pytest.raises(pgha.ConfigError, match=match) as caught, anyio.fail_after(PATIENCE):
        async with pgha.open_cluster(*nodes, **options):
            pytest.fail("entered")
    return caught.value


# Options

SECONDS = ("connect_timeout", "failover_timeout", "ping_interval", "ping_timeout", "close_timeout")
LIMITS = ("timeout", "statement_timeout")
WHOLE = {"read_connections": 1, "min_ready": 0, "max_queued": 1, "prepare_threshold": 0}


@pytest.mark.parametrize("name", [*SECONDS, *LIMITS])
async def test_seconds_are_numbers_of_zero_or_more(name: str) -> None:
    bad: list[Any] = [-1, -0.001, math.nan, -math.inf, "1", True, b"1", [1], 1 + 0j]
    for value in bad + ([None] if name in SECONDS else []):
        await rejected(NOBODY, match=f"^{name} must be", **{name: value})


@pytest.mark.parametrize("name", WHOLE)
async def test_counts_are_whole_numbers(name: str) -> None:
    bad: list[Any] = [WHOLE[name] - 1, -5, 1.0, 1.5, "2", True, math.nan, [1]]
    for value in bad + ([None] if name != "prepare_threshold" else []):
        await rejected(NOBODY, match=f"^{name} must be", **{name: value})


@pytest.mark.parametrize("value", [0.0001, math.inf, 1e7])
async def test_a_statement_timeout_that_postgresql_cannot_have(server: Node, value: float) -> None:
    """PostgreSQL counts `statement_timeout` in milliseconds, from 1 to 2^31 - 1: others are rejected."""
    await rejected(server.dsn, match="statement_timeout", statement_timeout=value)
    async with cluster_of(server) as cluster:
        for call in (cluster.fetch, cluster.execute):
            with pytest.raises(pgha.ConfigError, match="statement_timeout"):
                await call("SELECT 1", statement_timeout=value)


async def test_other_options(server: Node) -> None:
    for factory in ("dict_row", 5, [1]):
        await rejected(NOBODY, match="row_factory", row_factory=factory)
    for setup in (5, 1.5, object(), [5], ["SELECT 1", None], b"SELECT 1"):
        await rejected(server.dsn, match="on_connect", on_connect=setup)
    for application in (5, b"x", None, "a\0b"):
        await rejected(server.dsn, match="application_name", application_name=application)


async def test_more_nodes_wanted_than_there_are() -> None:
    await rejected(NOBODY, match=r"min_ready is 2, and there are 1", min_ready=2)
    await rejected("host=a,b,c", match=r"min_ready is 4, and there are 3", min_ready=4)


async def test_an_unknown_option_is_a_type_error() -> None:
    options: Any = {"pool_size": 5}
    with pytest.raises(TypeError, match="pool_size"):
        async with pgha.open_cluster(NOBODY, **options):
            pytest.fail("entered")


# Nodes

BAD_NODES: list[tuple[str, str]] = [
    ("nonsense", "conninfo"),
    ("host=a nosuch=1", "conninfo"),
    ("host=a password='open", "conninfo"),
    ("postgresql://[::1", "conninfo"),
    ("postgresql://a/db?nosuch=1", "conninfo"),
    ("postgresql://a%zz/db", "conninfo"),
    ("mysql://a/db", "conninfo"),
    ("host=a\0 dbname=b", "NUL"),
    ("host=a port=0", "port"),
    ("host=a port=65536", "port"),
    ("host=a port=-1", "port"),
    ("host=a port=5432x", "port"),
    ("host=a port=' 5432'", "port"),
    ("postgresql://a:99999/db", "port"),
    ("postgresql://a:5432,b:70000/db", "port"),
    ("host=a,b,c port=1,2", "port"),
    ("host=a port=1,2", "port"),
    ("host=a,b hostaddr=127.0.0.1", "hostaddr"),
    ("host=a,b,c hostaddr=127.0.0.1,127.0.0.2", "hostaddr"),
    ("host=a target_session_attrs=primary", "target_session_attrs"),
    ("host=a target_session_attrs=read-write", "target_session_attrs"),
    ("host=a,b load_balance_hosts=random", "load_balance_hosts"),
]


@pytest.mark.parametrize(("conninfo", "words"), BAD_NODES)
async def test_a_bad_conninfo(server: Node, conninfo: str, words: str) -> None:
    await rejected(conninfo, match=words)
    await rejected(pgha.Node(conninfo), match=words)
    await rejected(NOBODY, conninfo, match=words)
    async with cluster_of(server) as cluster:
        for _ in range(2):
            with pytest.raises(pgha.ConfigError, match=words):
                cluster.add_node(conninfo)
        assert set(cluster.nodes) == {server.name}


async def test_no_nodes_and_no_such_nodes() -> None:
    await rejected(match="at least one node")
    bad: Any
    for bad in (5, b"host=a", None, ["host=a"], {"host": "a"}):
        await rejected(bad, match="a node is a conninfo string")
    for bad in (5, b"host=a", None):
        await rejected(pgha.Node(bad), match="a node is a conninfo string")
    for bad in (5, b"n1"):
        await rejected(pgha.Node(NOBODY, bad), match="name")


async def test_names_differ(server: Node) -> None:
    await rejected("host=a", "host=a", match="two nodes are called 'a:5432'")
    await rejected("host=a", "host=a port=5432 dbname=other", match="two nodes are called 'a:5432'")
    await rejected("host=a,a", match="two nodes are called")
    await rejected(pgha.Node("host=a", "x"), pgha.Node("host=b", "x"), match="two nodes are called 'x'")
    await rejected(pgha.Node("host=a", "b:5432"), "host=b", match="two nodes are called 'b:5432'")
    await rejected(pgha.Node("host=a,b", "x"), match="'x' cannot stand for 2 hosts")
    async with cluster_of(server) as cluster:
        with pytest.raises(pgha.ConfigError, match="called"):
            cluster.add_node(pgha.Node("host=a", server.name))
        with pytest.raises(pgha.ConfigError, match="'x' cannot stand for 2 hosts"):
            cluster.add_node(pgha.Node("host=a,b", "x"))
        assert set(cluster.nodes) == {server.name}


@pytest.mark.parametrize(
    ("conninfo", "names"),
    [
        ("host=a", ["a:5432"]),
        ("host=a port=6000", ["a:6000"]),
        ("postgresql://a", ["a:5432"]),
        ("postgres://u:p@a:6000/db?sslmode=disable", ["a:6000"]),
        ("postgresql://a:1,b:2,c:3/db", ["a:1", "b:2", "c:3"]),
        ("postgresql://a,b:2/db", ["a:5432", "b:2"]),
        ("host=a,b,c port=6000", ["a:6000", "b:6000", "c:6000"]),
        ("host=a,b port=1,2", ["a:1", "b:2"]),
        ("hostaddr=127.0.0.1 port=1", ["127.0.0.1:1"]),
        ("hostaddr=127.0.0.1,127.0.0.2 port=1", ["127.0.0.1:1", "127.0.0.2:1"]),
        ("host=x hostaddr=127.0.0.1 port=1", ["x:1"]),
        ("host=a target_session_attrs=any", ["a:5432"]),
        ("host=/run/nowhere", ["/run/nowhere:5432"]),
    ],
)
async def test_names_of_hosts_and_ports(conninfo: str, names: list[str]) -> None:
    async with pgha.open_cluster(conninfo, min_ready=0) as cluster:
        assert list(cluster.nodes) == names


async def test_ipv6() -> None:
    """Two IPv6 addresses get different names, and their ports can be told from the addresses."""
    async with pgha.open_cluster("postgresql://[::1]:6000,[fe80::1]:6001/db", min_ready=0) as cluster:
        first, second = cluster.nodes
        assert "::1" in first
        assert first.endswith(":6000")
        assert "fe80::1" in second
        assert second.endswith(":6001")


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
async def test_ipv6_answers() -> None:
    settings = {"listen_addresses": "127.0.0.1,::1"}
    hba = ["host all all 127.0.0.1/32 trust", "host all all ::1/128 trust"]
    async with standalone(settings=settings, hba=hba) as nodes:
        node = nodes[0]
        async with (
            nothing_left(node) as application,
            pgha.open_cluster(
                f"postgresql://postgres@[::1]:{node.port},127.0.0.1:{node.port}/postgres",
                application_name=application,
                min_ready=2,
            ) as cluster,
        ):
            for name in cluster.nodes:
                row = await cluster.fetch_one("SELECT inet_client_addr()::text", route=pgha.pin(name))
                assert row is not None
                assert row[0].split("/")[0] in name


async def test_a_multi_host_uri_is_several_nodes() -> None:
    async with standalone(2) as nodes:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        async with (
            nothing_left(*nodes) as application,
            pgha.open_cluster(
                f"postgresql://postgres@{hosts}/postgres", application_name=application, min_ready=2
            ) as cluster,
        ):
            assert list(cluster.nodes) == [f"127.0.0.1:{node.port}" for node in nodes]
            for node in nodes:
                route = pgha.pin(f"127.0.0.1:{node.port}")
                assert await cluster.fetch_value("SELECT inet_server_port()", route=route) == node.port
                await node.kill()
                assert await cluster.fetch_value("SELECT 1") == 1
                await node.start()
                await cluster.wait_ready()


async def test_a_multi_host_uri_is_added() -> None:
    async with standalone(3) as nodes, cluster_of(nodes[0]) as cluster:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes[1:])
        cluster.add_node(f"postgresql://postgres@{hosts}/postgres")
        with anyio.fail_after(PATIENCE):
            await cluster.wait_ready(3)
        for node in nodes[1:]:
            route = pgha.pin(f"127.0.0.1:{node.port}")
            assert await cluster.fetch_value("SELECT inet_server_port()", route=route) == node.port


# Arguments of operations


async def test_routes(server: Node) -> None:
    bad: Any
    async with cluster_of(server) as cluster:
        calls = (cluster.fetch, cluster.fetch_one, cluster.fetch_value, cluster.execute)
        for call in calls:
            with pytest.raises(pgha.ConfigError, match="no node is called 'nope'") as caught:
                await call("SELECT 1", route=pgha.pin("nope"))
            assert pgha.error_info(caught.value) == pgha.ErrorInfo(None, None, 0, "not applied")
            for bad in (server.name, None, 5, pgha.pin):
                with pytest.raises(pgha.ConfigError, match="route must be"):
                    await call("SELECT 1", route=bad)
        with pytest.raises(pgha.ConfigError, match="no node is called 'nope'"):
            await cluster.execute_batch(["SELECT 1"], route=pgha.pin("nope"))
        with pytest.raises(pgha.ConfigError, match="no node is called 'nope'"):
            cluster.submit("SELECT 1", route=pgha.pin("nope"))
        with pytest.raises(pgha.ConfigError, match="no node is called 'nope'"):
            await cluster.remove_node("nope")
        assert set(cluster.nodes) == {server.name}
        bad = pgha.fastest()
        with pytest.raises(pgha.ConfigError, match="reads only"):
            await cluster.execute("SELECT 1", route=bad)
        with pytest.raises(pgha.ConfigError, match="reads only"):
            await cluster.execute_batch(["SELECT 1"], route=bad)
        with pytest.raises(pgha.ConfigError, match="reads only"):
            cluster.submit("SELECT 1", route=bad)
        async with cluster.group() as group:
            with pytest.raises(pgha.ConfigError, match="reads only"):
                group.submit("SELECT 1", route=bad)
        assert (await cluster.submit("SELECT 1", read=True, route=bad)).value() == 1
        assert cluster.statistics().operations == 1, "nothing else was ever accepted"


@pytest.mark.parametrize("name", LIMITS)
async def test_limits_of_operations(server: Node, name: str) -> None:
    values: list[Any] = [math.nan, -1, -0.001, "1", True, [1]]
    async with cluster_of(server) as cluster:
        for value in values + ([0, 0.0004] if name == "statement_timeout" else []):
            options: Any = {name: value}
            for call in (cluster.fetch, cluster.fetch_one, cluster.fetch_value, cluster.execute):
                with pytest.raises(pgha.ConfigError, match=f"^{name} must be"):
                    await call("SELECT 1", **options)
            with pytest.raises(pgha.ConfigError, match=f"^{name} must be"):
                await cluster.execute_batch(["SELECT 1"], **options)
            with pytest.raises(pgha.ConfigError, match=f"^{name} must be"):
                cluster.submit("SELECT 1", **options)
        assert cluster.statistics().operations == 0
        assert await cluster.fetch_value("SELECT 1", timeout=math.inf) == 1


# Passwords


def _told(error: BaseException) -> str:
    """Return all text of an error that could be printed: messages, reprs, notes, causes and contexts."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or one in seen:
            continue
        seen.append(one)
        waiting += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
    words = [f"{one} {one!r} {one.args} {getattr(one, '__notes__', '')} {vars(one)}" for one in seen]
    return "\n".join([*words, *traceback.format_exception(error)])


@pytest.mark.parametrize(
    "conninfo",
    [
        f"host=a password={SECRET} bogus",
        f"host=a password={SECRET} nosuch=1",
        f"host=a nosuch=1 password={SECRET}",
        f"host=a password='{SECRET}",
        f"host=a password {SECRET}",
        f"password={SECRET} port=0",
        f"password={SECRET} host=a,b port=1,2,3",
        f"password={SECRET} target_session_attrs=primary",
        f"password={SECRET}\0",
        f"postgresql://u:{SECRET}@a:99999/db",
        f"postgresql://u:{SECRET}@a:x/db",
        f"postgresql://u:{SECRET}@[::1/db",
        f"postgresql://u:{SECRET}%zz@a/db",
        f"postgresql://u:%zz{SECRET}@a/db",
        f"postgresql://u:{SECRET}@a/db?nosuch=1",
        f"postgresql://a/db?password={SECRET}&nosuch=1",
        f"postgresql://a/db?password={SECRET}%zz",
        f"postgresql://u:{SECRET}@a/db?port=0",
        # Characters that should have been escaped: libpq takes the text after them for a port or a host.
        f"postgresql://u:{SECRET}/x@a/db",
        f"postgresql://u:x/{SECRET}@a/db",
        f"postgresql://u:x@{SECRET}@a:1:2/db",
        f"postgres:/u:{SECRET}@a/db",
    ],
)
async def test_a_bad_conninfo_keeps_its_password(conninfo: str) -> None:
    with pytest.raises(pgha.ConfigError) as caught:
        async with pgha.open_cluster(conninfo):
            pytest.fail("entered")
    told = _told(caught.value)
    assert SECRET not in told
    node = pgha.Node(conninfo, "a")
    assert SECRET not in f"{node} {node!r}"


async def test_a_node_keeps_its_password() -> None:
    conninfo = f"host=a password={SECRET}"
    node = pgha.Node(conninfo)
    config = NodeConfig("a", {"password": SECRET})
    for one in (node, config):
        assert SECRET not in f"{one} {one!r} {[one]} {hash(one) if one is node else ''}"
    with pytest.raises(pgha.ConfigError) as caught:
        async with pgha.open_cluster(node, node):
            pytest.fail("entered")
    assert SECRET not in _told(caught.value)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Node]:
    """Yield a server that asks for a password."""
    node = LocalNode("guarded", password=SECRET, settings={"log_min_messages": "fatal"})

    async def start() -> None:
        await node.__aenter__()
        await node.start()

    try:
        anyio.run(start)
        yield node
    finally:
        anyio.run(node.close)


async def test_passwords_stay_inside(guarded: Node, caplog: pytest.LogCaptureFixture) -> None:
    """No password appears when a cluster works, fails or loses connections, in errors, events or logs."""
    told: list[str] = []
    with caplog.at_level(logging.DEBUG):
        async with cluster_of(guarded) as cluster, cluster.events() as events:
            assert await cluster.fetch_value("SELECT 1") == 1
            await cluster.execute("SELECT 1")
            told += [repr(cluster), repr(cluster.statistics()), repr(cluster.nodes), str(dict(cluster.nodes))]
            with pytest.raises(psycopg.Error) as caught:
                await cluster.fetch("SELEKT")
            told.append(_told(caught.value))
            cluster.add_node(pgha.Node(make_conninfo(guarded.dsn, password=SECRET + "not"), "wrong"))
            await eventually(lambda: cluster.nodes["wrong"].state == "rejected")
            told.append(repr(cluster.nodes))
            text = unique("sleep")
            with gate(guarded) as (wait, go_on):
                operation = cluster.submit(f"SELECT {wait} /* {text} */", read=True)
                pid = await started(guarded, text)
                await guarded.execute("SELECT pg_terminate_backend(%s)", [pid])
                go_on()
            told += [repr(await operation), repr(operation)]
            with anyio.move_on_after(0.1):
                async for event in events:
                    told.append(f"{event} {event!r} {dataclasses.astuple(event)}")
    assert any("NodeStateChanged" in one for one in told)
    assert any("ConnectionLost" in one for one in told)
    assert SECRET not in "\n".join(told)
    assert SECRET not in caplog.text


WRONG = [
    ({"password": SECRET + "x"}, "password authentication failed"),
    ({"password": ""}, "no password supplied"),
    ({"dbname": "nowhere"}, 'database "nowhere" does not exist'),
]


@pytest.mark.parametrize(("more", "reason"), WRONG)
async def test_what_no_waiting_mends_is_raised_at_once(
    guarded: Node, more: dict[str, str], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    node = pgha.Node(make_conninfo(guarded.dsn, **more), "n1")
    with caplog.at_level(logging.DEBUG), pytest.raises(pgha.NoNodeAvailable) as caught:
        with anyio.fail_after(PATIENCE):
            async with pgha.open_cluster(node):
                pytest.fail("entered")
    (report,) = caught.value.nodes
    assert (report.name, report.state) == ("n1", "rejected")
    assert reason in report.reason
    assert f"n1: rejected for {report.state_for:.1f} s" in str(caught.value)
    assert report.reason in str(caught.value)
    assert SECRET not in _told(caught.value)
    assert SECRET not in caplog.text
    assert pgha.error_info(caught.value).outcome == "not applied"


async def test_an_unknown_role(server: Node) -> None:
    node = pgha.Node(make_conninfo(server.dsn, user="nobody_here"), "n1")
    with pytest.raises(pgha.NoNodeAvailable, match="nobody_here"), anyio.fail_after(PATIENCE):
        async with pgha.open_cluster(node):
            pytest.fail("entered")


async def test_a_wrong_password_on_one_node_of_two(guarded: Node, server: Node) -> None:
    wrong = pgha.Node(make_conninfo(guarded.dsn, password=SECRET + "x"), "wrong")
    right = pgha.Node(server.dsn, "right")
    async with nothing_left(server, guarded) as application:
        async with pgha.open_cluster(wrong, right, application_name=application) as cluster:
            for _ in range(10):
                assert (await cluster.fetch("SELECT 1")).node == "right"
                assert (await cluster.execute("SELECT 1")).node == "right"
                assert (await cluster.fetch("SELECT 1", route=pgha.fastest())).node == "right"
            await eventually(lambda: cluster.nodes["wrong"].state == "rejected")
            status = cluster.nodes["wrong"]
            assert "password authentication failed" in status.reason
            assert (status.read_connections, status.write_connections) == (0, 0)
            with pytest.raises(pgha.OperationTimeout):
                await cluster.fetch("SELECT 1", route=pgha.pin("wrong"), timeout=0.05)
        with pytest.raises(pgha.NoNodeAvailable, match="wrong: rejected"), anyio.fail_after(PATIENCE):
            async with pgha.open_cluster(wrong, right, application_name=application, min_ready=2):
                pytest.fail("entered")


async def test_a_password_that_is_mended(guarded: Node) -> None:
    """A node is used again after its password was corrected.

    pgha retries rarely, so as not to fill the servers' logs.
    """
    role = unique("role")
    await guarded.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'old'")
    node = pgha.Node(make_conninfo(guarded.dsn, user=role, password="new"), "n1")
    async with (
        nothing_left(guarded) as application,
        pgha.open_cluster(node, min_ready=0, application_name=application) as cluster,
    ):
        await eventually(lambda: cluster.nodes["n1"].state == "rejected")
        await guarded.execute(f"ALTER ROLE {role} PASSWORD 'new'")
        with anyio.fail_after(2 * PATIENCE):
            await cluster.wait_ready()
            assert await cluster.fetch_value("SELECT current_user") == role


# Setup of each new connection


async def test_on_connect_as_sql(server: Node) -> None:
    for setup in ("SET synchronous_commit = off", ["SET work_mem = '7MB'", "SET synchronous_commit = off"]):
        async with cluster_of(server, on_connect=setup) as cluster:
            for call in (cluster.fetch, cluster.execute):
                assert (await call("SHOW synchronous_commit")).value() == "off"
                if isinstance(setup, list):
                    assert (await call("SHOW work_mem")).value() == "7MB"
            assert cluster.statistics().connections_lost == 0


async def test_on_connect_as_several_statements_in_one_string(server: Node) -> None:
    async with cluster_of(server, on_connect="SET work_mem = '7MB'; SET synchronous_commit = off") as cluster:
        assert await cluster.fetch_value("SHOW work_mem") == "7MB"
        assert await cluster.fetch_value("SHOW synchronous_commit") == "off"


async def test_on_connect_changes_a_setting_that_is_watched(server: Node) -> None:
    """Settings that on_connect changed are the session's proper state, even settings that pgha watches."""
    setup = ["SET TIME ZONE 'Asia/Tokyo'", "SET DateStyle = 'German'", "SET search_path = pg_catalog"]
    async with cluster_of(server, on_connect=setup) as cluster:
        for _ in range(5):
            for call in (cluster.fetch, cluster.execute):
                assert (await call("SHOW TIME ZONE")).value() == "Asia/Tokyo"
                assert (await call("SHOW search_path")).value() == "pg_catalog"
        assert cluster.statistics().connections_lost == 0


async def test_on_connect_as_a_callable_and_again_on_reconnect(server: Node) -> None:
    calls: list[list[tuple[str | None, ...]]] = []

    async def setup(connection: pgha.SetupConnection) -> None:
        await connection.execute("SET work_mem = '9MB'")
        calls.append(await connection.execute("SELECT pg_backend_pid(), NULL"))

    async with (
        nothing_left(server) as application,
        pgha.open_cluster(server.dsn, application_name=application, on_connect=setup) as cluster,
    ):
        await cluster.execute("SELECT 1")
        assert await cluster.fetch_value("SHOW work_mem") == "9MB"
        for rows in calls:
            ((pid, nothing),) = rows
            assert pid is not None
            assert pid.isdigit()
            assert nothing is None
        for _ in range(3):
            count = len(calls)
            for backend in await backends(server, application):
                await server.execute("SELECT pg_terminate_backend(%s)", [backend])
            await eventually(lambda count=count: len(calls) >= count + 3)  # type: ignore[misc]
            with anyio.fail_after(PATIENCE):
                assert await cluster.fetch_value("SHOW work_mem") == "9MB"
                assert (await cluster.execute("SHOW work_mem")).value() == "9MB"


async def _raise(connection: pgha.SetupConnection) -> None:
    raise LookupError("my own trouble")


async def _fail(connection: pgha.SetupConnection) -> None:
    await connection.execute("SELECT 1/0")


@pytest.mark.parametrize(
    ("setup", "reason"),
    [
        ("SET nosuch_setting = 1", "unrecognized configuration parameter"),
        (["SELECT 1", "SELEKT"], "syntax error"),
        ("COPY pg_class TO STDOUT", "COPY"),
        (_raise, "my own trouble"),
        (_fail, "division by zero"),
    ],
)
async def test_on_connect_that_fails(server: Node, setup: Any, reason: str) -> None:
    """A failing on_connect raises at once and the error names on_connect, since waiting would not help."""
    async with nothing_left(server) as application:
        with pytest.raises(pgha.NoNodeAvailable) as caught, anyio.fail_after(PATIENCE):
            async with pgha.open_cluster(server.dsn, application_name=application, on_connect=setup):
                pytest.fail("entered")
        assert "on_connect" in str(caught.value)
        assert reason in str(caught.value)


async def test_on_connect_that_hangs(server: Node) -> None:
    async def hang(connection: pgha.SetupConnection) -> None:
        await anyio.sleep(60)

    for setup in (hang, "SELECT pg_sleep(60)"):
        async with nothing_left(server) as application:
            with pytest.raises(pgha.NoNodeAvailable, match="on_connect"), anyio.fail_after(PATIENCE):
                async with pgha.open_cluster(
                    server.dsn,
                    application_name=application,
                    on_connect=setup,
                    connect_timeout=0.8,
                    failover_timeout=3,
                ):
                    pytest.fail("entered")
            for pid in await backends(server, application, "active"):
                await server.execute("SELECT pg_terminate_backend(%s)", [pid])  # the backend sleeps on


async def test_on_connect_that_leaves_a_transaction_open(server: Node) -> None:
    """An on_connect that leaves a transaction open loses no acknowledged write.

    Inside that transaction, every write would be acknowledged and then lost.
    """
    table = unique("t")
    await server.execute(f"CREATE TABLE {table} (id int)")
    acknowledged = 0
    async with nothing_left(server) as application:
        try:
            async with pgha.open_cluster(
                server.dsn, application_name=application, on_connect="BEGIN", failover_timeout=2
            ) as cluster:
                await cluster.execute(f"INSERT INTO {table} VALUES (1)")
                acknowledged += 1
        except pgha.NoNodeAvailable as error:
            assert "on_connect" in str(error)
    assert (await server.execute(f"SELECT count(*) FROM {table}"))[0][0] == acknowledged


async def test_on_connect_that_fails_on_one_node_of_two(server: Node) -> None:
    async with standalone() as nodes:
        await server.execute("CREATE TABLE IF NOT EXISTS only_here (id int)")
        other = pgha.Node(nodes[0].dsn, "n1")
        async with (
            nothing_left(server, *nodes) as application,
            pgha.open_cluster(
                other,
                pgha.Node(server.dsn, "there"),
                application_name=application,
                on_connect="SELECT * FROM only_here",
            ) as cluster,
        ):
            for _ in range(10):
                assert (await cluster.fetch("SELECT 1")).node == "there"
                assert (await cluster.execute("SELECT 1")).node == "there"
            await eventually(lambda: "only_here" in cluster.nodes["n1"].reason)


# Settings of each connection


async def test_the_clusters_statement_timeout(server: Node) -> None:
    async with cluster_of(server, statement_timeout=0.1) as cluster:
        for call in (cluster.fetch, cluster.execute):
            begun = time.monotonic()
            with pytest.raises(psycopg.errors.QueryCanceled):
                await call("SELECT pg_sleep(10)")
            assert time.monotonic() - begun < 5
            assert (await call("SHOW statement_timeout")).value() == "100ms"
        with pytest.raises(psycopg.errors.QueryCanceled):
            await cluster.execute_batch(["SELECT 1", "SELECT pg_sleep(10)"])


async def test_an_operations_own_statement_timeout_wins(server: Node) -> None:
    async with cluster_of(server, statement_timeout=0.1) as cluster:
        for call in (cluster.fetch, cluster.execute):
            await call("SELECT pg_sleep(0.3)", statement_timeout=10)
            with pytest.raises(psycopg.errors.QueryCanceled):
                await call("SELECT pg_sleep(10)")
            # None means without a limit, as None does for `timeout`.
            await call("SELECT pg_sleep(0.3)", statement_timeout=None)


async def test_the_clusters_timeout_and_an_operations_own(server: Node) -> None:
    async with cluster_of(server, timeout=0.1, _tuning=PROVEN) as cluster:
        for call in (cluster.fetch, cluster.execute):
            with pytest.raises(pgha.OperationTimeout):
                await call("SELECT pg_sleep(10)")
            await call("SELECT pg_sleep(0.3)", timeout=10)
            await call("SELECT pg_sleep(0.3)", timeout=None)


async def test_the_application_name(server: Node) -> None:
    for name in (unique("app"), unique("app") + " 'quoted' \\ back"):
        async with pgha.open_cluster(server.dsn, application_name=name) as cluster:
            for call in (cluster.fetch, cluster.execute):
                assert (await call("SHOW application_name")).value() == name
            assert len(await backends(server, name)) >= 3, "lanes for reads and writes, and the monitor"


@asynccontextmanager
async def _with_options(server: Node, given: str, **options: Any) -> AsyncGenerator[pgha.Cluster]:
    async with nothing_left(server) as application:
        node = pgha.Node(make_conninfo(server.dsn, options=given), server.name)
        async with pgha.open_cluster(node, application_name=application, **options) as cluster:
            yield cluster


async def test_options_of_the_conninfo_are_kept(server: Node) -> None:
    given = r"-c work_mem=7MB -c my.words=a\ b --statement_timeout=5s"
    async with _with_options(server, given) as cluster:
        for call in (cluster.fetch, cluster.execute):
            assert (await call("SHOW work_mem")).value() == "7MB"
            assert (await call("SHOW my.words")).value() == "a b"
            assert (await call("SHOW statement_timeout")).value() == "5s"
        assert await cluster.fetch_value("SHOW default_transaction_read_only") == "on"
        assert (await cluster.execute("SHOW default_transaction_read_only")).value() == "off"
    async with _with_options(server, given, statement_timeout=2) as cluster:
        assert await cluster.fetch_value("SHOW statement_timeout") == "2s"


async def test_options_of_the_conninfo_cannot_make_reads_write(server: Node) -> None:
    table = unique("t")
    async with _with_options(server, "-c default_transaction_read_only=off") as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int)")
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await cluster.fetch(f"INSERT INTO {table} VALUES (1)")


@pytest.mark.parametrize("setting", ["nosuch_setting=1", "work_mem=much", "max_connections=5"])
async def test_a_bad_setting_in_the_conninfo_is_raised_at_once(server: Node, setting: str) -> None:
    node = make_conninfo(server.dsn, options=f"-c {setting}")
    with pytest.raises(pgha.NoNodeAvailable, match=setting.split("=")[0]), anyio.fail_after(PATIENCE):
        async with pgha.open_cluster(node):
            pytest.fail("entered")


async def test_client_encoding_is_always_utf8(server: Node) -> None:
    node = make_conninfo(server.dsn, client_encoding="latin1")
    async with pgha.open_cluster(node) as cluster:
        for call in (cluster.fetch, cluster.execute):
            assert (await call("SELECT %s || 'ü€'", ["ß"])).value() == "ßü€"
