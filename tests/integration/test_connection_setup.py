"""The set-up of connections: rights that are missing, what on_connect may do, notifications that arrive."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from support.common import cluster_of, eventually, started, within
from support.servers import standalone

import pgha
from pgha._node.lane import Lane
from pgha._wire.link import Link
from pgha.chaos import Node

pytestmark = pytest.mark.anyio

SHORT: Any = {"failover_timeout": 2.0, "ping_interval": 0.05}


async def reason_of_failure(node: Node, **options: Any) -> str:
    """Return why no connection could be set up."""
    async with cluster_of(node, min_ready=0, **SHORT, **options) as cluster:
        with pytest.raises(pgha.NoNodeAvailable) as caught, within():
            await cluster.execute("SELECT 1")
        return str(caught.value)


async def hide_identity(node: Node) -> str:
    """Take the right to read the system identifier away from a new role; return the role's conninfo."""
    await node.execute("CREATE TABLE t (i int)")
    await node.execute("CREATE ROLE app LOGIN PASSWORD 'x'; GRANT ALL ON t TO app")
    await node.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    return make_conninfo(node.dsn, user="app", password="x")


async def show_identity(node: Node) -> None:
    await node.execute("GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC")


@pytest.mark.parametrize("on_connect", [None, "SET work_mem = '5MB'"])
async def test_writes_work_where_the_server_does_not_tell_who_it_is(on_connect: str | None) -> None:
    async with standalone() as nodes:
        try:
            dsn = await hide_identity(nodes[0])
            async with pgha.open_cluster(dsn, on_connect=on_connect) as cluster:
                with within():
                    await cluster.fetch("SELECT 1")
                    await cluster.execute("INSERT INTO t VALUES (1)")
                    with pytest.raises(pgha.LedgerError, match="did not give its system identifier"):
                        await cluster.execute(
                            "INSERT INTO t VALUES (2)", idempotency_key=pgha.new_idempotency_key()
                        )
            assert await nodes[0].execute("SELECT i FROM t") == [(1,)]
        finally:
            await show_identity(nodes[0])


async def test_an_on_connect_that_catches_an_error_goes_on(server: Node) -> None:
    caught: set[tuple[str | None, ...]] = set()

    async def setup(connection: pgha.SetupConnection) -> None:
        states: list[str | None] = []
        for bad in ("SELECT 1/0", "SELECT 1; SELECT x; SELECT 2", "no sql"):
            try:
                await connection.execute(bad)
            except psycopg.Error as error:
                states.append(error.sqlstate)
        caught.add(tuple(states))
        assert await connection.execute("SET work_mem = '5MB'; SELECT 7") == [("7",)]

    async with cluster_of(server, on_connect=setup) as cluster:
        with within():
            assert await cluster.fetch_value("SHOW work_mem") == "5MB"
            (row,) = await cluster.execute("SHOW work_mem")
            assert row == ("5MB",)
    assert caught == {("22012", "42703", "42601")}


async def test_the_reason_names_on_connect_only_if_there_is_one(server: Node) -> None:
    reason = await reason_of_failure(server, on_connect="BEGIN")
    assert "on_connect left a transaction open" in reason
    reason = await reason_of_failure(server, on_connect="SELECT 1/0")
    assert "on_connect failed: division by zero" in reason

    async def copies(connection: pgha.SetupConnection) -> None:
        with pytest.raises(psycopg.NotSupportedError):
            await connection.execute("COPY (SELECT 1) TO STDOUT")

    assert "the connection ended during on_connect" in await reason_of_failure(server, on_connect=copies)


async def test_a_call_that_on_connect_cancels_ends_the_connection(server: Node) -> None:
    given_up = 0

    async def setup(connection: pgha.SetupConnection) -> None:
        nonlocal given_up
        if not given_up:
            given_up += 1
            with anyio.move_on_after(0.05):
                await connection.execute("SELECT pg_sleep(600)")
            with pytest.raises(psycopg.OperationalError, match="closed"):
                await connection.execute("SELECT 1")

    async with cluster_of(server, on_connect=setup, min_ready=0) as cluster:
        with within():
            await cluster.fetch("SELECT 1")
            await server.execute("SELECT pg_terminate_backend(%s)", [await started(server, "pg_sleep(600)")])
    assert given_up == 1


@pytest.mark.parametrize("level", ["error", "debug5"])
async def test_on_connect_cannot_suppress_the_warning_of_a_commit_that_is_not_replicated(
    server: Node, level: str
) -> None:
    async with cluster_of(server, on_connect=f"SET client_min_messages = {level}") as cluster:
        (row,) = await cluster.execute("SHOW client_min_messages")
        assert row == ("warning",)


# Notifications

NOTIFY = "SELECT pg_notify('x', 'payload')"
LISTEN = "DO $$BEGIN EXECUTE 'LISTEN x'; END$$"


def lanes(cluster: pgha.Cluster, server: Node) -> list[Lane]:
    return [lane for one in cluster._nodes[server.name].sets.values() for lane in one.lanes]


def link_of(lane: Lane) -> Link:
    assert isinstance(lane.link, Link)
    return lane.link


@pytest.mark.parametrize("write", [False, True])
async def test_notifications_are_dropped_and_told_once(
    server: Node, caplog: pytest.LogCaptureFixture, write: bool
) -> None:
    """libpq keeps each notification until somebody takes it."""
    with caplog.at_level(logging.WARNING, "pgha.node"):
        async with cluster_of(server, on_connect="LISTEN x") as cluster:
            call = cluster.execute if write else cluster.fetch
            before: list[Lane] = []
            for _ in range(20):
                # A session gets its own notification in front of the answer's end.
                await call(NOTIFY)
                before = before or lanes(cluster, server)
            assert all(link_of(lane).pgconn.notifies() is None for lane in before)
            assert [lane.broken for lane in before] == [None] * len(before)
    told = [record.getMessage() for record in caplog.records if "LISTEN" in record.getMessage()]
    assert told == [f"{server.name}: on_connect ran LISTEN: pgha delivers no notifications, and drops them"]


async def test_notifications_are_dropped_by_a_connection_that_does_nothing(server: Node) -> None:
    async with cluster_of(server, on_connect="LISTEN x") as cluster:
        await cluster.execute("SELECT 1")
        await eventually(lambda: len(lanes(cluster, server)) == 3)
        to_tell = lanes(cluster, server)
        for lane in list(to_tell):
            link = link_of(lane)
            drop = link._drop_notifications

            def counted(lane: Lane = lane, drop: Any = drop) -> bool:
                to_tell.remove(lane)
                return bool(drop())

            link._drop_notifications = counted  # type: ignore[method-assign]
        await server.execute(NOTIFY)
        await eventually(lambda: not to_tell)


async def test_a_connection_on_which_a_statement_listens_is_given_up(server: Node) -> None:
    async with cluster_of(server) as cluster:
        await cluster.execute(LISTEN)
        (listening,) = [lane for lane in lanes(cluster, server) if lane.kind == "write"]
        assert listening.usable, "nothing shows it yet"
        await server.execute(NOTIFY)
        await eventually(lambda: listening.broken == "a statement ran LISTEN")
        await cluster.execute(NOTIFY)
        assert await cluster.fetch_value("SELECT 1") == 1


async def test_a_notification_in_front_of_an_answer_ends_the_connection_behind_it(server: Node) -> None:
    async with cluster_of(server) as cluster:
        await cluster.execute(LISTEN)
        (listening,) = [lane for lane in lanes(cluster, server) if lane.kind == "write"]
        (row,) = await cluster.execute("SELECT 7 FROM pg_notify('x', '')")
        assert row == (7,)
        await eventually(lambda: listening.broken == "a statement ran LISTEN")
