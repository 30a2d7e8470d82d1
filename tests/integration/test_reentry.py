"""Answers that cause more to be sent on their own lane, while further answers of the lane are unread.

The tests freeze a backend while it is given work, and block the loop while the backend answers: all answers
are there at once when the lane reads.
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

ONE_LANE = Tuning(max_lanes=1, behind=60, hold_behind=60, head_of_line=60)
"""All operations go onto the same connection, however slow the machine."""


def wait_blocking(node: LocalNode, condition: str, params: list[object]) -> None:
    """Block the loop until pg_stat_activity has a row for which ``condition`` is true."""
    deadline = time.monotonic() + PATIENCE
    with psycopg.connect(node.dsn, autocommit=True) as connection:
        query = f"SELECT count(*) > 0 FROM pg_stat_activity WHERE {condition}".encode()
        while connection.execute(query, params).fetchone() != (True,):
            assert time.monotonic() < deadline, condition
            time.sleep(0.005)


def answer_all(node: LocalNode, pid: int, last: str) -> None:
    """Let the backend answer all that it was sent, while the loop reads none of the answers.

    ``last`` is part of the last statement's text.
    """
    os.kill(pid, signal.SIGCONT)
    wait_blocking(node, "pid = %s AND state = 'idle' AND strpos(query, %s) > 0", [pid, last])
    time.sleep(0.05)  # the view says idle shortly before the client hears it


@asynccontextmanager
async def one_write_lane(
    server: LocalNode, before: str = ""
) -> AsyncGenerator[tuple[pgha.Cluster, str, int, str]]:
    """Yield a cluster with one frozen write lane, a stale statement, the backend's pid and the table's name.

    The statement adds a row. It is stale on that lane, since DDL changed its result after it was prepared.
    """
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
    """The first operation is run again at once, on the lane that holds the answers of the others."""
    async with one_write_lane(server) as (cluster, stale, pid, table):
        last = unique("last")
        first = cluster.submit(stale)
        # The answers are longer than libpq reads at a time, so that some are found only by a second look.
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
    """A 40001, raised once, makes its own operation run again, and not the INSERT before it."""
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
    """A row factory runs while its lane reads answers, and an operation it submits goes onto that lane."""
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
    """A write that is cancelled just before sending is not applied.

    The lane reads received answers before it sends the write: a row factory runs then, and cancels the write.
    """
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
    """Acknowledged writes count as applied, even if libpq reads the acknowledgements in many pieces."""
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
    """An operation found not applied during the last read is run again elsewhere, without doubt."""
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
    """A libpq connection that breaks during sending; received data can still be read."""

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
    """An operation sent after a fatal error is known to be not applied.

    A backend that ended by an earlier operation's error never begins with the next operation.
    """
    table = unique("t")
    await server.execute(f"CREATE TABLE {table} (id int); CREATE SEQUENCE {table}_once")
    async with cluster_of(server, read_connections=1, _tuning=ONE_LANE) as cluster:
        await cluster.execute("SELECT 1")
        # The statement sleeps long the first time, and not at all when it is run again.
        sleep = f"pg_sleep(CASE nextval('{table}_once') WHEN 1 THEN 60 ELSE 0 END)"
        first = cluster.submit(f"INSERT INTO {table} SELECT 0 FROM {sleep}")
        pid = await started(server, f"{table}_once")
        lane = first.place[0]
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(%s)", [pid])
        wait_blocking(server, "NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)", [pid])
        # As if the FATAL message came between the look at the socket and the sending.
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


# Answers that do not fit the request


class FakeResult:
    """The parts of libpq's result that pgha reads."""

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
    """A wrong number of results is no success, nor are results skipped while nothing failed."""
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
    """An exception from a row factory or on_send reaches only its own caller.

    The answers that arrived with it reach their callers, and the lane goes on.
    """

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
    """The garbage of a program with threads may be collected in any of its threads."""
    async with cluster_of(server) as cluster, cluster.events() as events:
        operation = cluster.submit("SELECT 1/0", read=True)
        await operation.wait()
        held = [operation]
        del operation
        received: list[pgha.Event] = []

        async def receive() -> None:
            received.append(await events.receive())

        # A task waits for the event, and has to be woken from that thread.
        with within():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive)
                await anyio.wait_all_tasks_blocked()
                await anyio.to_thread.run_sync(held.clear)
        assert isinstance(received[0], pgha.FailureUnretrieved)
        assert cluster.statistics().unretrieved == 1
