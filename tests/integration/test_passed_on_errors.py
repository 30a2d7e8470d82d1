"""Errors whose SQLSTATE belongs to another server: functions, dblink and postgres_fdw pass such codes on.

The error is the statement's own: it is raised as what it is, after one attempt, and nothing was applied.
"""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from support.common import cluster_of, eventually, within
from support.servers import standalone
from support.witness import terminate, witnessed

import pgha
from pgha._core.backoff import Budget, RetryBudget, RetryBudgets
from pgha.chaos import Node

pytestmark = pytest.mark.anyio

SCHEMA = """
    CREATE TABLE t (id int);
    CREATE FUNCTION raising(code text) RETURNS int LANGUAGE plpgsql AS $$
        BEGIN RAISE 'far away' USING ERRCODE = code; END $$;
    CREATE FUNCTION adding(code text) RETURNS int LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO t VALUES (1); RETURN raising(code); END $$;
    CREATE PROCEDURE half(code text) LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO t VALUES (1); COMMIT; PERFORM raising(code); END $$;
"""
CODES = ["08001", "08006", "08P01", "40003", "25006", "57P01", "57P02", "57P03", "57P05"]
every_code = pytest.mark.parametrize("state", CODES)


async def count(node: Node) -> int:
    return int((await node.execute("SELECT count(*) FROM t"))[0][0])


@every_code
async def test_the_error_is_raised_as_what_it_is(state: str) -> None:
    async with standalone() as nodes, cluster_of(*nodes) as cluster:
        node = nodes[0]
        await node.execute(SCHEMA)
        call: Any
        for call in (
            lambda: cluster.execute("SELECT adding(%s)", [state]),
            lambda: cluster.execute("SELECT adding(%s)", [state], idempotent=True),
            lambda: cluster.fetch("SELECT raising(%s)", [state]),
            lambda: cluster.execute_batch(["INSERT INTO t VALUES (1)", ("SELECT adding(%s)", [state])]),
            lambda: cluster.execute_batch(["SAVEPOINT a", ("SELECT adding(%s)", [state])]),
        ):
            with within(), pytest.raises(psycopg.Error, match="far away") as caught:
                await call()
            assert type(caught.value) is psycopg.errors.lookup(state)
            info = pgha.error_info(caught.value)
            assert (info.attempts, info.outcome) == (1, "not applied")
        assert await count(node) == 0
        assert cluster.statistics().retried == cluster.statistics().connections_lost == 0
        assert cluster.nodes[node.name].state == "up"
        assert (await cluster.execute("INSERT INTO t VALUES (2)")).rowcount == 1


@every_code
async def test_a_keyed_write_is_not_applied_either(state: str) -> None:
    async with standalone() as nodes, cluster_of(*nodes) as cluster:
        await nodes[0].execute(SCHEMA)
        await cluster.ledger.install()
        key = pgha.new_idempotency_key()
        with within(), pytest.raises(psycopg.Error, match="far away") as caught:
            await cluster.execute("SELECT adding(%s)", [state], idempotency_key=key)
        assert caught.value.sqlstate == state
        assert pgha.error_info(caught.value).outcome == "not applied"
        assert await count(nodes[0]) == 0


@every_code
async def test_a_call_that_may_have_committed_is_in_doubt(state: str) -> None:
    """The server's error is the cause: by itself it would invite the caller to do the work twice."""
    async with standalone() as nodes, cluster_of(*nodes) as cluster:
        await nodes[0].execute(SCHEMA)
        with within(), pytest.raises(pgha.CommitInDoubt) as caught:
            await cluster.execute("CALL half(%s)", [state])
        assert pgha.error_info(caught.value).outcome == "in doubt"
        cause = caught.value.__cause__
        assert isinstance(cause, psycopg.Error)
        assert cause.sqlstate == state
        assert await count(nodes[0]) == 1


@pytest.mark.parametrize("state", ["57P01", "57P02"])
async def test_a_warning_that_was_passed_on_ends_no_connection(state: str) -> None:
    """Only what the server says last, behind the last answer, is about the end of the connection."""
    async with standalone() as nodes, witnessed(nodes[0].dsn) as witness:
        link = witness.lane.link
        raising = f"DO $$ BEGIN RAISE WARNING 'far away' USING ERRCODE = '{state}'; END $$"
        with within():
            facts = await witness.told(witness.send(raising))
        assert facts.synced
        assert facts.error is None
        assert (link.closing_notice(), link.ended_by_order(), link.ended_by_crash()) == ("", False, False)
        await terminate(nodes[0], witness.pid)
        await eventually(lambda: bool(witness.lane.broken))
        assert link.ended_by_order()
        assert "57P01" in link.closing_notice()


# Budgets


async def test_hopeless_statements_leave_the_budget_for_failover(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes that always meet a full disk are retried until their budget is empty; reads stay protected."""
    for name, value in (("most", 12.0), ("per_second", 0.0), ("per_success", 0.0)):
        assert RetryBudget.__init__.__kwdefaults__ is not None
        monkeypatch.setitem(RetryBudget.__init__.__kwdefaults__, name, value)
    async with standalone() as nodes, cluster_of(*nodes) as cluster:
        node = nodes[0]
        await node.execute(SCHEMA)
        attempts = []
        for state in ("53100",) * 5 + ("40001",) * 5:
            with within(), pytest.raises(psycopg.Error, match="far away") as caught:
                await cluster.execute("SELECT raising(%s)", [state])
            attempts.append(pgha.error_info(caught.value).attempts)
        assert attempts == [5, 5, 5, 1, 1] * 2, "each budget has twelve retries"
        asleep = [cluster.submit("SELECT pg_sleep(0.5) /* asleep */", read=True) for _ in range(4)]
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%/* asleep */'"
        ended += " AND state = 'active' AND pid <> pg_backend_pid()"

        async def terminated() -> bool:
            return bool(await node.execute(ended))

        await eventually(terminated)
        with within():
            for operation in asleep:
                await operation
        assert any(len(operation.record.attempts) > 1 for operation in asleep)


@pytest.fixture
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RetryBudgets, "exhausted", lambda budgets, now: frozenset(Budget))


@pytest.mark.usefixtures("nothing_left")
async def test_a_stale_plan_needs_no_budget() -> None:
    async with (
        standalone() as nodes,
        cluster_of(*nodes, read_connections=1, prepare_threshold=0) as cluster,
    ):
        await nodes[0].execute("CREATE TABLE t (id int)")
        await nodes[0].execute("INSERT INTO t VALUES (1)")
        for _ in range(3):
            assert await cluster.fetch_value("SELECT * FROM t") == 1
        await nodes[0].execute("ALTER TABLE t ALTER id TYPE text")
        with within():
            result = await cluster.fetch("SELECT * FROM t")
        assert (result.value(), result.attempts) == ("1", 2)


REPLACED = {
    "a type": (
        "CREATE TYPE en AS ENUM ('a')",
        "DROP TYPE en; CREATE TYPE en AS ENUM ('a')",
        "SELECT 'a'::en::text",
    ),
    "a column": (
        "CREATE TABLE t (a text, b text); INSERT INTO t VALUES ('x', 'a');"
        " CREATE FUNCTION f() RETURNS SETOF t LANGUAGE sql AS 'SELECT * FROM t'",
        "ALTER TABLE t DROP b; ALTER TABLE t ADD b text DEFAULT 'a'",
        "SELECT b FROM f()",
    ),
}


@pytest.mark.parametrize("what", REPLACED)
async def test_a_statement_that_was_prepared_before_ddl_is_parsed_anew(what: str) -> None:
    before, ddl, query = REPLACED[what]
    async with (
        standalone() as nodes,
        cluster_of(*nodes, read_connections=1, prepare_threshold=0) as cluster,
    ):
        await nodes[0].execute(before)
        for _ in range(3):
            assert await cluster.fetch_value(query) == "a"
        await nodes[0].execute(ddl)
        with within():
            result = await cluster.fetch(query)
        assert (result.value(), result.attempts) == ("a", 2)
        assert (await cluster.fetch(query)).attempts == 1


@pytest.mark.usefixtures("nothing_left")
async def test_a_missing_ledger_needs_no_budget() -> None:
    """The key was pgha's own, and the ledger was removed since the last look at it."""
    async with standalone() as nodes, cluster_of(*nodes, ledger="auto") as cluster:
        await nodes[0].execute("CREATE TABLE t (id int)")
        await cluster.ledger.install()
        assert (await cluster.execute("INSERT INTO t VALUES (1)")).attempts == 1
        await nodes[0].execute("DROP SCHEMA pgha CASCADE")
        with within():
            assert (await cluster.execute("INSERT INTO t VALUES (2)")).attempts == 2
        assert await count(nodes[0]) == 2
