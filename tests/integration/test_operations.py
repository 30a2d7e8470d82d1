"""Results of operations: rows, counts, errors; many at once; batches; groups; unretrieved errors."""

from __future__ import annotations

import gc
import logging
import time
from dataclasses import dataclass
from typing import Any

import anyio
import psycopg
import pytest
from psycopg import sql
from psycopg.rows import class_row, dict_row, namedtuple_row, scalar_row
from support.common import PATIENCE, PROVEN, cluster_of, eventually, gate, started, stopped, unique
from support.servers import standalone

import pgha
from pgha.chaos import LocalNode

pytestmark = pytest.mark.anyio


async def test_ten_of_each_at_once(server: LocalNode) -> None:
    for _ in range(3):
        async with cluster_of(server) as cluster:
            answers: list[tuple[int, Any]] = []

            async def ask(number: int, call: Any) -> None:
                answers.append((number, (await call(f"SELECT {number}")).value()))  # noqa: B023

            async with anyio.create_task_group() as group:
                for _ in range(10):
                    for number in (1, 2, 3):
                        group.start_soon(ask, number, cluster.fetch)
                        group.start_soon(ask, number, cluster.execute)
            assert len(answers) == 60
            assert all(asked == answered for asked, answered in answers)


async def test_the_ways_to_fetch(server: LocalNode) -> None:
    async with cluster_of(server) as cluster:
        rows = await cluster.fetch("SELECT i, i * 2 AS twice FROM generate_series(1, %s) AS i", [3])
        assert rows == [(1, 2), (2, 4), (3, 6)]
        assert list(rows) == [(1, 2), (2, 4), (3, 6)]
        assert (rows[0], rows[-1], rows[1:]) == ((1, 2), (3, 6), [(2, 4), (3, 6)])
        assert (len(rows), rows.columns, rows.rowcount, rows.command) == (3, ("i", "twice"), 3, "SELECT 3")
        assert (rows.node, rows.attempts, rows.replayed) == (server.name, 1, False)
        assert 0 < rows.latency < PATIENCE
        assert await cluster.fetch_one("SELECT 1, %(a)s::text", {"a": "x"}) == (1, "x")
        assert await cluster.fetch_one("SELECT 1 WHERE false") is None
        assert await cluster.fetch_value("SELECT 5, 6") == 5
        assert await cluster.fetch_value("SELECT 1 WHERE false") is None
        assert await cluster.fetch_value("SELECT NULL") is None
        assert await cluster.fetch_value(sql.SQL("SELECT {}").format(sql.Literal(8))) == 8
        assert await cluster.fetch_value(b"SELECT 9") == 9


async def test_one_and_value(server: LocalNode) -> None:
    async with cluster_of(server) as cluster:
        none = await cluster.fetch("SELECT 1 WHERE false")
        one = await cluster.fetch("SELECT 4, 5")
        two = await cluster.fetch("SELECT generate_series(1, 2)")
        assert (one.one(), one.one_or_none(), one.value()) == ((4, 5), (4, 5), 4)
        assert none.one_or_none() is None
        assert (list(none), none.columns, none.rowcount) == ([], ("?column?",), 0)
        for failing in (none.one, none.value, two.one, two.one_or_none, two.value):
            with pytest.raises(psycopg.DataError):
                failing()


async def test_what_execute_gives(server: LocalNode) -> None:
    table = unique("t")
    async with cluster_of(server) as cluster:
        created = await cluster.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, name text)")
        assert (list(created), created.columns, created.rowcount, created.command) == (
            [], (), -1, "CREATE TABLE",
        )  # fmt: skip
        inserted = await cluster.execute(f"INSERT INTO {table} VALUES (1, 'a'), (2, 'b')")
        assert (list(inserted), inserted.rowcount, inserted.command) == ([], 2, "INSERT 0 2")
        returned = await cluster.execute(f"INSERT INTO {table} VALUES (%s, %s) RETURNING id, name", [3, "c"])
        assert (returned.one(), returned.columns, returned.rowcount) == ((3, "c"), ("id", "name"), 1)
        assert (await cluster.execute(f"UPDATE {table} SET name = 'x' WHERE id < 3")).rowcount == 2
        assert (await cluster.execute(f"UPDATE {table} SET name = 'x' WHERE false")).rowcount == 0
        assert (await cluster.execute(f"DELETE FROM {table} WHERE id = 1 RETURNING id")).value() == 1
        assert (await cluster.execute(f"SELECT id FROM {table} WHERE id = 3 FOR UPDATE")).value() == 3
        assert (await cluster.execute("")).rowcount == -1
        assert list(await cluster.execute("-- nothing")) == []
        nothing = await cluster.fetch("SELECT")
        assert (len(nothing), nothing.columns, nothing.rowcount) == (1, (), 1)


@dataclass
class Item:
    id: int
    name: str


async def test_row_factories(server: LocalNode) -> None:
    query = "SELECT 1 AS id, 'a' AS name"
    async with cluster_of(server) as cluster:
        assert (await cluster.fetch(query, row_factory=dict_row)).one() == {"id": 1, "name": "a"}
        assert (await cluster.fetch(query, row_factory=class_row(Item))).one() == Item(1, "a")
        assert (await cluster.fetch(query, row_factory=namedtuple_row)).one()._asdict()["name"] == "a"
        assert list(await cluster.fetch("SELECT generate_series(1, 3)", row_factory=scalar_row)) == [1, 2, 3]
        assert (await cluster.fetch(query, row_factory=dict_row)).value() == 1
        assert (await cluster.fetch("SELECT 5", row_factory=scalar_row)).value() == 5
        assert await cluster.fetch_one(query, row_factory=dict_row) == {"id": 1, "name": "a"}
        assert (await cluster.execute(query, row_factory=dict_row)).one() == {"id": 1, "name": "a"}
        batch = await cluster.execute_batch([query, "SELECT 2 AS x"], row_factory=dict_row)
        assert [one.one() for one in batch] == [{"id": 1, "name": "a"}, {"x": 2}]
        # A row factory that fails affects only its own operation.
        with pytest.raises(TypeError):
            await cluster.fetch("SELECT 1 AS other", row_factory=class_row(Item))
        assert await cluster.fetch_value("SELECT 1") == 1
    async with cluster_of(server, row_factory=dict_row) as other:
        row: Any = (await other.fetch(query)).one()
        assert row == {"id": 1, "name": "a"}
        assert await other.fetch_value(query) == 1


async def test_parameters_of_many_kinds(server: LocalNode) -> None:
    values = [1, 2**40, 1.5, "täxt", b"\x00\xff", True, None, [1, 2]]
    async with cluster_of(server) as cluster:
        for value in values:
            assert await cluster.fetch_value("SELECT %s", [value]) == value
        assert await cluster.fetch_value("SELECT '100%%' || %s", ["x"]) == "100%x"
        bad: Any
        for bad in (["a", "b"], [], {"a": 1}):
            with pytest.raises((psycopg.Error, TypeError)):  # psycopg's own
                await cluster.fetch("SELECT %s", bad)
        with pytest.raises(psycopg.Error):
            await cluster.fetch("SELECT %s", [object()])
        assert await cluster.fetch_value("SELECT 1") == 1


async def test_a_bad_statement_fails_alone(server: LocalNode) -> None:
    """Bad statements among 100 concurrent operations fail alone; the 90 inserts among them succeed."""
    table = unique("t")
    async with cluster_of(server) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int PRIMARY KEY)")
        operations: list[pgha.Operation[pgha.Result[Any]]] = []
        for number in range(100):
            if number % 10 == 5:
                operations.append(
                    cluster.submit(["SELECT 1/0", "SELEKT", "SELECT * FROM nowhere"][number % 3])
                )
            else:
                operations.append(cluster.submit(f"INSERT INTO {table} VALUES (%s)", [number]))
        for number, operation in enumerate(operations):
            if number % 10 != 5:
                assert (await operation).rowcount == 1
                continue
            with pytest.raises(psycopg.Error) as caught:
                await operation
            assert caught.value.sqlstate == ["22012", "42601", "42P01"][number % 3]
            assert pgha.error_info(caught.value) == pgha.ErrorInfo(server.name, 0, 1, "not applied")
        assert await cluster.fetch_value(f"SELECT count(*) FROM {table}") == 90
        statistics = cluster.statistics()
        assert (statistics.failed, statistics.succeeded, statistics.retried) == (10, 92, 0)


async def test_a_duplicate_key_says_so(server: LocalNode) -> None:
    table = unique("t")
    async with cluster_of(server) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int PRIMARY KEY)")
        await cluster.execute(f"INSERT INTO {table} VALUES (1)")
        with pytest.raises(psycopg.errors.UniqueViolation) as caught:
            await cluster.execute(f"INSERT INTO {table} VALUES (1)")
        assert caught.value.diag.constraint_name == f"{table}_pkey"
        assert pgha.error_info(caught.value).outcome == "not applied"


async def test_an_error_at_the_sync(server: LocalNode) -> None:
    """A deferred constraint fails after CommandComplete, so CommandComplete is no acknowledgement."""
    table = unique("t")
    async with cluster_of(server) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        await cluster.execute(f"INSERT INTO {table} VALUES (1)")
        for _ in range(5):
            with pytest.raises(psycopg.errors.UniqueViolation) as caught:
                await cluster.execute(f"INSERT INTO {table} VALUES (1)")
            assert pgha.error_info(caught.value).outcome == "not applied"
            with pytest.raises(psycopg.errors.UniqueViolation):
                await cluster.execute_batch(
                    [f"INSERT INTO {table} VALUES (2)", f"INSERT INTO {table} VALUES (1)"]
                )
            with pytest.raises(psycopg.errors.UniqueViolation):
                await cluster.execute_batch(["SAVEPOINT a", f"INSERT INTO {table} VALUES (1)"])
            assert await cluster.fetch_value(f"SELECT count(*) FROM {table}") == 1


async def test_a_batch_of_seven(server: LocalNode) -> None:
    batch: list[Any] = [
        "CREATE TEMPORARY TABLE seven (id int) ON COMMIT DROP",
        ("INSERT INTO seven VALUES (%s), (%s)", [1, 2]),
        "SAVEPOINT here",
        "DELETE FROM seven",
        "ROLLBACK TO SAVEPOINT here",
        ("UPDATE seven SET id = id + %(n)s RETURNING id", {"n": 10}),
        "SELECT count(*) FROM seven",
    ]
    async with cluster_of(server) as cluster:
        for _ in range(5):
            results = await cluster.execute_batch(batch)
            assert [one.command for one in results] == [
                "CREATE TABLE", "INSERT 0 2", "SAVEPOINT", "DELETE 2", "ROLLBACK", "UPDATE 2", "SELECT 1",
            ]  # fmt: skip
            assert sorted(results[5]) == [(11,), (12,)]
            assert results[6].value() == 2
        assert (await server.execute("SELECT to_regclass('seven')"))[0][0] is None


@pytest.mark.parametrize("framed", [False, True])
async def test_a_batch_that_fails_in_the_middle(server: LocalNode, framed: bool) -> None:
    table = unique("t")
    async with cluster_of(server) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int)")
        start = ["SAVEPOINT a"] if framed else []
        for failing in range(len(start), 5):
            statements: list[Any] = [*start, *[(f"INSERT INTO {table} VALUES (%s)", [i]) for i in range(5)]]
            statements[failing] = "SELECT 1/0"
            neighbours = [cluster.submit("SELECT %s::int", [i]) for i in range(5)]
            with pytest.raises(psycopg.errors.DivisionByZero) as caught:
                await cluster.execute_batch(statements)
            assert pgha.error_info(caught.value) == pgha.ErrorInfo(server.name, failing, 1, "not applied")
            neighbours += [cluster.submit("SELECT %s::int", [5 + i]) for i in range(5)]
            assert [(await one).value() for one in neighbours] == list(range(10))
        assert await cluster.fetch_value(f"SELECT count(*) FROM {table}") == 0
        assert cluster.statistics().connections_lost == 0


async def test_a_batch_is_one_transaction(server: LocalNode) -> None:
    async with cluster_of(server) as cluster:
        for _ in range(3):
            first, second = await cluster.execute_batch(["SELECT txid_current()", "SELECT txid_current()"])
            assert first.value() == second.value()
        assert (await cluster.execute_batch([("SELECT %s::int", [3])]))[0].value() == 3
        local = await cluster.execute_batch(["SET LOCAL work_mem = '7MB'", "SHOW work_mem"])
        assert local[1].value() == "7MB"
        assert await cluster.fetch_value("SHOW work_mem") != "7MB"
        assert (await cluster.execute("SHOW work_mem")).value() != "7MB"
        with pytest.raises(pgha.ConfigError):
            await cluster.execute_batch([])


async def test_an_operation_awaited_by_many_and_again(server: LocalNode) -> None:
    async with cluster_of(server) as cluster:
        good = cluster.submit("SELECT pg_sleep(0.05), 1", read=True)
        bad = cluster.submit("SELECT 1/0", read=True)
        results: list[object] = []
        errors: list[BaseException] = []

        async def wait() -> None:
            results.append(await good)
            try:
                await bad
            except psycopg.Error as error:
                errors.append(error)

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(wait)
        results.append(await good)
        assert len({id(one) for one in results}) == 1
        assert len({id(one) for one in errors}) == 1
        for _ in range(2):
            with pytest.raises(psycopg.errors.DivisionByZero):
                await bad
        assert (good.done, bad.done) == (True, True)
        await good.wait()
        await bad.wait()


async def test_a_failure_that_nobody_retrieves(server: LocalNode, caplog: pytest.LogCaptureFixture) -> None:
    async with cluster_of(server) as cluster, cluster.events() as events:
        with caplog.at_level(logging.ERROR, "pgha"):
            operation = cluster.submit("SELECT 1/0")
            await operation.wait()
            assert cluster.statistics().unretrieved == 0
            del operation
            gc.collect()
            await eventually(lambda: cluster.statistics().unretrieved == 1)
        assert "division by zero" in caplog.text
        with anyio.fail_after(PATIENCE):
            async for event in events:
                if isinstance(event, pgha.FailureUnretrieved):
                    assert isinstance(event.error, psycopg.errors.DivisionByZero)
                    break
        assert await cluster.fetch_value("SELECT 1") == 1


async def test_a_failure_that_is_retrieved_is_not_counted(
    server: LocalNode, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster_of(server) as cluster:
        with pytest.raises(psycopg.errors.DivisionByZero):
            await cluster.submit("SELECT 1/0")
        with pytest.raises(psycopg.errors.DivisionByZero):
            await cluster.fetch("SELECT 1/0")
        with anyio.move_on_after(0.02):
            await cluster.fetch("SELECT pg_sleep(60)")
        gc.collect()
        await anyio.sleep(0.05)
        gc.collect()
        assert cluster.statistics().unretrieved == 0
    assert caplog.text == ""


async def test_a_group_awaits_all(server: LocalNode) -> None:
    table = unique("t")
    async with cluster_of(server) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int)")
        async with cluster.group() as group:
            operations = [group.submit(f"INSERT INTO {table} VALUES (%s)", [i]) for i in range(1000)]
        assert all(operation.done for operation in operations)
        assert await cluster.fetch_value(f"SELECT count(*) FROM {table}") == 1000
        async with cluster.group():
            pass


async def test_failures_of_a_group(server: LocalNode) -> None:
    async with cluster_of(server) as cluster:
        with pytest.raises(ExceptionGroup) as caught:
            async with cluster.group() as group:
                group.submit("SELECT 1/0")
                seen = group.submit("SELEKT")
                good = group.submit("SELECT 1", read=True)
                group.submit("SELECT * FROM nowhere", read=True)
                with pytest.raises(psycopg.errors.SyntaxError):
                    await seen
        kinds = {type(error) for error in caught.value.exceptions}
        assert kinds == {psycopg.errors.DivisionByZero, psycopg.errors.UndefinedTable}
        assert (await good).value() == 1
        gc.collect()
        assert cluster.statistics().unretrieved == 0


async def test_a_group_whose_body_raises(server: LocalNode) -> None:
    text = unique("sleep")
    async with cluster_of(server, _tuning=PROVEN) as cluster:
        mine = ValueError("mine")
        with pytest.raises(ValueError, match="mine") as caught:
            async with cluster.group() as group:
                operation = group.submit(f"SELECT pg_sleep(60) /* {text} */")
                group.submit("SELECT 1/0")
                await started(server, text)
                raise mine
        assert caught.value is mine
        with pytest.raises(pgha.OperationCancelled):
            await operation
        await stopped(server, text)
        gc.collect()
        assert cluster.statistics().unretrieved == 0


async def test_a_group_that_is_cancelled(server: LocalNode) -> None:
    text = unique("sleep")
    async with cluster_of(server) as cluster:
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                async with cluster.group() as group:
                    group.submit(f"SELECT pg_sleep(60) /* {text} */")
                    group.submit(f"SELECT pg_sleep(60) /* {text} */", read=True)

            tasks.start_soon(run)
            await started(server, text)
            tasks.cancel_scope.cancel()
        await stopped(server, text)
        await eventually(lambda: cluster.statistics().failed == 2)
        gc.collect()
        assert cluster.statistics().unretrieved == 0


async def test_a_full_queue() -> None:
    """On a full queue `submit` raises, and `fetch` waits until its timeout."""
    async with standalone() as nodes, cluster_of(*nodes, max_queued=10) as cluster:
        await eventually(lambda: all(node.read_connections == 2 for node in cluster.nodes.values()))
        await nodes[0].freeze()
        operations = []
        with pytest.raises(pgha.QueueFull, match="max_queued"):
            for number in range(1000):
                operations.append(cluster.submit("SELECT %s::int", [number], read=True))
        with pytest.raises(pgha.QueueFull):
            cluster.submit("SELECT 1", read=True)
        with pytest.raises(pgha.QueueFull) as caught:
            await cluster.fetch("SELECT 1", timeout=0.05)
        assert pgha.error_info(caught.value).outcome == "not applied"
        # Reads that wait do not fill the queue of the writes.
        with pytest.raises(pgha.OperationTimeout):
            await cluster.execute("SELECT 1", timeout=0.05)
        for call in (cluster.fetch, cluster.execute):
            with anyio.move_on_after(0.02) as scope:
                await call("SELECT 1")
            assert scope.cancelled_caught
        await nodes[0].thaw()
        with anyio.fail_after(PATIENCE):
            assert await cluster.fetch_value("SELECT 1") == 1
            assert [(await one).value() for one in operations] == list(range(len(operations)))


async def test_a_full_queue_makes_execute_wait(server: LocalNode) -> None:
    async with cluster_of(server, max_queued=10) as cluster:
        answers: list[int] = []

        async def ask(number: int) -> None:
            answers.append(await cluster.fetch_value("SELECT %s::int", [number]))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                for number in range(300):
                    group.start_soon(ask, number)
        assert sorted(answers) == list(range(300))


async def test_on_send_sees_each_attempt(server: LocalNode) -> None:
    text = unique("sleep")
    async with cluster_of(server) as cluster:
        sent: list[pgha.SendInfo] = []
        await cluster.fetch("SELECT %s::text", ["a"], on_send=sent.append)
        assert [(one.node, one.attempt) for one in sent] == [(server.name, 1)]
        ((query, params),) = sent[0].statements
        assert query == b"SELECT $1::text"
        assert params is not None
        assert [bytes(one) for one in params] == [b"a"]
        sent.clear()
        with gate(server) as (wait, go_on):
            operation = cluster.submit(f"SELECT {wait} /* {text} */", read=True, on_send=sent.append)
            pid = await started(server, text)
            await server.execute("SELECT pg_terminate_backend(%s)", [pid])
            go_on()
        assert (await operation).attempts == 2
        assert [one.attempt for one in sent] == [1, 2]
        sent.clear()
        await cluster.execute_batch(["SELECT 1", ("SELECT %s::int", [2])], on_send=sent.append)
        assert [query for query, _ in sent[0].statements] == [b"SELECT 1", b"SELECT $1::int"]


async def test_on_send_that_raises_fails_its_own_operation(server: LocalNode) -> None:
    def fail(sent: pgha.SendInfo) -> None:
        raise LookupError(sent.node)

    async with cluster_of(server) as cluster:
        for call in (cluster.fetch, cluster.execute):
            with pytest.raises(LookupError) as caught, anyio.fail_after(PATIENCE):
                await call("SELECT 1", on_send=fail)
            assert pgha.error_info(caught.value).outcome == "not applied"
        with pytest.raises(LookupError):
            await cluster.submit("SELECT 1", on_send=fail)
        assert await cluster.fetch_value("SELECT 1") == 1


async def test_retries_of_serialization_failures(server: LocalNode) -> None:
    """40001 and 40P01 prove that nothing was applied, so the operation is retried and may succeed."""
    table = unique("t")
    await server.execute(
        f"CREATE TABLE {table} (n int); CREATE SEQUENCE {table}_tries;"
        f" CREATE FUNCTION {table}_fail(state text, times int) RETURNS int LANGUAGE plpgsql AS $$"
        f" BEGIN IF nextval('{table}_tries') <= times THEN RAISE EXCEPTION 'again' USING ERRCODE = state;"
        f" END IF; INSERT INTO {table} VALUES (1); RETURN 1; END$$"
    )
    async with cluster_of(server) as cluster:
        for state in ("40001", "40P01"):
            await server.execute(f"ALTER SEQUENCE {table}_tries RESTART; DELETE FROM {table}")
            result = await cluster.execute(f"SELECT {table}_fail(%s, 2)", [state])
            assert (result.value(), result.attempts) == (1, 3)
            assert await cluster.fetch_value(f"SELECT count(*) FROM {table}") == 1
            await server.execute(f"ALTER SEQUENCE {table}_tries RESTART; DELETE FROM {table}")
            with pytest.raises(psycopg.Error) as caught, anyio.fail_after(PATIENCE):
                await cluster.execute(f"SELECT {table}_fail(%s, 100)", [state])
            assert caught.value.sqlstate == state
            assert pgha.error_info(caught.value).outcome == "not applied"
            assert 1 < pgha.error_info(caught.value).attempts < 100


async def test_deadlocks_resolve(server: LocalNode) -> None:
    table = unique("t")
    async with cluster_of(server) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, n int)")
        await cluster.execute(f"INSERT INTO {table} VALUES (1, 0), (2, 0)")

        async def both(first: int, second: int) -> None:
            update = f"UPDATE {table} SET n = n + 1 WHERE id = %s"
            await cluster.execute_batch([(update, [first]), "SELECT pg_sleep(0.02)", (update, [second])])

        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                for _ in range(2):
                    group.start_soon(both, 1, 2)
                    group.start_soon(both, 2, 1)
        assert list(await cluster.fetch(f"SELECT n FROM {table}")) == [(4,), (4,)]


async def test_reads_of_every_size_in_order_of_time(server: LocalNode) -> None:
    """A slow operation does not hold up operations that come after it."""
    async with cluster_of(server, read_connections=2) as cluster:
        slow = [cluster.submit("SELECT pg_sleep(0.4)", read=True) for _ in range(4)]
        begun = time.monotonic()
        with anyio.fail_after(PATIENCE):
            for _ in range(20):
                assert await cluster.fetch_value("SELECT 1") == 1
                await anyio.sleep(0.01)
        assert time.monotonic() - begun < 5
        for operation in slow:
            await operation


async def test_big_parameters_and_results(server: LocalNode) -> None:
    big = "x" * 10_000_000
    async with cluster_of(server) as cluster:
        with anyio.fail_after(60):
            assert await cluster.fetch_value("SELECT length(%s::text)", [big]) == len(big)
            assert len(await cluster.fetch_value("SELECT repeat('y', 10000000)")) == len(big)
            assert await cluster.fetch_value("SELECT %s::text", [big]) == big
            assert len((await cluster.execute("SELECT %s::bytea", [b"\0" * len(big)])).value()) == len(big)
            small = [cluster.submit("SELECT %s::int", [i], read=True) for i in range(50)]
            large = [cluster.submit("SELECT length(%s::text)", [big], read=True) for _ in range(10)]
            small += [cluster.submit("SELECT %s::int", [50 + i], read=True) for i in range(50)]
            echoed = [cluster.submit("SELECT %s::text", [big], read=i % 2 == 0) for i in range(6)]
            assert [(await one).value() for one in small] == list(range(100))
            for one in large:
                assert (await one).value() == len(big)
            for one in echoed:
                assert (await one).value() == big
        assert cluster.statistics().connections_lost == 0


async def test_a_big_parameter_that_is_cancelled(server: LocalNode) -> None:
    """A parameter half-written when its caller is cancelled leaves the neighbours' answers right."""
    big = "x" * 10_000_000
    async with cluster_of(server) as cluster:
        with anyio.fail_after(60):
            for delay in (0, 0.001, 0.003, 0.01):
                for call in (cluster.fetch, cluster.execute):
                    with anyio.move_on_after(delay):
                        await call("SELECT length(%s::text)", [big])
                    assert (await call("SELECT %s::text", [str(delay)])).value() == str(delay)


async def test_nul_characters(server: LocalNode) -> None:
    async with cluster_of(server) as cluster:
        for call in (cluster.fetch, cluster.execute):
            with pytest.raises(psycopg.DataError):
                await call("SELECT 1\0; SELECT 2")
            with pytest.raises(psycopg.DataError):
                await call("SELECT %s::text", ["a\0b"])
            assert (await call("SELECT %s::bytea", [b"a\0b"])).value() == b"a\0b"
        with pytest.raises(psycopg.DataError):
            await cluster.execute_batch(["SELECT 1", "SELECT 2\0"])
        assert cluster.statistics().failed == 0


async def test_too_many_parameters(server: LocalNode) -> None:
    async with cluster_of(server) as cluster:
        query = "SELECT " + ", ".join(["%s"] * 65536)
        with pytest.raises(psycopg.ProgrammingError, match="65535"):
            await cluster.fetch(query, list(range(65536)))
        assert await cluster.fetch_value("SELECT 1") == 1
