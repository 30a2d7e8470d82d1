"""Keyed writes and the ledger without failures, and with wrong use, on PostgreSQL 16 and 18."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any
from uuid import uuid4, uuid5

import psycopg
import pytest
from support.common import both_versions, eventually
from support.keyed import TABLE, WRITE, ids, keys_of, one_node

import pgha
from pgha._operation.key import fingerprint
from pgha._wire.compiler import Statement

pytestmark = [pytest.mark.anyio, both_versions]


# Without failures


async def test_a_key_is_applied_once_and_then_replayed(version: int) -> None:
    async with one_node(version) as (node, cluster):
        key = pgha.new_idempotency_key()
        first = await cluster.execute(WRITE + " RETURNING id", ["a"], idempotency_key=key)
        assert (first.one(), first.replayed) == (("a",), False)
        again = await cluster.execute(WRITE + " RETURNING id", ["a"], idempotency_key=key)
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
        keys = [pgha.new_idempotency_key() for _ in range(200)]
        async with cluster.group() as group:
            for turn in range(2):
                for number, key in enumerate(keys):
                    group.submit(WRITE, [f"{number:03}"], idempotency_key=key)
                del turn
        assert await ids(node) == [f"{number:03}" for number in range(200)]
        assert cluster.statistics().replayed == 200


async def test_a_key_with_another_body(version: int) -> None:
    async with one_node(version) as (node, cluster):
        key = uuid4()
        await cluster.execute(WRITE, ["a"], idempotency_key=key)
        for query, params in ((WRITE, ["b"]), ("INSERT INTO t VALUES ('a')", None)):
            with pytest.raises(pgha.IdempotencyKeyReused, match=str(key)) as caught:
                await cluster.execute(query, params, idempotency_key=key)
            assert pgha.error_info(caught.value).outcome == "not applied"
        with pytest.raises(pgha.IdempotencyKeyReused):
            await cluster.execute_batch([(WRITE, ["a"])] * 2, idempotency_key=key)
        assert await ids(node) == ["a"]


async def test_a_batch_and_its_results(version: int) -> None:
    async with one_node(version) as (node, cluster):
        key = pgha.new_idempotency_key()
        batch: list[Any] = ["SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", (WRITE, ["a"]), (WRITE, ["b"])]
        first = await cluster.execute_batch(batch, idempotency_key=key)
        assert [one.command for one in first] == ["SET", "INSERT 0 1", "INSERT 0 1"]
        again = await cluster.execute_batch(batch, idempotency_key=key)
        assert [one.replayed for one in again] == [True, True, True]
        assert await ids(node) == ["a", "b"]


async def test_framed_and_what_commits_by_itself(version: int) -> None:
    async with one_node(version) as (node, cluster):
        keys = [pgha.new_idempotency_key() for _ in range(4)]
        for _ in range(2):
            await cluster.execute_batch(["SAVEPOINT s", (WRITE, ["a"])], idempotency_key=keys[0])
            await cluster.execute("DO $$ BEGIN INSERT INTO t VALUES ('b'); END $$", idempotency_key=keys[1])
        assert await ids(node) == ["a", "b"]
        await node.execute(
            "CREATE PROCEDURE p() LANGUAGE plpgsql AS $$ BEGIN INSERT INTO t VALUES ('c'); COMMIT; END $$"
        )
        with pytest.raises(psycopg.errors.InvalidTransactionTermination):
            await cluster.execute("CALL p()", idempotency_key=keys[2])
        with pytest.raises(psycopg.NotSupportedError, match="VACUUM cannot have a key"):
            await cluster.execute("VACUUM t", idempotency_key=keys[3])
        assert await ids(node) == ["a", "b"]


async def test_an_error_of_the_statements_leaves_the_key_unused(version: int) -> None:
    async with one_node(version) as (node, cluster):
        key = pgha.new_idempotency_key()
        with pytest.raises(psycopg.errors.DivisionByZero) as caught:
            await cluster.execute("INSERT INTO t VALUES (1 / %s)", [0], idempotency_key=key)
        assert pgha.error_info(caught.value) == pgha.ErrorInfo(node.name, 0, 1, "not applied")
        assert not (await cluster.execute(WRITE, ["a"], idempotency_key=key)).replayed
        assert await ids(node) == ["a"]


async def test_a_limit_of_its_own_goes_with_a_key(version: int) -> None:
    async with one_node(version) as (node, cluster):
        key = pgha.new_idempotency_key()
        with pytest.raises(psycopg.errors.QueryCanceled):
            await cluster.execute(
                "INSERT INTO t SELECT '' FROM pg_sleep(60)", idempotency_key=key, statement_timeout=0.1
            )
        await cluster.execute(WRITE, ["a"], idempotency_key=key, statement_timeout=5)
        assert await ids(node) == ["a"]


@pytest.mark.parametrize("key", ["0d9c6a3e-8a94-4c4f-9d1b-111111111111", 7, b"x" * 16])
async def test_a_key_that_is_no_uuid(version: int, key: Any) -> None:
    async with one_node(version) as (node, cluster):
        with pytest.raises(pgha.ConfigError, match=r"idempotency_key must be a uuid\.UUID"):
            await cluster.execute(WRITE, ["a"], idempotency_key=key)
        with pytest.raises(pgha.ConfigError, match="idempotency_key is for writes"):
            cluster.submit("SELECT 1", read=True, idempotency_key=pgha.new_idempotency_key())
        assert await ids(node) == []


async def test_without_a_ledger_and_without_rights(version: int) -> None:
    async with one_node(version, TABLE + "; CREATE ROLE poor LOGIN", installed=False) as (node, cluster):
        with pytest.raises(pgha.LedgerError, match="pgha ledger install") as caught:
            await cluster.execute(WRITE, ["a"], idempotency_key=pgha.new_idempotency_key())
        assert pgha.error_info(caught.value).outcome == "not applied"
        assert isinstance(caught.value.__cause__, psycopg.errors.UndefinedTable)
        await node.execute("GRANT INSERT ON t TO poor")
        poor_dsn = psycopg.conninfo.make_conninfo(node.dsn, user="poor")
        async with pgha.open_cluster(pgha.Node(poor_dsn, "n")) as poor:
            with pytest.raises(pgha.LedgerError, match="may not create the ledger"):
                await poor.ledger.install()
            await cluster.ledger.install()
            with pytest.raises(pgha.LedgerError, match="may not use the ledger"):
                await poor.execute(WRITE, ["a"], idempotency_key=pgha.new_idempotency_key())
            await cluster.ledger.install(grant_to=["poor"])
            await poor.execute(WRITE, ["a"], idempotency_key=pgha.new_idempotency_key())
        assert await ids(node) == ["a"]


async def test_a_ledger_of_another_layout(version: int) -> None:
    older = """CREATE SCHEMA pgha; CREATE TABLE pgha.ledger (system_identifier bigint, key uuid,
        fp bytea NOT NULL, at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (system_identifier, key))"""
    async with one_node(version, f"{TABLE}; {older}", installed=False) as (node, cluster):
        with pytest.raises(pgha.LedgerError, match="another layout"):
            await cluster.execute(WRITE, ["a"], idempotency_key=pgha.new_idempotency_key())
        with pytest.raises(pgha.LedgerError, match="another layout"):
            await cluster.ledger.install()
        assert "another layout" in (await cluster.ledger.status())[node.name].problem
        assert await ids(node) == []


async def test_another_thread_computes_the_fingerprint_of_a_large_write(
    version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`execute` and `execute_batch` leave it to a worker thread; `submit` cannot wait, and computes it."""
    threads: list[bool] = []

    def noted(statements: Sequence[Statement]) -> bytes:
        threads.append(threading.current_thread() is here)
        return fingerprint(statements)

    here = threading.current_thread()
    monkeypatch.setattr("pgha._operation.key.fingerprint", noted)
    async with one_node(version) as (node, cluster):
        key, small, large = pgha.new_idempotency_key(), "a", "b" * (1 << 20)
        await cluster.execute(WRITE, [small], idempotency_key=key)
        assert threads == [True]
        for _ in range(2):
            await cluster.execute(WRITE, [large], idempotency_key=uuid5(key, "large"))
        await cluster.execute_batch([(WRITE, [small]), (WRITE, [large])], idempotency_key=uuid5(key, "batch"))
        assert threads == [True, False, False, False]
        assert (await cluster.submit(WRITE, [large], idempotency_key=uuid5(key, "large"))).replayed
        assert threads == [True, False, False, False, True]
        with pytest.raises(pgha.IdempotencyKeyReused):
            await cluster.execute(WRITE, [large + "b"], idempotency_key=uuid5(key, "large"))
        assert sorted(await ids(node)) == ["a", "a", large, large]


# Idempotency keys that pgha makes


async def test_no_keys_by_themselves_without_the_rights_to_them(version: int) -> None:
    async with one_node(version, TABLE + "; CREATE ROLE poor LOGIN; GRANT INSERT ON t TO poor") as (node, _):
        await node.execute("GRANT USAGE ON SCHEMA pgha TO poor; GRANT SELECT ON pgha.ledger TO poor")
        poor_dsn = psycopg.conninfo.make_conninfo(node.dsn, user="poor")
        async with pgha.open_cluster(pgha.Node(poor_dsn, "n"), ledger="auto") as poor:
            for number in range(5):
                result = await poor.execute(WRITE, [str(number)])
                assert result.attempts == 1
        assert await keys_of(node) == 0
        assert await ids(node) == ["0", "1", "2", "3", "4"]


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
        # The ledger is dropped, and this program is not told.
        await node.execute("DROP TABLE pgha.ledger")
        assert not (await cluster.execute(WRITE, ["without"])).replayed
        assert (await ids(node)).count("without") == 1


READ_ONLY = [
    ["SET LOCAL transaction_read_only = on"],
    ["SET LOCAL \"transaction_read_only\" TO 'true'"],
    ["SET LOCAL TRANSACTION READ ONLY"],
    ["SET TRANSACTION READ/**/ONLY"],
    ["SET LOCAL work_mem = '5MB'", "SET LOCAL transaction_read_only = on"],
    ["SELECT set_config('transaction_read_only', 'on', true)"],
    [("SELECT set_config(%s, 'on', true)", ["transaction_read_only"])],
]


@pytest.mark.parametrize("begins", READ_ONLY)
async def test_a_batch_that_makes_itself_read_only_works_as_without_the_ledger(
    version: int, begins: list[Any]
) -> None:
    async with one_node(version, ledger="auto") as (node, cluster):
        await eventually(lambda: cluster._nodes[node.name].server.ledger)
        *_, last = await cluster.execute_batch(
            [*begins, "SELECT 7, current_setting('transaction_read_only')"]
        )
        assert last.one() == (7, "on")
        assert cluster.statistics().retried == 0
