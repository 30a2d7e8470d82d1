"""The outcomes that pgha reports, compared with the rows in the table, on PostgreSQL 16 and 18.

A result means that the row is there, `CommitInDoubt` that the row may be there, any other error that the row
is not there. No row is ever there twice.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import psycopg
import pytest
from support.common import PATIENCE, PROVEN, backends, both_versions, eventually, nothing_left, started
from support.keyed import ids
from support.servers import standalone

import pgha
from pgha.chaos import Node

pytestmark = [pytest.mark.anyio, both_versions]

SLOW_COMMIT = """
    CREATE TABLE slow (id int, nap float);
    CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_sleep(NEW.nap) /* at the commit */; RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER nap AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION nap();
"""


@asynccontextmanager
async def one_node(version: int, sql: str, **options: Any) -> AsyncGenerator[tuple[Node, pgha.Cluster]]:
    async with standalone(version=version) as nodes:
        node = nodes[0]
        await node.execute(sql)
        async with (
            nothing_left(node) as application,
            pgha.open_cluster(
                pgha.Node(node.dsn, node.name), application_name=application, **options
            ) as cluster,
        ):
            yield node, cluster


async def committing(node: Node) -> int:
    """Wait until a backend sleeps in the deferred trigger, after its statement's end; return its pid."""
    asked = (
        "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND state = 'active'"
        " AND strpos(query, 'slow') > 0 AND pid <> pg_backend_pid()"
    )
    found: list[int] = []

    async def look() -> bool:
        found[:] = [row[0] for row in await node.execute(asked)]
        return bool(found)

    await eventually(look, what="a backend sleeps at its commit")
    return found[0]


async def test_terminated_at_the_sync(version: int) -> None:
    """A FATAL after the last CommandComplete proves nothing: the write is in doubt."""
    async with one_node(version, SLOW_COMMIT) as (node, cluster):
        operation = cluster.submit("INSERT INTO slow VALUES (1, 60)")
        behind = [cluster.submit("INSERT INTO slow VALUES (%s, 0)", [number]) for number in range(2, 6)]
        pid = await committing(node)
        await node.execute("SELECT pg_terminate_backend(%s)", [pid])
        with pytest.raises(pgha.CommitInDoubt) as caught, anyio.fail_after(PATIENCE):
            await operation
        assert pgha.error_info(caught.value) == pgha.ErrorInfo(node.name, None, 1, "in doubt")
        cause = caught.value.__cause__
        assert isinstance(cause, psycopg.errors.AdminShutdown), "with the server's own words"
        # The writes sent behind it never began: each is run again, once.
        with anyio.fail_after(PATIENCE):
            for one in behind:
                await one
        assert await ids(node, "slow") == [2, 3, 4, 5]


NAPS_ONCE = "INSERT INTO slow SELECT 1, CASE WHEN nextval('tries') = 1 THEN 60 ELSE 0 END"


async def test_terminated_at_the_sync_and_idempotent(version: int) -> None:
    async with one_node(version, SLOW_COMMIT + "CREATE SEQUENCE tries") as (node, cluster):
        operation = cluster.submit(NAPS_ONCE, idempotent=True)
        pid = await committing(node)
        await node.execute("SELECT pg_terminate_backend(%s)", [pid])
        with anyio.fail_after(PATIENCE):
            assert (await operation).attempts == 2
        assert await ids(node, "slow") == [1]


@pytest.mark.parametrize("framed", [False, True])
async def test_a_batch_terminated_at_its_commit(version: int, framed: bool) -> None:
    """A batch with its own COMMIT is run again: without that COMMIT's CommandComplete it was not applied."""
    async with one_node(version, SLOW_COMMIT + "CREATE SEQUENCE tries") as (node, cluster):
        asked = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND state = 'active'"
        outcome: list[object] = []

        async def write() -> None:
            try:
                outcome.append(
                    await cluster.execute_batch([*(["SAVEPOINT a"] if framed else []), NAPS_ONCE, "SELECT 1"])
                )
            except psycopg.Error as error:
                outcome.append(error)

        async def sleeping() -> bool:
            return bool(await node.execute(asked))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(write)
                await eventually(sleeping)
                ((pid,),) = await node.execute(asked)
                await node.execute("SELECT pg_terminate_backend(%s)", [pid])
        (said,) = outcome
        if framed:
            assert isinstance(said, list)
            assert [one.attempts for one in said] == [2, 2, 2]
            assert await ids(node, "slow") == [1]
        else:
            assert isinstance(said, pgha.CommitInDoubt)
            assert await ids(node, "slow") == []


async def test_cancelled_at_the_sync(version: int) -> None:
    """Another session's cancel is final and proves "not applied"; the operations behind it are unharmed."""
    async with one_node(version, SLOW_COMMIT) as (node, cluster):
        operation = cluster.submit("INSERT INTO slow VALUES (1, 60)")
        behind = [cluster.submit("INSERT INTO slow VALUES (%s, 0)", [number]) for number in range(2, 6)]
        pid = await committing(node)
        await node.execute("SELECT pg_cancel_backend(%s)", [pid])
        with pytest.raises(psycopg.errors.QueryCanceled) as caught, anyio.fail_after(PATIENCE):
            await operation
        assert pgha.error_info(caught.value).outcome == "not applied"
        assert pgha.error_info(caught.value).attempts == 1
        with anyio.fail_after(PATIENCE):
            for one in behind:
                await one
        assert await ids(node, "slow") == [2, 3, 4, 5]
        assert cluster.statistics().connections_lost == 0


async def test_cancelled_by_its_caller_at_the_sync(version: int) -> None:
    async with one_node(version, SLOW_COMMIT, _tuning=PROVEN) as (node, cluster):
        operation = cluster.submit("INSERT INTO slow VALUES (1, 60)")
        await committing(node)
        operation.cancel()
        with pytest.raises(pgha.OperationCancelled), anyio.fail_after(PATIENCE):
            await operation
        assert await ids(node, "slow") == []


async def test_a_timeout_at_the_sync(version: int) -> None:
    async with one_node(version, SLOW_COMMIT) as (node, cluster):
        with pytest.raises((pgha.OperationTimeout, pgha.CommitInDoubt)), anyio.fail_after(PATIENCE):
            await cluster.execute("INSERT INTO slow VALUES (1, 60)", timeout=0.2)
        assert await ids(node, "slow") == []


async def test_a_unique_violation_at_the_sync(version: int) -> None:
    table = "CREATE TABLE t (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)"
    async with one_node(version, table) as (node, cluster):
        await cluster.execute("INSERT INTO t VALUES (1)")
        operations = [
            cluster.submit("INSERT INTO t VALUES (%s)", [1 if i % 5 == 0 else i]) for i in range(2, 102)
        ]
        for number, operation in enumerate(operations, 2):
            if number % 5:
                await operation
                continue
            with pytest.raises(psycopg.errors.UniqueViolation) as caught:
                await operation
            assert caught.value.sqlstate == "23505"
            assert pgha.error_info(caught.value) == pgha.ErrorInfo(node.name, None, 1, "not applied")
        assert await ids(node, "t") == [1, *(number for number in range(2, 102) if number % 5)]


@pytest.mark.parametrize("state", ["40001", "26000"])
async def test_a_neighbour_that_is_run_again(version: int, state: str) -> None:
    """No operation gets another's answer, at any position of a retryable error in a burst of answers."""
    again = f"""
        CREATE TABLE tried (id int);
        CREATE SEQUENCE tries;
        CREATE FUNCTION again(id int) RETURNS int LANGUAGE plpgsql AS $$
            BEGIN
                IF id % 7 = 0 AND nextval('tries') % 2 = 1 THEN
                    RAISE EXCEPTION 'again' USING ERRCODE = '{state}';
                END IF;
                INSERT INTO tried VALUES (id);
                RETURN id;
            END $$;
    """
    async with one_node(version, again, read_connections=1, prepare_threshold=0) as (node, cluster):
        with anyio.fail_after(60):
            operations = [cluster.submit("SELECT again(%s)", [number]) for number in range(500)]
            got: list[int | None] = []
            for operation in operations:
                try:
                    got.append((await operation).value())
                except psycopg.Error as error:
                    assert error.sqlstate == state
                    got.append(None)
        assert all(one is None or one == number for number, one in enumerate(got))
        assert all(one is not None for number, one in enumerate(got) if number % 7), "they never failed"
        assert await ids(node, "tried") == [one for one in got if one is not None]
        assert cluster.statistics().retried > 10


# Servers that stop with writes in flight


class Book:
    """The reported outcome of each write."""

    def __init__(self) -> None:
        self.acknowledged: set[str] = set()
        self.doubtful: set[str] = set()
        self.failed: set[str] = set()
        self.errors: Counter[str] = Counter()

    async def write(self, cluster: pgha.Cluster, key: str) -> None:
        try:
            await cluster.execute("INSERT INTO t VALUES (%s)", [key])
            self.acknowledged.add(key)
        except pgha.CommitInDoubt as error:
            assert pgha.error_info(error).outcome == "in doubt"
            self.doubtful.add(key)
        except psycopg.Error as error:
            assert pgha.error_info(error).outcome == "not applied"
            self.failed.add(key)
            self.errors[repr(error)] += 1

    def check(self, keys: list[str]) -> None:
        found = set(keys)
        assert len(keys) == len(found), "a write was applied twice"
        assert not self.acknowledged - found, "an acknowledged write is not there"
        assert not self.failed & found, "a write that is said not to be applied is there"
        assert found <= self.acknowledged | self.doubtful
        assert not self.errors, "what is proven not applied is run again, here as soon as the node is back"


Fault = Callable[[Node, str], Awaitable[None]]


async def _kill_a_sibling(node: Node, application: str) -> None:
    """Kill another backend of the server, so that all others end with 57P02."""
    async with anyio.create_task_group() as group:

        async def sleep() -> None:
            try:
                await node.execute("SELECT pg_sleep(60) /* sibling */", timeout=30)
            except psycopg.OperationalError:
                pass

        group.start_soon(sleep)
        await node.kill_backend(await started(node, "/* sibling */"))
    await node.wait_ready()


async def _terminate(node: Node, application: str) -> None:
    for pid in await backends(node, application):
        await node.execute("SELECT pg_terminate_backend(%s)", [pid])


async def _kill_own(node: Node, application: str) -> None:
    found = await backends(node, application, "active") or await backends(node, application)
    await node.kill_backend(found[0])
    await node.wait_ready()


async def _fast(node: Node, application: str) -> None:
    await node.restart("fast")


async def _immediate(node: Node, application: str) -> None:
    await node.restart("immediate")


async def _kill(node: Node, application: str) -> None:
    await node.kill()
    await node.start()


@pytest.mark.parametrize("fault", [_kill_a_sibling, _terminate, _kill_own, _fast, _immediate, _kill])
async def test_every_word_is_true(version: int, fault: Fault) -> None:
    """Hundreds of small writes, by pipelines and by single tasks, get true outcomes through three faults."""
    async with standalone(version=version) as nodes:
        node = nodes[0]
        await node.execute("CREATE TABLE t (id text)")
        book, done = Book(), anyio.Event()
        async with (
            nothing_left(node) as application,
            pgha.open_cluster(pgha.Node(node.dsn, node.name), application_name=application) as cluster,
        ):

            async def single(number: int) -> None:
                for turn in itertools.count():
                    if done.is_set():
                        return
                    await book.write(cluster, f"{number}-{turn}")

            async def burst(number: int) -> None:
                for turn in itertools.count():
                    if done.is_set():
                        return
                    async with anyio.create_task_group() as group:
                        for one in range(30):
                            group.start_soon(book.write, cluster, f"burst-{number}-{turn}-{one}")

            async def more() -> None:
                before = len(book.acknowledged)
                await eventually(lambda: len(book.acknowledged) >= before + 150, 30, "writes go on")

            with anyio.fail_after(90):
                async with anyio.create_task_group() as group:
                    for number in range(8):
                        group.start_soon(single, number)
                    group.start_soon(burst, 0)
                    for _ in range(3):
                        await more()
                        await fault(node, application)
                    await more()
                    done.set()
        book.check([row[0] for row in await node.execute("SELECT id FROM t")])


async def test_an_error_of_another_server_inside_ours(version: int) -> None:
    """An ERROR of class 08 only looks like a lost connection: its Sync was answered."""
    raising = "BEGIN RAISE EXCEPTION 'far away' USING ERRCODE = '08006'; END"
    function = f"CREATE FUNCTION far() RETURNS int LANGUAGE plpgsql AS $${raising}$$"
    async with one_node(version, function) as (node, cluster):
        with pytest.raises(psycopg.OperationalError, match="far away") as caught, anyio.fail_after(PATIENCE):
            await cluster.execute("SELECT far()")
        assert caught.value.sqlstate == "08006"
        assert pgha.error_info(caught.value) == pgha.ErrorInfo(node.name, 0, 1, "not applied")
        assert await cluster.fetch_value("SELECT 1") == 1
        assert cluster.nodes[node.name].state == "up"
