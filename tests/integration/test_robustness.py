"""Wrong or odd input of a caller, and permissions that a server denies, affect no other caller."""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import anyio
import psutil
import psycopg
import pytest
from psycopg import pq
from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.conninfo import make_conninfo
from support.common import (
    PATIENCE,
    backends,
    cluster_of,
    eventually,
    gate,
    nothing_left,
    started,
    unique,
    within,
)
from support.servers import standalone

import pgha
from pgha._core.door import Door
from pgha._dispatch.timers import Timers
from pgha._options import Tuning
from pgha.chaos import Node

pytestmark = pytest.mark.anyio

NOBODY = "host=127.0.0.1 port=1 dbname=x"
ONE_AT_A_TIME = Tuning(max_lanes=1, depth=1)
"""With read_connections=1, operations after the running one wait in the queue."""


def nobody_there(**options: Any) -> AbstractAsyncContextManager[pgha.Cluster]:
    """Return a cluster whose node never answers."""
    return pgha.open_cluster(NOBODY, min_ready=0, close_timeout=0.1, **options)


# Time


async def test_two_timers_of_one_operation_at_the_same_moment() -> None:
    """One of two timers that expire together ends the operation, and the other does no harm.

    The timers are the operation's deadline and the end of its wait for a node.
    """
    expected = (pgha.OperationTimeout, pgha.NoNodeAvailable)
    with within():
        async with nobody_there(failover_timeout=0.2) as cluster:
            for call in (cluster.fetch, cluster.execute):
                for _ in range(3):
                    with pytest.raises(expected) as caught:
                        await call("SELECT 1", timeout=0.2)
                    assert pgha.error_info(caught.value).outcome == "not applied"
            # The timers still run: another deadline is kept.
            with pytest.raises(pgha.OperationTimeout):
                await cluster.fetch("SELECT 1", timeout=0.05)
            assert cluster.statistics().queued == 0
            assert cluster.statistics().failed == 7


async def test_timekeeping_goes_on_behind_a_defect(caplog: pytest.LogCaptureFixture) -> None:
    callbacks = Timers(time.monotonic, Door(lambda: False).enter)
    called: list[str] = []

    def fail() -> None:
        called.append("failing")
        raise LookupError("mine")

    with within():
        async with anyio.create_task_group() as group:
            group.start_soon(callbacks.run)
            now = time.monotonic()
            callbacks.at(now, fail)
            callbacks.at(now, lambda: called.append("at the same moment"))
            later = anyio.Event()
            callbacks.at(now + 0.05, later.set)
            await later.wait()
            group.cancel_scope.cancel()
    assert called == ["failing", "at the same moment"]
    (record,) = [one for one in caplog.get_records("call") if one.name == "pgha.operation"]
    assert record.levelno == logging.ERROR
    assert "defect" in record.getMessage()
    assert record.exc_info is not None
    caplog.clear()


async def test_the_time_spent_waiting_for_room_in_the_queue_counts(server: Node) -> None:
    tuning = Tuning(max_lanes=1, depth=1, head_of_line=60)
    async with cluster_of(server, read_connections=1, max_queued=3, _tuning=tuning) as cluster:
        pid = await cluster.fetch_value("SELECT pg_backend_pid()")
        await server.freeze_backend(pid)
        try:
            head = cluster.submit("SELECT 1", read=True)
            waiting = [cluster.submit("SELECT 1", read=True) for _ in range(3)]
            async with anyio.create_task_group() as group:

                async def late() -> None:
                    begun = time.monotonic()
                    with pytest.raises(pgha.OperationTimeout):
                        await cluster.fetch("SELECT 1", timeout=4)
                    # A timeout that started twice would end after 7 s.
                    assert 3.9 < time.monotonic() - begun < 6.5

                group.start_soon(late)
                await anyio.sleep(3)
                waiting.pop().cancel()
        finally:
            await server.thaw_backend(pid)
        with within():
            assert [(await one).value() for one in (head, *waiting)] == [1, 1, 1]


@pytest.mark.parametrize("limit", [0, 0.0004, -1, math.inf, math.nan, 1e9])
async def test_a_statement_timeout_that_postgresql_cannot_have(server: Node, limit: float) -> None:
    """PostgreSQL takes 0 for no limit, which pgha expresses as None; 0 is rejected."""
    with within(), pytest.raises(pgha.ConfigError, match=r"^statement_timeout must be"):
        async with pgha.open_cluster(server.dsn, statement_timeout=limit):
            pytest.fail("it was opened")
    async with cluster_of(server) as cluster:
        for call in (cluster.fetch, cluster.execute):
            with pytest.raises(pgha.ConfigError, match=r"^statement_timeout must be"):
                await call("SELECT 1", statement_timeout=limit)
        with pytest.raises(pgha.ConfigError, match=r"^statement_timeout must be"):
            await cluster.execute_batch(["SELECT 1"], statement_timeout=limit)
        assert cluster.statistics().operations == 0


async def test_no_statement_timeout_lifts_the_clusters(server: Node) -> None:
    sleep = "SELECT pg_sleep(0.4)"
    async with cluster_of(server, statement_timeout=0.1) as cluster:
        for _ in range(2):
            for call in (cluster.fetch, cluster.execute):
                assert len(await call(sleep, statement_timeout=None)) == 1
                # The None above applied to its own call alone.
                with pytest.raises(psycopg.errors.QueryCanceled):
                    await call(sleep)
            assert len(await cluster.execute_batch(["SAVEPOINT a", sleep], statement_timeout=None)) == 2
            with pytest.raises(psycopg.errors.QueryCanceled):
                await cluster.execute_batch(["SAVEPOINT a", sleep])


# Parameters


class Money:
    def __init__(self, cents: Any) -> None:
        self.cents = cents


class MoneyDumper(Dumper):
    def dump(self, obj: Money) -> Buffer | None:
        return obj.cents  # type: ignore[no-any-return]


async def test_a_dumper_that_gives_no_bytes(server: Node) -> None:
    """The caller gets an error at once, before anything is sent."""
    async with cluster_of(
        server, read_connections=1, close_timeout=PATIENCE, _tuning=ONE_AT_A_TIME
    ) as cluster:
        cluster.adapters.register_dumper(Money, MoneyDumper)
        await cluster.execute("SELECT 1")
        pids = set(await backends(server, cluster._options.application_name))
        # Some of these operations wait in the queue, and others are on the lanes.
        others = [cluster.submit("SELECT %s::int", [i], read=i % 2 == 0) for i in range(20)]
        bad: Any
        for bad in ("12", 12, object()):
            for params in ([Money(bad)], {"a": Money(bad)}, [Money(b"1"), *[Money(bad)] * 20]):
                places = "%(a)s" if isinstance(params, dict) else ", ".join(["%s"] * len(params))
                with pytest.raises(psycopg.ProgrammingError, match="not bytes"):
                    await cluster.fetch(f"SELECT {places}", params)
                with pytest.raises(psycopg.ProgrammingError, match="not bytes"):
                    await cluster.execute(f"SELECT {places}", params)
                for read in (True, False):
                    with pytest.raises(psycopg.ProgrammingError, match="not bytes"):
                        cluster.submit(f"SELECT {places}", params, read=read)
                with pytest.raises(psycopg.ProgrammingError, match="not bytes"):
                    await cluster.execute_batch(["SELECT 1", (f"SELECT {places}", params)])
        for good in (b"7", bytearray(b"7"), memoryview(b"7")):
            for call in (cluster.fetch, cluster.execute):
                assert (await call("SELECT %s::int", [Money(good)])).value() == 7
        assert await cluster.fetch_value("SELECT %s::int", [Money(None)]) is None
        with within():
            assert [(await one).value() for one in others] == list(range(20))
        assert set(await backends(server, cluster._options.application_name)) == pids, "none was replaced"
        assert (cluster.statistics().failed, cluster.statistics().connections_lost) == (0, 0)
        begun = time.monotonic()
    # Nothing is left open that would delay a clean exit.
    assert time.monotonic() - begun < PATIENCE / 2


async def test_what_a_batch_is_given(server: Node) -> None:
    async with cluster_of(server) as cluster:
        bad: Any
        for bad in ("SELECT 1", b"SELECT 1", [], (), None):
            with pytest.raises(pgha.ConfigError, match="takes a list of statements, at least one"):
                await cluster.execute_batch(bad)
        for bad in (("SELECT 1",), ["SELECT 1"], ("SELECT %s", [1], 3), ()):
            with pytest.raises(pgha.ConfigError, match=r"statement 1 of the batch.*pair of query and param"):
                await cluster.execute_batch(["SELECT 1", bad])
        with pytest.raises(pgha.ConfigError, match="statement 1 of the batch is None"):
            await cluster.execute_batch(["SELECT 1", None])  # type: ignore[list-item]
        assert cluster.statistics().operations == 0
        items: Any = [["SELECT %s::int", [1]], ("SELECT %s::int", (2,)), ("SELECT 3", None), "SELECT 4"]
        assert [one.value() for one in await cluster.execute_batch(items)] == [1, 2, 3, 4]
        assert [one.value() for one in await cluster.execute_batch(tuple(items))] == [1, 2, 3, 4]


# Exceptions and callbacks


@dataclass(frozen=True)
class Frozen(Exception):
    what: str


@dataclass(frozen=True, slots=True)
class FrozenWithSlots(Exception):
    what: str


class Slotted(Exception):
    __slots__ = ("what",)


class Refusing(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise TypeError(f"no {name}")


@pytest.mark.parametrize("kind", [Frozen, FrozenWithSlots, Slotted, Refusing])
async def test_an_exception_that_takes_no_attributes(server: Node, kind: Callable[[str], Any]) -> None:
    """An exception that takes no attributes reaches its caller unchanged and is not held against the node."""
    error = kind("mine")

    def fail(_: object) -> Any:
        raise error

    async with cluster_of(server, read_connections=1) as cluster:
        await cluster.execute("SELECT 1")
        pids = set(await backends(server, cluster._options.application_name))
        for call in (cluster.fetch, cluster.execute):
            for options in ({"row_factory": fail}, {"row_factory": lambda _: fail}, {"on_send": fail}):
                # The context managers are not swapped: contextlib itself sets attributes on exceptions.
                with within(), pytest.raises(kind) as caught:  # type: ignore[call-overload]
                    await call("SELECT 1", **options)
                assert caught.value is error
                assert isinstance(pgha.error_info(caught.value), pgha.ErrorInfo)
        neighbours = [cluster.submit("SELECT %s::int", [i]) for i in range(5)]
        failing = cluster.submit("SELECT 1", row_factory=fail)
        neighbours += [cluster.submit("SELECT %s::int", [5 + i]) for i in range(5)]
        with within(), pytest.raises(kind) as caught:  # type: ignore[call-overload]
            await failing
        assert caught.value is error
        assert [(await one).value() for one in neighbours] == list(range(10))
        # One more may have been opened for those that waited.
        assert pids <= set(await backends(server, cluster._options.application_name))
        assert cluster.statistics().connections_lost == 0


@pytest.mark.parametrize("read", [True, False])
async def test_on_send_that_cancels_its_own_operation(server: Node, read: bool) -> None:
    """An operation that its own on_send cancels is not sent."""
    text = unique("text")
    async with cluster_of(server, read_connections=1, _tuning=ONE_AT_A_TIME) as cluster:
        sent: list[pgha.SendInfo] = []
        head = cluster.submit("SELECT pg_sleep(0.05)", read=read)
        box: list[pgha.Operation[Any]] = []

        def leave(one: pgha.SendInfo) -> None:
            sent.append(one)
            box[0].cancel()

        box.append(cluster.submit(f"SELECT pg_sleep(60) /* {text} */", read=read, on_send=leave))
        behind = cluster.submit("SELECT 7", read=read)
        with within():
            with pytest.raises(pgha.OperationCancelled) as caught:
                await box[0]
            assert pgha.error_info(caught.value).attempts == 0
            await head
            assert (await behind).value() == 7
        assert len(sent) == 1
        seen = "SELECT count(*) FROM pg_stat_activity WHERE strpos(query, %s) > 0 AND pid <> pg_backend_pid()"
        assert await server.execute(seen, [text]) == [(0,)]
        statistics = cluster.statistics()
        assert (statistics.queued, statistics.cancelled, statistics.cancels_sent) == (0, 1, 0)


@pytest.mark.parametrize("ends", ["well", "by raising"])
@pytest.mark.parametrize("read", [True, False])
async def test_on_send_that_submits_others(server: Node, read: bool, ends: str) -> None:
    """Each operation submitted by on_send gets its own answer.

    A lane was already chosen when on_send is called.
    """
    table = unique("t")
    async with cluster_of(server, read_connections=1) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int)")
        more: list[tuple[int, pgha.Operation[pgha.Result[Any]]]] = []

        def submit(_: pgha.SendInfo) -> None:
            for other in (read, not read):
                number = 1000 + len(more)
                more.append((number, cluster.submit("SELECT %s::int", [number], read=other)))
            if ends != "well":
                raise LookupError("mine")

        operations = [cluster.submit("SELECT %s::int", [i], read=read, on_send=submit) for i in range(60)]
        with within():
            for number, operation in enumerate(operations):
                if ends == "well":
                    assert (await operation).value() == number
                else:
                    with pytest.raises(LookupError):
                        await operation
            assert len(more) == 120
            for number, operation in more:
                assert (await operation).value() == number
        assert cluster.statistics().connections_lost == 0


async def test_what_must_be_alone_is_alone_whatever_on_send_submits(server: Node) -> None:
    tuning = Tuning(max_lanes=1, hold_behind=60, head_of_line=60)
    async with cluster_of(server, read_connections=1, _tuning=tuning) as cluster:
        await cluster.execute("SELECT 1")
        (lane,) = next(iter(cluster._dispatcher._nodes.values())).sets["write"].lanes
        submitted: list[pgha.Operation[Any]] = []
        alone, usual = "DO $$ BEGIN PERFORM 1; END $$", "SELECT 1"

        def look() -> None:
            slots = lane.pipeline.slots
            assert len(slots) <= 1 or not any(slot.exclusive for slot in slots)

        def submit(query: str, *more: str) -> None:
            def on_send(_: pgha.SendInfo) -> None:
                for one in more:
                    submit(one)
                look()

            submitted.append(cluster.submit(query, on_send=on_send))
            look()

        with within():
            for turn in range(20):
                submit(usual, alone)
                submit(alone, usual)
                submit(usual, alone, usual)
                submit(alone, alone)
                if turn % 2:
                    # The lane is idle when the next turn begins.
                    await eventually(
                        lambda: cluster.statistics().in_flight + cluster.statistics().queued == 0
                    )
            for operation in submitted:
                await operation
        assert len(submitted) == 20 * 9


# Permissions that a server denies


async def test_a_role_that_may_not_end_backends(caplog: pytest.LogCaptureFixture) -> None:
    """If the role may not end backends, pgha only closes a discarded lane; the node stays healthy."""
    text = unique("sleep")
    async with standalone() as nodes:
        (node,) = nodes
        await node.execute(
            "CREATE ROLE plain LOGIN;"
            " REVOKE EXECUTE ON FUNCTION pg_catalog.pg_terminate_backend(int, bigint) FROM PUBLIC"
        )
        plain = pgha.Node(make_conninfo(node.dsn, user="plain"), node.name)
        async with (
            nothing_left(node) as application,
            pgha.open_cluster(plain, application_name=application, close_timeout=0.1) as cluster,
            cluster.events() as events,
        ):
            for kind in (True, False):
                with gate(node) as (wait, go_on):
                    operation = cluster.submit(f"SELECT {wait} /* {text} */", read=kind)
                    await started(node, text)
                    lane = operation.place[0]
                    lane.drain("a cancel had no effect in time", time.monotonic(), terminate=True)
                    go_on()
                with within():
                    assert len(await operation) == 1
                await eventually(lambda: "backends cannot be ended" in caplog.text)
                caplog.clear()
                assert cluster.nodes[node.name].state == "up"
                assert await cluster.fetch_value("SELECT 1") == 1
            while events.statistics().current_buffer_used:
                event = events.receive_nowait()
                assert not isinstance(event, pgha.NodeStateChanged), event
            # This operation makes the exit try to end a backend.
            left = cluster.submit(f"SELECT pg_sleep(60) /* {text} */", read=True)
            await started(node, text)
            begun = time.monotonic()
        assert time.monotonic() - begun < PATIENCE / 2
        with pytest.raises(pgha.OperationCancelled):
            await left


# Memory


@pytest.mark.parametrize("read", [True, False])
async def test_the_last_big_result_is_not_kept(server: Node, read: bool) -> None:
    """A big result is freed without waiting for the next answer on the same lane."""
    size = 64_000_000

    def used() -> int:
        gc.collect()
        return int(psutil.Process().memory_info().rss)

    async with cluster_of(server, read_connections=1, _tuning=ONE_AT_A_TIME) as cluster:
        call = cluster.fetch if read else cluster.execute
        for _ in range(2):
            # The first call also grows libpq's own buffer, for good.
            assert len((await call("SELECT repeat('x', %s)", [size])).value()) == size
        # The end of the answer may arrive in a packet of its own.
        await eventually(lambda: cluster.statistics().in_flight == 0)
        await anyio.wait_all_tasks_blocked()
        behind = used()
        assert (await call("SELECT 1")).value() == 1
        assert behind - used() < size / 4, "the next answer set something free"


# Waiting for something that does not come


async def test_waiting_for_more_nodes_than_there_are() -> None:
    async with nobody_there() as cluster:
        for count in (2, 100):
            with pytest.raises(pgha.ConfigError, match="there are 1"), within():
                await cluster.wait_ready(count)


@pytest.mark.parametrize("count", [None, 1])
async def test_waiting_for_a_node_when_the_cluster_is_left(count: int | None) -> None:
    refused = 0
    with within():
        async with anyio.create_task_group() as group, nobody_there() as cluster:

            async def wait() -> None:
                nonlocal refused
                with pytest.raises(pgha.ClusterClosed):
                    await cluster.wait_ready(count)
                refused += 1

            for _ in range(3):
                group.start_soon(wait)
            await eventually(lambda: len(cluster._dispatcher._changes.watchers) == 3)
    assert refused == 3
    with pytest.raises(pgha.ClusterClosed), within():
        await cluster.wait_ready(count)


async def test_waiting_for_room_in_the_queue_when_the_cluster_is_left() -> None:
    refused = 0
    with within():
        async with anyio.create_task_group() as group, nobody_there(max_queued=1) as cluster:
            calls: list[Any] = [cluster.fetch, cluster.execute, lambda one: cluster.execute_batch([one])]
            queued = [cluster.submit("SELECT 1", read=read) for read in (True, False)]

            async def ask(call: Any) -> None:
                nonlocal refused
                with pytest.raises(pgha.ClusterClosed):
                    await call("SELECT 1")
                refused += 1

            for call in calls:
                group.start_soon(ask, call)
            await eventually(lambda: cluster.statistics().queued == 5)
    assert refused == 3
    for operation in queued:
        with pytest.raises(pgha.OperationCancelled):
            await operation


class Gaps:
    """A value whose dumper gives a buffer with gaps, which libpq does not take."""


class GapsDumper(Dumper):
    format = pq.Format.BINARY
    oid = 17

    def dump(self, obj: Gaps) -> memoryview:
        return memoryview(b"abcdef")[::2]


async def test_a_buffer_with_gaps_fails_its_own_operation(server: Node) -> None:
    async with cluster_of(server) as cluster:
        cluster.adapters.register_dumper(Gaps, GapsDumper)
        other = cluster.submit("SELECT pg_sleep(0.2)")
        for value in (Gaps(), memoryview(b"abcdef")[::2]):
            for call in (cluster.fetch, cluster.execute):
                with within(), pytest.raises((psycopg.ProgrammingError, BufferError)):  # psycopg's own
                    await call("SELECT %s", [value])
        await other
        assert await cluster.fetch_value("SELECT %s", [memoryview(b"abc")[1:]]) == b"bc"
        assert await cluster.fetch_value("SELECT 1") == 1
