"""A result's rows: row factories, dicts and models, in every kind of call, never with outdated columns."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple, assert_type
from uuid import UUID

import attrs
import msgspec
import psycopg
import pydantic
import pytest
from psycopg import sql
from psycopg.rows import TupleRow, args_row, class_row, dict_row, kwargs_row, namedtuple_row, scalar_row
from support.common import cluster_of, unique

import pgha
from pgha.chaos import LocalNode

pytestmark = pytest.mark.anyio

ITEMS = "SELECT i::int AS id, 'n' || i AS name FROM generate_series(1, %s) AS i"


@dataclass
class Item:
    id: int
    name: str | None


# Row factories, and the types that type checkers see


async def test_the_row_factory_of_a_call(server: LocalNode) -> None:
    async with cluster_of(server) as cluster:
        tuples = await cluster.fetch(ITEMS, [2])
        assert_type(tuples, pgha.Result[TupleRow])
        assert list(tuples) == [(1, "n1"), (2, "n2")]
        dicts = await cluster.fetch(ITEMS, [2], row_factory=dict_row)
        assert_type(dicts, pgha.Result[dict[str, Any]])
        assert dicts == [{"id": 1, "name": "n1"}, {"id": 2, "name": "n2"}]
        items = await cluster.execute(ITEMS, [1], row_factory=class_row(Item))
        assert_type(items, pgha.Result[Item])
        assert_type(items[0], Item)
        assert_type(items.one(), Item)
        assert_type(items.one_or_none(), Item | None)
        assert items.one() == items.one_or_none() == items[0] == Item(1, "n1")
        one = await cluster.fetch_one(ITEMS, [1], row_factory=class_row(Item))
        assert_type(one, Item | None)
        assert one == Item(1, "n1")
        for factory in (kwargs_row(Item), args_row(Item)):
            assert (await cluster.fetch(ITEMS, [1], row_factory=factory)).one() == Item(1, "n1")
        named = await cluster.fetch(ITEMS, [2], row_factory=namedtuple_row)
        assert [row._asdict()["name"] for row in named] == ["n1", "n2"]
        assert list(await cluster.fetch(ITEMS, [2], row_factory=scalar_row)) == [1, 2]


async def test_the_row_factory_of_a_cluster(server: LocalNode) -> None:
    async with pgha.open_cluster(server.dsn, row_factory=class_row(Item)) as cluster:
        assert_type(cluster, pgha.Cluster[Item])
        items = await cluster.fetch(ITEMS, [2])
        assert_type(items, pgha.Result[Item])
        assert items == [Item(1, "n1"), Item(2, "n2")]
        written = await cluster.execute(ITEMS, [1])
        assert_type(written, pgha.Result[Item])
        one = await cluster.fetch_one(ITEMS, [1])
        assert_type(one, Item | None)
        assert written.one() == one == Item(1, "n1")
        # A row factory passed to the call takes precedence.
        dicts = await cluster.fetch(ITEMS, [1], row_factory=dict_row)
        assert_type(dicts, pgha.Result[dict[str, Any]])
        assert dicts == [{"id": 1, "name": "n1"}]
        assert await cluster.fetch_value(ITEMS, [1]) == 1
        assert (await cluster.execute_batch([(ITEMS, [1])]))[0].one() == Item(1, "n1")
    async with pgha.open_cluster(server.dsn) as usual:
        assert_type(usual, pgha.Cluster[TupleRow])
        models = (await usual.fetch(ITEMS, [2])).into(Item)
        assert_type(models, list[Item])
        assert models == items


FACTORIES: list[Any] = [None, dict_row, namedtuple_row, scalar_row, class_row(Item), args_row(Item)]


@pytest.mark.parametrize("rows", [0, 1, 20])
async def test_json_whatever_the_rows_are(server: LocalNode, rows: int) -> None:
    expected = [{"id": number, "name": f"n{number}"} for number in range(1, rows + 1)]
    async with cluster_of(server) as cluster:
        for factory in FACTORIES:
            result = await cluster.fetch(ITEMS, [rows], row_factory=factory)
            assert json.loads(result.json()) == expected
            assert (result.columns, result.rowcount) == (("id", "name"), rows)


async def test_dicts_and_models_of_tuples_and_dicts(server: LocalNode) -> None:
    expected: list[dict[str, Any]] = [{"id": number, "name": f"n{number}"} for number in range(1, 21)]
    async with cluster_of(server) as cluster:
        for factory in FACTORIES:
            result = await cluster.fetch(ITEMS, [20], row_factory=factory)
            if factory in (None, dict_row, namedtuple_row):
                assert result.dicts() == expected
                assert result.into(Item) == [Item(**record) for record in expected]
                continue
            for call in (result.dicts, lambda: result.into(Item)):  # noqa: B023 - called at once
                with pytest.raises(psycopg.DataError, match="row factory"):
                    call()


async def test_a_changed_dict_does_not_change_the_result(server: LocalNode) -> None:
    async with cluster_of(server) as cluster:
        result = await cluster.fetch(ITEMS, [1], row_factory=dict_row)
        result.dicts()[0]["id"] = 99
        assert result.one() == {"id": 1, "name": "n1"}
        assert result.dicts() == [{"id": 1, "name": "n1"}]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("ARRAY[7, 8]", [7, 8]),
        ("""'{"a": 1, "b": 2}'::jsonb""", {"a": 1, "b": 2}),
        ("'ab'", "ab"),
        ("NULL", None),
    ],
)
async def test_scalars_are_values_not_rows(server: LocalNode, value: str, expected: Any) -> None:
    """`scalar_row` has taken the first column already; an array's own first element is a different value."""
    query = f"SELECT {value} AS a"
    async with cluster_of(server) as cluster:
        result = await cluster.fetch(query, row_factory=scalar_row)
        assert result.one() == expected
        assert result.value() == expected
        with pytest.raises(psycopg.DataError, match="row factory"):
            result.dicts()
    async with cluster_of(server, row_factory=scalar_row) as scalars:
        assert await scalars.fetch_value(query) == expected


@pytest.mark.parametrize("factory", [None, dict_row, scalar_row, class_row(Item)])
async def test_the_value_of_any_row(server: LocalNode, factory: Any) -> None:
    async with cluster_of(server) as cluster:
        assert (await cluster.fetch(ITEMS, [1], row_factory=factory)).value() == 1


# Duplicates and options


async def test_two_columns_of_one_name(server: LocalNode) -> None:
    query = "SELECT 1 AS id, 2 AS id, 3 AS id_2, 4 AS id"
    numbered = [{"id": 1, "id_3": 2, "id_2": 3, "id_4": 4}]
    async with cluster_of(server) as cluster:
        result = await cluster.fetch(query)
        for call in (result.dicts, result.json, lambda: result.into(Item)):
            with pytest.raises(psycopg.DataError, match='"id"'):
                call()
        assert result.dicts(duplicates="number") == numbered
        assert json.loads(result.json(duplicates="number")) == numbered
        # Without rows the error is the same: a program must not break only when its first row comes.
        empty = await cluster.fetch(query + " WHERE false")
        for call in (empty.dicts, empty.json):
            with pytest.raises(psycopg.DataError, match='"id"'):
                call()
        assert (empty.dicts(duplicates="number"), empty.json(duplicates="number")) == ([], "[]")


async def test_numbers_for_rows_that_lost_a_column(server: LocalNode) -> None:
    """Numbered duplicates are complete or an error.

    `dict_row` keeps only the last column of a name, and a part of the columns is no answer.
    """
    query = "SELECT 1 AS id, 2 AS id"
    async with cluster_of(server) as cluster:
        result = await cluster.fetch(query, row_factory=dict_row)
        assert json.loads(result.json(duplicates="number")) == [{"id": 1, "id_2": 2}]
        try:
            found = result.dicts(duplicates="number")
        except psycopg.DataError as error:
            assert "row factory" in str(error)
        else:
            assert found == [{"id": 1, "id_2": 2}]


async def test_rows_of_another_width(server: LocalNode) -> None:
    """A user's row factory may return tuples that are not whole rows; `dicts` then raises."""

    def first_two(cursor: Any) -> Callable[[Any], tuple[Any, ...]]:
        return lambda values: tuple(values)[:2]

    async with cluster_of(server) as cluster:
        result = await cluster.fetch("SELECT 1 AS a, 2 AS b, 3 AS c", row_factory=first_two)
        assert json.loads(result.json()) == [{"a": 1, "b": 2, "c": 3}]
        with pytest.raises(psycopg.DataError, match="row factory"):
            result.dicts()


async def test_wrong_options(server: LocalNode) -> None:
    async with cluster_of(server) as cluster:
        for rows in (0, 1):
            result: Any = await cluster.fetch(ITEMS, [rows])
            for name, choices in {
                "timestamps": ("iso", "epoch"),
                "bytea": ("base64", "hex"),
                "non_finite": ("error", "string"),
                "duplicates": ("error", "number"),
            }.items():
                bad: list[Any] = ["nothing", None, True, [], choices[0].upper()]
                for wrong in bad:
                    with pytest.raises(pgha.ConfigError) as caught:
                        result.json(**{name: wrong})
                    words = str(caught.value)
                    assert words.startswith(name) and all(repr(one) in words for one in choices)
                    assert repr(wrong) in words
            with pytest.raises(pgha.ConfigError, match="'error' or 'number'"):
                result.dicts(duplicates="nothing")
            with pytest.raises(pgha.ConfigError, match="takes a class"):
                result.into("Item")


# Models of the server's values


@attrs.frozen
class Ticket:
    id: int
    key: UUID
    price: Decimal
    at: datetime
    doc: dict[str, Any]
    tags: list[str]
    data: bytes
    note: str | None = None


class TicketTuple(NamedTuple):
    id: int
    key: UUID
    price: Decimal
    at: datetime
    doc: dict[str, Any]
    tags: list[str]
    data: bytes
    note: str | None = None


class Detail(pydantic.BaseModel):
    a: list[int]


class TicketModel(pydantic.BaseModel):
    id: int
    key: UUID
    price: Decimal
    at: datetime
    doc: Detail
    tags: list[str]
    data: bytes
    note: str | None


class DetailStruct(msgspec.Struct):
    a: list[int]


class TicketStruct(msgspec.Struct):
    id: int
    key: UUID
    price: Decimal
    at: datetime
    doc: DetailStruct
    tags: list[str]
    data: bytes
    note: str | None


TICKETS = """SELECT i::int AS id, '00000000-0000-0000-0000-000000000001'::uuid AS key, 1.50 AS price,
    '2020-01-02 03:04:05.25+00'::timestamptz AS at, '{"a": [1, 2]}'::jsonb AS doc, ARRAY['x', 'y,z'] AS tags,
    '\\x00ff'::bytea AS data, NULL::text AS note FROM generate_series(0, %s) AS i"""


@pytest.mark.parametrize("factory", [None, dict_row, namedtuple_row])
async def test_models(server: LocalNode, factory: Any) -> None:
    async with cluster_of(server) as cluster:
        result = await cluster.fetch(TICKETS, [2], row_factory=factory)
    # The cluster is closed by now: a result is complete without the cluster.
    for model in (Ticket, TicketTuple, TicketModel, TicketStruct):
        made: list[Any] = result.into(model)
        assert [type(one) for one in made] == [model] * 3
        assert [one.id for one in made] == [0, 1, 2]
        last = made[2]
        assert (last.key, str(last.price), last.tags) == (UUID(int=1), "1.50", ["x", "y,z"])
        assert (last.at.isoformat(), last.data) == ("2020-01-02T03:04:05.250000+00:00", b"\x00\xff")
        assert last.note is None
        assert (last.doc["a"] if isinstance(last.doc, dict) else last.doc.a) == [1, 2]


@pytest.mark.parametrize("model", [Ticket, TicketTuple, TicketModel, TicketStruct])
async def test_a_row_that_does_not_fit(server: LocalNode, model: type[Any]) -> None:
    async with cluster_of(server) as cluster:
        for column, value in (("id", "NULL"), ("key", "CASE i WHEN 7 THEN NULL ELSE key END"), ("tags", "5")):
            query = TICKETS.replace("FROM generate", ", i FROM generate") if column == "key" else TICKETS
            wrong = f"SELECT id, key, price, at, doc, tags, data, note FROM ({query}) AS t"
            wrong = wrong.replace(f" {column},", f" {value} AS {column},", 1)
            result = await cluster.fetch(wrong, [9])
            with pytest.raises(psycopg.DataError) as caught:
                result.into(model)
            row = 7 if column == "key" else 0
            assert str(caught.value).startswith(
                f'row {row}, column "{column}" does not fit {model.__name__}: '
            )


async def test_no_rows_and_no_columns(server: LocalNode) -> None:
    table = unique("t")
    async with cluster_of(server) as cluster:
        none = await cluster.fetch(ITEMS, [0])
        assert (none.dicts(), none.into(Item), none.json()) == ([], [], "[]")
        created = await cluster.execute(f"CREATE TABLE {table} (id int, name text)")
        inserted = await cluster.execute(f"INSERT INTO {table} VALUES (1, 'a')")
        for result in (created, inserted):
            assert (result.dicts(), result.json()) == ([], "[]")
        for count in (1, 5, 2000):
            bare = await cluster.fetch("SELECT FROM generate_series(1, %s)", [count])
            assert (len(bare), bare.columns) == (count, ())
            assert bare.dicts() == json.loads(bare.json()) == [{}] * count


# Every kind of call


async def test_every_way_to_ask(server: LocalNode) -> None:
    table = unique("t")
    expected = [{"id": 1, "name": "n1"}, {"id": 2, "name": "n2"}]
    insert = f"INSERT INTO {table} (id, name) {ITEMS} RETURNING id, name"
    async with cluster_of(server) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int, name text)")
        results = [
            await cluster.fetch(ITEMS, [2]),
            await cluster.fetch(ITEMS, [2], route=pgha.fastest()),
            await cluster.execute(insert, [2]),
            await cluster.submit(ITEMS, [2], read=True),
            await cluster.submit(insert, [2]),
            (await cluster.execute_batch(["SELECT 1", (insert, [2]), "SELECT 2"]))[1],
            (await cluster.execute_batch(["SAVEPOINT a", (insert, [2])]))[1],
        ]
        async with cluster.group() as group:
            operation = group.submit(insert, [2])
        results.append(await operation)
        batch = await cluster.execute_batch([(ITEMS, [2]), "SELECT true AS yes", f"DELETE FROM {table}"])
    for result in [*results, batch[0]]:
        assert result.dicts() == json.loads(result.json()) == expected
        assert result.into(Item) == [Item(1, "n1"), Item(2, "n2")]
    assert batch[1].json() == '[{"yes":true}]'
    assert (batch[2].json(), batch[2].rowcount) == ("[]", 10)


# Columns are remembered with a prepared statement

Change = tuple[str, list[dict[str, Any]]]


async def seen(cluster: pgha.Cluster, query: str, expected: list[dict[str, Any]]) -> None:
    """Check the rows on every lane of both kinds, more often than any threshold, alone and in batches."""
    for _ in range(3):
        for read in (True, False):
            for one in [cluster.submit(query, read=read) for _ in range(12)]:
                result = await one
                assert result.dicts() == json.loads(result.json()) == expected
                assert result.columns == tuple(expected[0])
        (batched,) = await cluster.execute_batch([query])
        assert batched.dicts() == json.loads(batched.json()) == expected


@pytest.mark.parametrize("threshold", [0, 3, None])
async def test_columns_are_never_stale(server: LocalNode, threshold: int | None) -> None:
    table, view = unique("t"), unique("v")
    alter = f"ALTER TABLE {table} "
    changes: list[Change] = [
        ("SELECT 1", [{"id": 1, "v": 5}]),
        (alter + "RENAME COLUMN v TO w", [{"id": 1, "w": 5}]),
        (alter + "ALTER COLUMN w TYPE text", [{"id": 1, "w": "5"}]),
        (alter + "ALTER COLUMN w TYPE jsonb USING w::jsonb", [{"id": 1, "w": 5}]),
        (alter + "ALTER COLUMN w TYPE bool USING true", [{"id": 1, "w": True}]),
        (alter + "ADD COLUMN x int[] DEFAULT '{1,NULL}'", [{"id": 1, "w": True, "x": [1, None]}]),
        (alter + "DROP COLUMN w", [{"id": 1, "x": [1, None]}]),
        (alter + "RENAME COLUMN x TO id2", [{"id": 1, "id2": [1, None]}]),
    ]
    async with cluster_of(server, prepare_threshold=threshold) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int, v int)")
        await cluster.execute(f"INSERT INTO {table} VALUES (1, 5)")
        for change, expected in changes:
            await cluster.execute(change)
            await seen(cluster, f"SELECT * FROM {table}", expected)
        await cluster.execute(f"CREATE VIEW {view} AS SELECT id, id2 AS many FROM {table}")
        await seen(cluster, f"SELECT * FROM {view}", [{"id": 1, "many": [1, None]}])
        for old, new in (("many", "more"), ("more", "many"), ("many", "id3")):
            await cluster.execute(f"ALTER VIEW {view} RENAME COLUMN {old} TO {new}")
            await seen(cluster, f"SELECT * FROM {view}", [{"id": 1, new: [1, None]}])
        assert cluster.statistics().failed == 0


async def test_one_text_with_parameters_of_other_types(server: LocalNode) -> None:
    """The types of the columns follow the types of the parameters."""
    async with cluster_of(server, read_connections=1, prepare_threshold=0) as cluster:
        for _ in range(4):
            for value in (1, 2**40, 1.5, True, "x", None, [1, 2]):
                result = await cluster.fetch("SELECT %s AS a", [value])
                assert result.dicts() == json.loads(result.json()) == [{"a": value}]


async def test_a_factory_that_fails_leaves_the_columns_right(server: LocalNode) -> None:
    async with cluster_of(server, read_connections=1, prepare_threshold=0) as cluster:
        for _ in range(3):
            with pytest.raises(TypeError):
                await cluster.fetch("SELECT 1 AS other", row_factory=class_row(Item))
            assert (await cluster.fetch("SELECT 1 AS other")).json() == '[{"other":1}]'


# Values come back as they were sent


async def test_bytes_in_text(server: LocalNode) -> None:
    """Bytes within arrays and composites arrive intact.

    psycopg sends the parts of arrays and composites as text, in the form that a connection escapes.
    """
    kind, value = unique("c"), bytes(range(256)) + b"it's \\ ''"
    async with cluster_of(server) as cluster:
        await cluster.execute(f"CREATE TYPE {kind} AS (id int, data bytea)")
        asked: list[tuple[str, Any, Any]] = [
            ("alone", "SELECT %s::bytea", value),
            ("literal", sql.SQL("SELECT {}::bytea").format(sql.Literal(value)), None),
            ("as text", "SELECT %t::bytea", value),
            ("array", "SELECT (%s::bytea[])[1]", [value]),
            ("array", "SELECT (%s::bytea[])[1]", [bytearray(value)]),
            ("array", "SELECT (%s::bytea[])[1]", [memoryview(value)]),
            ("composite", f"SELECT (%s::{kind}).data", (1, value)),
            ("composites", f"SELECT ((%s::{kind}[])[1]).data", [(1, value)]),
        ]
        wrong = []
        for how, query, param in asked:
            params = None if param is None else [param]
            if (await cluster.execute(query, params)).value() != value:
                wrong.append(how)
        assert wrong == []
