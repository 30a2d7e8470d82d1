"""The proof that a ledger's row gives, on PostgreSQL 16 and 18, with a handmade table and a raw connection.

A write inserts its key in its own transaction, by one statement with a guard that refuses a late insert. A
session that asks for the outcome inserts the same key.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import anyio
import psycopg
import pytest
from support.common import BOTH_VERSIONS
from support.raw_connections import ENTER, SKIPPED, SYNC, ask, gate, gone, raw_server, waiting, wire

from pgha.chaos import LocalNode
from pgha.chaos._servers.account import run_tool, server_account

SCHEMA = """
    CREATE TABLE ledger (
        system_identifier bigint, key uuid, fp bytea NOT NULL, deadline timestamptz NOT NULL,
        at timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (system_identifier, key)
    );
    CREATE TABLE t (id int);
    CREATE ROLE stranger LOGIN;
    CREATE FUNCTION held() RETURNS timestamptz LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN clock_timestamp(); END $$;
    CREATE PROCEDURE whole() LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO t VALUES (1); COMMIT; END $$;
    CREATE PROCEDURE half() LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO t VALUES (1); COMMIT; RAISE 'no more'; END $$;
"""
COLUMNS = "INSERT INTO ledger (system_identifier, key, fp, deadline)"
ENTRY = f"{COLUMNS} VALUES ($1, $2, $3, CASE WHEN clock_timestamp() < $4 THEN $4::timestamptz END)"
HELD = ENTRY.replace("clock_timestamp()", "held()")
ASKED = (
    f"{COLUMNS} VALUES ($1, $2, $3, $4)"
    " ON CONFLICT (system_identifier, key) DO UPDATE SET at = excluded.at RETURNING fp"
)
IN_TIME, LATE = "2100-01-01", "2001-01-01"
OWN, TOMBSTONE = "\\x01", "\\x"
WRITE = "INSERT INTO t VALUES (1)"
INSERTED = "INSERT 0 1"
Params = tuple[object, ...]


@pytest.fixture(scope="module", params=BOTH_VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[LocalNode]:
    with raw_server(request.param, SCHEMA) as node:
        yield node


@pytest.fixture
def dsn(server: LocalNode) -> str:
    ask(server.dsn, "TRUNCATE ledger, t")
    return server.dsn


@pytest.fixture
def key() -> uuid.UUID:
    return uuid.uuid4()


def entry(key: uuid.UUID, fp: str = OWN, deadline: str = IN_TIME) -> tuple[str, Params]:
    return ENTRY, (1, key, fp, deadline)


def asked(key: uuid.UUID, fp: str = TOMBSTONE) -> tuple[str, Params]:
    return ASKED, (1, key, fp, IN_TIME)


def rows(dsn: str, table: str = "ledger") -> int:
    return int(ask(dsn, f"SELECT count(*) FROM {table}")[0][0])


# The guard


def test_past_the_deadline_the_guard_refuses(dsn: str, key: uuid.UUID) -> None:
    """The guard fails with 23502 by the server's clock, and the statements behind it are skipped."""
    with wire(dsn) as one:
        one.send(entry(key, deadline=LATE), WRITE)
        assert one.hear() == ["ERROR 23502", SKIPPED, SYNC]
        one.send(entry(key), WRITE)
        assert one.hear() == [INSERTED, INSERTED, SYNC]
    assert rows(dsn) == rows(dsn, "t") == 1


def test_a_late_one_is_refused_even_where_its_key_is_there(dsn: str, key: uuid.UUID) -> None:
    """The guard is checked before the index: the error is 23502, not 23505."""
    with wire(dsn) as one:
        one.send(entry(key))
        assert one.hear() == [INSERTED, SYNC]
        one.send(entry(key, deadline=LATE))
        assert one.hear() == ["ERROR 23502", SYNC]


# Two inserts with the same key


@pytest.mark.parametrize("commits", [True, False])
def test_a_retry_waits_for_the_original(dsn: str, key: uuid.UUID, commits: bool) -> None:
    """A retry waits for the original on the unique index.

    The retry gets 23505 if the original commits, and is applied if the original rolls back. Meanwhile, a
    SELECT sees no row.
    """
    with gate(dsn) as opened, wire(dsn) as original, wire(dsn) as retry:
        original.send(entry(key), WRITE, ENTER, "SELECT 1" if commits else "SELECT 1/0")
        waiting(dsn, original.pid, "advisory")
        retry.send(entry(key), WRITE)
        waiting(dsn, retry.pid, "transactionid")
        assert rows(dsn) == 0
        opened()
        assert original.hear()[-2:] == ["SELECT 1" if commits else "ERROR 22012", SYNC]
        if commits:
            assert retry.hear() == ["ERROR 23505", SKIPPED, SYNC]
            assert retry.constraint == "ledger_pkey"
        else:
            assert retry.hear() == [INSERTED, INSERTED, SYNC]
    assert rows(dsn) == rows(dsn, "t") == 1


@pytest.mark.parametrize("commits", [True, False])
def test_whoever_asks_waits_for_the_original(dsn: str, key: uuid.UUID, commits: bool) -> None:
    """ON CONFLICT DO UPDATE waits likewise, and returns the fingerprint that is there afterwards."""
    with gate(dsn) as opened, wire(dsn) as original, wire(dsn) as asking:
        original.send(entry(key), WRITE, ENTER, "SELECT 1" if commits else "SELECT 1/0")
        waiting(dsn, original.pid, "advisory")
        asking.send(asked(key))
        waiting(dsn, asking.pid, "transactionid")
        opened()
        assert asking.hear() == [INSERTED, SYNC]
        assert asking.rows == [(OWN if commits else TOMBSTONE,)]
    assert rows(dsn) == 1
    assert rows(dsn, "t") == commits


def test_a_tombstone_blocks_the_original(dsn: str, key: uuid.UUID) -> None:
    """A question that finds no row leaves one, and the original that comes later fails with 23505."""
    with wire(dsn) as one:
        one.send(asked(key))
        assert one.hear() == [INSERTED, SYNC]
        one.send(entry(key), WRITE)
        assert one.hear() == ["ERROR 23505", SKIPPED, SYNC]
        one.send(asked(key))
        assert one.hear() == [INSERTED, SYNC]
        assert one.rows == [(TOMBSTONE,)] * 2
    assert rows(dsn, "t") == 0


def test_a_question_that_rolls_back_leaves_nothing(dsn: str, key: uuid.UUID) -> None:
    """A question in a frame that ends with ROLLBACK gets the same answer."""
    with wire(dsn) as one:
        one.send("BEGIN", asked(key), "ROLLBACK")
        assert one.hear() == ["BEGIN", INSERTED, "ROLLBACK", SYNC]
        assert one.rows == [(TOMBSTONE,)]
        one.send(entry(key), WRITE)
        assert one.hear() == [INSERTED, INSERTED, SYNC]
        one.send("BEGIN", asked(key), "ROLLBACK")
        one.hear()
        assert one.rows[-1] == (OWN,)


def test_a_zombie_that_thaws_meets_the_tombstone(dsn: str, server: LocalNode, key: uuid.UUID) -> None:
    with wire(dsn) as zombie:
        anyio.run(server.freeze_backend, zombie.pid)
        zombie.send(entry(key), WRITE)
    with wire(dsn) as asking:
        asking.send(asked(key))
        assert asking.hear() == [INSERTED, SYNC]
        assert asking.rows == [(TOMBSTONE,)]
    anyio.run(server.thaw_backend, zombie.pid)
    gone(dsn, zombie.pid)
    assert rows(dsn, "t") == 0


# Inserts in flight, as other sessions see them


def lockers(dsn: str) -> list[int]:
    """Return the pids that hold an insert's lock on the ledger, as a role without any privilege sees them."""
    found = ask(
        dsn.replace("user=postgres", "user=stranger"),
        "SELECT pid FROM pg_locks WHERE relation = 'ledger'::regclass AND mode = 'RowExclusiveLock'"
        " AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    return [row[0] for row in found]


@pytest.mark.parametrize("prepared", [False, True])
def test_an_insert_in_flight_shows_its_lock_to_everybody(dsn: str, key: uuid.UUID, prepared: bool) -> None:
    """The lock is visible as long as the transaction is open, also while it is stuck behind the insert."""
    with gate(dsn) as opened, wire(dsn) as one:
        if prepared:
            assert one.prepare("entry", ENTRY) == ["Parse", SYNC]
            one.send_prepared("entry", entry(key)[1], ENTER)
        else:
            one.send(entry(key), ENTER)
        waiting(dsn, one.pid, "advisory")
        assert lockers(dsn) == [one.pid]
        opened()
        assert one.hear()[-1] == SYNC
        assert lockers(dsn) == []


@pytest.mark.parametrize("prepared", [False, True])
def test_the_lock_is_taken_before_the_clock_is_read(dsn: str, key: uuid.UUID, prepared: bool) -> None:
    """The lock is held before the guard reads the clock: an insert not seen yet will meet the guard."""
    with gate(dsn) as opened, wire(dsn) as one:
        if prepared:
            assert one.prepare("held", HELD) == ["Parse", SYNC]
            assert lockers(dsn) == []
            one.send_prepared("held", entry(key)[1])
        else:
            one.send((HELD, entry(key)[1]))
        waiting(dsn, one.pid, "advisory")
        assert lockers(dsn) == [one.pid]
        assert rows(dsn) == 0
        opened()
        assert one.hear() == [INSERTED, SYNC]


def test_a_frozen_one_goes_on_holding_it(dsn: str, server: LocalNode, key: uuid.UUID) -> None:
    """A frozen backend without a client keeps its lock, so that every role sees that it may still insert."""
    with gate(dsn) as opened:
        with wire(dsn) as one:
            one.send((HELD, entry(key)[1]), WRITE)
            waiting(dsn, one.pid, "advisory")
            anyio.run(server.freeze_backend, one.pid)
        opened()
        assert lockers(dsn) == [one.pid]
        anyio.run(server.thaw_backend, one.pid)
        gone(dsn, one.pid)
    assert lockers(dsn) == []
    assert rows(dsn) == rows(dsn, "t") == 1


# SQL that commits by itself


def test_a_call_that_commits_behind_the_ledger(dsn: str, server: LocalNode, key: uuid.UUID) -> None:
    """PostgreSQL 16 lets a CALL commit the ledger's row and then fail; 18 rejects the COMMIT (2D000)."""
    with wire(dsn) as one:
        one.send(entry(key), "CALL half()")
        error = "ERROR P0001" if server.version < 17 else "ERROR 2D000"
        assert one.hear() == [INSERTED, error, SYNC]
        assert rows(dsn) == rows(dsn, "t") == (server.version < 17)
        one.send(entry(uuid.uuid4()), "CALL whole()")
        assert one.hear() == [INSERTED, "CALL" if server.version < 17 else "ERROR 2D000", SYNC]
        one.send(entry(uuid.uuid4()), "DO $$ BEGIN COMMIT; RAISE 'no more'; END $$")
        assert one.hear() == [INSERTED, error, SYNC]
    assert rows(dsn) == (3 if server.version < 17 else 0)


def test_a_framed_call_that_commits_is_refused(dsn: str, key: uuid.UUID) -> None:
    with wire(dsn) as one:
        one.send("BEGIN", entry(key), "CALL whole()", "COMMIT")
        assert one.hear() == ["BEGIN", INSERTED, "ERROR 2D000", SKIPPED, SYNC]
    gone(dsn, one.pid)
    assert rows(dsn) == rows(dsn, "t") == 0


def test_a_framed_call_that_does_not_commit_by_itself(dsn: str, key: uuid.UUID) -> None:
    with wire(dsn) as one:
        one.send("BEGIN", entry(key), f"DO $$ BEGIN {WRITE}; END $$", "COMMIT")
        assert one.hear() == ["BEGIN", INSERTED, "DO", "COMMIT", SYNC]
    assert rows(dsn) == rows(dsn, "t") == 1


def test_vacuum_behind_the_ledger_is_refused(dsn: str, key: uuid.UUID) -> None:
    with wire(dsn) as one:
        one.send(entry(key), "VACUUM t")
        assert one.hear() == [INSERTED, "ERROR 25001", SYNC]
    assert rows(dsn) == 0


# The lineage


def test_everybody_may_read_the_system_identifier(dsn: str, server: LocalNode) -> None:
    """A role without any privilege reads the identifier that pg_controldata shows, on 16 and 18."""
    sql = "SELECT system_identifier FROM pg_control_system()"
    stranger = dsn.replace("user=postgres", "user=stranger")
    assert ask(stranger, sql) == ask(dsn, sql) == [(_identifier(server, server.datadir),)]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        ask(stranger, "SELECT * FROM ledger")


def test_each_initdb_makes_another_system_identifier(server: LocalNode) -> None:
    with tempfile.TemporaryDirectory(prefix="pgha-facts-") as folder:
        server_account().give(Path(folder))
        found = []
        for name in ("a", "b"):
            data = Path(folder) / name
            run_tool([server.bindir / "initdb", "--no-sync", "-U", "postgres", "-D", data], Path(folder))
            found.append(_identifier(server, data))
        assert found[0] != found[1]


def _identifier(server: LocalNode, data: Path) -> int:
    said = run_tool([server.bindir / "pg_controldata", "-D", data], data)
    (line,) = [one for one in said.splitlines() if one.startswith("Database system identifier:")]
    return int(line.split(":")[1])
