"""Keyed writes on real servers, PostgreSQL 16 and 18: applied once, whatever became of their answers."""

from __future__ import annotations

import pickle
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import anyio
import psycopg
import pytest
from _support import PATIENCE, eventually, nothing_left, started, within

import pgha
from pgha.chaos import Node, masters, proxied, replicas, standalone

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("version", [16, 18])]

TABLE = "CREATE TABLE t (id text)"
WRITE = "INSERT INTO t VALUES (%s)"
SLOW_COMMIT = """
    CREATE TABLE slow (id int, nap float);
    CREATE SEQUENCE tries;
    CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_sleep(NEW.nap) /* at the commit */; RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER nap AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION nap();
"""
NAPS_ONCE = "INSERT INTO slow SELECT 1, CASE WHEN nextval('tries') = 1 THEN 60 ELSE 0 END"


@asynccontextmanager
async def one_node(
    version: int, sql: str = TABLE, *, installed: bool = True, **options: Any
) -> AsyncGenerator[tuple[Node, pgha.Cluster]]:
    async with standalone(version=version) as nodes:
        node = nodes[0]
        await node.execute(sql)
        async with (
            nothing_left(node) as application,
            pgha.open_cluster(
                pgha.Node(node.dsn, node.name), application_name=application, **options
            ) as cluster,
        ):
            if installed:
                await cluster.ledger.install()
            yield node, cluster


async def ids(node: Node, table: str = "t") -> list[Any]:
    return sorted(row[0] for row in await node.execute(f"SELECT id FROM {table}"))


async def napping(node: Node) -> int:
    """Wait until a backend sleeps at its commit; its process id."""
    found: list[int] = []

    async def look() -> bool:
        rows = await node.execute(
            "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND state = 'active'"
            " AND pid <> pg_backend_pid()"
        )
        found[:] = [row[0] for row in rows]
        return bool(found)

    await eventually(look, what="a backend sleeps at its commit")
    return found[0]


# Nothing goes wrong


async def test_a_key_is_applied_once_and_then_replayed(version: int) -> None:
    async with one_node(version) as (node, cluster):
        key = pgha.new_key()
        first = await cluster.execute(WRITE + " RETURNING id", ["a"], key=key)
        assert (first.one(), first.replayed) == (("a",), False)
        again = await cluster.execute(WRITE + " RETURNING id", ["a"], key=key)
        assert again.replayed
        assert (again.command, again.columns) == ("", ())
        for ask in (len, list, bool, lambda one: one.rowcount, lambda one: one.one(), lambda one: one.json()):
            with pytest.raises(pgha.RowsLost, match="applied by an earlier attempt"):
                ask(again)
        assert "replayed" in repr(again)
        assert await ids(node) == ["a"]
        assert cluster.statistics().replayed == 1


async def test_many_at_once_through_prepared_statements(version: int) -> None:
    async with one_node(version) as (node, cluster):
        keys = [pgha.new_key() for _ in range(200)]
        async with cluster.group() as group:
            for turn in range(2):
                for number, key in enumerate(keys):
                    group.submit(WRITE, [f"{number:03}"], key=key)
                del turn
        assert await ids(node) == [f"{number:03}" for number in range(200)]
        assert cluster.statistics().replayed == 200


async def test_a_key_with_another_body(version: int) -> None:
    async with one_node(version) as (node, cluster):
        key = uuid4()
        await cluster.execute(WRITE, ["a"], key=key)
        for query, params in ((WRITE, ["b"]), ("INSERT INTO t VALUES ('a')", None)):
            with pytest.raises(pgha.KeyReused, match=str(key)) as caught:
                await cluster.execute(query, params, key=key)
            assert pgha.info(caught.value).outcome == "not applied"
        with pytest.raises(pgha.KeyReused):
            await cluster.execute_batch([(WRITE, ["a"])] * 2, key=key)
        assert await ids(node) == ["a"]


async def test_a_batch_and_its_results(version: int) -> None:
    async with one_node(version) as (node, cluster):
        key = pgha.new_key()
        batch: list[Any] = ["SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", (WRITE, ["a"]), (WRITE, ["b"])]
        first = await cluster.execute_batch(batch, key=key)
        assert [one.command for one in first] == ["SET", "INSERT 0 1", "INSERT 0 1"]
        again = await cluster.execute_batch(batch, key=key)
        assert [one.replayed for one in again] == [True, True, True]
        assert await ids(node) == ["a", "b"]


async def test_framed_and_what_commits_by_itself(version: int) -> None:
    async with one_node(version) as (node, cluster):
        keys = [pgha.new_key() for _ in range(4)]
        for _ in range(2):
            await cluster.execute_batch(["SAVEPOINT s", (WRITE, ["a"])], key=keys[0])
            await cluster.execute("DO $$ BEGIN INSERT INTO t VALUES ('b'); END $$", key=keys[1])
        assert await ids(node) == ["a", "b"]
        await node.execute(
            "CREATE PROCEDURE p() LANGUAGE plpgsql AS $$ BEGIN INSERT INTO t VALUES ('c'); COMMIT; END $$"
        )
        with pytest.raises(psycopg.errors.InvalidTransactionTermination):
            await cluster.execute("CALL p()", key=keys[2])
        with pytest.raises(psycopg.NotSupportedError, match="VACUUM cannot have a key"):
            await cluster.execute("VACUUM t", key=keys[3])
        assert await ids(node) == ["a", "b"]


async def test_an_error_of_the_statements_leaves_the_key_unused(version: int) -> None:
    async with one_node(version) as (node, cluster):
        key = pgha.new_key()
        with pytest.raises(psycopg.errors.DivisionByZero) as caught:
            await cluster.execute("INSERT INTO t VALUES (1 / %s)", [0], key=key)
        assert pgha.info(caught.value) == pgha.Info(node.name, 0, 1, "not applied")
        assert not (await cluster.execute(WRITE, ["a"], key=key)).replayed
        assert await ids(node) == ["a"]


async def test_a_limit_of_its_own_goes_with_a_key(version: int) -> None:
    async with one_node(version) as (node, cluster):
        key = pgha.new_key()
        with pytest.raises(psycopg.errors.QueryCanceled):
            await cluster.execute("INSERT INTO t SELECT '' FROM pg_sleep(60)", key=key, statement_timeout=0.1)
        await cluster.execute(WRITE, ["a"], key=key, statement_timeout=5)
        assert await ids(node) == ["a"]


@pytest.mark.parametrize("key", ["0d9c6a3e-8a94-4c4f-9d1b-111111111111", 7, b"x" * 16])
async def test_a_key_that_is_no_uuid(version: int, key: Any) -> None:
    async with one_node(version) as (node, cluster):
        with pytest.raises(pgha.ConfigError, match=r"a key is a uuid\.UUID"):
            await cluster.execute(WRITE, ["a"], key=key)
        with pytest.raises(pgha.ConfigError, match="a key is for a write"):
            cluster.submit("SELECT 1", read=True, key=pgha.new_key())
        assert await ids(node) == []


async def test_without_a_ledger_and_without_rights(version: int) -> None:
    async with one_node(version, TABLE + "; CREATE ROLE poor LOGIN", installed=False) as (node, cluster):
        with pytest.raises(pgha.LedgerError, match="pgha ledger install") as caught:
            await cluster.execute(WRITE, ["a"], key=pgha.new_key())
        assert pgha.info(caught.value).outcome == "not applied"
        assert isinstance(caught.value.__cause__, psycopg.errors.UndefinedTable)
        await node.execute("GRANT INSERT ON t TO poor")
        poor_dsn = psycopg.conninfo.make_conninfo(node.dsn, user="poor")
        async with pgha.open_cluster(pgha.Node(poor_dsn, "n")) as poor:
            with pytest.raises(pgha.LedgerError, match="may not make the ledger"):
                await poor.ledger.install()
            await cluster.ledger.install()
            with pytest.raises(pgha.LedgerError, match="may not use the ledger"):
                await poor.execute(WRITE, ["a"], key=pgha.new_key())
            await cluster.ledger.install(grant_to=["poor"])
            await poor.execute(WRITE, ["a"], key=pgha.new_key())
        assert await ids(node) == ["a"]


async def test_a_ledger_of_another_layout(version: int) -> None:
    older = """CREATE SCHEMA pgha; CREATE TABLE pgha.ledger (system_identifier bigint, key uuid,
        fp bytea NOT NULL, at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (system_identifier, key))"""
    async with one_node(version, f"{TABLE}; {older}", installed=False) as (node, cluster):
        with pytest.raises(pgha.LedgerError, match="another layout"):
            await cluster.execute(WRITE, ["a"], key=pgha.new_key())
        with pytest.raises(pgha.LedgerError, match="another layout"):
            await cluster.ledger.install()
        assert "another layout" in (await cluster.ledger.status())[node.name].problem
        assert await ids(node) == []


# Keys of pgha's own


async def keys_of(node: Node) -> int:
    ((count,),) = await node.execute("SELECT count(*) FROM pgha.ledger")
    return int(count)


async def test_keys_by_themselves_where_there_is_a_ledger(version: int) -> None:
    async with one_node(version, installed=False, ledger="auto") as (node, cluster):
        await cluster.execute(WRITE, ["before"])
        await cluster.ledger.install()

        async def keyed() -> bool:
            await cluster.execute(WRITE, ["after"])
            return await keys_of(node) > 0

        await eventually(keyed)
        before = await keys_of(node)
        await cluster.execute_batch([(WRITE, ["a"]), (WRITE, ["b"])])
        assert await keys_of(node) == before + 1
        await cluster.execute("DO $$ BEGIN END $$")
        await cluster.execute("VACUUM t")
        assert await keys_of(node) == before + 1
        # It goes, and nobody tells this program.
        await node.execute("DROP TABLE pgha.ledger")
        assert not (await cluster.execute(WRITE, ["without"])).replayed
        assert (await ids(node)).count("without") == 1


# Answers that are lost


async def test_terminated_at_its_commit(version: int) -> None:
    """In doubt, and so run again: here it had not been applied."""
    async with one_node(version, SLOW_COMMIT) as (node, cluster):
        operation = cluster.submit(NAPS_ONCE, key=pgha.new_key())
        pid = await napping(node)
        await node.execute("SELECT pg_terminate_backend(%s)", [pid])
        with within():
            result = await operation
        assert (result.attempts, result.replayed) == (2, False)
        assert [one.outcome for one in operation.record.tries] == ["in doubt", "applied"]
        assert await ids(node, "slow") == [1]


async def test_a_lost_acknowledgement(version: int) -> None:
    """Applied, and the answer is lost: the second attempt meets the first one's row."""
    async with standalone(version=version) as nodes, proxied(nodes) as proxies:
        node, proxy = nodes[0], proxies[0]
        await node.execute(TABLE)
        async with pgha.open_cluster(pgha.Node(proxy.dsn, node.name)) as cluster:
            await cluster.ledger.install()
            await cluster.execute(WRITE, ["first"], key=pgha.new_key())
            proxy.drop("down")
            operation = cluster.submit(WRITE, ["lost"], key=pgha.new_key())

            async def there() -> bool:
                return "lost" in await ids(node)

            await eventually(there)
            proxy.reset()
            proxy.heal()
            with within():
                result = await operation
            assert result.replayed
            assert await ids(node) == ["first", "lost"]


async def test_a_retry_waits_for_a_zombie(version: int) -> None:
    """The first attempt is frozen in its transaction; the second waits for it on the index."""
    async with one_node(version, TABLE + "; CREATE TABLE gate (id int)") as (node, cluster):
        query = "WITH one AS (INSERT INTO t VALUES (%s)) SELECT pg_sleep(1) /* zombie */"
        operation = cluster.submit(query, ["a"], key=pgha.new_key())
        pid = await started(node, "/* zombie */")
        await node.freeze_backend(pid)
        lane = next(lane for lane in cluster._nodes[node.name].sets["write"].lanes if lane.link.pid == pid)
        lane.break_off("the test says so", lost=True)

        async def waits() -> bool:
            rows = await node.execute(
                "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ 'pgha.ledger'"
            )
            return bool(rows)

        await eventually(waits, what="the retry waits for the zombie")
        assert not operation.done
        await node.thaw_backend(pid)
        with within():
            assert (await operation).replayed
        assert await ids(node) == ["a"]


async def test_head_of_two_lost_connections_is_settled_not_sent_again(version: int) -> None:
    async with one_node(version, SLOW_COMMIT) as (node, cluster):
        key = pgha.new_key()
        operation = cluster.submit("INSERT INTO slow VALUES (1, 60)", key=key)
        for _ in range(2):
            pid = await napping(node)
            await node.kill_backend(pid)
            await node.wait_ready()
        with pytest.raises(psycopg.OperationalError, match="certainly not applied") as caught, within():
            await operation
        assert pgha.info(caught.value) == pgha.Info(node.name, None, 2, "not applied")
        assert await ids(node, "slow") == []
        with pytest.raises(pgha.KeyReused, match="settled as not applied"):
            await cluster.execute("INSERT INTO slow VALUES (1, 60)", key=key)


async def test_a_broken_off_wait_for_the_standby(version: int) -> None:
    """It is on the primary alone; it is acknowledged when the standby has it."""
    async with replicas(2, version=version, synchronous=1) as nodes:
        primary, standby = nodes.primary, nodes.standbys[0]
        await primary.execute(TABLE)
        named = [pgha.Node(node.dsn, node.name) for node in nodes]
        async with pgha.open_cluster(*named, min_ready=2) as cluster:
            await cluster.ledger.install()
            await standby.freeze()
            operation = cluster.submit(WRITE + " /* unreplicated */", ["a"], key=pgha.new_key())
            found: list[int] = []

            async def replicating(text: str = "/* unreplicated */") -> bool:
                rows = await primary.execute(
                    "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND strpos(query, %s) > 0",
                    [text],
                )
                found[:] = [row[0] for row in rows]
                return bool(found)

            await eventually(replicating)
            await primary.execute("SELECT pg_cancel_backend(%s)", [found[0]])
            await eventually(lambda: replicating("ON CONFLICT"), what="the ledger's answer waits, too")
            assert not operation.done
            await standby.thaw()
            with within():
                assert (await operation).replayed
            assert await ids(standby) == ["a"]


# Other nodes


async def test_masters_do_not_take_what_another_may_have_applied(version: int) -> None:
    """The node of the first attempt is waited for; a write that it never began goes elsewhere at once."""
    async with masters(2, version=version) as nodes:
        await nodes.create(SLOW_COMMIT + TABLE)
        named = [pgha.Node(node.dsn, node.name) for node in nodes]
        async with pgha.open_cluster(*named, min_ready=2) as cluster:
            await cluster.ledger.install()
            first = nodes[(await cluster.execute("SELECT 1")).node]
            other = next(node for node in nodes if node is not first)
            operation = cluster.submit("INSERT INTO slow VALUES (1, 5)", key=pgha.new_key())
            await napping(first)
            await first.kill()
            result = await cluster.execute(WRITE, ["b"], key=pgha.new_key())
            assert result.node == other.name
            assert not operation.done
            await first.start()
            with within(30):
                result = await operation
            assert result.node == first.name
            await nodes.wait_replicated()
            assert await ids(other, "slow") == await ids(first, "slow") == [1]


async def test_masters_and_a_deadline(version: int) -> None:
    """In doubt when the deadline comes first; settle() waits for the node, and the key is used up."""
    async with masters(2, version=version) as nodes:
        await nodes.create(SLOW_COMMIT)
        named = [pgha.Node(node.dsn, node.name) for node in nodes]
        async with pgha.open_cluster(*named, min_ready=2) as cluster:
            await cluster.ledger.install()
            first = nodes[(await cluster.execute("SELECT 1")).node]
            key = pgha.new_key()
            operation = cluster.submit("INSERT INTO slow VALUES (1, 5)", key=key, timeout=2)
            await napping(first)
            await first.kill()
            with pytest.raises(pgha.CommitInDoubt) as caught, within():
                await operation
            error = caught.value
            assert (error.key, error.node, error.attempts) == (key, first.name, 1)
            assert error.evidence is not None and error.evidence.handed == "whole"
            assert error.record is not None and error.record.tries[0].outcome == "in doubt"
            assert await error.settle(timeout=0.1) == "in doubt"
            async with cluster.events() as events:
                await first.start()
                with within(30):
                    assert await error.settle() == "not applied"
                settled = await _next_settled(events)
            assert (settled.key, settled.outcome) == (key, "not applied")
            assert await error.settle() == "not applied"
            with pytest.raises(pgha.KeyReused, match="used up"):
                await cluster.execute("INSERT INTO slow VALUES (1, 5)", key=key, route=pgha.pin(first.name))
            assert await ids(first, "slow") == []


async def _next_settled(events: Any) -> pgha.OperationSettled:
    with within():
        async for event in events:
            if isinstance(event, pgha.OperationSettled):
                return event
    raise AssertionError("the events ended")


async def test_a_promoted_standby_knows(version: int) -> None:
    """The primary dies with the answer; its row is on the synchronous standby."""
    async with replicas(2, version=version, synchronous=1) as nodes:
        primary, standby = nodes.primary, nodes.standbys[0]
        await primary.execute(TABLE)
        async with proxied([primary]) as proxies:
            proxy = proxies[0]
            named = [pgha.Node(proxy.dsn, primary.name), pgha.Node(standby.dsn, standby.name)]
            async with pgha.open_cluster(*named, min_ready=2) as cluster:
                await cluster.ledger.install()
                await cluster.execute(WRITE, ["first"], key=pgha.new_key())
                proxy.drop("down")
                operation = cluster.submit(WRITE, ["a"], key=pgha.new_key())

                async def there() -> bool:
                    return "a" in await ids(standby)

                await eventually(there)
                await primary.kill()
                await nodes.promote(standby)
                with within(30):
                    result = await operation
                assert (result.replayed, result.node) == (True, standby.name)
                assert await ids(standby) == ["a", "first"]


# Deadlines, zombies, cancelling


async def test_a_zombie_that_thaws_after_its_deadline_does_nothing(version: int) -> None:
    async with one_node(version, lanes=1) as (node, cluster):
        (pid,) = (await cluster.execute("SELECT pg_backend_pid()")).one()
        await node.freeze_backend(pid)
        keyed = cluster.submit(WRITE, ["keyed"], key=pgha.new_key(), timeout=0.3)
        with pytest.raises(pgha.CommitInDoubt) as caught, within():
            await keyed
        # Past the guard: the deadline and a second.
        await anyio.sleep(1.5)
        await node.thaw_backend(pid)
        with within():
            assert await caught.value.settle() == "not applied"
        assert await ids(node) == []


async def test_settle_decides_against_a_zombie(version: int) -> None:
    """Long before the guard's deadline: what settle() says stays true when the zombie thaws."""
    async with one_node(version, lanes=1) as (node, cluster):
        (pid,) = (await cluster.execute("SELECT pg_backend_pid()")).one()
        await node.freeze_backend(pid)
        with pytest.raises(pgha.CommitInDoubt) as caught, within():
            await cluster.execute(WRITE, ["a"], key=pgha.new_key(), timeout=0.2)
        with within():
            verdict = await caught.value.settle()
        await node.thaw_backend(pid)

        async def done() -> bool:
            rows = await node.execute("SELECT state FROM pg_stat_activity WHERE pid = %s", [pid])
            return rows in ([], [("idle",)])

        await eventually(done)
        assert verdict == "not applied"
        assert await ids(node) == []


async def test_settle_without_a_key_hears_a_late_answer(version: int) -> None:
    async with one_node(version, SLOW_COMMIT, installed=False) as (node, cluster):
        (pid,) = (await cluster.execute("SELECT pg_backend_pid()")).one()
        await node.freeze_backend(pid)
        with pytest.raises(pgha.CommitInDoubt) as caught, within():
            await cluster.execute("INSERT INTO slow VALUES (1, 0)", timeout=0.1)
        assert caught.value.key is None
        assert await caught.value.settle(timeout=0.05) == "in doubt"
        await node.thaw_backend(pid)
        with within():
            verdict = await caught.value.settle(timeout=PATIENCE)
        assert verdict in ("applied", "not applied", "in doubt")
        if verdict != "in doubt":
            assert (await ids(node, "slow") == [1]) == (verdict == "applied")


async def test_leaving_settle_changes_nothing(version: int) -> None:
    async with one_node(version, lanes=1) as (node, cluster):
        (pid,) = (await cluster.execute("SELECT pg_backend_pid()")).one()
        await node.freeze_backend(pid)
        with pytest.raises(pgha.CommitInDoubt) as caught, within():
            await cluster.execute(WRITE, ["a"], key=pgha.new_key(), timeout=0.2)
        await node.freeze()
        with anyio.move_on_after(0.1) as scope:
            await caught.value.settle()
        assert scope.cancelled_caught
        await node.thaw()
        await node.thaw_backend(pid)
        with within():
            assert await caught.value.settle() in ("applied", "not applied")


async def test_a_cancelled_write_is_told_of_later(version: int) -> None:
    """Its caller left, its connection broke: the event comes when the guard's deadline is over, and the key
    is still good where it was not applied."""
    async with one_node(version, lanes=1) as (node, cluster):
        (pid,) = (await cluster.execute("SELECT pg_backend_pid()")).one()
        await node.freeze_backend(pid)
        key = pgha.new_key()
        async with cluster.events() as events:
            with anyio.move_on_after(0.1) as scope:
                await cluster.execute(WRITE, ["a"], key=key, timeout=1.0)
            assert scope.cancelled_caught
            lane = next(
                lane for lane in cluster._nodes[node.name].sets["write"].lanes if lane.link.pid == pid
            )
            lane.break_off("the test says so", lost=True)
            settled = await _next_settled(events)
            while settled.outcome == "in doubt":
                settled = await _next_settled(events)
        assert (settled.key, settled.outcome) == (key, "not applied")
        await node.thaw_backend(pid)
        assert not (await cluster.execute(WRITE, ["a"], key=key)).replayed
        assert await ids(node) == ["a"]


async def test_cancelled_and_proven(version: int) -> None:
    async with one_node(version) as (node, cluster):
        key: UUID = pgha.new_key()
        async with cluster.events() as events:
            operation = cluster.submit("INSERT INTO t SELECT '' FROM pg_sleep(60) /* long */", key=key)
            await started(node, "/* long */")
            operation.cancel()
            with pytest.raises(pgha.OperationCancelled), within():
                await operation
            settled = await _next_settled(events)
        assert (settled.key, settled.outcome) == (key, "not applied")
        assert await keys_of(node) == 0


async def test_what_nobody_can_tell_is_told_at_once(version: int) -> None:
    async with one_node(version, SLOW_COMMIT, installed=False) as (node, cluster):
        operation = cluster.submit("INSERT INTO slow VALUES (1, 60)")
        pid = await napping(node)
        await node.execute("SELECT pg_terminate_backend(%s)", [pid])
        with pytest.raises(pgha.CommitInDoubt) as caught, within():
            await operation
        with within():
            assert await caught.value.settle() == "in doubt"
        evidence = caught.value.evidence
        assert evidence is not None
        assert (evidence.sqlstate, evidence.severity, evidence.completed) == ("57P01", "FATAL", 1)
        copy = pickle.loads(pickle.dumps(caught.value))
        assert (str(copy), copy.evidence, copy.node) == (str(caught.value), evidence, node.name)
        assert pgha.info(copy) == pgha.info(caught.value)
        assert await copy.settle() == "in doubt"


async def test_settle_ends_with_its_cluster(version: int) -> None:
    async with standalone(version=version) as nodes:
        node = nodes[0]
        await node.execute(TABLE)
        async with anyio.create_task_group() as tasks:
            async with pgha.open_cluster(pgha.Node(node.dsn, node.name), lanes=1) as cluster:
                await cluster.ledger.install()
                (pid,) = (await cluster.execute("SELECT pg_backend_pid()")).one()
                await node.freeze_backend(pid)
                with pytest.raises(pgha.CommitInDoubt) as caught, within():
                    await cluster.execute(WRITE, ["a"], key=pgha.new_key(), timeout=0.2)
                await node.freeze()
                said: list[str] = []

                async def ask() -> None:
                    said.append(await caught.value.settle())

                tasks.start_soon(ask)
                await anyio.wait_all_tasks_blocked()
            await eventually(lambda: said == ["in doubt"])
            assert await caught.value.settle() == "in doubt"
            await node.thaw()
            await node.thaw_backend(pid)
