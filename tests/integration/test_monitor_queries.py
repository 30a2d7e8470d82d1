"""The monitor's queries on real servers: what a role may read, whatever the search_path."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from support.common import both_versions, eventually, loop_aside, nothing_left, unique
from support.servers import standalone

import pgha
from pgha._core.server_status import ServerStatus, server_status
from pgha._node.queries import LEDGER, STATUS, activity, columns, limited
from pgha.chaos import Node, replicas

pytestmark = pytest.mark.anyio

CONTROL = ("pg_control_system()", "pg_control_checkpoint()")
POSITIONS = ("pg_current_wal_insert_lsn()", "pg_walfile_name(pg_lsn)")


def status_of(dsn: str, query: bytes = STATUS[0]) -> ServerStatus:
    """Run one of the status queries, and read the answer as the monitor does."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return server_status(columns(connection.execute(query).pgresult))


@loop_aside
@both_versions
async def test_a_primary_and_its_standby(version: int) -> None:
    async with replicas(version=version) as nodes:
        primary, standby = nodes.primary, nodes.standbys[0]
        await primary.execute("CREATE TABLE t (id int)")
        await nodes.wait_replicated()
        second, first = status_of(standby.dsn), status_of(primary.dsn)
        assert (first.in_recovery, second.in_recovery) == (False, True)
        assert first.system == second.system == primary.system_identifier
        assert (first.timeline, second.timeline) == (1, 1)
        assert first.position and first.durable and second.position and second.durable
        assert second.position <= second.durable <= first.position
        assert first.replay_age is None and second.replay_age is not None and second.replay_age > 0
        assert first.clock and second.clock
        await nodes.promote(standby)
        promoted = status_of(standby.dsn)
        assert (promoted.in_recovery, promoted.timeline) == (False, 2)


@loop_aside
@both_versions
async def test_what_is_asked_instead_tells_less_and_nothing_else(version: int) -> None:
    async with replicas(version=version) as nodes:
        for node in nodes:
            whole = status_of(node.dsn)
            for query in STATUS:
                status = status_of(node.dsn, query)
                assert (status.role, status.read_only) == (whole.role, False)
                assert status.clock
                assert status.system in (None, whole.system)
                assert status.timeline in (None, whole.timeline)


# Rights


@asynccontextmanager
async def without_rights(node: Node, functions: tuple[str, ...]) -> AsyncGenerator[str]:
    """Yield the conninfo of a role that may not call these functions."""
    role = unique("poor")
    await node.execute(f"CREATE ROLE {role} LOGIN")
    await node.execute(f"CREATE TABLE t (id int); GRANT ALL ON t TO {role}")
    for function in functions:
        await node.execute(f"REVOKE EXECUTE ON FUNCTION pg_catalog.{function} FROM public")
    try:
        yield make_conninfo(node.dsn, user=role)
    finally:
        for function in functions:
            await node.execute(f"GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO public")


@both_versions
@pytest.mark.parametrize(
    ("forbidden", "keyed", "timeline"),
    [
        ((), True, True),
        (CONTROL[1:], True, True),
        (CONTROL, False, True),
        (POSITIONS, True, False),
        (CONTROL + POSITIONS, False, False),
    ],
    ids=["nothing", "checkpoint", "control data", "positions", "both"],
)
async def test_a_role_without_rights(
    version: int, forbidden: tuple[str, ...], keyed: bool, timeline: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The node is up and takes writes, and the log warns once per connection, not at every ping."""
    async with standalone(version=version) as nodes, nothing_left(*nodes) as application:
        async with (
            without_rights(nodes[0], forbidden) as dsn,
            pgha.open_cluster(
                pgha.Node(dsn, "n1"), ping_interval=0.01, application_name=application
            ) as cluster,
        ):
            await cluster.execute("INSERT INTO t VALUES (1)")
            for _ in range(3):
                before = cluster.nodes["n1"].clock_skew
                await eventually(lambda: cluster.nodes["n1"].clock_skew != before, what="a ping")  # noqa: B023
            status = cluster.nodes["n1"]
            assert (status.state, status.role, status.writable) == ("up", "primary", True)
            assert status.timeline == (1 if timeline else None)
            system = cluster._nodes["n1"].server.system
            assert system == (nodes[0].system_identifier if keyed else None)
        warnings = [one for one in caplog.records if "whole status" in one.getMessage()]
        assert len(warnings) == bool(forbidden)


# Hostile search paths

_HOSTILE = """
CREATE SCHEMA hostile;
CREATE FUNCTION hostile.strike() RETURNS boolean LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'called'; END $$;
CREATE FUNCTION hostile.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT hostile.strike()';
CREATE FUNCTION hostile.current_setting(text) RETURNS text LANGUAGE sql AS 'SELECT hostile.strike()::text';
CREATE FUNCTION hostile.clock_timestamp() RETURNS timestamptz LANGUAGE sql
    AS 'SELECT now() WHERE hostile.strike()';
CREATE FUNCTION hostile.date_part(text, timestamptz) RETURNS float8 LANGUAGE sql
    AS 'SELECT 0::float8 WHERE hostile.strike()';
CREATE FUNCTION hostile.minus(timestamptz, timestamptz) RETURNS interval LANGUAGE sql
    AS 'SELECT NULL::interval WHERE hostile.strike()';
CREATE OPERATOR hostile.- (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = hostile.minus);
CREATE FUNCTION hostile.equal(oid, oid) RETURNS boolean LANGUAGE sql AS 'SELECT hostile.strike()';
CREATE OPERATOR hostile.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = hostile.equal);
CREATE FUNCTION hostile.equal(name, name) RETURNS boolean LANGUAGE sql AS 'SELECT hostile.strike()';
CREATE OPERATOR hostile.= (LEFTARG = name, RIGHTARG = name, FUNCTION = hostile.equal);
CREATE FUNCTION hostile.equal(name, text) RETURNS boolean LANGUAGE sql AS 'SELECT hostile.strike()';
CREATE OPERATOR hostile.= (LEFTARG = name, RIGHTARG = text, FUNCTION = hostile.equal);
CREATE FUNCTION hostile.unnest(int[]) RETURNS SETOF int LANGUAGE sql AS 'SELECT 1 WHERE hostile.strike()';
"""


@loop_aside
@both_versions
async def test_no_search_path_changes_what_the_monitor_asks(version: int) -> None:
    async with replicas(version=version) as nodes:
        await nodes.primary.execute(_HOSTILE)
        await nodes.wait_replicated()
        for node in nodes:
            dsn = make_conninfo(node.dsn, options="-c search_path=hostile,pg_catalog")
            with psycopg.connect(dsn, autocommit=True) as connection:
                with pytest.raises(psycopg.errors.RaiseException, match="called"):
                    connection.execute("SELECT now() - clock_timestamp()")
                pid = connection.info.backend_pid
                for query in (*STATUS, LEDGER, activity([pid])):
                    connection.execute(query)


# Queries that may be slow


@loop_aside
@both_versions
async def test_the_server_itself_ends_a_limited_query(version: int) -> None:
    async with standalone(version=version) as nodes:
        with psycopg.connect(nodes[0].dsn, autocommit=True) as connection:
            with pytest.raises(psycopg.errors.QueryCanceled):
                connection.execute(limited(b"SELECT pg_catalog.pg_sleep(60)", 0.05))
            assert connection.execute("SHOW statement_timeout").fetchone() == ("0",), "for this once"
            assert connection.execute(limited(b"SELECT 1", 60)).nextset()
            assert connection.execute("SHOW statement_timeout").fetchone() == ("0",)
