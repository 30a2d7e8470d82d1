"""Facts of PostgreSQL 16 and 18, without pgha: which messages prove which outcome of a write.

The outcome rules rest on these facts. The libpq connection is raw: each message is a result or a notice, in
order of arrival.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from support.common import BOTH_VERSIONS
from support.raw_connections import ENTER, LOST, SKIPPED, SYNC, ask, gate, gone, raw_server, waiting, wire

from pgha.chaos import LocalNode

SCHEMA = """
    CREATE TABLE t (id int);
    CREATE TABLE late (id int UNIQUE DEFERRABLE INITIALLY DEFERRED, nap float DEFAULT 0);
    CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_sleep(NEW.nap); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER nap AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION nap();
    CREATE FUNCTION raising(code text) RETURNS int LANGUAGE plpgsql AS $$
        BEGIN RAISE 'far away' USING ERRCODE = code; END $$;
    CREATE PROCEDURE half() LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO t VALUES (1); COMMIT; INSERT INTO t VALUES (2); RAISE 'no more'; END $$;
    CREATE PROCEDURE whole() LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO t VALUES (1); COMMIT; END $$;
"""
INSERT = "INSERT INTO t VALUES (1)"
INSERTED = "INSERT 0 1"
SELECTED = "SELECT 1"
SLEEP = "SELECT pg_sleep(60)"
WARNED = "notice: WARNING 25P01"


@pytest.fixture(scope="module", params=BOTH_VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[LocalNode]:
    with raw_server(request.param, SCHEMA) as node:
        yield node


@pytest.fixture
def dsn(server: LocalNode) -> str:
    ask(server.dsn, "TRUNCATE t, late")
    return server.dsn


def rows(dsn: str, table: str = "t") -> list[Any]:
    return sorted(row[0] for row in ask(dsn, f"SELECT id FROM {table}"))


def terminate(dsn: str, pid: int) -> None:
    ask(dsn, "SELECT pg_terminate_backend(%s)", [pid])


# CommandComplete and Sync


def test_command_complete_comes_while_the_row_is_invisible_and_can_vanish(dsn: str) -> None:
    with wire(dsn) as one:
        one.send(INSERT, sync=False)
        assert one.hear(1) == [INSERTED]
        assert rows(dsn) == []
    gone(dsn, one.pid)
    assert rows(dsn) == []


def test_a_deferred_constraint_fails_at_the_sync(dsn: str) -> None:
    with wire(dsn) as one:
        one.send("INSERT INTO late VALUES (1), (1)", "SELECT 1")
        assert one.hear() == ["INSERT 0 2", SELECTED, "ERROR 23505", SYNC]
    assert rows(dsn, "late") == []


def test_an_error_skips_the_rest_of_its_segment_and_undoes_it(dsn: str) -> None:
    with wire(dsn) as one:
        one.send(INSERT, "SELECT 1/0", INSERT)
        one.send("INSERT INTO t VALUES (2)")
        assert one.hear() == [INSERTED, "ERROR 22012", SKIPPED, SYNC]
        assert one.hear() == [INSERTED, SYNC]
    assert rows(dsn) == [2]


# The end of a connection


def test_a_terminated_statement_gives_a_fatal_result(dsn: str) -> None:
    """A FATAL 57P01 means that the write was not applied; statements sent behind it never began."""
    with wire(dsn) as one:
        one.send(INSERT, SLEEP)
        one.send("INSERT INTO t VALUES (2)")
        waiting(dsn, one.pid, "PgSleep")
        terminate(dsn, one.pid)
        assert one.hear()[:2] == [INSERTED, "FATAL 57P01"]
    gone(dsn, one.pid)
    assert rows(dsn) == []


def test_terminated_in_a_deferred_trigger(dsn: str) -> None:
    """A FATAL 57P01 after the last CommandComplete does not by its position alone prove any outcome."""
    with wire(dsn) as one:
        one.send("INSERT INTO late VALUES (1, 60)")
        waiting(dsn, one.pid, "PgSleep")
        terminate(dsn, one.pid)
        assert one.hear()[:2] == [INSERTED, "FATAL 57P01"]
    gone(dsn, one.pid)
    assert rows(dsn, "late") == []


@pytest.mark.parametrize("applied", [False, True])
def test_an_immediate_shutdown_is_a_warning(dsn: str, server: LocalNode, applied: bool) -> None:
    """The server sends 57P01 as a notice and disconnects, whether or not the write was committed."""
    with wire(dsn) as one:
        statements = ["BEGIN", INSERT, "COMMIT"] if applied else [INSERT]
        one.send(*statements, SLEEP)
        waiting(dsn, one.pid, "PgSleep")
        anyio.run(server.restart, "immediate")
        assert one.hear()[-2:] == ["notice: WARNING 57P01", LOST]
    assert rows(dsn) == [1] * applied


@pytest.mark.parametrize("applied", [False, True])
def test_a_crashed_sibling_is_a_warning(dsn: str, server: LocalNode, applied: bool) -> None:
    """The server sends 57P02 as a notice and disconnects, whether or not the write was committed."""
    with wire(dsn) as one, wire(dsn) as sibling:
        statements = ["BEGIN", INSERT, "COMMIT"] if applied else [INSERT]
        one.send(*statements, SLEEP)
        waiting(dsn, one.pid, "PgSleep")
        anyio.run(server.kill_backend, sibling.pid)
        assert one.hear()[-2:] == ["notice: WARNING 57P02", LOST]
    anyio.run(server.wait_ready)
    assert rows(dsn) == [1] * applied


def test_a_killed_backend_says_nothing(dsn: str, server: LocalNode) -> None:
    with wire(dsn) as one:
        one.send("BEGIN", INSERT, "COMMIT", SLEEP)
        waiting(dsn, one.pid, "PgSleep")
        anyio.run(server.kill_backend, one.pid)
        assert one.hear()[-1] == LOST
    anyio.run(server.wait_ready)
    assert rows(dsn) == [1]


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_zombie_applies_what_its_client_has_left(dsn: str, server: LocalNode, cancelled: bool) -> None:
    """A thawed backend applies its INSERT, even if its client has left and a cancel was accepted."""
    with wire(dsn) as one:
        anyio.run(server.freeze_backend, one.pid)
        one.send(INSERT)
        if cancelled:
            one.pgconn.get_cancel().cancel()  # raises an error unless the cancel was accepted
    assert rows(dsn) == []
    anyio.run(server.thaw_backend, one.pid)
    gone(dsn, one.pid)
    assert rows(dsn) == [1]


# Exceptions to the rules: SQL that commits by itself, codes that prove nothing


def test_a_commit_before_the_fatal(dsn: str) -> None:
    """A FATAL before the Sync does not prove "not applied" if a COMMIT of the caller came before it.

    The segment is BEGIN, INSERT, COMMIT, sleep; the backend is terminated in the sleep.
    """
    with wire(dsn) as one:
        one.send("BEGIN", INSERT, "COMMIT", SLEEP)
        waiting(dsn, one.pid, "PgSleep")
        terminate(dsn, one.pid)
        assert one.hear()[:4] == ["BEGIN", INSERTED, "COMMIT", "FATAL 57P01"]
    assert rows(dsn) == [1]


def test_the_commit_of_a_failed_transaction_succeeds_as_rollback(dsn: str) -> None:
    with wire(dsn) as one:
        one.send("BEGIN", INSERT, "SELECT 1/0", "COMMIT")
        assert one.hear() == ["BEGIN", INSERTED, "ERROR 22012", SKIPPED, SYNC]
        one.send("COMMIT")
        assert one.hear() == ["ROLLBACK", SYNC]
    assert rows(dsn) == []


def test_a_call_that_commits_and_fails_is_half_applied(dsn: str) -> None:
    with wire(dsn) as one:
        one.send("CALL half()")
        assert one.hear() == ["ERROR P0001", SYNC]
    assert rows(dsn) == [1]


def test_a_framed_call_cannot_commit(dsn: str) -> None:
    with wire(dsn) as one:
        one.send("BEGIN", "CALL whole()", "COMMIT")
        assert one.hear() == ["BEGIN", "ERROR 2D000", SKIPPED, SYNC]
        one.send("ROLLBACK")
        assert one.hear() == ["ROLLBACK", SYNC]
    assert rows(dsn) == []


@pytest.mark.parametrize("state", ["08006", "08P01", "40003"])
def test_these_codes_may_be_an_error_on_a_living_connection(dsn: str, state: str) -> None:
    """SQL can raise these codes, as a foreign data wrapper does for its own lost connection."""
    with wire(dsn) as one:
        one.send(f"SELECT raising('{state}')")
        assert one.hear() == [f"ERROR {state}", SYNC]
        one.send(INSERT)
        assert one.hear() == [INSERTED, SYNC]


@pytest.mark.parametrize("first", [True, False])
def test_vacuum_cannot_share_a_segment(dsn: str, first: bool) -> None:
    """VACUUM fails with 25001 behind another statement; in front, both VACUUM and what follows are done."""
    with wire(dsn) as one:
        one.send(*(["VACUUM t", INSERT] if first else [INSERT, "VACUUM t"]))
        words = one.hear()
    if first:
        assert words == ["VACUUM", INSERTED, SYNC]
        assert rows(dsn) == [1]
    else:
        assert words == [INSERTED, "ERROR 25001", SYNC]
        assert rows(dsn) == []


ANALYZED = """
    DROP TABLE IF EXISTS a, b, parts;
    CREATE TABLE a AS SELECT 1 AS id;
    CREATE TABLE b AS SELECT 1 AS id;
    CREATE TABLE parts (id int) PARTITION BY LIST (id);
    CREATE TABLE part PARTITION OF parts FOR VALUES IN (1);
    INSERT INTO parts VALUES (1);
"""


@pytest.mark.parametrize(("what", "commits"), [("a, b", True), ("", True), ("parts", True), ("a", False)])
@pytest.mark.parametrize("first", [True, False])
def test_analyze_commits_by_itself(dsn: str, what: str, commits: bool, first: bool) -> None:
    """ANALYZE commits after each table, as a segment's first statement, if there can be several tables."""
    ask(dsn, ANALYZED)
    with wire(dsn) as one:
        one.send(*([] if first else [INSERT]), f"ANALYZE {what}", "SELECT 1 / 0")
        assert "ERROR 22012" in one.hear()
    found = ask(dsn, "SELECT count(*) FROM pg_stats WHERE tablename IN ('a', 'b', 'part')")[0][0]
    assert (found > 0) == (commits and first)


# Time limits


def test_statement_timeout_counts_each_execute(dsn: str) -> None:
    with wire(dsn) as one:
        one.send("SET statement_timeout = '2s'")
        assert one.hear() == ["SET", SYNC]
        one.send(*["SELECT pg_sleep(0.8)"] * 3)
        assert one.hear() == [SELECTED] * 3 + [SYNC]


def unwarned(words: list[str]) -> list[str]:
    """Drop the warning "... can only be used in transaction blocks", which is wrong: the setting works."""
    return [word for word in words if word != WARNED]


@pytest.mark.parametrize(
    "limit", ["SELECT set_config('statement_timeout', '1000', true)", "SET LOCAL statement_timeout = 1000"]
)
def test_a_limit_as_a_segments_first_statement(dsn: str, limit: str) -> None:
    """A limit that is set by a segment's first statement takes effect, and ends with the segment."""
    with wire(dsn) as one:
        one.send(limit, INSERT, SLEEP)
        assert unwarned(one.hear())[1:] == [INSERTED, "ERROR 57014", SYNC]
        one.send("SHOW statement_timeout")
        assert one.hear() == ["SHOW", SYNC]
        assert one.rows[-1] == ("0",)
    assert rows(dsn) == []


def test_a_setting_of_the_segment_warns(dsn: str, server: LocalNode) -> None:
    """A setting warns (25P01) as a segment's first statement, before 17 at any place; `set_config` never."""
    with wire(dsn) as one:
        one.send("SET LOCAL work_mem = '1MB'", "SET CONSTRAINTS ALL IMMEDIATE")
        again = [WARNED] if server.version < 17 else []
        assert one.hear() == [WARNED, "SET", *again, "SET CONSTRAINTS", SYNC]
        one.send("SELECT set_config('work_mem', '1MB', true)")
        assert one.hear() == [SELECTED, SYNC]


def test_set_transaction_passes_behind_set_local_only(dsn: str) -> None:
    """Behind `set_config`, which is a query, only READ ONLY is still accepted."""
    limit = "SELECT set_config('statement_timeout', '9999', true)"
    isolation = "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"
    with wire(dsn) as one:
        one.send(limit, isolation)
        assert unwarned(one.hear()) == [SELECTED, "ERROR 25001", SYNC]
        one.send(limit, "SET TRANSACTION READ ONLY", INSERT)
        assert unwarned(one.hear()) == [SELECTED, "SET", "ERROR 25006", SYNC]
        one.send("SET LOCAL statement_timeout = 9999", isolation, "SHOW transaction_isolation")
        assert unwarned(one.hear()) == ["SET", "SET", "SHOW", SYNC]
        assert one.rows[-1] == ("serializable",)


@pytest.mark.parametrize("immediate", [False, True])
def test_the_limit_covers_what_is_deferred_only_when_brought_forward(dsn: str, immediate: bool) -> None:
    """A deferred trigger exceeds the limit, unless `SET CONSTRAINTS ALL IMMEDIATE` brings it forward."""
    limit = "SELECT set_config('statement_timeout', '1000', true)"
    last, error = (["SET CONSTRAINTS ALL IMMEDIATE"], ["ERROR 57014"]) if immediate else ([], [])
    with wire(dsn) as one:
        one.send(limit, "INSERT INTO late VALUES (1, 1.5)", *last)
        assert unwarned(one.hear()) == [SELECTED, INSERTED, *error, SYNC]
    assert rows(dsn, "late") == ([] if immediate else [1])


def test_transaction_timeout_ends_the_connection(dsn: str, server: LocalNode) -> None:
    """The connection ends with FATAL 25P04, from PostgreSQL 17 on."""
    with wire(dsn) as one:
        one.send("SET transaction_timeout = 1000")
        if server.version < 17:
            assert one.hear() == ["ERROR 42704", SYNC]
            return
        assert one.hear() == ["SET", SYNC]
        one.send(INSERT, SLEEP)
        assert one.hear()[:2] == [INSERTED, "FATAL 25P04"]
    gone(dsn, one.pid)
    assert rows(dsn) == []


def test_a_cancel_that_meets_an_idle_backend_is_ignored(dsn: str) -> None:
    """A cancel that is accepted while a statement waits at a gate ends that statement: 57014, not applied."""
    with wire(dsn) as one, gate(dsn):
        one.pgconn.get_cancel().cancel()
        one.send(INSERT, ENTER)
        waiting(dsn, one.pid, "advisory")
        one.pgconn.get_cancel().cancel()
        assert one.hear() == [INSERTED, "ERROR 57014", SYNC]
    assert rows(dsn) == []
