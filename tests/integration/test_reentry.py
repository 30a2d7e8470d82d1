"""Answers that lead to more being sent on their own lane, while others of it have yet to be looked at.

Here a backend stands still while it is given work, and the loop stands still while it answers: all is there
at once when the lane looks.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import anyio.to_thread
import psycopg
import pytest
from psycopg import pq
from support.common import PATIENCE, cluster_of, started, unique, within

import pgha
from pgha._core.statements import Entry
from pgha._options import Tuning
from pgha._wire.segment import Piece, PieceKind, Segment, plain_success, read_answer
from pgha.chaos import LocalNode

pytestmark = pytest.mark.anyio

ONE_LANE = Tuning(max_lanes=1, hold_behind=60, head_of_line=60)
"""All goes onto the same connection, however slow the machine."""


def wait_blocking(node: LocalNode, condition: str, params: list[object]) -> None:
    """Keep the loop from running until pg_stat_activity has a row of which ``condition`` is true."""
    deadline = time.monotonic() + PATIENCE
    with psycopg.connect(node.dsn, autocommit=True) as connection:
        query = f"SELECT count(*) > 0 FROM pg_stat_activity WHERE {condition}".encode()
        while connection.execute(query, params).fetchone() != (True,):
            assert time.monotonic() < deadline, condition
            time.sleep(0.005)


def answer_all(node: LocalNode, pid: int, last: str) -> None:
    """Let the backend answer all that it was sent (``last`` stands in the last of it); none is read yet."""
    os.kill(pid, signal.SIGCONT)
    wait_blocking(node, "pid = %s AND state = 'idle' AND strpos(query, %s) > 0", [pid, last])
    time.sleep(0.05)  # it says idle shortly before it says so to its client


@asynccontextmanager
async def one_write_lane(
    server: LocalNode, before: str = ""
) -> AsyncGenerator[tuple[pgha.Cluster, str, int, str]]:
    """A cluster with one lane for writes whose backend stands still; a statement which is stale there,
    since DDL changed its result after it was prepared, and which adds a row; and the table's name."""
    table = unique("t")
    await server.execute(f"CREATE TABLE {table} (id int); {before.format(table=table)}")
    async with cluster_of(server, read_connections=1, _tuning=ONE_LANE) as cluster:
        stale = f"INSERT INTO {table} VALUES (0) RETURNING *"
        for _ in range(6):
            await cluster.execute(stale)
        pid = (await cluster.execute("SELECT pg_backend_pid()")).value()
        await server.execute(f"ALTER TABLE {table} ADD COLUMN more int; DELETE FROM {table}")
        await server.freeze_backend(pid)
        try:
            yield cluster, stale, pid, table
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def count(server: LocalNode, table: str, id: int) -> int:
    return int((await server.execute(f"SELECT count(*) FROM {table} WHERE id = %s", [id]))[0][0])


# Pairing


async def test_every_operation_gets_its_own_answer(server: LocalNode) -> None:
    """The first is run again at once, on the lane that holds the answers of the others."""
    async with one_write_lane(server) as (cluster, stale, pid, table):
        last = unique("last")
        first = cluster.submit(stale)
        # More than libpq reads at a time, so that some answers are found by looking again.
        query = "SELECT %s::text || repeat('x', 6000)"
        others = [cluster.submit(f"{query} /* {last} */", [f"{number}:"]) for number in range(8)]
        assert cluster.statistics().in_flight == 9
        answer_all(server, pid, last)
        with anyio.fail_after(PATIENCE):
            assert [(await one).value()[:2] for one in others] == [f"{number}:" for number in range(8)]
            result = await first
        assert (result.one(), result.columns, result.attempts) == ((0, None), ("id", "more"), 2)
        assert await count(server, table, 0) == 1
        assert (cluster.statistics().failed, cluster.statistics().connections_lost) == (0, 0)


async def test_an_error_is_no_neighbours(server: LocalNode) -> None:
    """40001, raised once, is why its own operation is run again: not the INSERT before it."""
    once = (
        "CREATE SEQUENCE {table}_once; CREATE FUNCTION {table}_fail() RETURNS int LANGUAGE plpgsql AS $$"
        " BEGIN IF nextval('{table}_once') = 1 THEN"
        " RAISE EXCEPTION '%', repeat('x', 9000) USING ERRCODE = '40001'; END IF; RETURN 7; END $$"
    )
    async with one_write_lane(server, once) as (cluster, stale, pid, table):
        first = cluster.submit(stale)
        insert = cluster.submit(f"INSERT INTO {table} VALUES (1) RETURNING repeat('x', 9000)")
        failing = cluster.submit(f"SELECT {table}_fail()")
        assert cluster.statistics().in_flight == 3
        answer_all(server, pid, "_fail()")
        with anyio.fail_after(PATIENCE):
            assert ((await insert).attempts, (await insert).value()) == (1, "x" * 9000)
            assert ((await failing).attempts, (await failing).value()) == (2, 7)
            assert (await first).attempts == 2
        assert (await count(server, table, 0), await count(server, table, 1)) == (1, 1)


@pytest.mark.parametrize("when", ["for the result", "for each row"])
async def test_a_row_factory_that_submits(server: LocalNode, when: str) -> None:
    """It runs while the lane is at the answers, and what it submits goes onto that lane."""
    async with one_write_lane(server) as (cluster, _stale, pid, table):
        last = unique("last")
        submitted: dict[int, pgha.Operation[pgha.Result[Any]]] = {}
        numbers = itertools.count()

        def more() -> None:
            number = next(numbers)
            submitted[number] = cluster.submit(f"INSERT INTO {table} VALUES (1) RETURNING {number}")

        def factory(cursor: object) -> Callable[[Any], tuple[Any, ...]]:
            if when == "for the result":
                more()

            def make(values: Any) -> tuple[Any, ...]:
                if when == "for each row":
                    more()
                return tuple(values)

            return make

        query = "SELECT %s::int + i, repeat('x', 3000) FROM generate_series(0, 1) AS i"
        operations = [
            cluster.submit(f"{query} /* {last} */", [10 * number], row_factory=factory) for number in range(8)
        ]
        assert cluster.statistics().in_flight == 8
        answer_all(server, pid, last)
        with anyio.fail_after(PATIENCE):
            for number, operation in enumerate(operations):
                rows = await operation
                assert [row[0] for row in rows] == [10 * number, 10 * number + 1]
                assert [len(row[1]) for row in rows] == [3000, 3000]
            assert len(submitted) == (8 if when == "for the result" else 16)
            for number, operation in submitted.items():
                assert (await operation).value() == number
        assert await count(server, table, 1) == len(submitted)


async def test_a_write_that_is_cancelled_when_it_is_about_to_be_sent(server: LocalNode) -> None:
    """Before it is sent, what has come in is looked at: by that a row factory runs, and cancels it."""
    table, first = unique("t"), unique("first")
    await server.execute(f"CREATE TABLE {table} (id int)")
    with psycopg.connect(server.dsn, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(8)")
        submitted: list[pgha.Operation[pgha.Result[Any]]] = []

        def submit(cursor: object) -> Callable[[Any], tuple[Any, ...]]:
            holder.execute("SELECT pg_advisory_unlock(8)")
            lane, deadline = before.place[0], time.monotonic() + PATIENCE
            while not lane.link.readable():
                assert time.monotonic() < deadline
                time.sleep(0.005)
            submitted.append(cluster.submit(f"INSERT INTO {table} VALUES (1)"))
            return tuple

        def cancel(cursor: object) -> Callable[[Any], tuple[Any, ...]]:
            submitted[0].cancel()
            return tuple

        async with cluster_of(server, _tuning=ONE_LANE) as cluster:
            await cluster.execute("SELECT 1")
            query = f"SELECT pg_advisory_xact_lock(8) /* {first} */"
            before = cluster.submit(query, row_factory=cancel)
            await started(server, first)
            with within():
                await cluster.submit("SELECT 1", read=True, row_factory=submit)
                await before
                with pytest.raises(pgha.OperationCancelled) as caught:
                    await submitted[0]
            assert pgha.error_info(caught.value).outcome == "not applied"
            assert (await cluster.execute(f"SELECT count(*) FROM {table}")).value() == 0
            assert (cluster.statistics().cancelled, cluster.statistics().cancels_sent) == (1, 0)


# A lane that is given up


async def test_a_lane_that_is_given_up_is_read_to_its_end(server: LocalNode) -> None:
    """What was acknowledged is acknowledged, also where libpq reads it in many pieces."""
    async with one_write_lane(server) as (cluster, _stale, pid, table):
        last = unique("last")
        query = f"INSERT INTO {table} VALUES (1) RETURNING repeat('x', 9000) /* {last} */"
        operations = [cluster.submit(query) for _ in range(12)]
        assert cluster.statistics().in_flight == 12
        answer_all(server, pid, last)
        operations[0].place[0].abort("as when a flush fails, or the node falls silent", lost=True)
        with anyio.fail_after(PATIENCE):
            for operation in operations:
                result = await operation
                assert (result.value(), result.attempts) == ("x" * 9000, 1)
        assert await count(server, table, 1) == 12
        assert cluster.statistics().in_doubt == 0


async def test_nothing_is_sent_on_a_lane_that_is_given_up(server: LocalNode) -> None:
    """Found not applied while the last is read, it is run again elsewhere, and there is no doubt."""
    async with one_write_lane(server) as (cluster, stale, pid, table):
        last = unique("last")
        first = cluster.submit(stale)
        insert = cluster.submit(f"INSERT INTO {table} VALUES (1) /* {last} */")
        assert cluster.statistics().in_flight == 2
        answer_all(server, pid, last)
        first.place[0].abort("as when a flush fails", lost=True)
        with anyio.fail_after(PATIENCE):
            assert (await first).attempts == 2
            assert (await insert).attempts == 1
            assert (await cluster.execute("SELECT pg_backend_pid()")).value() != pid
        assert (await count(server, table, 0), await count(server, table, 1)) == (1, 1)
        assert cluster.statistics().in_doubt == 0


class Unwritable:
    """A libpq connection that breaks while something is sent; what arrived can be read."""

    def __init__(self, pgconn: Any, fails: str) -> None:
        self._pgconn = pgconn
        self._fails = fails

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pgconn, name)

    def pipeline_sync(self) -> None:
        if self._fails == "sync":
            raise psycopg.OperationalError("broken pipe")

    def flush(self) -> int:
        raise psycopg.OperationalError("broken pipe")


@pytest.mark.parametrize("fails", ["sync", "flush"])
async def test_what_is_sent_behind_a_fatal_error_is_not_applied(
    server: LocalNode, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """A backend that ended by an error of the one before never begins with it: that is no doubt."""
    table = unique("t")
    await server.execute(f"CREATE TABLE {table} (id int); CREATE SEQUENCE {table}_once")
    async with cluster_of(server, read_connections=1, _tuning=ONE_LANE) as cluster:
        await cluster.execute("SELECT 1")
        # Sleeps for long the first time, and not at all when it is run again.
        sleep = f"pg_sleep(CASE nextval('{table}_once') WHEN 1 THEN 60 ELSE 0 END)"
        first = cluster.submit(f"INSERT INTO {table} SELECT 0 FROM {sleep}")
        pid = await started(server, f"{table}_once")
        lane = first.place[0]
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(%s)", [pid])
        wait_blocking(server, "NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)", [pid])
        # As if the words came between the look at the socket and the sending.
        with monkeypatch.context() as patch:
            patch.setattr(lane.link, "readable", lambda: False)
            patch.setattr(lane.link, "_pgconn", Unwritable(lane.link._pgconn, fails))
            second = cluster.submit(f"INSERT INTO {table} VALUES (1)")
        assert lane.broken is not None
        with anyio.fail_after(PATIENCE):
            assert (await second).attempts == 2
            assert (await first).attempts == 2
        assert (await count(server, table, 0), await count(server, table, 1)) == (1, 1)
        assert cluster.statistics().in_doubt == 0


# Answers that do not fit


class FakeResult:
    """As much of libpq's result as is looked at."""

    command_status = b"SELECT 1"

    def __init__(self, status: int, sqlstate: bytes = b"") -> None:
        self.status = status
        self._sqlstate = sqlstate

    def error_field(self, field: int) -> bytes:
        return self._sqlstate if field == pq.DiagnosticField.SQLSTATE else b"ERROR"


def results(*kinds: str) -> Any:
    status = pq.ExecStatus
    known = {
        "rows": FakeResult(status.TUPLES_OK),
        "done": FakeResult(status.COMMAND_OK),
        "error": FakeResult(status.FATAL_ERROR, b"22012"),
        "skipped": FakeResult(status.PIPELINE_ABORTED),
    }
    return [known[kind] for kind in kinds]


ENTRY = Entry((b"SELECT 1", ()))
PLAIN = Segment()
PREPARED = Segment([Piece(PieceKind.PARSE, ENTRY), Piece(PieceKind.USER)])
FRAMED = Segment([Piece(PieceKind.HIDDEN), Piece(PieceKind.USER), Piece(PieceKind.COMMIT)], framed=True)


@pytest.mark.parametrize(
    ("segment", "kinds"),
    [
        (PLAIN, []),
        (PLAIN, ["rows", "rows"]),
        (PLAIN, ["skipped"]),
        (PREPARED, ["done"]),
        (PREPARED, ["done", "rows", "rows"]),
        (PREPARED, ["done", "skipped"]),
        (FRAMED, ["done", "rows"]),
        (FRAMED, ["done", "rows", "done", "done"]),
        (FRAMED, ["done", "skipped", "done"]),
    ],
)
def test_a_wrong_number_of_results_is_no_success(segment: Segment, kinds: list[str]) -> None:
    """Nor are results that were skipped while nothing failed."""
    answer = read_answer(segment, results(*kinds))
    assert answer.protocol_mismatch
    assert (answer.fault, answer.error) == (None, None)
    assert not plain_success(segment, results(*kinds))


@pytest.mark.parametrize(
    ("segment", "kinds"),
    [
        (PLAIN, ["rows"]),
        (PLAIN, ["error"]),
        (PLAIN, ["rows", "error"]),  # at the Sync
        (PREPARED, ["done", "rows"]),
        (PREPARED, ["error", "skipped"]),
        (PREPARED, ["error"]),
        (FRAMED, ["done", "rows", "done"]),
        (FRAMED, ["done", "error", "skipped"]),
    ],
)
def test_an_error_or_one_result_each_fits(segment: Segment, kinds: list[str]) -> None:
    answer = read_answer(segment, results(*kinds))
    assert not answer.protocol_mismatch
    assert (answer.fault is not None) == ("error" in kinds)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, BaseException])
async def test_whatever_a_row_factory_or_on_send_raises(server: LocalNode, kind: type[BaseException]) -> None:
    """It is for its own caller: the answers that came with it reach theirs, and the lane goes on."""

    def raising(anything: object) -> Any:
        raise kind("the user's")

    async with cluster_of(server, read_connections=1) as cluster:
        each: list[dict[str, Any]] = [{"row_factory": raising}, {"on_send": raising}]
        for options in each:
            before = [cluster.submit("SELECT %s::int", [i], read=True) for i in range(20)]
            mine = cluster.submit("SELECT 1", read=True, **options)
            behind = [cluster.submit("SELECT %s::int", [i], read=True) for i in range(20, 40)]
            with within(), pytest.raises(kind, match="the user's"):
                await mine
            with within():
                assert [(await one).value() for one in before + behind] == list(range(40))


async def test_a_failure_collected_by_another_thread(server: LocalNode) -> None:
    """The garbage of a program with threads may be collected in any of them."""
    async with cluster_of(server) as cluster, cluster.events() as events:
        operation = cluster.submit("SELECT 1/0", read=True)
        await operation.wait()
        held = [operation]
        del operation
        received: list[pgha.Event] = []

        async def receive() -> None:
            received.append(await events.receive())

        # Somebody waits for the event, and has to be woken from that thread.
        with within():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive)
                await anyio.wait_all_tasks_blocked()
                await anyio.to_thread.run_sync(held.clear)
        assert isinstance(received[0], pgha.FailureUnretrieved)
        assert cluster.statistics().unretrieved == 1
