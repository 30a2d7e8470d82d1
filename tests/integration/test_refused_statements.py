"""Statements that a lane rejects or must accept; no session state reaches another caller."""

from __future__ import annotations

import time
from typing import Any

import anyio
import psycopg
import pytest
from support.common import PATIENCE, cluster_of, unique

import pgha
from pgha._options import Tuning
from pgha.chaos import LocalNode

pytestmark = pytest.mark.anyio

REFUSED = [
    "BEGIN",
    "begin",
    "; /*x*/ BEGIN",
    " \n\t-- a comment\n/* /* nested */ */ BEGIN ISOLATION LEVEL SERIALIZABLE",
    "START TRANSACTION",
    "COMMIT",
    "END",
    "ROLLBACK",
    "ABORT",
    "PREPARE TRANSACTION 'x'",
    "SAVEPOINT a",
    "RELEASE a",
    "ROLLBACK TO a",
    "SET search_path = nowhere",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "SET ROLE nobody",
    "SET TIME ZONE 'UTC'",
    "RESET ALL",
    "DISCARD ALL",
    "LISTEN a",
    "UNLISTEN *",
    "PREPARE a AS SELECT 1",
    "EXECUTE a",
    "DEALLOCATE ALL",
    "COPY pg_class TO STDOUT",
    "COPY x FROM STDIN",
    "LOAD 'auto_explain'",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "CREATE TEMPORARY TABLE kept (id int)",
    "SELECT 1 INTO TEMP kept",
]


@pytest.mark.parametrize("query", REFUSED)
async def test_refused_before_sending(server: LocalNode, query: str) -> None:
    async with cluster_of(server) as cluster:
        for call in (cluster.fetch, cluster.execute):
            with pytest.raises(pgha.SessionRequired) as caught:
                await call(query)
            assert pgha.error_info(caught.value) == pgha.ErrorInfo(None, None, 0, "not applied")
            assert len(str(caught.value)) > 40, "it says what to do instead"
        with pytest.raises(pgha.SessionRequired):
            cluster.submit(query)
        assert cluster.statistics().operations == 0
        assert await cluster.fetch_value("SELECT 1") == 1


@pytest.mark.parametrize(
    "query", ["BEGIN", "COMMIT", "SET work_mem = '1MB'", "LISTEN a", "COPY x TO STDOUT", "VACUUM"]
)
async def test_refused_in_a_batch(server: LocalNode, query: str) -> None:
    async with cluster_of(server) as cluster:
        with pytest.raises(pgha.SessionRequired, match="statement 1"):
            await cluster.execute_batch(["SELECT 1", query])
        assert cluster.statistics().operations == 0


async def test_two_statements_in_one_string(server: LocalNode) -> None:
    table = unique("t")
    async with cluster_of(server) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int)")
        for query in (
            f"INSERT INTO {table} VALUES (1); INSERT INTO {table} VALUES (2)",
            f"SELECT 1; BEGIN; INSERT INTO {table} VALUES (1); COMMIT",
            "SELECT 1; COPY pg_class TO STDOUT",
        ):
            for call in (cluster.fetch, cluster.execute):
                with pytest.raises(psycopg.errors.SyntaxError) as caught:
                    await call(query)
                assert caught.value.sqlstate == "42601"
                assert "execute_batch" in "".join(caught.value.__notes__)
        assert await cluster.fetch_value(f"SELECT count(*) FROM {table}") == 0
        assert await cluster.fetch_value("SELECT 1;") == 1
        assert cluster.statistics().connections_lost == 0


async def test_what_must_pass_alone(server: LocalNode) -> None:
    name = unique("x")
    async with cluster_of(server) as cluster:
        await cluster.execute(f"CREATE TABLE {name} (id int)")
        neighbours = [cluster.submit("SELECT %s::int", [i]) for i in range(20)]
        for query in (
            f"VACUUM {name}",
            f"VACUUM (ANALYZE) {name}",
            f"ANALYZE {name}",
            f"CREATE DATABASE {name}",
            f"ALTER DATABASE {name} SET work_mem = '8MB'",
            f"DROP DATABASE {name}",
            f"CREATE INDEX CONCURRENTLY {name}_i ON {name} (id)",
            f"REINDEX INDEX {name}_i",
            f"REINDEX TABLE CONCURRENTLY {name}",
            f"DROP INDEX CONCURRENTLY {name}_i",
            "ALTER SYSTEM RESET work_mem",
            "CHECKPOINT",
            f"LOCK TABLE {name}",
            f"TRUNCATE {name}",
            f"COMMENT ON TABLE {name} IS 'a; BEGIN'",
            f"EXPLAIN ANALYZE INSERT INTO {name} VALUES (1)",
            f"CREATE TEMP TABLE {name}_t (id int) ON COMMIT DROP",
            "NOTIFY somebody, 'x'",
            "SET LOCAL work_mem = '8MB'",
            "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "SET CONSTRAINTS ALL IMMEDIATE",
            "SHOW work_mem",
            f"TABLE {name}",
            "VALUES (1), (2)",
            "(SELECT 1)",
            "/* BEGIN */ SELECT 'COMMIT'",
            "DECLARE c CURSOR FOR SELECT 1",
            f"MERGE INTO {name} USING (VALUES (2)) AS v (id) ON {name}.id = v.id"
            " WHEN NOT MATCHED THEN INSERT VALUES (2)",
        ):
            with anyio.fail_after(PATIENCE):
                await cluster.execute(query)
            neighbours += [cluster.submit("SELECT %s::int", [len(neighbours)])]
        assert [(await one).value() for one in neighbours] == list(range(len(neighbours)))
        assert (await server.execute("SELECT count(*) FROM pg_prepared_xacts"))[0][0] == 0


async def test_procedures_that_commit(server: LocalNode) -> None:
    name = unique("p")
    async with cluster_of(server) as cluster:
        await cluster.execute(f"CREATE TABLE {name}_t (id int)")
        await cluster.execute(
            f"CREATE PROCEDURE {name}(n int) LANGUAGE plpgsql AS $$ BEGIN"
            f" INSERT INTO {name}_t VALUES (n); COMMIT; INSERT INTO {name}_t VALUES (n + 1); END $$"
        )
        neighbours = [cluster.submit("SELECT %s::int", [i]) for i in range(50)]
        await cluster.execute(f"CALL {name}(%s::int)", [1])
        await cluster.execute(
            f"DO $$ BEGIN INSERT INTO {name}_t VALUES (3); COMMIT; INSERT INTO {name}_t VALUES (4); END $$"
        )
        rows = await cluster.fetch(f"SELECT id FROM {name}_t ORDER BY 1")
        assert [row[0] for row in rows] == [1, 2, 3, 4]
        assert [(await one).value() for one in neighbours] == list(range(50))
        # A failure after the statement's own COMMIT proves nothing.
        with pytest.raises(psycopg.Error) as caught:
            await cluster.execute(f"DO $$ BEGIN INSERT INTO {name}_t VALUES (5); COMMIT; PERFORM 1/0; END $$")
        assert pgha.error_info(caught.value).outcome == "in doubt"
        # In a batch, the frame keeps the procedure from committing.
        with pytest.raises(psycopg.errors.InvalidTransactionTermination):
            await cluster.execute_batch([f"CALL {name}(7)", "SELECT 1"])
        assert await cluster.fetch_value(f"SELECT count(*) FROM {name}_t WHERE id >= 7") == 0
        results = await cluster.execute_batch(
            [
                f"DO $$ BEGIN INSERT INTO {name}_t VALUES (9); END $$",
                f"SELECT count(*) FROM {name}_t WHERE id = 9",
            ]
        )
        assert results[1].value() == 1


async def test_what_must_pass_in_a_batch(server: LocalNode) -> None:
    table = unique("t")
    async with cluster_of(server) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int)")
        await cluster.execute(f"INSERT INTO {table} SELECT generate_series(1, 10)")
        for batch, expected in (
            ([f"LOCK TABLE {table} IN EXCLUSIVE MODE", f"SELECT count(*) FROM {table}"], 10),
            (
                [
                    f"DECLARE c CURSOR FOR SELECT id FROM {table} ORDER BY 1",
                    "FETCH 2 FROM c",
                    "FETCH 1 FROM c",
                ],
                3,
            ),
            (["SET LOCAL TimeZone = 'Asia/Tokyo'", "SHOW TimeZone"], "Asia/Tokyo"),
            (["SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "SHOW transaction_isolation"], "serializable"),
            (["SAVEPOINT a", f"DELETE FROM {table}", "ROLLBACK TO a", f"SELECT count(*) FROM {table}"], 10),
            (["SAVEPOINT a", "RELEASE a", "SELECT 5"], 5),
            (["SET TRANSACTION READ ONLY", "SELECT 6"], 6),
        ):
            for _ in range(2):
                results = await cluster.execute_batch(batch)
                assert len(results) == len(batch)
                assert results[-1].value() == expected
        assert await cluster.fetch_value("SHOW TimeZone") != "Asia/Tokyo"
        assert (await cluster.execute("SHOW transaction_read_only")).value() == "off"
        assert cluster.statistics().connections_lost == 0


async def test_a_framed_batch_that_fails_leaves_the_lane_usable(server: LocalNode) -> None:
    async with cluster_of(server, read_connections=1) as cluster:
        for _ in range(10):
            with pytest.raises(psycopg.errors.DivisionByZero) as caught:
                await cluster.execute_batch(["SAVEPOINT a", "SELECT 1/0", "SELECT 2"])
            assert pgha.error_info(caught.value).statement == 1
            with pytest.raises(psycopg.errors.InvalidSavepointSpecification):
                await cluster.execute_batch(["SAVEPOINT a", "ROLLBACK TO b"])
            assert (await cluster.execute("SELECT 1")).value() == 1
            assert (await cluster.execute_batch(["SAVEPOINT a", "SELECT 3"]))[1].value() == 3
        assert cluster.statistics().connections_lost == 0


async def test_block_errors_do_not_leak(server: LocalNode) -> None:
    """25P01 and 25001 affect one caller only; the next caller finds the lane in its proper state."""
    table = unique("t")
    await server.execute(f"CREATE TABLE {table} (id int)")
    async with cluster_of(server, read_connections=1) as cluster:
        for _ in range(5):
            with pytest.raises(psycopg.Error) as caught:
                await cluster.execute_batch(["SELECT 1", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"])
            assert caught.value.sqlstate == "25001"
            assert (await cluster.execute("SELECT 1")).value() == 1
            await cluster.execute(f"VACUUM {table}")
            await cluster.execute_batch(["SAVEPOINT a"])
            await cluster.execute(f"VACUUM {table}")
        assert (await server.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        ))[0][0] == 0  # fmt: skip


CHANGES = [
    ("SELECT set_config('TimeZone', 'Asia/Tokyo', false)", "SHOW TimeZone"),
    ("SELECT set_config('search_path', 'nowhere', false)", "SHOW search_path"),
    ("SELECT set_config('DateStyle', 'German', false)", "SHOW DateStyle"),
]


@pytest.mark.parametrize(("change", "show"), CHANGES)
async def test_a_session_changed_unseen_reaches_nobody(server: LocalNode, change: str, show: str) -> None:
    """The server reports these settings, so the lane is given up before another caller gets it."""
    async with cluster_of(server, read_connections=1) as cluster:
        before = (await cluster.execute(show)).value()
        assert await cluster.fetch_value(show) == before
        for call in (cluster.fetch, cluster.execute):
            for _ in range(5):
                await call(change)
                assert (await call(show)).value() == before


async def test_reads_are_read_only(server: LocalNode) -> None:
    table = unique("t")
    async with cluster_of(server) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int)")
        await cluster.execute(f"CREATE SEQUENCE {table}_s")
        await cluster.execute(
            f"CREATE FUNCTION {table}_f() RETURNS int LANGUAGE sql AS"
            f" 'INSERT INTO {table} VALUES (1) RETURNING id'"
        )
        for query in (
            f"INSERT INTO {table} VALUES (1)",
            f"WITH w AS (INSERT INTO {table} VALUES (1) RETURNING id) SELECT * FROM w",
            f"SELECT nextval('{table}_s')",
            f"SELECT {table}_f()",
            f"CREATE TABLE {table}_2 (id int)",
            f"SELECT * FROM {table} FOR UPDATE",
        ):
            for route in (pgha.nearest(), pgha.fastest(), pgha.pin(server.name)):
                with (
                    pytest.raises(psycopg.errors.ReadOnlySqlTransaction) as caught,
                    anyio.fail_after(PATIENCE),
                ):
                    await cluster.fetch(query, route=route)
                assert any("execute" in one for one in caught.value.__notes__)
                assert pgha.error_info(caught.value).outcome == "not applied"
        assert await cluster.fetch_value(f"SELECT count(*) FROM {table}") == 0
        assert (await cluster.execute(f"SELECT {table}_f()")).value() == 1


SELF_COMMITTING = [
    "CALL {t}_p()",
    "DO $$ BEGIN COMMIT; SET TRANSACTION READ WRITE; INSERT INTO {t} VALUES (1); END $$",
    "COMMIT PREPARED '{t}'",
    "ROLLBACK PREPARED '{t}'",
    "VACUUM {t}",
    "ANALYZE",
    "ANALYZE {t}",
    "REINDEX TABLE {t}",
    "CLUSTER",
    "ALTER SYSTEM SET pgha.test = 1",
    "CREATE INDEX CONCURRENTLY ON {t} (id)",
]


@pytest.mark.parametrize("text", SELF_COMMITTING)
async def test_what_commits_by_itself_is_no_read(server: LocalNode, text: str) -> None:
    """Behind its own commit, such a statement may write, and a read is repeated on other nodes."""
    table = unique("t")
    await server.execute(f"CREATE TABLE {table} (id int)")
    async with cluster_of(server) as cluster:
        query = text.format(t=table)
        calls: list[Any] = [
            lambda: cluster.fetch(query),
            lambda: cluster.fetch_value(query, route=pgha.fastest()),
            lambda: cluster.submit(query, read=True),
        ]
        for call in calls:
            with pytest.raises(psycopg.NotSupportedError, match=r"cannot be a read.*use execute\(\)"):
                await call()
        assert await cluster.fetch_value(f"SELECT count(*) FROM {table}") == 0


WRITABLE = "set_config('default_transaction_read_only', 'off', false)"


@pytest.mark.parametrize("hidden", [False, True])
async def test_no_write_passes_behind_a_read_that_ends_read_only_mode(
    server: LocalNode, hidden: bool
) -> None:
    """Pipelined behind such a read, a write never counts as a read: on another connection, it is rejected.

    If the text shows the setting, nothing is pipelined behind it. If a function hides the setting, the
    answers behind it are not taken.
    """
    table = unique("t")
    await server.execute(f"CREATE TABLE {table} (id int)")
    await server.execute(
        f"CREATE FUNCTION {table}_f() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN {WRITABLE}; END $$"
    )
    read = f"SELECT {table}_f()" if hidden else f"SELECT {WRITABLE}"
    write = f"INSERT INTO {table} VALUES (2) RETURNING id"
    async with pgha.open_cluster(server.dsn, read_connections=1, _tuning=Tuning(max_lanes=1)) as cluster:
        for _ in range(3):
            await cluster.fetch("SELECT 1")
            # All three are pipelined behind the sleep, if they can be.
            first = cluster.submit("SELECT pg_sleep(0.02)", read=True)
            second, third = cluster.submit(read, read=True), cluster.submit(write, read=True)
            with anyio.fail_after(PATIENCE):
                await first
                assert (await second).value() == "off"
                with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                    await third
                assert await cluster.fetch_value("SHOW default_transaction_read_only") == "on"
    written = (await server.execute(f"SELECT count(*) FROM {table}"))[0][0]
    assert written == 0 or hidden, "the server cannot be kept from it if the setting is not seen in time"


async def test_nothing_is_pipelined_behind_a_setting_for_the_session(server: LocalNode) -> None:
    """The connection is closed before another operation meets the setting, in reads, writes and batches."""
    change = "SELECT set_config('TimeZone', 'Asia/Tokyo', false)"
    update = "UPDATE pg_settings SET setting = 'Asia/Tokyo' WHERE name = 'TimeZone'"
    async with pgha.open_cluster(server.dsn, read_connections=1, _tuning=Tuning(max_lanes=1)) as cluster:
        before = await cluster.fetch_value("SHOW TimeZone")
        calls: list[Any] = [
            lambda: cluster.fetch(change), lambda: cluster.execute(change),
            lambda: cluster.execute_batch([change, "SELECT 1"]), lambda: cluster.execute(update),
        ]  # fmt: skip
        found: list[str] = []

        async def ask(read: bool) -> None:
            found.append((await cluster.submit("SHOW TimeZone", read=read)).value())

        for call in calls:
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(call)
                    tasks.start_soon(ask, True)
                    tasks.start_soon(ask, False)
        assert found == [before] * 40


async def test_analyze(server: LocalNode) -> None:
    """ANALYZE of several tables works alone, with a limit of its own, and in a batch."""
    table = unique("t")
    await server.execute(f"CREATE TABLE {table} AS SELECT 1 AS id; CREATE TABLE {table}_2 AS SELECT 1 AS id")
    query = f"ANALYZE {table}, {table}_2"
    seen = f"SELECT count(*) FROM pg_stats WHERE tablename LIKE '{table}%'"
    async with cluster_of(server) as cluster:
        with pytest.raises(psycopg.errors.UndefinedTable):
            await cluster.execute_batch([query, "SELECT * FROM no_such_table"])
        assert await cluster.fetch_value(seen) == 0
        with pytest.raises(psycopg.errors.UndefinedTable):
            await cluster.execute(f"{query}, no_such_table", statement_timeout=60)
        assert await cluster.fetch_value(seen) == 0
        for call in (
            cluster.execute(query), cluster.execute(query, statement_timeout=60),
            cluster.execute_batch([query, "SELECT 1"]),
        ):  # fmt: skip
            await call
            assert await cluster.fetch_value(seen) == 2


@pytest.mark.parametrize("read", [True, False])
async def test_statement_timeout_of_an_operation(server: LocalNode, read: bool) -> None:
    async with cluster_of(server, read_connections=1) as cluster:
        call: Any = cluster.fetch if read else cluster.execute
        for _ in range(5):
            begun = time.monotonic()
            with pytest.raises(psycopg.errors.QueryCanceled) as caught:
                await call("SELECT pg_sleep(10)", statement_timeout=0.1)
            assert 0.09 < time.monotonic() - begun < 5
            assert caught.value.sqlstate == "57014"
            assert pgha.error_info(caught.value) == pgha.ErrorInfo(server.name, 0, 1, "not applied")
            assert (await call("SHOW statement_timeout")).value() == "0"
            assert len(await call("SELECT pg_sleep(0.15)")) == 1
        assert (await call("SHOW statement_timeout", statement_timeout=5)).value() == "5s"
        assert cluster.statistics().cancels_sent == 0


async def test_statement_timeout_of_a_batch(server: LocalNode) -> None:
    async with cluster_of(server) as cluster:
        for batch in (["SELECT 1", "SELECT pg_sleep(10)"], ["SAVEPOINT a", "SELECT pg_sleep(10)"]):
            begun = time.monotonic()
            with pytest.raises(psycopg.errors.QueryCanceled) as caught:
                await cluster.execute_batch(batch, statement_timeout=0.1)
            assert time.monotonic() - begun < 5
            assert pgha.error_info(caught.value).statement == 1
        assert (await cluster.execute("SHOW statement_timeout")).value() == "0"


async def test_statement_timeout_covers_deferred_triggers(server: LocalNode) -> None:
    table = unique("t")
    await server.execute(
        f"CREATE TABLE {table} (id int);"
        f" CREATE FUNCTION {table}_f() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN PERFORM pg_sleep(10); RETURN NULL; END$$;"
        f" CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED"
        f" FOR EACH ROW EXECUTE FUNCTION {table}_f()"
    )
    async with cluster_of(server) as cluster:
        with pytest.raises(psycopg.errors.QueryCanceled), anyio.fail_after(9):
            await cluster.execute(f"INSERT INTO {table} VALUES (1)", statement_timeout=0.1)
        assert await cluster.fetch_value(f"SELECT count(*) FROM {table}") == 0


async def test_statement_timeout_of_the_cluster(server: LocalNode) -> None:
    async with cluster_of(server, statement_timeout=0.1) as cluster:
        for call in (cluster.fetch, cluster.execute):
            with pytest.raises(psycopg.errors.QueryCanceled):
                await call("SELECT pg_sleep(10)")
            assert (await call("SHOW statement_timeout")).value() == "100ms"
        with pytest.raises(psycopg.errors.QueryCanceled):
            await cluster.execute("DO $$BEGIN PERFORM pg_sleep(10); END$$")


async def test_statement_timeout_where_nothing_may_precede(server: LocalNode) -> None:
    async with cluster_of(server) as cluster:
        with pytest.raises(psycopg.NotSupportedError, match="timeout"):
            await cluster.execute("VACUUM", statement_timeout=1)
        with pytest.raises(pgha.ConfigError):
            await cluster.fetch("SELECT 1", statement_timeout=0)
