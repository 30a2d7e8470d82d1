"""Prepared statements: when they are made, how many are kept, and that DDL never makes them wrong."""

from __future__ import annotations

import itertools
from typing import Any

import anyio
import psycopg
import pytest
from support.common import PATIENCE, cluster_of, eventually, unique

import pgha
from pgha._options import Tuning
from pgha.chaos import LocalNode

pytestmark = pytest.mark.anyio

PREPARED = "SELECT statement FROM pg_prepared_statements"


async def prepared(cluster: pgha.Cluster) -> list[str]:
    """Return the statements prepared on a read lane, except for this query itself.

    With read_connections=1 there is only one read lane.
    """
    return [row[0] for row in await cluster.fetch(PREPARED) if row[0] != PREPARED]


# When statements are prepared


async def test_never(server: LocalNode) -> None:
    async with cluster_of(server, read_connections=1, prepare_threshold=None) as cluster:
        for number in range(20):
            assert await cluster.fetch_value("SELECT %s::int", [number]) == number
            result = await cluster.execute(f"SELECT count(*) FROM ({PREPARED}) AS p")
            assert result.value() == 0
        assert await prepared(cluster) == []


async def test_at_first_sight(server: LocalNode) -> None:
    async with cluster_of(server, read_connections=1, prepare_threshold=0) as cluster:
        assert await cluster.fetch_value("SELECT 41 + %s::int", [1]) == 42
        assert await prepared(cluster) == ["SELECT 41 + $1::int"]
        for number in range(5):
            assert await cluster.fetch_value("SELECT 41 + %s::int", [number]) == 41 + number
        assert await prepared(cluster) == ["SELECT 41 + $1::int"]


async def test_after_three_uses(server: LocalNode) -> None:
    async with cluster_of(server, read_connections=1) as cluster:
        for use in range(1, 8):
            assert await cluster.fetch_value("SELECT 41 + %s::int", [use]) == 41 + use
            found = await cluster.fetch(PREPARED + " WHERE statement LIKE '%%41 +%%' -- " + str(use))
            assert len(found) == (1 if use > 3 else 0), use


async def test_by_types_too(server: LocalNode) -> None:
    """The same text with parameters of other types is another statement."""
    async with cluster_of(server, read_connections=1, prepare_threshold=0) as cluster:
        for _ in range(3):
            for value, kind in (
                (1, "smallint"),
                (2**40, "bigint"),
                (1.5, "double precision"),
                (True, "boolean"),
            ):
                assert await cluster.fetch_value("SELECT pg_typeof(%s)::text", [value]) == kind
        assert len(await prepared(cluster)) == 4


async def test_in_batches(server: LocalNode) -> None:
    """Every statement of a batch is prepared, framed or not, with a limit of its own or not."""
    async with cluster_of(server, prepare_threshold=0) as cluster:
        for start in ([], ["SAVEPOINT a"]):
            for limit in (None, 5):
                for number in range(3):
                    statements: list[Any] = [
                        *start,
                        ("SELECT %s::int", [number]),
                        ("SELECT %s::int", [7]),
                        PREPARED,
                    ]
                    results = await cluster.execute_batch(statements, statement_timeout=limit)
                    first, second, names = results[-3:]
                    assert (first.value(), second.value()) == (number, 7)
                    assert ("SELECT $1::int",) in list(names) or number == 0
        assert cluster.statistics().connections_lost == 0


# How many are kept

LIMIT = 8


async def test_the_cache_is_bounded(server: LocalNode) -> None:
    async with cluster_of(
        server, read_connections=1, prepare_threshold=0, _tuning=Tuning(statements=LIMIT)
    ) as cluster:
        for number in range(200):
            for call in (cluster.fetch, cluster.execute):
                assert (await call(f"SELECT {number} + %s::int", [1])).value() == number + 1
                assert (await call(f"SELECT count(*) FROM ({PREPARED}) AS p")).value() <= LIMIT + 1
        # The statement used last is still prepared.
        assert f"SELECT {number} + $1::int" in await prepared(cluster)


async def test_the_cache_is_bounded_under_load(server: LocalNode) -> None:
    """The cache stays bounded under load, and every answer is right.

    Statements are evicted while other operations reuse them, and while they are in flight.
    """
    async with cluster_of(
        server, read_connections=3, prepare_threshold=1, _tuning=Tuning(statements=LIMIT)
    ) as cluster:
        with anyio.fail_after(60):
            for _ in range(3):
                operations = [
                    cluster.submit(f"SELECT {number % 37} + %s::int", [number], read=number % 2 == 0)
                    for number in range(2000)
                ]
                for number, operation in enumerate(operations):
                    assert (await operation).value() == number % 37 + number
        assert cluster.statistics().retried == 0
        # Each lane is counted more than once: statements evicted by the first count are closed with the next
        # message.
        for call in (cluster.fetch, cluster.execute):
            for _ in range(20):
                count = (await call(f"SELECT count(*) FROM ({PREPARED}) AS p")).value()
            assert count <= LIMIT + 1


async def test_one_statement_on_many_lanes_at_once(server: LocalNode) -> None:
    """Operations do not depend on a Parse of the same statement that is still in flight."""
    for threshold in (0, 1, 3):
        async with cluster_of(server, read_connections=3, prepare_threshold=threshold) as cluster:
            with anyio.fail_after(60):
                operations = [cluster.submit("SELECT %s::int", [i], read=i % 2 == 0) for i in range(1000)]
                assert [(await one).value() for one in operations] == list(range(1000))
            assert cluster.statistics().retried == 0


async def test_long_texts_are_not_kept(server: LocalNode) -> None:
    long = "SELECT %s::int -- " + "x" * 10_000
    async with cluster_of(server, read_connections=1, prepare_threshold=0) as cluster:
        for number in range(3):
            assert await cluster.fetch_value(long, [number]) == number
        assert await prepared(cluster) == []


# Failures


async def test_a_failed_parse_leaves_the_name_free(server: LocalNode) -> None:
    table = unique("t")
    query = f"SELECT id FROM {table} WHERE id > %s"
    async with cluster_of(server, read_connections=1, prepare_threshold=0) as cluster:
        for _ in range(3):
            for call in (cluster.fetch, cluster.execute):
                with pytest.raises(psycopg.errors.UndefinedTable) as caught:
                    await call(query, [0])
                assert pgha.error_info(caught.value) == pgha.ErrorInfo(server.name, 0, 1, "not applied")
        failing = [cluster.submit(query, [0], read=i % 2 == 0) for i in range(50)]
        for one in failing:
            with pytest.raises(psycopg.errors.UndefinedTable):
                await one
        await cluster.execute(f"CREATE TABLE {table} (id int)")
        await cluster.execute(f"INSERT INTO {table} VALUES (1)")
        for _ in range(3):
            for call in (cluster.fetch, cluster.execute):
                assert list(await call(query, [0])) == [(1,)]
        assert query.replace("%s", "$1") in await prepared(cluster)
        assert cluster.statistics().connections_lost == 0


async def test_a_failed_parse_in_a_batch(server: LocalNode) -> None:
    """The statements around a failed Parse keep their names, or get new ones."""
    async with cluster_of(server, prepare_threshold=0) as cluster:
        for start in ([], ["SAVEPOINT a"]):
            for number in range(5):
                with pytest.raises(psycopg.errors.UndefinedTable) as caught:
                    await cluster.execute_batch(
                        [
                            *start,
                            ("SELECT %s::int", [number]),
                            "SELECT * FROM nowhere",
                            ("SELECT %s::text", ["a"]),
                        ]
                    )
                assert pgha.error_info(caught.value).statement == len(start) + 1
                results = await cluster.execute_batch(
                    [*start, ("SELECT %s::int", [number]), ("SELECT %s::text", ["a"])]
                )
                assert [one.value() for one in results[-2:]] == [number, "a"]
        assert cluster.statistics().connections_lost == 0


async def test_a_parse_that_passes_before_its_statement_fails(server: LocalNode) -> None:
    async with cluster_of(server, read_connections=1, prepare_threshold=0) as cluster:
        for _ in range(50):
            with pytest.raises(psycopg.errors.DivisionByZero):
                await cluster.fetch("SELECT 10 / %s::int", [0])
            assert await cluster.fetch_value("SELECT 10 / %s::int", [5]) == 2
        assert len(await prepared(cluster)) <= 2


async def test_statements_that_are_gone(server: LocalNode) -> None:
    """A statement that a user's function deallocated unnoticed (26000) is run again, unprepared."""
    async with cluster_of(server, read_connections=1, prepare_threshold=0) as cluster:
        for turn in range(3):
            for number in range(5):
                assert (await cluster.execute("SELECT %s::int", [number])).value() == number
            await cluster.execute(f"DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$ -- {turn}")
            operations = [cluster.submit("SELECT %s::int", [number]) for number in range(10)]
            assert [(await one).value() for one in operations] == list(range(10))
        assert cluster.statistics().connections_lost == 0


# DDL


async def seen(cluster: pgha.Cluster, query: str, params: Any, expected: list[tuple[Any, ...]]) -> None:
    """Check the rows on every lane of both kinds, more often than any threshold."""
    with anyio.fail_after(PATIENCE):
        for _ in range(3):
            for read in (True, False):
                many = [cluster.submit(query, params, read=read) for _ in range(20)]
                for one in many:
                    assert list(await one) == expected


@pytest.mark.parametrize("threshold", [0, 3])
async def test_a_column_changes_its_type(server: LocalNode, threshold: int) -> None:
    """A changed column type makes the statement run again, unprepared.

    The server reports 0A000, "cached plan must not change result type".
    """
    table = unique("t")
    by_value, everything = f"SELECT v FROM {table} WHERE id = %s", f"SELECT * FROM {table}"
    async with cluster_of(server, prepare_threshold=threshold) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, v int)")
        await cluster.execute(f"INSERT INTO {table} VALUES (1, 5)")
        for kind, value in (("int", 5), ("text", "5"), ("int", 5), ("bigint", 5), ("text", "5")):
            await cluster.execute(f"ALTER TABLE {table} ALTER COLUMN v TYPE {kind} USING v::{kind}")
            await seen(cluster, by_value, [1], [(value,)])
            await seen(cluster, everything, None, [(1, value)])
        assert cluster.statistics().failed == 0


@pytest.mark.parametrize("threshold", [0, 3])
async def test_a_column_is_added_and_dropped(server: LocalNode, threshold: int) -> None:
    table = unique("t")
    query = f"SELECT * FROM {table} WHERE id = %s"
    async with cluster_of(server, prepare_threshold=threshold) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int PRIMARY KEY)")
        await cluster.execute(f"INSERT INTO {table} VALUES (1)")
        await seen(cluster, query, [1], [(1,)])
        await cluster.execute(f"ALTER TABLE {table} ADD COLUMN more text DEFAULT 'x'")
        await seen(cluster, query, [1], [(1, "x")])
        await cluster.execute(f"ALTER TABLE {table} DROP COLUMN more")
        await seen(cluster, query, [1], [(1,)])
        assert (await cluster.fetch(query, [1])).columns == ("id",)
        assert cluster.statistics().failed == 0


@pytest.mark.parametrize("threshold", [0, 3])
async def test_a_table_is_dropped_and_made_again(server: LocalNode, threshold: int) -> None:
    table = unique("t")
    query = f"SELECT * FROM {table}"
    async with cluster_of(server, prepare_threshold=threshold) as cluster:
        for columns, rows in (("a int", "(1)"), ("a text, b int", "('1', 2)"), ("a int", "(3)")):
            await cluster.execute_batch(
                [
                    f"DROP TABLE IF EXISTS {table}",
                    f"CREATE TABLE {table} ({columns})",
                    f"INSERT INTO {table} VALUES {rows}",
                ]
            )
            expected = {"(1)": (1,), "('1', 2)": ("1", 2), "(3)": (3,)}[rows]
            await seen(cluster, query, None, [expected])
            await cluster.execute(f"DROP TABLE {table}")
            with pytest.raises(psycopg.errors.UndefinedTable):
                await cluster.fetch(query)


async def test_writes_with_results_after_ddl(server: LocalNode) -> None:
    """RETURNING * after a new column is applied exactly once."""
    table = unique("t")
    query = f"INSERT INTO {table} (id) VALUES (%s) RETURNING *"
    async with cluster_of(server, prepare_threshold=0) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int)")
        for number in range(5):
            assert (await cluster.execute(query, [number])).one() == (number, *["x"] * number)
            assert (await cluster.execute(query, [100 + number])).one()[0] == 100 + number
            await cluster.execute(f"ALTER TABLE {table} ADD COLUMN c{number} text DEFAULT 'x'")
        ids = [row[0] for row in await server.execute(f"SELECT id FROM {table}")]
        assert sorted(ids) == [0, 1, 2, 3, 4, 100, 101, 102, 103, 104]


@pytest.mark.parametrize("framed", [False, True])
async def test_batches_after_ddl(server: LocalNode, framed: bool) -> None:
    """Every statement of a batch counts once, although one of them was run again."""
    table = unique("t")
    start = ["SAVEPOINT a"] if framed else []
    async with cluster_of(server, prepare_threshold=0) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int)")
        for number in range(4):
            results = await cluster.execute_batch(
                [
                    *start,
                    (f"INSERT INTO {table} (id) VALUES (%s)", [number]),
                    (f"SELECT * FROM {table} WHERE id = %s", [number]),
                    f"SELECT count(*) FROM {table}",
                ]
            )
            assert results[-2].one() == (number, *["x"] * number)
            assert results[-1].value() == number + 1
            await cluster.execute(f"ALTER TABLE {table} ADD COLUMN c{number} text DEFAULT 'x'")
        # Here the batch itself contains DDL.
        for number in range(4):
            results = await cluster.execute_batch(
                [
                    *start,
                    f"ALTER TABLE {table} ADD COLUMN d{number} int",
                    f"SELECT * FROM {table} LIMIT 1",
                ]
            )
            assert len(results[-1].columns) == 6 + number
        assert cluster.statistics().failed == 0


async def test_a_procedure_changes_its_result(server: LocalNode) -> None:
    """A statement that commits by itself is not prepared, since it cannot be run again after 0A000."""
    procedure = unique("p")
    async with cluster_of(server, prepare_threshold=0) as cluster:
        for kind, value in (("int", 1), ("text", "1"), ("int", 1)):
            await cluster.execute(
                f"CREATE PROCEDURE {procedure}(INOUT v {kind}) LANGUAGE plpgsql AS $$ BEGIN v := 1; END $$"
            )
            for _ in range(3):
                assert (await cluster.execute(f"CALL {procedure}(NULL)")).value() == value
            await cluster.execute(f"DROP PROCEDURE {procedure}")


async def test_a_parameter_changes_its_type(server: LocalNode) -> None:
    """At most one 22P02 per lane is seen after a parameter's type changes from int to text.

    The cached plan still wants an int.
    """
    table = unique("t")
    query = f"INSERT INTO {table} VALUES (%s)"
    async with cluster_of(server, read_connections=1, prepare_threshold=0) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (v int)")
        for value in ("1", "2", "3"):
            await cluster.execute(query, [value])
        await cluster.execute(f"ALTER TABLE {table} ALTER COLUMN v TYPE text")
        failures = 0
        for number in range(10):
            try:
                await cluster.execute(query, [f"word {number}"])
            except psycopg.errors.InvalidTextRepresentation as error:
                assert pgha.error_info(error).outcome == "not applied"
                failures += 1
        assert failures <= 1
        assert await cluster.fetch_value(f"SELECT count(*) FROM {table}") == 13 - failures


async def test_ddl_under_load_with_several_lanes(server: LocalNode) -> None:
    table = unique("t")
    query = f"SELECT * FROM {table} WHERE id = %s"
    async with cluster_of(server, read_connections=3, prepare_threshold=0) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, v int)")
        await cluster.execute(f"INSERT INTO {table} SELECT i, i FROM generate_series(0, 9) AS i")
        done, turns, widths = anyio.Event(), [0], set[int]()

        async def read(number: int) -> None:
            for turn in itertools.count():
                if done.is_set():
                    return
                call = cluster.fetch if turn % 2 else cluster.execute
                row = (await call(query, [number])).one()
                assert row[0] == number
                assert str(row[1]) == str(number)
                widths.add(len(row))
                turns[0] += 1

        async def more() -> None:
            before = turns[0]
            await eventually(lambda: turns[0] > before + 50)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                for number in range(10):
                    group.start_soon(read, number)
                await more()
                for number in range(5):
                    await cluster.execute(f"ALTER TABLE {table} ADD COLUMN c{number} int")
                    await more()
                    kind = "int" if number % 2 else "text"
                    await cluster.execute(f"ALTER TABLE {table} ALTER COLUMN v TYPE {kind} USING v::{kind}")
                    await more()
                done.set()
        assert widths == {2, 3, 4, 5, 6, 7}
        assert cluster.statistics().failed == 0
        assert cluster.statistics().connections_lost == 0
