"""Entering and leaving a cluster: the errors that come out, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import psycopg
import pytest
from support.common import (
    PATIENCE,
    PROVEN,
    asyncio_only,
    cluster_of,
    eventually,
    no_backends,
    nothing_left,
    started,
    stopped,
    tasks,
    unique,
)
from support.servers import standalone

import pgha
from pgha._operation.operation import AttemptState
from pgha.chaos import Node

pytestmark = pytest.mark.anyio
SLEEP = "SELECT pg_sleep(60)"


class Trouble(Exception):
    """An error raised by the body."""


ERRORS = [
    Trouble("mine"),
    KeyboardInterrupt("mine"),
    SystemExit(3),
    ExceptionGroup("mine", [Trouble("a"), ValueError("b")]),
    BaseExceptionGroup("mine", [KeyboardInterrupt()]),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_an_exception_of_the_body_comes_out_as_itself(server: Node, error: BaseException) -> None:
    with pytest.raises(BaseException) as caught:
        async with cluster_of(server) as cluster:
            cluster.submit(SLEEP)
            cluster.submit(SLEEP, read=True)
            raise error
    assert caught.value is error


async def test_a_clean_exit_drains(server: Node) -> None:
    table = unique("t")
    async with cluster_of(server) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int)")
        operations = [
            cluster.submit(f"INSERT INTO {table} SELECT %s FROM pg_sleep(0.01)", [i]) for i in range(50)
        ]
    for operation in operations:
        assert (await operation).rowcount == 1
    assert (await server.execute(f"SELECT count(*) FROM {table}"))[0][0] == 50


async def test_a_drain_is_bounded(server: Node) -> None:
    text = unique("sleep")
    async with cluster_of(server, close_timeout=0.2, _tuning=PROVEN) as cluster:
        read = cluster.submit(f"{SLEEP} /* {text} */", read=True)
        write = cluster.submit(f"{SLEEP} /* {text} */")
        await started(server, text)
        begun = time.monotonic()
    assert time.monotonic() - begun < 5
    for operation in (read, write):
        with pytest.raises(pgha.OperationCancelled):
            await operation
    await stopped(server, text)


async def test_an_exceptional_exit_cancels_on_the_server(server: Node) -> None:
    table, text = unique("t"), unique("sleep")
    await server.execute(f"CREATE TABLE {table} (id int)")
    with pytest.raises(Trouble):
        async with cluster_of(server, _tuning=PROVEN) as cluster:
            sleeping = cluster.submit(f"INSERT INTO {table} SELECT 1 FROM pg_sleep(60) /* {text} */")
            waiting = [cluster.submit(f"INSERT INTO {table} VALUES (2)") for _ in range(100)]
            await started(server, text)
            raise Trouble
    with pytest.raises(pgha.OperationCancelled):
        await sleeping
    outcomes = []
    for operation in waiting:
        try:
            outcomes.append((await operation).rowcount)
        except pgha.OperationCancelled:
            outcomes.append(0)
    await stopped(server, text)
    assert (await server.execute(f"SELECT count(*) FROM {table}"))[0][0] == sum(outcomes)


async def test_a_cancelled_scope_around_the_cluster(server: Node) -> None:
    text = unique("sleep")
    begun = time.monotonic()
    with anyio.CancelScope() as scope:
        async with cluster_of(server) as cluster, anyio.create_task_group() as group:
            group.start_soon(cluster.fetch, f"{SLEEP} /* {text} */")
            group.start_soon(cluster.execute, f"{SLEEP} /* {text} */")
            await started(server, text)
            scope.cancel()
    assert scope.cancelled_caught
    assert time.monotonic() - begun < PATIENCE
    await stopped(server, text)


async def test_a_scope_inside_the_body_is_no_business_of_the_cluster(server: Node) -> None:
    async with cluster_of(server) as cluster:
        with anyio.move_on_after(0.02) as scope:
            await cluster.fetch(SLEEP)
        assert scope.cancelled_caught
        assert await cluster.fetch_value("SELECT 1") == 1


@asyncio_only
async def test_native_cancellation_in_the_body(server: Node) -> None:
    text = unique("sleep")
    async with nothing_left(server) as application:

        async def body() -> None:
            async with pgha.open_cluster(server.dsn, application_name=application) as cluster:
                cluster.submit(f"{SLEEP} /* {text} */")
                await cluster.fetch(f"{SLEEP} /* {text} */")

        task = asyncio.ensure_future(body())
        await started(server, text)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await stopped(server, text)


@asyncio_only
async def test_native_cancellation_during_the_entry(server: Node) -> None:
    """A native cancellation after any number of loop iterations during the entry leaves nothing behind."""
    async with nothing_left(server) as application:

        async def body() -> None:
            async with pgha.open_cluster(server.dsn, application_name=application):
                await asyncio.sleep(60)

        for rounds in range(0, 120, 4):
            task = asyncio.ensure_future(body())
            for _ in range(rounds):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


async def test_scope_cancellation_during_the_entry(server: Node) -> None:
    async with nothing_left(server) as application:
        for rounds in range(0, 120, 4):
            entered = False
            async with anyio.create_task_group() as group:

                async def body() -> None:
                    nonlocal entered
                    async with pgha.open_cluster(server.dsn, application_name=application):
                        entered = True
                        await anyio.sleep(60)

                group.start_soon(body)
                for _ in range(rounds):
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()


@asyncio_only
async def test_native_cancellation_during_the_exit(server: Node) -> None:
    for rounds in range(0, 40, 4):
        async with nothing_left(server) as application:
            leaving = asyncio.Event()

            async def body(leaving: asyncio.Event, application: str) -> None:
                async with pgha.open_cluster(server.dsn, application_name=application) as cluster:
                    cluster.submit("SELECT pg_sleep(0.2)")
                    leaving.set()

            task = asyncio.ensure_future(body(leaving, application))
            await leaving.wait()
            for _ in range(rounds):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


async def test_scope_cancellation_during_the_exit(server: Node) -> None:
    for rounds in range(0, 40, 4):
        async with nothing_left(server) as application, anyio.create_task_group() as group:
            leaving = anyio.Event()

            async def body(leaving: anyio.Event, application: str) -> None:
                async with pgha.open_cluster(server.dsn, application_name=application) as cluster:
                    cluster.submit("SELECT pg_sleep(0.2)")
                    leaving.set()

            group.start_soon(body, leaving, application)
            await leaving.wait()
            for _ in range(rounds):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()


@pytest.mark.parametrize("way", ["clean", "exception", "scope"])
async def test_leaving_with_a_frozen_node(way: str) -> None:
    async with standalone() as nodes:
        node = nodes[0]
        async with nothing_left(node) as application:
            begun = 0.0
            with anyio.CancelScope() as scope:
                try:
                    async with pgha.open_cluster(
                        node.dsn, application_name=application, close_timeout=0.3
                    ) as cluster:
                        await cluster.execute("SELECT 1")
                        await node.freeze()
                        read = cluster.submit("SELECT 1", read=True)
                        write = cluster.submit("SELECT 1")
                        begun = time.monotonic()
                        if way == "exception":
                            raise Trouble
                        if way == "scope":
                            scope.cancel()
                except Trouble:
                    assert way == "exception"
            assert time.monotonic() - begun < 5
            assert scope.cancelled_caught == (way == "scope")
            with pytest.raises(pgha.OperationCancelled):
                await read
            with pytest.raises(pgha.CommitInDoubt):
                await write
        await node.thaw()
        await no_backends(node, application)


async def test_leaving_with_one_node_frozen_and_one_well() -> None:
    async with standalone(2) as nodes:
        async with cluster_of(*nodes, min_ready=2) as cluster:
            await cluster.execute("SELECT 1")
            await nodes[0].freeze()
            begun = time.monotonic()
        assert time.monotonic() - begun < 5


async def test_leaving_while_nodes_connect() -> None:
    """Leaving the cluster does not wait for nodes that are still connecting.

    One port has no listener, and the listener at the other port never sends a byte.
    """
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    before = tasks()
    async with listener:
        begun = time.monotonic()
        async with pgha.open_cluster(f"host=127.0.0.1 port={port}", "host=127.0.0.1 port=1", min_ready=0):
            await anyio.sleep(0.05)
        assert time.monotonic() - begun < 5
    assert tasks() == before


async def test_use_after_leaving(server: Node) -> None:
    async with cluster_of(server) as cluster:
        pass
    with pytest.raises(pgha.ClusterClosed):
        await cluster.fetch("SELECT 1")
    with pytest.raises(pgha.ClusterClosed):
        await cluster.execute("SELECT 1")
    with pytest.raises(pgha.ClusterClosed):
        cluster.submit("SELECT 1")
    with pytest.raises(pgha.ClusterClosed):
        cluster.add_node(pgha.Node(server.dsn, "again"))


async def test_two_clusters_at_once_and_one_in_the_other(server: Node) -> None:
    async with cluster_of(server) as one:
        # A connection of the first that opens later would be taken for one that the second has left.
        await eventually(lambda: one.nodes[server.name].read_connections == 2)
        async with cluster_of(server) as two:
            assert await one.fetch_value("SELECT 1") == 1
            assert await two.fetch_value("SELECT 2") == 2


async def test_a_cluster_in_an_exit_stack_of_a_generator(server: Node) -> None:
    @asynccontextmanager
    async def inner() -> AsyncGenerator[pgha.Cluster]:
        async with cluster_of(server) as cluster:
            yield cluster

    with pytest.raises(Trouble):
        async with inner() as cluster:
            assert await cluster.fetch_value("SELECT 1") == 1
            raise Trouble


async def test_an_sql_error_leaves_the_cluster_as_itself(server: Node) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        async with cluster_of(server) as cluster:
            await cluster.fetch("SELECT 1/0")


@pytest.mark.parametrize("count", [5_000, pytest.param(20_000, marks=pytest.mark.thorough)])
async def test_thousands_in_flight(server: Node, count: int) -> None:
    """All answers are right, and the memory of the operations is given back."""

    def alive() -> int:
        gc.collect()
        return sum(type(one) in (pgha.Operation, pgha.Result, AttemptState) for one in gc.get_objects())

    before = alive()
    async with cluster_of(server) as cluster:
        operations = [cluster.submit("SELECT %s::int", [i], read=i % 2 == 0) for i in range(count)]
        statistics = cluster.statistics()
        # Submitting also reads answers, so not all operations are still open.
        assert statistics.queued + statistics.in_flight > count / 2
        with anyio.fail_after(60):
            for index, operation in enumerate(operations):
                assert (await operation).value() == index
        operations.clear()
        del operation
        statistics = cluster.statistics()
        assert (statistics.queued, statistics.in_flight, statistics.succeeded) == (0, 0, count)
        await eventually(lambda: alive() <= before + 10)


@pytest.mark.parametrize("count", [5_000, pytest.param(20_000, marks=pytest.mark.thorough)])
async def test_thousands_cancelled(server: Node, count: int) -> None:
    async with cluster_of(server) as cluster:
        operations = [cluster.submit("SELECT %s::int", [i], read=i % 2 == 0) for i in range(count)]
        for operation in operations:
            operation.cancel()
        with anyio.fail_after(60):
            for operation in operations:
                await operation.wait()
        del operation
        for operation in operations:
            assert operation.failure is None or isinstance(operation.failure, pgha.OperationCancelled)
            operation.retrieve()
        assert cluster.statistics().queued == 0
        assert await cluster.fetch_value("SELECT 1") == 1
