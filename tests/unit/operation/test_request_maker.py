"""What pgha adds to the user's statements: the last word on client_min_messages, and a key, or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pgha import nearest
from pgha._operation.operation import Request
from pgha._operation.request_maker import DEFAULT, RequestMaker
from pgha._options import Options
from pgha._wire.compiler import Compiler, own_adapters
from pgha._wire.link import NO_EXTRAS

TELL = b"SET client_min_messages = warning"
"""Without the server's warning, a commit that did not wait for its standby looks like any other."""


def maker(**options: Any) -> RequestMaker:
    return RequestMaker(Options(**options), Compiler(own_adapters()), lambda name: True)


def single(query: str, *params: object, read: bool = False, limit: Any = DEFAULT, **options: Any) -> Request:
    return maker(**options).single(
        query, params or None, read=read, route=nearest(), timeout=None, statement_timeout=limit,
        row_factory=None, on_send=None,
    )  # fmt: skip


def batch(*queries: Any, limit: Any = DEFAULT, **options: Any) -> Request:
    return maker(**options).batch(
        queries, idempotent=False, route=nearest(), timeout=None, statement_timeout=limit, row_factory=None,
        on_send=None,
    )  # fmt: skip


HUSHING: Sequence[Any] = (
    "SET LOCAL client_min_messages = error",
    "SELECT set_config('client_min_messages', 'error', true)",
    ("SELECT set_config(%s, %s, false)", ["client_min_messages", "error"]),
    ("UPDATE pg_settings SET setting = %s WHERE name = %s", ["error", "client_min_messages"]),
)


@pytest.mark.parametrize("query", HUSHING)
def test_a_batch_that_may_suppress_warnings_ends_with_their_return(query: Any) -> None:
    request = batch(query, "INSERT INTO t VALUES (1)")
    assert request.extras.epilogue == (TELL,)
    assert not request.extras.framed
    framed = batch(query, "LOCK t")
    assert framed.extras.epilogue == (TELL,) and framed.extras.framed
    limited = batch(query, "SELECT 1", limit=1.0)
    assert limited.extras.epilogue[-1] == TELL and len(limited.extras.epilogue) == 2


@pytest.mark.parametrize("query", HUSHING)
def test_so_does_a_single_write_and_no_read(query: Any) -> None:
    text, params = query if isinstance(query, tuple) else (query, [])
    assert single(text, *params).extras.epilogue == (TELL,)
    assert single(text, *params, read=True).extras is NO_EXTRAS


def test_a_do_that_may_suppress_warnings_is_framed_so_that_something_can_follow() -> None:
    request = single("DO $$BEGIN PERFORM set_config('client_min_messages', 'error', false); END$$")
    assert request.extras.framed and request.extras.epilogue == (TELL,)
    assert single("DO $$BEGIN PERFORM set_config('a.b', '', false); COMMIT; END$$").extras is NO_EXTRAS


@pytest.mark.parametrize("query", ["INSERT INTO t VALUES (1)", "SET LOCAL work_mem = '5MB'", "VACUUM"])
def test_nothing_is_added_to_other_statements(query: str) -> None:
    assert single(query).extras is NO_EXTRAS


@pytest.mark.parametrize("query", ["SET LOCAL transaction_read_only = on", "SET TRANSACTION READ ONLY"])
def test_a_read_only_batch_gets_no_automatic_key(query: str) -> None:
    """The ledger's insert would come after the statement, and fail."""
    assert batch(query, "SELECT 1", ledger="auto").keyed is None
    assert batch("SET LOCAL work_mem = '5MB'", "SELECT 1", ledger="auto").keyed is not None
