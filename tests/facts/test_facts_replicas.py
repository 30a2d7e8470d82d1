"""The durability of commits on a primary with a standby: PostgreSQL 16 and 18, by a raw connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from support.common import BOTH_VERSIONS, both_versions
from support.raw_connections import LOST, SYNC, ask, gone, waiting, wire

from pgha.chaos import Node, Replicas, replicas

SCHEMA = """
    CREATE TABLE t (id text PRIMARY KEY);
    CREATE TABLE ledger (
        system_identifier bigint, key text, fp bytea NOT NULL, deadline timestamptz NOT NULL,
        at timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (system_identifier, key)
    );
    CREATE ROLE stranger LOGIN;
"""
ENTRY = "INSERT INTO ledger (system_identifier, key, fp, deadline) VALUES (1, $1, $2, '2100-01-01')"
ASKED = f"{ENTRY} ON CONFLICT (system_identifier, key) DO UPDATE SET at = excluded.at RETURNING fp"
IDENTIFIER = "SELECT system_identifier FROM pg_control_system()"
OWN, TOMBSTONE = "\\x01", "\\x"
INSERTED = "INSERT 0 1"
UNREPLICATED = "notice: WARNING 01000"
"""The notice comes between CommandComplete and the Sync's answer.

libpq hands a notice over before the result that it directly follows.
"""


class Pair:
    """A primary and its standby; the event loop of their fault kit runs in a thread."""

    def __init__(self, portal: BlockingPortal, nodes: Replicas) -> None:
        self.call, self.nodes = portal.call, nodes
        self.primary, self.standby = nodes.primary, nodes.standbys[0]

    @contextmanager
    def apart(self) -> Iterator[Callable[[], object]]:
        """Disconnect the standby until the yielded function is called."""
        back = partial(self.call, self.nodes.reconnect, self.standby)
        self.call(self.nodes.wait_replicated)
        self.call(self.nodes.disconnect, self.standby)
        try:
            yield back
        finally:
            back()

    @contextmanager
    def frozen(self) -> Iterator[Callable[[], object]]:
        back = partial(self.call, self.standby.thaw)
        self.call(self.standby.freeze)
        try:
            yield back
        finally:
            back()


@contextmanager
def pair(version: int, synchronous: int) -> Iterator[Pair]:
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(replicas(1, synchronous=synchronous, version=version)) as nodes,
    ):
        one = Pair(portal, nodes)
        ask(one.primary.dsn, SCHEMA)
        portal.call(nodes.wait_replicated)
        yield one


@pytest.fixture(scope="module", params=BOTH_VERSIONS)
def synchronous(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with pair(request.param, 1) as one:
        yield one


def found(node: Node, sql: str) -> list[Any]:
    return [row[0] for row in ask(node.dsn, sql)]


# The wait for a synchronous standby


def test_a_cancelled_wait_is_a_warning(synchronous: Pair) -> None:
    """WARNING 01000 and a Sync without an error mean that the write is committed, on the primary only."""
    primary, look = synchronous.primary, "SELECT id FROM t WHERE id = 'cancelled'"
    with wire(primary.dsn) as one, synchronous.apart():
        one.send("INSERT INTO t VALUES ('cancelled')")
        waiting(primary.dsn, one.pid, "SyncRep")
        assert found(primary, look) == []
        one.pgconn.get_cancel().cancel()
        assert one.hear() == [UNREPLICATED, INSERTED, SYNC]
        assert found(primary, look) == ["cancelled"]
        assert found(synchronous.standby, look) == []


def test_a_terminated_wait_is_a_warning(synchronous: Pair) -> None:
    """WARNING 57P01 before a disconnect means committed already; FATAL 57P01 would mean the opposite."""
    primary, look = synchronous.primary, "SELECT id FROM t WHERE id = 'terminated'"
    with wire(primary.dsn) as one, synchronous.apart():
        one.send("INSERT INTO t VALUES ('terminated')")
        waiting(primary.dsn, one.pid, "SyncRep")
        ask(primary.dsn, "SELECT pg_terminate_backend(%s)", [one.pid])
        assert one.hear() == ["notice: WARNING 57P01", INSERTED, LOST]
        gone(primary.dsn, one.pid)
        assert found(primary, look) == ["terminated"]
        assert found(synchronous.standby, look) == []


def test_the_commit_of_a_frame_waits_too(synchronous: Pair) -> None:
    """The COMMIT's CommandComplete comes after the warning, so that COMMIT alone proves nothing then."""
    primary = synchronous.primary
    with wire(primary.dsn) as one, synchronous.apart():
        one.send("BEGIN", "INSERT INTO t VALUES ('framed')", "COMMIT")
        waiting(primary.dsn, one.pid, "SyncRep")
        one.pgconn.get_cancel().cancel()
        assert one.hear() == ["BEGIN", INSERTED, UNREPLICATED, "COMMIT", SYNC]
        assert found(synchronous.standby, "SELECT id FROM t WHERE id = 'framed'") == []


@pytest.mark.parametrize("how", ["apart", "frozen"])
def test_asking_the_ledger_waits_for_the_standby(synchronous: Pair, how: str) -> None:
    """A question by ON CONFLICT DO UPDATE is answered only when the standby has the original, too.

    An original whose wait was cancelled is committed, but a failover may still lose it. The question waits
    for the standby, and then the original is there as well.
    """
    primary, standby = synchronous.primary, synchronous.standby
    faults = {"apart": synchronous.apart, "frozen": synchronous.frozen}
    look = f"SELECT fp FROM ledger WHERE key = '{how}'"
    with wire(primary.dsn) as original, wire(primary.dsn) as asking, faults[how]() as back:
        original.send((ENTRY, [how, OWN]))
        waiting(primary.dsn, original.pid, "SyncRep")
        original.pgconn.get_cancel().cancel()
        assert original.hear() == [UNREPLICATED, INSERTED, SYNC]
        assert found(primary, look) == [b"\x01"]
        asking.send((ASKED, [how, TOMBSTONE]))
        waiting(primary.dsn, asking.pid, "SyncRep")
        assert asking.silent()
        back()
        assert asking.hear() == [INSERTED, SYNC]
        assert asking.rows == [(OWN,)]
        synchronous.call(synchronous.nodes.wait_replicated)
        assert found(standby, look) == [b"\x01"]


def test_a_question_that_changes_nothing_does_not_wait(synchronous: Pair) -> None:
    """DO NOTHING and SELECT do not wait, and find a row that a failover may still lose."""
    primary = synchronous.primary
    nothing = f"{ENTRY} ON CONFLICT (system_identifier, key) DO NOTHING"
    with wire(primary.dsn) as one, synchronous.apart():
        one.send((ENTRY, ["unsafe", OWN]))
        waiting(primary.dsn, one.pid, "SyncRep")
        one.pgconn.get_cancel().cancel()
        assert one.hear() == [UNREPLICATED, INSERTED, SYNC]
        one.send((nothing, ["unsafe", TOMBSTONE]))
        assert one.hear() == ["INSERT 0 0", SYNC]
        one.send("SELECT fp FROM ledger WHERE key = 'unsafe'")
        assert one.hear() == ["SELECT 1", SYNC]
        assert found(synchronous.standby, "SELECT fp FROM ledger WHERE key = 'unsafe'") == []


# A lineage


@both_versions
def test_a_standby_keeps_its_primarys_system_identifier(version: int) -> None:
    """The identifier stays the same after a promotion, and a role without any privilege can read it."""
    with pair(version, 0) as one:
        before = found(one.primary, IDENTIFIER)
        assert found(one.standby, IDENTIFIER) == before
        one.call(one.nodes.promote, one.standby)
        assert one.nodes.primary is one.standby
        assert ask(one.standby.dsn.replace("user=postgres", "user=stranger"), IDENTIFIER) == [tuple(before)]


@both_versions
def test_the_status_of_a_transaction_lies_across_a_failover(version: int) -> None:
    """After a failover, another transaction gets a lost one's id, which is then reported as committed."""
    insert = "INSERT INTO t VALUES (%s) RETURNING pg_current_xact_id()::text::bigint"
    with pair(version, 0) as one:
        one.call(one.nodes.disconnect, one.standby)
        lost = [ask(one.primary.dsn, insert, [f"lost {number}"])[0][0] for number in range(3)]
        one.call(one.primary.kill)
        one.call(one.nodes.promote, one.standby)
        new = one.standby.dsn
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            ask(new, "SELECT pg_xact_status(%s::text::xid8)", [lost[-1]])  # an id in the future
        others: list[int] = []
        while not others or others[-1] < lost[-1]:
            others.append(ask(new, insert, [f"other {len(others)}"])[0][0])
        assert set(lost) <= set(others)
        said = [ask(new, "SELECT pg_xact_status(%s::text::xid8)", [xid])[0][0] for xid in lost]
        assert said == ["committed"] * 3
        assert ask(new, "SELECT id FROM t WHERE id LIKE 'lost%%'", []) == []
