"""`pgha.blocking`: every call, with many threads at once, on both event loops."""

from __future__ import annotations

import asyncio
import concurrent.futures
import datetime
import gc
import inspect
import logging
import random
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, assert_type

import psycopg
import pytest
from psycopg.rows import DictRow, TupleRow, dict_row, scalar_row
from support.common import PROVEN, unique
from support.threads import Backend, ask, cluster_of, crew, soon, wait_started, wait_stopped

import pgha.blocking
from pgha._options import Tuning
from pgha.chaos import LocalNode

NARROW = Tuning(depth=1, max_lanes=1)
"""One operation of each kind runs at a time."""


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def table(server: LocalNode) -> Iterator[str]:
    name = unique("t")
    ask(server.execute, f"CREATE TABLE {name} (id int PRIMARY KEY, name text)")
    yield name
    ask(server.execute, f"DROP TABLE {name}")


# Calls


def test_reads_and_writes(server: LocalNode, table: str, backend: Backend) -> None:
    with cluster_of(server, backend=backend) as cluster:
        assert cluster.execute(f"INSERT INTO {table} VALUES (1, 'one') RETURNING id") == [(1,)]
        results = cluster.execute_batch(
            [(f"INSERT INTO {table} VALUES (%s, %s)", [2, "two"]), f"SELECT count(*) FROM {table}"]
        )
        assert [one.command for one in results] == ["INSERT 0 1", "SELECT 1"]
        assert results[1].value() == 2
        found = cluster.fetch(f"SELECT id, name FROM {table} ORDER BY id")
        assert found == [(1, "one"), (2, "two")]
        assert (found.columns, found.node, found.attempts) == (("id", "name"), server.name, 1)
        by_id = f"SELECT name FROM {table} WHERE id = %(id)s"
        assert cluster.fetch_one(by_id, {"id": 2}) == ("two",)
        assert cluster.fetch_one(by_id, {"id": 3}) is None
        assert cluster.fetch_value(by_id, {"id": 1}) == "one"
        assert cluster.fetch_value(by_id, {"id": 3}) is None
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            cluster.fetch(f"DELETE FROM {table} RETURNING id")


def test_row_factories(server: LocalNode, backend: Backend) -> None:
    with cluster_of(server, backend=backend, row_factory=dict_row) as cluster:
        assert cluster.fetch("SELECT 1 AS a") == [{"a": 1}]
        assert cluster.fetch_one("SELECT 1 AS a", row_factory=scalar_row) == 1
        assert cluster.execute("SELECT 2 AS a", row_factory=scalar_row) == [2]
        assert cluster.execute_batch(["SELECT 2 AS a"])[0] == [{"a": 2}]
        assert cluster.submit("SELECT 3 AS a", row_factory=scalar_row).result() == [3]
        assert cluster.fetch_value("SELECT 4 AS a") == 4

        def refuse(cursor: object) -> Any:
            raise ZeroDivisionError("the row factory's own")

        with pytest.raises(ZeroDivisionError, match="the row factory's own"):
            cluster.fetch("SELECT 1", row_factory=refuse)


def typed(cluster: pgha.blocking.Cluster, dicts: pgha.blocking.Cluster[DictRow]) -> None:
    """Check types with mypy; this function never runs."""
    assert_type(cluster.fetch("SELECT 1"), pgha.Result[TupleRow])
    assert_type(dicts.fetch("SELECT 1"), pgha.Result[DictRow])
    assert_type(dicts.execute("SELECT 1"), pgha.Result[DictRow])
    assert_type(cluster.fetch("SELECT 1", row_factory=dict_row), pgha.Result[DictRow])
    assert_type(cluster.execute("SELECT 1", row_factory=dict_row), pgha.Result[DictRow])
    assert_type(cluster.fetch_one("SELECT 1"), TupleRow | None)
    assert_type(cluster.fetch_one("SELECT 1", row_factory=dict_row), DictRow | None)
    assert_type(cluster.submit("SELECT 1").result(), pgha.Result[Any])
    with pgha.blocking.open_cluster("", row_factory=dict_row) as opened:
        assert_type(opened, pgha.blocking.Cluster[DictRow])
    with pgha.blocking.open_cluster("") as plain:
        assert_type(plain, pgha.blocking.Cluster[TupleRow])
    cluster.fetch("SELECT 1", route=pgha.fastest())
    cluster.execute("SELECT 1", route=pgha.fastest())  # type: ignore[call-overload]


def _parameters(function: object, *without: str) -> dict[str, tuple[object, object]]:
    found = inspect.signature(function).parameters  # type: ignore[arg-type]
    return {name: (one.kind, one.default) for name, one in found.items() if name not in without}


@pytest.mark.parametrize(
    "name",
    ["fetch", "fetch_one", "fetch_value", "execute", "execute_batch", "submit", "group", "nodes", "adapters",
     "add_node", "remove_node", "wait_ready", "events", "statistics"],
)  # fmt: skip
def test_the_face_is_that_of_the_async_one(name: str) -> None:
    ours, theirs = getattr(pgha.blocking.Cluster, name), getattr(pgha.Cluster, name)
    if isinstance(theirs, property):
        assert isinstance(ours, property)
    else:
        # The async API has cancel scopes in place of a timeout here.
        more = ["timeout"] if name == "wait_ready" else []
        assert _parameters(ours, *more) == _parameters(theirs)


def test_the_options_are_those_of_the_async_one() -> None:
    ours = _parameters(pgha.blocking.open_cluster, "backend", "backend_options")
    assert ours == _parameters(pgha.open_cluster)
    assert _parameters(pgha.blocking.Group.submit) == _parameters(pgha.Group.submit)


def test_errors_of_sql_are_raised_in_the_thread_that_calls(
    server: LocalNode, table: str, backend: Backend
) -> None:
    with cluster_of(server, backend=backend) as cluster:
        insert = f"INSERT INTO {table} VALUES (1)"
        cluster.execute(insert)
        raised: list[psycopg.errors.UniqueViolation] = []

        def fail() -> None:
            with pytest.raises(psycopg.errors.UniqueViolation) as caught:
                cluster.execute(insert)
            raised.append(caught.value)

        with crew() as threads:
            for _ in range(20):
                threads.start(fail)
        assert len({id(error) for error in raised}) == 20
        for error in raised:
            frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
            assert frames[:2] == ["fail", "execute"]
            assert pgha.error_info(error).outcome == "not applied"
            assert pgha.error_info(error).node == server.name
        with pytest.raises(psycopg.errors.DivisionByZero) as caught:
            cluster.execute_batch(["SELECT 1", "SELECT 1/0"])
        assert pgha.error_info(caught.value).statement == 1


def test_bad_arguments_are_raised_at_once(server: LocalNode, backend: Backend) -> None:
    with cluster_of(server, backend=backend) as cluster:
        for call in (cluster.fetch, cluster.execute, cluster.submit):
            with pytest.raises(psycopg.ProgrammingError):
                call("SELECT %s", [1, 2])
            with pytest.raises(pgha.SessionRequired):
                call("BEGIN")
            with pytest.raises(pgha.ConfigError):
                call("SELECT 1", route=pgha.pin("nobody"))
        assert cluster.statistics().operations == 0


def test_timeouts(server: LocalNode, backend: Backend) -> None:
    with cluster_of(server, backend=backend, _tuning=PROVEN) as cluster:
        with pytest.raises(pgha.OperationTimeout):
            cluster.fetch("SELECT pg_sleep(60)", timeout=0.05)
        with pytest.raises(pgha.OperationTimeout):
            cluster.execute("SELECT pg_sleep(60)", timeout=0.05)
        with pytest.raises(psycopg.errors.QueryCanceled):
            cluster.fetch("SELECT pg_sleep(60)", statement_timeout=0.05)
        assert cluster.statistics().timed_out == 2
        assert cluster.fetch_value("SELECT 1") == 1


def test_each_of_many_threads_gets_its_own_answers(server: LocalNode, table: str, backend: Backend) -> None:
    with cluster_of(server, backend=backend) as cluster:

        def work(number: int) -> None:
            for turn in range(100):
                key = number * 1000 + turn
                cluster.execute(f"INSERT INTO {table} VALUES (%s, %s)", [key, str(key)])
                assert cluster.fetch(f"SELECT id, name FROM {table} WHERE id = %s", [key]) == [
                    (key, str(key))
                ]
                assert cluster.submit("SELECT %s::int", [key], read=True).result().value() == key

        with crew() as threads:
            for number in range(20):
                threads.start(work, number)
        statistics = cluster.statistics()
        assert (statistics.operations, statistics.succeeded) == (6000, 6000)
        assert (statistics.queued, statistics.in_flight) == (0, 0)


def test_dumpers_of_many_threads_do_not_meet(server: LocalNode, backend: Backend) -> None:
    """Conversions in many threads do not mix up their types.

    A psycopg transformer shared by two threads would give one thread the types of the other.
    """
    samples: list[tuple[list[Any], tuple[str, str]]] = [
        ([1, 2.5], ("smallint", "double precision")),
        ([2.5, 1], ("double precision", "smallint")),
        ([[1, 2], b"x"], ("smallint[]", "bytea")),
        ([True, 2**40], ("boolean", "bigint")),
        ([datetime.date(2000, 1, 1), Decimal(1)], ("date", "numeric")),
    ]
    with cluster_of(server, backend=backend) as cluster:

        def work(number: int) -> None:
            draw = random.Random(number)
            for _ in range(300):
                given, types = draw.choice(samples)
                query = "SELECT pg_typeof(%s)::text, pg_typeof(%s)::text"
                assert cluster.fetch_one(query, given) == types

        # With so short an interval, threads switch in the middle of a conversion on any machine.
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            with crew() as threads:
                for number in range(8):
                    threads.start(work, number)
        finally:
            sys.setswitchinterval(interval)


# Submitted operations


def test_a_submitted_operation_is_a_future(server: LocalNode, backend: Backend) -> None:
    with cluster_of(server, backend=backend) as cluster:
        many = [cluster.submit("SELECT %s::int", [i], read=i % 2 == 0) for i in range(100)]
        assert all(isinstance(one, concurrent.futures.Future) for one in many)
        done = concurrent.futures.wait(many, timeout=30)
        assert not done.not_done
        found = [one.result().value() for one in concurrent.futures.as_completed(many, timeout=30)]
        assert sorted(found) == list(range(100))
        one = many[7]
        assert (one.done(), one.running(), one.cancelled(), one.cancel()) == (True, False, False, False)
        assert one.exception() is None
        assert one.result() is one.result()


def test_what_was_submitted_may_be_changed(server: LocalNode, backend: Backend) -> None:
    with cluster_of(server, backend=backend) as cluster:
        row: list[Any] = [0, []]
        many = []
        for number in range(200):
            row[0] = number
            row[1][:] = [number]
            many.append(cluster.submit("SELECT %s::int, %s::int[]", row))
        assert [one.result()[0] for one in many] == [(number, [number]) for number in range(200)]


def test_done_callbacks_run_in_the_clusters_thread(server: LocalNode, backend: Backend) -> None:
    with cluster_of(server, backend=backend) as cluster:
        told: list[tuple[str, Any]] = []
        slow = cluster.submit("SELECT pg_sleep(0.05), 1")
        slow.add_done_callback(lambda one: told.append((threading.current_thread().name, one)))
        slow.result()
        soon(lambda: bool(told))
        assert told == [(f"pgha {backend}", slow)]
        slow.add_done_callback(lambda one: told.append((threading.current_thread().name, one)))
        assert told[1] == (threading.current_thread().name, slow)


def test_a_callback_that_raises_harms_nobody(
    server: LocalNode, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    with cluster_of(server, backend=backend) as cluster:
        for error in (ValueError("first"), SystemExit("second")):
            operation = cluster.submit("SELECT pg_sleep(0.05)")

            def raises(_: object, error: BaseException = error) -> None:
                raise error

            operation.add_done_callback(raises)
            assert operation.result()
            soon(lambda text=str(error): text in caplog.text)  # type: ignore[misc]
            assert cluster.fetch_value("SELECT 1") == 1


def test_the_future_of_asyncio(server: LocalNode, backend: Backend) -> None:
    """An asyncio program in another thread can await a future; cancelling the future reaches the server."""
    text = unique("sleep")
    with cluster_of(server, backend=backend) as cluster:

        async def program() -> None:
            assert (await asyncio.wrap_future(cluster.submit("SELECT 5"))).value() == 5
            with pytest.raises(psycopg.errors.DivisionByZero):
                await asyncio.wrap_future(cluster.submit("SELECT 1/0"))
            sleeping = asyncio.wrap_future(cluster.submit(f"SELECT pg_sleep(60) /* {text} */"))
            await asyncio.to_thread(wait_started, server, text)
            sleeping.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sleeping
            await asyncio.to_thread(wait_stopped, server, text)

        with crew() as threads:
            threads.start(asyncio.run, program())


@pytest.mark.parametrize("read", [True, False])
def test_cancelling_reaches_the_server(server: LocalNode, backend: Backend, read: bool) -> None:
    text = unique("sleep")
    with cluster_of(server, backend=backend, _tuning=PROVEN) as cluster:
        operation = cluster.submit(f"SELECT pg_sleep(60) /* {text} */", read=read)
        wait_started(server, text)
        with pytest.raises(TimeoutError):
            operation.result(timeout=0.01)
        assert (operation.running(), operation.cancelled()) == (True, False)
        assert operation.cancel()
        with pytest.raises(pgha.OperationCancelled) as caught:
            operation.result(timeout=30)
        assert isinstance(caught.value, pgha.blocking.OperationCancelled)
        assert isinstance(caught.value, concurrent.futures.CancelledError)
        assert pgha.error_info(caught.value).outcome == "not applied"
        assert pgha.error_info(caught.value).node == server.name
        assert (operation.cancelled(), operation.cancel(), operation.done()) == (True, False, True)
        assert isinstance(operation.exception(), pgha.OperationCancelled)
        wait_stopped(server, text)


def test_cancelled_before_anything_was_sent(server: LocalNode, backend: Backend) -> None:
    with cluster_of(server, backend=backend) as cluster:
        many = [cluster.submit("SELECT pg_sleep(60)") for _ in range(50)]
        for one in many:
            assert one.cancel()
        for one in many:
            with pytest.raises(concurrent.futures.CancelledError):
                one.result(timeout=30)


def test_cancelling_races_with_the_answer(server: LocalNode, table: str, backend: Backend) -> None:
    """Each operation reports what really happened to its row."""
    with cluster_of(server, backend=backend) as cluster:
        applied, cancelled, draw = set(), set(), random.Random(7)
        doubtful = set()
        for number in range(1000):
            operation = cluster.submit(f"INSERT INTO {table} VALUES (%s)", [number])
            for _ in range(draw.randrange(60)):
                threading.get_ident()
            if draw.random() < 0.5:
                concurrent.futures.wait([operation], timeout=draw.random() * 0.001)
            asked = operation.cancel()
            try:
                assert operation.result(timeout=30).rowcount == 1
                applied.add(number)
            except pgha.OperationCancelled:
                assert asked
                assert operation.cancelled()
                cancelled.add(number)
            except pgha.CommitInDoubt:
                assert not operation.cancelled()
                doubtful.add(number)
        there = {row[0] for row in cluster.fetch(f"SELECT id FROM {table}")}
        assert applied <= there <= applied | doubtful
        assert applied
        assert cancelled


def test_the_same_error_does_not_grow(server: LocalNode, backend: Backend) -> None:
    with cluster_of(server, backend=backend) as cluster:
        operation = cluster.submit("SELECT 1/0")
        lengths = set()
        for _ in range(5):
            with pytest.raises(psycopg.errors.DivisionByZero) as caught:
                operation.result()
            lengths.add(len(traceback.extract_tb(caught.value.__traceback__)))
        assert len(lengths) == 1


def test_a_failure_that_nobody_retrieves_is_told(
    server: LocalNode, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    with cluster_of(server, backend=backend) as cluster, cluster.events() as events:
        with caplog.at_level(logging.ERROR, "pgha"):
            # One operation is dropped before it ends, and one after it ended, by different threads.
            cluster.submit("SELECT 1/0")
            waited = cluster.submit("SELECT 1/0")
            concurrent.futures.wait([waited])
            del waited
            gc.collect()
            for _ in range(2):
                event = next(event for event in events if isinstance(event, pgha.FailureUnretrieved))
                assert isinstance(event.error, psycopg.errors.DivisionByZero)
        assert (
            len([one for one in caplog.records if "its failure was not retrieved" in one.getMessage()]) == 2
        )
        assert cluster.statistics().unretrieved == 2


def test_a_failure_that_somebody_looked_at_is_not_told(server: LocalNode, backend: Backend) -> None:
    with cluster_of(server, backend=backend) as cluster:
        looked = threading.Event()

        def look(one: concurrent.futures.Future[Any]) -> None:
            assert one.exception() is not None
            looked.set()

        cluster.submit("SELECT 1/0").add_done_callback(look)
        assert looked.wait(30)
        assert isinstance(cluster.submit("SELECT 1/0").exception(), psycopg.errors.DivisionByZero)
        revoked = cluster.submit("SELECT pg_sleep(60)")
        revoked.cancel()
        concurrent.futures.wait([revoked])
        del revoked
        with pytest.raises(psycopg.errors.DivisionByZero):
            cluster.fetch("SELECT 1/0")
        gc.collect()
        assert cluster.statistics().unretrieved == 0


# A full queue


def test_a_full_queue(server: LocalNode, backend: Backend) -> None:
    text = unique("sleep")
    with cluster_of(server, backend=backend, read_connections=1, max_queued=2, _tuning=NARROW) as cluster:
        head = cluster.submit(f"SELECT pg_sleep(60) /* {text} */", read=True)
        wait_started(server, text)
        behind = [cluster.submit("SELECT %s::int", [i], read=True) for i in range(2)]
        with pytest.raises(pgha.QueueFull):
            cluster.submit("SELECT 2", read=True)
        with pytest.raises(pgha.QueueFull, match=r"full for 0\.05 s"):
            cluster.fetch("SELECT 3", timeout=0.05)
        answers: list[Any] = []
        with crew() as threads:
            for number in range(5):
                threads.start(lambda n=number: answers.append(cluster.fetch_value("SELECT %s::int", [n])))
            soon(lambda: cluster._cluster.statistics().queued == 7, "all wait for room")
            assert answers == []
            head.cancel()
        assert sorted(answers) == list(range(5))
        assert [one.result().value() for one in behind] == [0, 1]
        assert head.cancelled()


def test_leaving_while_some_wait_for_room(server: LocalNode, backend: Backend) -> None:
    """Leaving the cluster waits for the calls that wait for queue capacity as for all others."""
    text, answers = unique("sleep"), list[int]()
    options: Any = {"read_connections": 1, "max_queued": 1, "close_timeout": 60.0, "_tuning": NARROW}

    def ask(cluster: pgha.blocking.Cluster) -> None:
        answers.append(cluster.fetch_value("SELECT 2"))

    with crew() as threads, cluster_of(server, backend=backend, **options) as cluster:
        head = cluster.submit(f"SELECT pg_sleep(60) /* {text} */", read=True)
        wait_started(server, text)
        behind = cluster.submit("SELECT 1", read=True)

        def let_go() -> None:
            try:
                soon(cluster._host._left.is_set)
            finally:
                head.cancel()

        for _ in range(3):
            threads.start(ask, cluster)
        soon(lambda: cluster._cluster.statistics().queued == 4, "all wait for room")
        threads.start(let_go)
    assert behind.result(timeout=0).value() == 1
    assert answers == [2, 2, 2]


# Groups


def test_a_group_waits_for_all(server: LocalNode, table: str, backend: Backend) -> None:
    with cluster_of(server, backend=backend) as cluster:
        with cluster.group() as group:
            many = [group.submit(f"INSERT INTO {table} VALUES (%s)", [i]) for i in range(500)]
        assert all(one.done() and one.result().rowcount == 1 for one in many)
        assert cluster.fetch_value(f"SELECT count(*) FROM {table}") == 500


def test_failures_of_a_group(server: LocalNode, backend: Backend) -> None:
    with cluster_of(server, backend=backend) as cluster:
        with pytest.raises(ExceptionGroup) as caught, cluster.group() as group:
            group.submit("SELECT 1/0")
            seen = group.submit("SELECT 1/0")
            group.submit("SELECT 1")
            group.submit("SELECT no_such_column")
            with pytest.raises(psycopg.errors.DivisionByZero):
                seen.result()
        assert sorted(type(one).__name__ for one in caught.value.exceptions) == [
            "DivisionByZero",
            "UndefinedColumn",
        ]
        gc.collect()
        assert cluster.statistics().unretrieved == 0


def test_a_group_whose_body_raises_cancels_the_rest(server: LocalNode, backend: Backend) -> None:
    text = unique("sleep")
    with cluster_of(server, backend=backend, _tuning=PROVEN) as cluster:
        with pytest.raises(ZeroDivisionError, match="the body's own"), cluster.group() as group:
            failed = group.submit("SELECT 1/0")
            concurrent.futures.wait([failed])
            sleeping = group.submit(f"SELECT pg_sleep(60) /* {text} */")
            wait_started(server, text)
            raise ZeroDivisionError("the body's own")
        with pytest.raises(pgha.OperationCancelled):
            sleeping.result(timeout=30)
        wait_stopped(server, text)
        del failed
        gc.collect()
        assert cluster.statistics().unretrieved == 0


def test_a_group_of_many_threads(server: LocalNode, backend: Backend) -> None:
    with cluster_of(server, backend=backend) as cluster:
        with cluster.group() as group, crew() as threads:
            made: list[pgha.blocking.Operation[Any]] = []
            for _ in range(10):
                threads.start(lambda: made.extend(group.submit("SELECT 1") for _ in range(50)))
            threads.join()
        assert len(made) == 500
        assert all(one.done() for one in made)


# Nodes, events, statistics


def test_nodes(server: LocalNode, backend: Backend) -> None:
    absent = pgha.Node("host=127.0.0.1 port=1", "absent")
    with cluster_of(server, backend=backend) as cluster:
        cluster.wait_ready()
        assert cluster.nodes[server.name].state == "up"
        with pytest.raises(pgha.ConfigError, match="cannot be ready"):
            cluster.wait_ready(2)
        cluster.add_node(absent)
        with pytest.raises(pgha.ConfigError, match="called 'absent' already"):
            cluster.add_node(absent)
        cluster.wait_ready(1, timeout=30)
        with pytest.raises(pgha.NoNodeAvailable, match="absent") as caught:
            cluster.wait_ready(timeout=0.05)
        assert [one.name for one in caught.value.nodes] == [server.name, "absent"]
        with pytest.raises(pgha.ConfigError, match="timeout"):
            cluster.wait_ready(timeout=-1)
        cluster.remove_node("absent")
        assert list(cluster.nodes) == [server.name]
        with pytest.raises(pgha.ConfigError):
            cluster.remove_node("absent")


def test_adapters(server: LocalNode, backend: Backend) -> None:
    class Upper(psycopg.adapt.Loader):
        def load(self, data: Any) -> str:
            return bytes(data).decode().upper()

    class Shout(psycopg.adapt.Dumper):
        oid = 25

        def dump(self, obj: Any) -> bytes:
            return f"{obj!r}!".encode()

    with cluster_of(server, backend=backend) as cluster:
        cluster.adapters.register_loader("text", Upper)
        cluster.adapters.register_dumper(complex, Shout)
        assert cluster.fetch_value("SELECT 'quiet'::text") == "QUIET"
        assert cluster.fetch_value("SELECT %s::text", [1j]) == "1J!"


def test_events(server: LocalNode, backend: Backend) -> None:
    rest: list[pgha.Event] = []
    started = threading.Event()

    def listen(cluster: pgha.blocking.Cluster) -> None:
        with cluster.events() as events:
            started.set()
            rest.extend(events)

    # Leaving the cluster ends the subscription, and thereby the listening thread, before the thread is
    # joined.
    with crew() as threads, cluster_of(server, backend=backend) as cluster:
        threads.start(listen, cluster)
        assert started.wait(30)
        with cluster.events() as events:
            cluster.add_node(pgha.Node("host=127.0.0.1 port=1", "absent"))
            event = next(one for one in events if one.node == "absent")
            assert isinstance(event, pgha.NodeStateChanged)
        assert list(events) == []
    assert next(one for one in rest if one.node == "absent") == event


def test_events_that_are_read_after_the_end(server: LocalNode, backend: Backend) -> None:
    with cluster_of(server, backend=backend) as cluster:
        context = cluster.events()
        events = context.__enter__()
        for _ in range(2):
            cluster.submit("SELECT 1/0")
    told = list(events)
    assert [type(one) for one in told if isinstance(one, pgha.FailureUnretrieved)] == [
        pgha.FailureUnretrieved
    ] * 2
    context.__exit__(None, None, None)
    assert list(events) == []


# In the cluster's own thread


def test_what_would_deadlock_is_told(server: LocalNode, backend: Backend) -> None:
    """Calls that would deadlock raise an error.

    Row factories, ``on_send`` and done callbacks run in the thread that would have to answer.
    """
    with cluster_of(server, backend=backend) as cluster:
        submitted: list[pgha.blocking.Operation[Any]] = []
        calls: dict[str, Callable[[], object]] = {
            "fetch": lambda: cluster.fetch("SELECT 1"),
            "execute": lambda: cluster.execute("SELECT 1"),
            "batch": lambda: cluster.execute_batch(["SELECT 1"]),
            "result": lambda: cluster.submit("SELECT 1").result(),
            "exception": lambda: cluster.submit("SELECT 1").exception(),
            "ready": lambda: cluster.wait_ready(),
            "remove": lambda: cluster.remove_node(server.name),
            "events": lambda: cluster.events().__enter__(),
            "group": lambda: cluster.group().__enter__().submit("SELECT 1").result(),
        }
        told: dict[str, BaseException] = {}

        def at_work(*_: object) -> None:
            for name, call in calls.items():
                try:
                    call()
                except pgha.blocking.WouldDeadlock as error:
                    told[name] = error
            submitted.append(cluster.submit("SELECT 7"))
            assert cluster.statistics().operations > 0
            assert server.name in cluster.nodes

        cluster.fetch("SELECT 1", on_send=at_work)
        assert set(told) == set(calls)
        assert all(
            isinstance(error, pgha.Error) and isinstance(error, RuntimeError) for error in told.values()
        )

        def factory(cursor: Any) -> Any:
            at_work()
            return dict_row(cursor)

        told.clear()
        cluster.fetch("SELECT 1", row_factory=factory)
        assert set(told) == set(calls)
        told.clear()
        slow = cluster.submit("SELECT pg_sleep(0.05)")
        slow.add_done_callback(at_work)
        soon(lambda: len(submitted) == 3)
        assert set(told) == set(calls)
        assert [one.result().value() for one in submitted] == [7, 7, 7]


def test_a_chain_of_callbacks(server: LocalNode, backend: Backend) -> None:
    with cluster_of(server, backend=backend) as cluster:
        done = threading.Event()
        counted: list[int] = []

        def next_one(before: concurrent.futures.Future[Any]) -> None:
            counted.append(before.result().value())
            if counted[-1] < 100:
                cluster.submit("SELECT %s::int", [counted[-1] + 1]).add_done_callback(next_one)
            else:
                done.set()

        cluster.submit("SELECT 0").add_done_callback(next_one)
        assert done.wait(30)
        assert counted == list(range(101))
