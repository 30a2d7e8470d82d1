"""No statement of pgha's own depends on the search path, on which others may have created objects."""

from __future__ import annotations

import re

import pytest
from support import own_sql

OPERATOR = re.compile(r"OPERATOR\(pg_catalog\.[-<>=|+/]+\)")
CALL = re.compile(r"([\w.]+) ?\(")
CAST = re.compile(r"::\s*([\w.]+)")
NO_CALLS = {
    *(
        "VALUES",
        "EXISTS",
        "ARRAY",
        "WHERE",
        "FILTER",
        "AND",
        "ELSE",
        "AS",
        "FROM",
        "SELECT",
        "KEY",
        "CONFLICT",
    ),
    *("MATERIALIZED", "pgha.ledger", "asked", "l", "DELETE"),
}
"""Words that may precede a parenthesis without being functions."""
KEYWORD_TYPES = {"int", "smallint", "bigint"}
"""Types that the grammar itself knows, wherever the path leads."""
BY_PATH = ("DISTINCT FROM", " IN (", " BETWEEN ", "NULLIF", " LIKE ", " ANY (", " USING ", "GREATEST")
"""Syntax that looks up an operator by the search path."""


def problems(text: str) -> list[str]:
    """Return the parts of a statement that the search path may change."""
    text = re.sub(r"'[^']*'", "'", text)
    text = OPERATOR.sub("", text).replace("secs =>", "").replace("%s", "1").replace("%d", "1")
    text = re.sub(r"\bSET (LOCAL )?\w+ = ", "SET ", text)
    found = [word for word in BY_PATH if word in text]
    found += [name for name in CALL.findall(text) if name not in NO_CALLS and name[:11] != "pg_catalog."]
    found += [name for name in CAST.findall(text) if name not in KEYWORD_TYPES and name[:11] != "pg_catalog."]
    bare = CAST.sub("", text).replace("(*)", "").replace("THEN -1", "").replace("{}", "")
    return found + re.findall(r"[-=<>|+/*~!@#%^&]+", bare)


@pytest.mark.parametrize(("text", "where"), sorted(own_sql.texts().items()))
def test_a_statement_names_the_schema_of_all_that_it_uses(text: str, where: str) -> None:
    assert problems(text) == [], where


@pytest.mark.parametrize(
    "text",
    [
        "SELECT count(*) FROM pgha.ledger",
        "SELECT 1 = 2",
        "SELECT 'a' || 'b'",
        "SELECT '1'::regclass",
        "SELECT a IS DISTINCT FROM b",
        "SELECT 1 WHERE a IN (1)",
        "UPDATE t SET a = 1 WHERE b = 2",
        "SELECT pg_catalog.now() - interval '1 s'",
    ],
)
def test_what_the_path_may_change_is_found(text: str) -> None:
    assert problems(text) != []


def test_the_statements_are_found() -> None:
    files = set(own_sql.texts().values())
    assert {"_ledger/schema.py", "_operation/key.py", "_node/queries.py", "_wire/connect.py"} <= files
