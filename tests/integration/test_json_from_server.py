"""`Result.json` with a real server, compared with the server's own JSON if both mean the same."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from typing import Any

import psycopg
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg.adapt import AdaptersMap
from psycopg.rows import scalar_row
from psycopg.types import TypeInfo
from psycopg.types.composite import CompositeInfo, register_composite
from psycopg.types.enum import EnumInfo, register_enum
from psycopg.types.string import TextLoader
from support.common import cluster_of, unique

import pgha
from pgha._rows.timestamps import epoch
from pgha.chaos import LocalNode

pytestmark = pytest.mark.anyio

quick = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


class Number(str):
    """A number that keeps its digits as written in the JSON."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Number) and str(self) == str(other)


def exact(written: str) -> Any:
    """Parse JSON strictly: reject NaN, and keep the digits of numbers."""

    def refuse(word: str) -> Any:
        raise AssertionError(word)

    return json.loads(written, parse_int=Number, parse_float=Number, parse_constant=refuse)


def with_setting(node: LocalNode, setting: str) -> str:
    return f"{node.dsn} options='-c {setting}'"


def as_text(adapters: AdaptersMap, *types: str) -> None:
    """Load values that Python cannot represent as text, as psycopg advises."""
    for name in types:
        adapters.register_loader(name, TextLoader)


Ask = Callable[..., pgha.Result[Any]]


@contextmanager
def asking(backend: str, *nodes: str) -> Iterator[Ask]:
    """Yield a function that queries a cluster, for tests that are no coroutines, as property-based ones."""
    with (
        start_blocking_portal(backend) as portal,
        portal.wrap_async_context_manager(pgha.open_cluster(*nodes)) as cluster,
    ):

        def ask(query: str, *params: Any) -> pgha.Result[Any]:
            return portal.call(partial(cluster.fetch, query, list(params)))

        yield ask


@pytest.fixture
def ask(server: LocalNode, anyio_backend: str) -> Iterator[Ask]:
    with asking(anyio_backend, server.dsn) as made:
        yield made


# Values that the server's own JSON can express

SAME = [
    "NULL::int, NULL::text, NULL::int[], NULL::jsonb",
    "true, false, ARRAY[true, NULL, false]",
    "(-32768)::int2, 2147483647::int4, (-9223372036854775808)::int8, ARRAY[1, NULL, 3]::int8[]",
    "1.5::float4, 1e20::float8, 1e-7::float8, '-0'::float8, 5e-324::float8, 1.7976931348623157e308::float8",
    "1.50, -0.00, 1e-30::numeric, (10::numeric ^ 100), ARRAY[1.50, NULL], repeat('9', 500)::numeric / 7",
    "'a\"\\b'::text, E'\\n\\t\\x01'::text, 'é😀'::varchar, 'x '::char(5), 'n'::name, ''",
    "ARRAY['a,b', '\"q\"', NULL, 'NULL', '', ' ', E'\\\\', '{}', E'\\n'], '{}'::text[]",
    "'{{1,2},{NULL,4}}'::int[], '{{{a}},{{b}}}'::text[], '[0:1]={5,6}'::int[]",
    "'[-1:0][2:2]={{5},{6}}'::int[]",
    "md5('a')::uuid, ARRAY[md5('b')::uuid, NULL]",
    """'{"a": [1.50, null], "b" : "\\u00e9"}'::json, '{"b": 1e2}'::jsonb, 'null'::json, '[]'::jsonb""",
    """ARRAY['{"a": [1, 2.50]}'::json, NULL, 'null'], ARRAY['{"b": 1.10}'::jsonb, '"a,b"']""",
    "'2020-01-02'::date, '0001-01-01'::date, '9999-12-31'::date, ARRAY['2020-01-02'::date, NULL]",
    "'2020-01-02 03:04:05'::timestamp, '2020-01-02 03:04:05.5'::timestamp, '2020-01-02 00:00'::timestamp",
    "'2020-07-02 03:04:05+00'::timestamptz, '1900-01-02 03:04:05.25+00'::timestamptz",
    "ARRAY['2020-01-02 03:04:05.000001+00'::timestamptz, NULL]",
    "'03:04:05.5'::time, '03:04:05+05:30'::timetz, '1 mon -3 days 00:00:01.5'::interval",
    "'[1,5)'::int4range, '(,\"2020-01-02 00:00:00+00\"]'::tstzrange, 'empty'::daterange",
    "'{[1,3),[5,8)}'::int4multirange",
    "ARRAY['[1,5)'::int4range, NULL], '[1.50,2)'::numrange, ARRAY['{[1,3)}'::int4multirange]",
    "'10.0.0.1/8'::inet, '::1'::inet, '10.0.0.0/8'::cidr, ARRAY['10.0.0.1'::inet]",
    "'08:00:2b:01:02:03'::macaddr, '08:00:2b:01:02:03:04:05'::macaddr8",
    "'a:1 b:2'::tsvector, 'a & b'::tsquery, '$.a[*]'::jsonpath, B'101', B'101'::varbit, '0/16B3748'::pg_lsn",
    "'(1,2)'::point, '((0,0),(1,1))'::box, ARRAY['((0,0),(1,1))'::box, '((2,2),(3,3))'], '<(1,2),3>'::circle",
    "'12.34'::money, 'pg_class'::regclass, '5'::xid, '(1,2)'::tid, '5'::xid8, ARRAY['12.34'::money]",
]
"""Each query has many values, so results of more than 16 cells occur too."""


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "Africa/Monrovia", "America/New_York"])
async def test_as_the_server_says_it(server: LocalNode, zone: str) -> None:
    async with pgha.open_cluster(with_setting(server, f"TimeZone={zone}")) as cluster:
        for values in SAME:
            for rows in (1, 30):
                named = f"(SELECT * FROM generate_series(1, {rows})) AS g, LATERAL (SELECT {values}) AS t"
                count = len((await cluster.fetch(f"SELECT {values}")).columns)
                columns = ", ".join(f"c{index}" for index in range(count))
                source = f"FROM {named}({columns})"
                found = exact((await cluster.fetch(f"SELECT {columns} {source}")).json())
                wanted = await cluster.fetch(f"SELECT row_to_json(t)::text {source}")
                assert found == [exact(row[0]) for row in wanted], values


async def test_a_table_of_thousands(server: LocalNode) -> None:
    table = unique("t")
    async with cluster_of(server) as cluster:
        await cluster.execute(
            f"""CREATE TABLE {table} AS SELECT i AS id, CASE WHEN i % 3 > 0 THEN 'n"' || i END AS name,
            i / 7.0 AS price, to_timestamp(i * 1000.25) AS at, ARRAY[i, NULL] AS many, i % 2 = 0 AS even,
            CASE WHEN i % 5 > 0 THEN jsonb_build_object('i', i) END AS doc
            FROM generate_series(1, 5000) AS i"""
        )
        result = await cluster.fetch(f"SELECT * FROM {table} ORDER BY id")
        wanted = await cluster.fetch_value(f"SELECT json_agg(t ORDER BY id)::text FROM {table} AS t")
        assert exact(result.json()) == exact(wanted)


# Boundaries between the internal paths: values copied (16 at most), libpq's result, 1000 rows at a time


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8, 15, 16, 17])
async def test_few_values_and_more(server: LocalNode, width: int) -> None:
    one = ", ".join(f"CASE WHEN (i + {index}) % 3 > 0 THEN i * 100 + {index} END" for index in range(width))
    async with cluster_of(server) as cluster:
        for rows in (0, 1, 2, 3, 4, 5, 8, 15, 16, 17, 18):
            columns = ", ".join(f"c{index}" for index in range(width))
            result = await cluster.fetch(
                f"SELECT {columns} FROM generate_series(1, {rows}) AS i,"
                f" LATERAL (SELECT {one}) AS t({columns})"
            )
            assert json.loads(result.json()) == result.dicts()
            assert result.dicts() == [
                {f"c{k}": i * 100 + k if (i + k) % 3 else None for k in range(width)}
                for i in range(1, rows + 1)
            ]


@pytest.mark.parametrize("rows", [999, 1000, 1001, 1999, 2000, 2001])
async def test_a_thousand_rows_and_more(server: LocalNode, rows: int) -> None:
    """NULLs, arrays and documents are right on both sides of each boundary."""
    async with cluster_of(server) as cluster:
        result = await cluster.fetch(
            "SELECT i, nullif(i %% 2, 0) AS odd, ARRAY[i::text, NULL] AS a, '{\"i\": 1.50}'::json AS j,"
            " CASE WHEN i > 1000 THEN 'late' END AS late FROM generate_series(1, %s) AS i",
            [rows],
        )
        written = result.json()
    assert json.loads(written) == [
        {
            "i": i,
            "odd": 1 if i % 2 else None,
            "a": [str(i), None],
            "j": {"i": 1.5},
            "late": "late" if i > 1000 else None,
        }
        for i in range(1, rows + 1)
    ]


async def test_an_error_in_a_later_thousand(server: LocalNode) -> None:
    async with cluster_of(server) as cluster:
        result = await cluster.fetch(
            "SELECT i, CASE i WHEN 1500 THEN 'NaN' ELSE 1.5 END::float8 AS bad"
            " FROM generate_series(1, 2001) AS i"
        )
        with pytest.raises(psycopg.DataError, match='column "bad": NaN'):
            result.json()
        found = json.loads(result.json(non_finite="string"))
        assert [found[index]["bad"] for index in (1498, 1499, 1500)] == [1.5, "NaN", 1.5]


async def test_after_the_cluster(server: LocalNode) -> None:
    async with cluster_of(server) as cluster:
        results = [
            await cluster.fetch("SELECT i FROM generate_series(1, %s) AS i", [n]) for n in (1, 16, 17, 1500)
        ]
    for result in results:
        for _ in range(2):
            assert [row["i"] for row in json.loads(result.json())] == list(range(1, len(result) + 1))


# Any value that can be sent


@quick
@given(st.lists(st.none() | text, min_size=1, max_size=25))
@example(["NULL", "", '"\\/\b\f\n\r\t', "\x01\x1f\x7f\x80\u2028", "\U0001f600", "{}", None])
def test_any_text(ask: Ask, values: list[str | None]) -> None:
    """Any text is right, alone and in arrays."""
    result = ask("SELECT unnest(%s::text[]) AS one, %s::text[] AS all", values, values)
    assert json.loads(result.json()) == [{"one": one, "all": values} for one in values]


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def nest(lengths: list[int]) -> st.SearchStrategy[Any]:
        return st.lists(nest(lengths[1:]), min_size=lengths[0], max_size=lengths[0]) if lengths else leaves

    return st.lists(st.integers(1, 3), min_size=1, max_size=3).flatmap(nest) | st.just([])


@quick
@given(nested(st.none() | text | st.sampled_from(["NULL", "null", "", "{}", "a,b", '"', "\\", " ", "{a}"])))
def test_any_array(ask: Ask, array: Any) -> None:
    result = ask("SELECT %s::text[] AS a, to_json(%s::text[])::text AS server", array, array)
    assert json.loads(result.json()) == [{"a": array, "server": result[0][1]}]
    assert json.loads(result[0][1]) == array


@quick
@given(st.lists(st.decimals(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
@example([Decimal("1.50"), Decimal("-0.000"), Decimal("9" * 1000 + "." + "1" * 1000), Decimal("1E+300")])
def test_any_numeric(ask: Ask, values: list[Decimal]) -> None:
    values = [
        value for value in values if -1000 < value.adjusted() < 1000 and value.as_tuple().exponent != 0
    ] or [Decimal(1)]
    result = ask("SELECT n, n::text AS t FROM unnest(%s::numeric[]) AS n", values)
    for found, sent in zip(exact(result.json()), values, strict=True):
        assert found["n"] == Number(found["t"])
        assert Decimal(found["n"]) == sent


@quick
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_any_float(ask: Ask, values: list[float]) -> None:
    result = ask("SELECT unnest(%s::float8[]) AS f", values)
    assert [float(row["f"]) for row in exact(result.json())] == values


@pytest.mark.parametrize("output", ["hex", "escape"])
def test_any_bytea(server: LocalNode, anyio_backend: str, output: str) -> None:
    @quick
    @given(st.lists(st.binary(max_size=100), min_size=1, max_size=20))
    @example([b"\\x41", b"\\", b"\\101", b"x", bytes(range(256)), b"'\"\0"])
    def check(values: list[bytes]) -> None:
        result = ask("SELECT b, ARRAY[b, NULL] AS a FROM unnest(%b::bytea[]) AS b", values)
        for kind, read in (("base64", partial(base64.b64decode, validate=True)), ("hex", bytes.fromhex)):
            options: Any = {"bytea": kind}
            rows = json.loads(result.json(**options))
            assert [read(row["b"]) for row in rows] == values
            assert [read(row["a"][0]) for row in rows] == values
            assert all(row["a"][1] is None for row in rows)

    with asking(anyio_backend, with_setting(server, f"bytea_output={output}")) as ask:
        check()


@quick
@given(st.lists(text.filter(bool), min_size=1, max_size=5))
@example(['a"b', "100%", "%s %(x)s", "a\nb", "é", "\U0001f600", "{", "\\"])
def test_any_column_name(ask: Ask, given_names: list[str]) -> None:
    # The server truncates names after 63 bytes.
    unique_names = list(dict.fromkeys(name for name in given_names if len(name.encode()) < 63)) or ["a"]
    columns = ", ".join(
        f"{index} AS " + '"' + name.replace('"', '""').replace("%", "%%") + '"'
        for index, name in enumerate(unique_names)
    )
    result = ask(f"SELECT {columns}, %s::int AS the_last_one", 99)
    expected = {**{name: index for index, name in enumerate(unique_names)}, "the_last_one": 99}
    assert json.loads(result.json()) == [expected] == result.dicts()
    assert result.columns == tuple(expected)


# Timestamps

INSTANTS = ["date", "timestamp", "timestamptz"]
FAR = ["4713-11-25 BC", "0044-03-15 BC", "0001-12-31 BC", "0001-01-01", "1969-12-31", "9999-12-31",
       "10000-01-01", "290000-02-28"]  # fmt: skip


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "Africa/Monrovia", "America/New_York"])
async def test_epoch_as_the_server_counts(server: LocalNode, zone: str) -> None:
    """The epoch equals the server's, also in years that Python does not support and in local mean times."""
    times = ["", " 00:00:00.000001", " 23:59:59.999999", " 12:30:00.5"]
    async with pgha.open_cluster(with_setting(server, f"TimeZone={zone}")) as cluster:
        as_text(cluster.adapters, *INSTANTS)
        for kind in INSTANTS:
            for day in FAR:
                for time in times[: 1 if kind == "date" else None]:
                    when = day.replace(" BC", "") + time + (" BC" if "BC" in day else "")
                    result = await cluster.fetch(
                        f"SELECT '{when}'::{kind} AS at, ARRAY['{when}'::{kind}, NULL] AS many,"
                        f" extract(epoch FROM '{when}'::{kind})::text AS epoch"
                    )
                    (row,) = exact(result.json(timestamps="epoch"))
                    assert row["many"] == [row["at"], None]
                    assert isinstance(row["at"], Number)
                    assert Decimal(row["at"]) == Decimal(row["epoch"]), (when, kind)


@quick
@given(st.lists(st.integers(-210_866_803_200_000_000, 2**63 - 1), min_size=1, max_size=20))
@example([-1, 0, 1, -500_000, -62_135_596_800_000_000, -62_135_596_800_000_001, 253_402_300_800_000_000])
def test_any_instant(server: LocalNode, values: list[int]) -> None:
    """Every timestamp is right to the microsecond, over all of PostgreSQL's range."""
    with psycopg.connect(server.dsn) as connection:
        rows = connection.execute(
            "SELECT (timestamp 'epoch' + (i || ' microseconds')::interval)::text"
            " FROM unnest(%s::int8[]) WITH ORDINALITY AS t(i, n) ORDER BY n",
            [values],
        ).fetchall()
    assert [Decimal(epoch(row[0])) for row in rows] == [Decimal(value) / 1_000_000 for value in values]


async def test_years_out_of_reach_as_iso(server: LocalNode) -> None:
    async with cluster_of(server) as cluster:
        as_text(cluster.adapters, *INSTANTS)
        result = await cluster.fetch(
            "SELECT '0044-03-15 BC'::date AS a, '0001-01-01 00:00:00.5 BC'::timestamp AS b,"
            " '10000-01-01 00:00'::timestamp AS c, '294276-12-31 23:59:59.999999'::timestamp AS d"
        )
        assert json.loads(result.json()) == [
            {
                "a": "-0043-03-15",
                "b": "0000-01-01T00:00:00.5",
                "c": "+10000-01-01T00:00:00",
                "d": "+294276-12-31T23:59:59.999999",
            }
        ]


async def test_infinite_instants(server: LocalNode) -> None:
    async with cluster_of(server) as cluster:
        as_text(cluster.adapters, *INSTANTS)
        for kind in INSTANTS:
            for word in ("infinity", "-infinity"):
                result = await cluster.fetch(
                    f"SELECT 1 AS a, '{word}'::{kind} AS at, '2020-01-02'::{kind} AS b"
                )
                for stamps in ("iso", "epoch"):
                    options: Any = {"timestamps": stamps}
                    with pytest.raises(psycopg.DataError, match='column "at"') as caught:
                        result.json(**options)
                    assert word in str(caught.value)
                    (row,) = json.loads(result.json(non_finite="string", **options))
                    assert row["at"] == word
                    assert row["b"] != word


@pytest.mark.parametrize("style", ["SQL", "German", "Postgres"])
async def test_other_date_styles(server: LocalNode, style: str) -> None:
    """Another DateStyle raises an error that names the column; the value is never guessed.

    psycopg's own loader would reject timestamptz earlier, so timestamptz is loaded as text.
    """
    async with pgha.open_cluster(with_setting(server, f"DateStyle={style}")) as cluster:
        as_text(cluster.adapters, "timestamptz")
        for kind in INSTANTS:
            for value in (f"'2020-01-02 03:04:05.5+00'::{kind}", f"ARRAY['2020-01-02'::{kind}]"):
                result = await cluster.fetch(f"SELECT 1 AS a, {value} AS at")
                for stamps in ("iso", "epoch"):
                    options: Any = {"timestamps": stamps}
                    with pytest.raises(psycopg.DataError, match=r'column "at".*DateStyle'):
                        result.json(**options)
        assert json.loads((await cluster.fetch("SELECT NULL::date AS at")).json()) == [{"at": None}]


# Types with special meanings


async def test_all_chars(server: LocalNode) -> None:
    query = (
        'SELECT i, (CASE WHEN i > 127 THEN i - 256 ELSE i END)::"char" AS c FROM generate_series(0, 255) AS i'
    )
    async with cluster_of(server) as cluster:
        rows = json.loads((await cluster.fetch(query)).json())
        assert [row["c"] for row in rows] == list(range(256))
        array = await cluster.fetch(
            f'SELECT array_agg(c ORDER BY i) || ARRAY[NULL::"char"] AS all FROM ({query}) AS t'
        )
        assert json.loads(array.json()) == [{"all": [*range(256), None]}]


async def test_not_finite_numbers(server: LocalNode) -> None:
    async with cluster_of(server) as cluster:
        for kind in ("float4", "float8", "numeric"):
            for word in ("NaN", "Infinity", "-Infinity"):
                for value in (f"'{word}'::{kind}", f"ARRAY[1.5, '{word}', NULL]::{kind}[]"):
                    result = await cluster.fetch(f"SELECT 1 AS a, {value} AS bad")
                    with pytest.raises(psycopg.DataError, match='column "bad"') as caught:
                        result.json()
                    assert word in str(caught.value) and 'non_finite="string"' in str(caught.value)
                    (row,) = json.loads(result.json(non_finite="string"))
                    assert row["bad"] in (word, [1.5, word, None])


async def test_records_and_vectors_are_text(server: LocalNode) -> None:
    async with cluster_of(server) as cluster:
        result = await cluster.fetch(
            "SELECT ROW(1, 'x y', NULL) AS r, ARRAY[ROW(1, 'a'), NULL] AS many,"
            " '1 2'::int2vector AS v, 5::oid AS o"
        )
        assert json.loads(result.json()) == [{"r": '(1,"x y",)', "many": ["(1,a)", None], "v": "1 2", "o": 5}]


# User-defined types


@pytest.fixture
def types(server: LocalNode) -> Iterator[psycopg.Connection[Any]]:
    """Create a schema with an enum, domains and composites, and yield a plain connection that knows them."""
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("""
            CREATE TYPE mood AS ENUM ('ok', 'so, so', '"');
            CREATE DOMAIN whole AS int CHECK (VALUE > 0);
            CREATE DOMAIN many AS int[];
            CREATE TYPE nothing AS ();
            CREATE TYPE single AS ("only" text);
            CREATE TYPE part AS (id int, "the name" text, size numeric);
            CREATE TYPE whole_thing AS
                (part part, parts part[], mood mood, at timestamptz, doc jsonb, flag bool);
        """)
        try:
            yield connection
        finally:
            connection.execute(
                "DROP TYPE whole_thing, part, single, nothing, mood CASCADE; DROP DOMAIN whole, many"
            )


def register(connection: psycopg.Connection[Any], cluster: pgha.Cluster, *composites: str) -> None:
    """Register types as a user does: a psycopg connection looks up the type for the cluster's adapters."""
    for name in composites:
        info = CompositeInfo.fetch(connection, name)
        assert info is not None
        register_composite(info, cluster.adapters)


async def test_unknown_types_are_text(server: LocalNode, types: psycopg.Connection[Any]) -> None:
    async with cluster_of(server) as cluster:
        result = await cluster.fetch(
            """SELECT 'so, so'::mood AS m, ARRAY['ok', 'so, so']::mood[] AS mm, 5::whole AS w,
            '{1,2}'::many AS d, ARRAY[5]::whole[] AS ww,
            ROW(1, 'a', 1.50)::part AS p, ARRAY[ROW(1, 'a', 1.50)::part] AS pp"""
        )
        assert json.loads(result.json()) == [
            {
                "m": "so, so",
                "mm": '{ok,"so, so"}',
                "w": 5,
                "d": [1, 2],
                "ww": "{5}",
                "p": "(1,a,1.50)",
                "pp": '{"(1,a,1.50)"}',
            }
        ]


async def test_registered_enums_and_domains(server: LocalNode, types: psycopg.Connection[Any]) -> None:
    async with cluster_of(server) as cluster:
        mood, whole = EnumInfo.fetch(types, "mood"), TypeInfo.fetch(types, "whole")
        assert mood is not None and whole is not None
        register_enum(mood, cluster.adapters)
        whole.register(cluster.adapters)
        result = await cluster.fetch(
            """SELECT '"'::mood AS m, ARRAY['ok', NULL, 'so, so', '"']::mood[] AS mm"""
        )
        assert json.loads(result.json()) == [{"m": '"', "mm": ["ok", None, "so, so", '"']}]
        assert result[0][0].name == '"'
        domains = await cluster.fetch("SELECT ARRAY[5, 6]::whole[] AS ww")
        # psycopg does not know the base type of a domain.
        assert json.loads(domains.json()) == [{"ww": ["5", "6"]}]


async def test_composites(server: LocalNode, types: psycopg.Connection[Any]) -> None:
    """Composites become objects at any depth, as row_to_json writes them."""
    values = """
        ROW(1, 'a"b', 1.50)::part AS p, NULL::part AS np, ROW(NULL, NULL, NULL)::part AS n,
        ARRAY[ROW(1, NULL, 2)::part, NULL] AS pp, ROW()::nothing AS nothing,
        ARRAY[ROW()::nothing] AS nothings,
        ROW(NULL)::single AS s, ROW('')::single AS e, ARRAY[ROW(NULL)::single, ROW('x')::single] AS ss,
        ROW(ROW(1, 'a', 2), ARRAY[ROW(2, '', NULL)::part, NULL], 'so, so', '2020-01-02 03:04:05+00',
            '{"a": [1.50]}', true)::whole_thing AS w,
        ARRAY[ROW(NULL, NULL, NULL, NULL, NULL, NULL)::whole_thing] AS ww"""
    async with cluster_of(server) as cluster:
        register(types, cluster, "nothing", "part", "whole_thing")
        # psycopg's own loader takes the NULL of a single-field composite for no field at all. So the type is
        # registered as known, but loaded as text.
        single = CompositeInfo.fetch(types, "single")
        assert single is not None
        single.register(cluster.adapters)
        for rows in (1, 20):
            source = f"FROM (SELECT {values} FROM generate_series(1, {rows})) AS t"
            result = await cluster.fetch(f"SELECT * {source}")
            wanted = await cluster.fetch(f"SELECT row_to_json(t)::text {source}")
            assert exact(result.json()) == [exact(row[0]) for row in wanted]
            stamps = json.loads(result.json(timestamps="epoch"))
            assert stamps[0]["w"]["at"] == 1577934245
            assert result[0][0] == (1, 'a"b', Decimal("1.50"))
        bad = await cluster.fetch("SELECT ROW(1, 'x', 'NaN')::part AS p")
        with pytest.raises(psycopg.DataError, match='column "p": NaN'):
            bad.json()


async def test_rows_of_a_table(server: LocalNode, types: psycopg.Connection[Any]) -> None:
    """A table's row type is a composite, and a dropped column is none of its fields."""
    table = unique("t")
    async with cluster_of(server) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int, gone int, name text)")
        await cluster.execute(f"INSERT INTO {table} VALUES (1, 2, 'a')")
        await cluster.execute(f"ALTER TABLE {table} DROP COLUMN gone")
        register(types, cluster, table)
        query = f"SELECT t, ARRAY[t] AS tt FROM {table} AS t"
        row = {"id": 1, "name": "a"}
        for _ in range(6):
            assert json.loads((await cluster.fetch(query)).json()) == [{"t": row, "tt": [row]}]


async def test_a_composite_that_changed(server: LocalNode, types: psycopg.Connection[Any]) -> None:
    """A composite that changed after registration raises an error, never a value under a wrong name."""
    async with cluster_of(server) as cluster:
        register(types, cluster, "part")
        as_text(cluster.adapters, "record")
        info = CompositeInfo.fetch(types, "part")
        assert info is not None
        cluster.adapters.register_loader(info.oid, TextLoader)
        types.execute("ALTER TYPE part ADD ATTRIBUTE more int")
        result = await cluster.fetch("SELECT ROW(1, 'a', 2, 3)::part AS p")
        with pytest.raises(psycopg.DataError, match=r'column "p".*part'):
            result.json()


async def test_loaders_of_the_user_change_nothing(server: LocalNode) -> None:
    """JSON holds the server's values, whatever Python's loaders make of them."""

    class Shouting(TextLoader):
        def load(self, data: Any) -> str:
            return "LOADED"

    query = "SELECT 1 AS i, 'a' AS t, '{\"a\": 1}'::jsonb AS j, ARRAY[1.50] AS n"
    async with cluster_of(server) as cluster:
        for name in ("int4", "text", "jsonb", "numeric"):
            cluster.adapters.register_loader(name, Shouting)
        result = await cluster.fetch(query, row_factory=scalar_row)
        assert result.one() == "LOADED"
        assert result.json() == '[{"i":1,"t":"a","j":{"a": 1},"n":[1.50]}]'
