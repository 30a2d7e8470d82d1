"""Queries that are compiled again: equal to the first time, and a bounded number is remembered."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.adapt import AdaptersMap

from pgha._wire.compiler import FEW, KNOWN, REMEMBERED, Compiler, Statement

COMPILER = Compiler(AdaptersMap(psycopg.adapters))
"""One for all examples, so that what an earlier one left is met again."""
params = st.none() | st.lists(
    st.none() | st.integers() | st.text(st.characters(exclude_characters="\0")), max_size=2
)


def compiled(compiler: Compiler, query: Any, given_params: Any) -> object:
    try:
        made = compiler.compile(query, given_params)
    except (psycopg.Error, UnicodeEncodeError) as error:
        return type(error), str(error)
    values = None if made.params is None else [None if one is None else bytes(one) for one in made.params]
    return made.query, values, made.types, list(made.formats or ()), made.kind


@given(st.sampled_from(["SELECT 1", "SELECT %s", "SELECT %s, %s", "SELECT 100 %% 7"]), params)
def test_a_query_that_is_known_is_compiled_as_by_a_new_compiler(query: str, given_params: Any) -> None:
    new = Compiler(AdaptersMap(psycopg.adapters))
    assert compiled(COMPILER, query, given_params) == compiled(new, query, given_params)


@pytest.mark.parametrize("query", ["SELECT 1", b"SELECT 1"])
def test_types_of_queries(query: Any) -> None:
    assert COMPILER.compile(query, None).query == b"SELECT 1"


def remembered(compiler: Compiler) -> int:
    return len(compiler._known) + len(compiler._plain)


def test_a_bounded_number_is_remembered() -> None:
    compiler = Compiler(AdaptersMap(psycopg.adapters))
    for number in range(KNOWN + 10):
        made: Statement = compiler.compile(f"SELECT {number}", None)
        assert compiler.compile(f"SELECT {number}", None) is made
        compiler.compile(f"SELECT {number}, %s", [1])
        assert remembered(compiler) <= 2 * KNOWN


def test_what_is_long_is_not_remembered() -> None:
    compiler = Compiler(AdaptersMap(psycopg.adapters))
    compiler.compile("SELECT 1 -- " + "x" * REMEMBERED, None)
    compiler.compile("SELECT " + ", ".join(["%s"] * (FEW + 1)), [1] * (FEW + 1))
    assert remembered(compiler) == 0
