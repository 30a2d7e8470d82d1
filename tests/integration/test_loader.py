"""A result that is loaded in parts is the same as one that is loaded at once."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import psycopg
import pytest
from psycopg import pq
from psycopg.pq.abc import PGconn, PGresult
from psycopg.rows import dict_row, namedtuple_row, scalar_row, tuple_row

from pgha._rows.result import Result
from pgha._wire.loader import AT_ONCE, Loader
from pgha.chaos import LocalNode

T = TypeVar("T")
ROWS = (
    b"SELECT i AS id, CASE WHEN i % 3 > 0 THEN 'n' || i END AS name,"
    b" timestamptz 'epoch' + i * interval '1 s' AS at"
    b" FROM generate_series(1, $1::int) i"
)


@pytest.fixture
def pgconn(server: LocalNode) -> Iterator[PGconn]:
    opened = pq.PGconn.connect(server.dsn.encode())
    opened.exec_(b"SET TimeZone = 'Asia/Tokyo'")
    yield opened
    opened.finish()


@pytest.fixture
def loader(pgconn: PGconn) -> Iterator[Loader]:
    made = Loader(pgconn, psycopg.adapters)
    yield made
    pgconn.finish()  # psycopg warns if its own connection object is dropped open


def rows(pgconn: PGconn, count: int, query: bytes = ROWS) -> PGresult:
    return pgconn.exec_params(query, [str(count).encode()])


def exhausted(generator: Generator[None, None, T]) -> tuple[T, int]:
    """Return the value of the generator, and the number of its parts."""
    parts = 1
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value, parts
        parts += 1


def facts(result: Result[Any]) -> tuple[object, ...]:
    return list(result), result.columns, result.rowcount, result.command, result.node, result.attempts


@pytest.mark.parametrize("factory", [tuple_row, dict_row, scalar_row, namedtuple_row])
@pytest.mark.parametrize(
    ("count", "values", "parts"),
    [(0, 30, 1), (1, 30, 1), (10, 30, 1), (11, 30, 2), (20, 30, 2), (100, 30, 10), (5, 1, 5), (99, 1000, 1)],
)
def test_the_parts_are_the_whole(
    pgconn: PGconn, loader: Loader, factory: Callable[[Any], Any], count: int, values: int, parts: int
) -> None:
    found = rows(pgconn, count)
    whole = loader.load(found, None, factory, "n", 2, 0.5)
    loaded, needed = exhausted(loader.load_in_parts(found, None, factory, "n", 2, 0.5, values))
    assert facts(loaded) == facts(whole)
    assert len(loaded) == count and needed == parts
    if factory is not scalar_row:
        assert loaded.json() == whole.json()


def test_results_without_rows_or_columns(pgconn: PGconn, loader: Loader) -> None:
    for query in (b"SET work_mem = '1MB'", b"SELECT FROM generate_series(1, 50)", b"SELECT 1 WHERE false"):
        found = pgconn.exec_(query)
        loaded, _ = exhausted(loader.load_in_parts(found, None, tuple_row, "n", 1, 0.0, 7))
        assert facts(loaded) == facts(loader.load(found, None, tuple_row, "n", 1, 0.0))


def test_others_are_loaded_between_two_parts(pgconn: PGconn, loader: Loader) -> None:
    """Two results in turn, a third between them, and one that is given up."""
    first, second = rows(pgconn, 100), rows(pgconn, 50)
    one = loader.load_in_parts(first, None, tuple_row, "n", 1, 0.0, 30)
    two = loader.load_in_parts(second, None, dict_row, "n", 1, 0.0, 30)
    left = loader.load_in_parts(first, None, tuple_row, "n", 1, 0.0, 30)
    for _ in range(3):
        next(one), next(two), next(left)
        assert loader.load(rows(pgconn, 1), None, tuple_row, "n", 1, 0.0)[0][0] == 1
    left.close()
    assert [row[0] for row in exhausted(one)[0]] == list(range(1, 101))
    assert exhausted(two)[0][49]["at"].utcoffset() == datetime.timedelta(hours=9)


@pytest.mark.parametrize("values", [30, AT_ONCE])
def test_an_error_of_a_row_is_raised(pgconn: PGconn, loader: Loader, values: int) -> None:
    def failing(cursor: Any) -> Callable[[Any], Any]:
        return lambda row: 1 // (90 - row[0])

    with pytest.raises(ZeroDivisionError):
        exhausted(loader.load_in_parts(rows(pgconn, 100), None, failing, "n", 1, 0.0, values))
    assert loader.load(rows(pgconn, 1), None, tuple_row, "n", 1, 0.0)[0][0] == 1


def test_which_results_have_many_values(pgconn: PGconn) -> None:
    assert not Loader.many(pgconn.exec_(b"SET work_mem = '1MB'"))
    assert not Loader.many(rows(pgconn, AT_ONCE // 3))
    assert Loader.many(rows(pgconn, AT_ONCE // 3 + 1))
    assert Loader.many(pgconn.exec_(b"SELECT FROM generate_series(1, %d)" % (AT_ONCE + 1)))
