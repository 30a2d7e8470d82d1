"""Cancelling by scope, natively and by `Operation.cancel`.

Operations are unsent, at the head, behind the head, or on a frozen node when they are cancelled.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import psycopg
import pytest
from support.common import (
    PATIENCE,
    PROVEN,
    asyncio_only,
    cluster_of,
    eventually,
    started,
    stopped,
    unique,
    within,
)
from support.servers import standalone

import pgha
from pgha.chaos import Node

pytestmark = pytest.mark.anyio

Sleep = Callable[[pgha.Cluster, str], Coroutine[Any, Any, object]]


async def _fetch_sleep(cluster: pgha.Cluster, text: str) -> object:
    return await cluster.fetch(f"SELECT pg_sleep(60) /* {text} */")


async def _execute_sleep(cluster: pgha.Cluster, text: str) -> object:
    return await cluster.execute(f"SELECT pg_sleep(60) /* {text} */")


async def _batch_sleep(cluster: pgha.Cluster, text: str) -> object:
    return await cluster.execute_batch(["SELECT 1", f"SELECT pg_sleep(60) /* {text} */"])


async def _framed_sleep(cluster: pgha.Cluster, text: str) -> object:
    return await cluster.execute_batch(["SAVEPOINT a", f"SELECT pg_sleep(60) /* {text} */"])


async def _alone_sleep(cluster: pgha.Cluster, text: str) -> object:
    return await cluster.execute(f"DO $$BEGIN PERFORM pg_sleep(60); /* {text} */ END$$")


async def _fastest_sleep(cluster: pgha.Cluster, text: str) -> object:
    return await cluster.fetch(f"SELECT pg_sleep(60) /* {text} */", route=pgha.fastest())


SLEEPS = [_fetch_sleep, _execute_sleep, _batch_sleep, _framed_sleep, _alone_sleep, _fastest_sleep]


@pytest.mark.parametrize("sleep", SLEEPS)
async def test_leaving_a_scope_stops_the_backend(server: Node, sleep: Sleep) -> None:
    text = unique("sleep")
    async with cluster_of(server) as cluster:
        async with anyio.create_task_group() as group:
            group.start_soon(sleep, cluster, text)
            await started(server, text)
            begun = time.monotonic()
            group.cancel_scope.cancel()
        assert time.monotonic() - begun < 5
        await stopped(server, text)
        assert await cluster.fetch_value("SELECT 1") == 1
        assert (await cluster.execute("SELECT 2")).value() == 2


@asyncio_only
@pytest.mark.parametrize("sleep", SLEEPS)
async def test_native_cancellation_stops_the_backend(server: Node, sleep: Sleep) -> None:
    text = unique("sleep")
    async with cluster_of(server) as cluster:
        task = asyncio.ensure_future(sleep(cluster, text))
        await started(server, text)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await stopped(server, text)
        assert await cluster.fetch_value("SELECT 1") == 1


async def test_operation_cancel_of_the_head(server: Node) -> None:
    text = unique("sleep")
    async with cluster_of(server, _tuning=PROVEN) as cluster:
        for read in (True, False):
            operation = cluster.submit(f"SELECT pg_sleep(60) /* {text} */", read=read)
            await started(server, text)
            operation.cancel()
            operation.cancel()
            with pytest.raises(pgha.OperationCancelled) as caught, anyio.fail_after(PATIENCE):
                await operation
            assert pgha.error_info(caught.value).outcome == "not applied"
            assert pgha.error_info(caught.value).node == server.name
            await stopped(server, text)
        assert cluster.statistics().cancelled == 2


async def test_a_cancelled_write_is_not_there(server: Node) -> None:
    table, text = unique("t"), unique("sleep")
    async with cluster_of(server, _tuning=PROVEN) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int)")
        write = f"WITH w AS (INSERT INTO {table} VALUES (1) RETURNING 1) SELECT pg_sleep(60), w.* FROM w"
        operation = cluster.submit(f"{write} /* {text} */")
        await started(server, text)
        operation.cancel()
        with pytest.raises(pgha.OperationCancelled):
            await operation
        async with anyio.create_task_group() as group:
            group.start_soon(cluster.execute, f"{write} /* {text} */")
            await started(server, text)
            group.cancel_scope.cancel()
        await stopped(server, text)
        assert await cluster.fetch_value(f"SELECT count(*) FROM {table}") == 0


async def _head_and_followers(
    cluster: pgha.Cluster, server: Node, *, read: bool
) -> tuple[pgha.Operation[pgha.Result[object]], list[pgha.Operation[pgha.Result[object]]]]:
    """Submit a head that holds up a lane, and the operations pipelined behind that head."""
    sent: list[pgha.SendInfo] = []
    head = cluster.submit("SELECT pg_sleep(0.6)", read=read, on_send=sent.append)
    behind = [cluster.submit("SELECT %s::int", [i], read=read) for i in range(8)]
    await eventually(lambda: bool(sent))
    return head, behind


@pytest.mark.parametrize("read", [True, False])
async def test_cancel_behind_the_head_hurts_nobody(server: Node, read: bool) -> None:
    async with cluster_of(server, read_connections=1) as cluster:
        await (cluster.fetch("SELECT 1") if read else cluster.execute("SELECT 1"))
        head, behind = await _head_and_followers(cluster, server, read=read)
        for operation in behind[::2]:
            operation.cancel()
        for index, operation in enumerate(behind):
            if index % 2:
                assert (await operation).value() == index
                continue
            try:
                assert (await operation).value() == index
            except pgha.OperationCancelled as error:
                assert pgha.error_info(error).outcome == "not applied"
            except pgha.CommitInDoubt:
                pytest.fail("a cancelled follower was in doubt")
        assert (await head).value() == ""


@pytest.mark.parametrize("read", [True, False])
async def test_cancel_of_the_head_leaves_its_followers(server: Node, read: bool) -> None:
    async with cluster_of(server, read_connections=1, _tuning=PROVEN) as cluster:
        await (cluster.fetch("SELECT 1") if read else cluster.execute("SELECT 1"))
        head, behind = await _head_and_followers(cluster, server, read=read)
        head.cancel()
        with pytest.raises(pgha.OperationCancelled):
            await head
        assert [(await operation).value() for operation in behind] == list(range(8))


async def test_cancel_of_what_was_never_sent(server: Node) -> None:
    table = unique("t")
    async with cluster_of(server, read_connections=1, _tuning=PROVEN) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int)")
        fill = [cluster.submit("SELECT pg_sleep(60)") for _ in range(40)]
        waiting = [cluster.submit(f"INSERT INTO {table} VALUES ({i})") for i in range(200)]
        assert cluster.statistics().queued > 100
        for operation in waiting:
            operation.cancel()
        for operation in fill:
            operation.cancel()
        for operation in (*waiting, *fill):
            with pytest.raises(pgha.OperationCancelled), within(PATIENCE):
                await operation
        assert cluster.statistics().queued == 0
        assert await cluster.fetch_value(f"SELECT count(*) FROM {table}") == 0


async def test_cancelling_what_is_done_changes_nothing(server: Node) -> None:
    async with cluster_of(server) as cluster:
        operation = cluster.submit("SELECT 7")
        assert (await operation).value() == 7
        operation.cancel()
        assert (await operation).value() == 7
        assert cluster.statistics().cancelled == 0


async def test_a_thousand_cancels_at_random_moments(server: Node) -> None:
    """No answer reaches the wrong caller, and no cancel request hits another operation."""
    draw = random.Random(1)
    wrong: list[object] = []
    cancelled = 0
    done = anyio.Event()

    async with cluster_of(server) as cluster:

        async def neighbour(number: int, read: bool) -> None:
            call: Any = cluster.fetch if read else cluster.execute
            turn = 0
            while not done.is_set():
                nonce = f"{number}-{turn}"
                turn += 1
                if (answer := (await call("SELECT %s::text", [nonce])).value()) != nonce:
                    wrong.append((nonce, answer))

        async def victim(number: int) -> None:
            nonlocal cancelled
            sleep = draw.choice([0, 0, 0.001, 0.005, 0.02])
            call: Any = draw.choice([cluster.fetch, cluster.execute])
            with anyio.move_on_after(draw.choice([0, 0.0005, 0.002, 0.01])) as scope:
                result = await call("SELECT %s::text, pg_sleep(%s)", [f"v{number}", sleep])
                if result[0][0] != f"v{number}":
                    wrong.append((number, result))
            cancelled += scope.cancelled_caught

        async def victims(share: range) -> None:
            for number in share:
                await victim(number)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                for number in range(6):
                    group.start_soon(neighbour, number, number % 2 == 0)
                async with anyio.create_task_group() as group_of_victims:
                    for part in range(8):
                        group_of_victims.start_soon(victims, range(part * 125, part * 125 + 125))
                done.set()
        assert wrong == []
        assert cancelled > 200
        assert await cluster.fetch_value("SELECT 1") == 1


async def test_a_dba_who_cancels_is_obeyed(server: Node) -> None:
    text = unique("sleep")
    async with cluster_of(server) as cluster:
        for read in (True, False):
            operation = cluster.submit(f"SELECT pg_sleep(60) /* {text} */", read=read)
            pid = await started(server, text)
            await server.execute("SELECT pg_cancel_backend(%s)", [pid])
            with pytest.raises(psycopg.errors.QueryCanceled) as caught:
                await operation
            assert pgha.error_info(caught.value).attempts == 1


async def test_cancel_on_a_frozen_node_is_prompt() -> None:
    async with standalone() as nodes:
        node = nodes[0]
        async with cluster_of(node) as cluster:
            await cluster.execute("SELECT 1")
            await node.freeze()
            for call in (cluster.fetch, cluster.execute):
                begun = time.monotonic()
                with anyio.move_on_after(0.05) as scope:
                    await call("SELECT 1")
                assert scope.cancelled_caught
                assert time.monotonic() - begun < 5
            await node.thaw()
            with anyio.fail_after(PATIENCE):
                assert await cluster.fetch_value("SELECT 1") == 1
                assert (await cluster.execute("SELECT 2")).value() == 2


async def test_operation_cancel_on_a_frozen_node_ends() -> None:
    async with standalone() as nodes:
        node = nodes[0]
        async with cluster_of(node) as cluster:
            await node.execute("CREATE TABLE t (id int)")
            await cluster.execute("SELECT 1")
            await node.freeze()
            read = cluster.submit("SELECT 1", read=True)
            write = cluster.submit("INSERT INTO t VALUES (1)")
            read.cancel()
            write.cancel()
            with anyio.fail_after(PATIENCE):
                with pytest.raises(pgha.OperationCancelled):
                    await read
                with pytest.raises(pgha.CommitInDoubt):
                    await write
            await node.thaw()


@asyncio_only
async def test_native_cancellation_on_a_frozen_node_is_prompt() -> None:
    async with standalone() as nodes:
        node = nodes[0]
        async with cluster_of(node) as cluster:
            await cluster.execute("SELECT 1")
            await node.freeze()
            for call in (cluster.fetch, cluster.execute):
                task = asyncio.ensure_future(call("SELECT 1"))
                await asyncio.sleep(0.02)
                begun = time.monotonic()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert time.monotonic() - begun < 5
            await node.thaw()


async def test_the_last_waiter_takes_the_operation_along(server: Node) -> None:
    text = unique("sleep")
    async with cluster_of(server, _tuning=PROVEN) as cluster:
        operation = cluster.submit(f"SELECT pg_sleep(60) /* {text} */", read=True)
        first, second = anyio.CancelScope(), anyio.CancelScope()

        async def wait(scope: anyio.CancelScope) -> None:
            with scope:
                await operation

        async with anyio.create_task_group() as group:
            group.start_soon(wait, first)
            group.start_soon(wait, second)
            await started(server, text)
            first.cancel()
            await anyio.wait_all_tasks_blocked()
            assert not operation.done
            second.cancel()
        with pytest.raises(pgha.OperationCancelled):
            await operation
        await stopped(server, text)


async def test_an_observer_who_leaves_cancels_nothing(server: Node) -> None:
    async with cluster_of(server) as cluster:
        operation = cluster.submit("SELECT pg_sleep(0.2), 5", read=True)
        with anyio.move_on_after(0.01) as scope:
            await operation.wait()
        assert scope.cancelled_caught
        assert (await operation)[0][1] == 5


async def test_dropping_an_operation_cancels_nothing(server: Node) -> None:
    table = unique("t")
    async with cluster_of(server) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int)")
        cluster.submit(f"INSERT INTO {table} SELECT 1 FROM pg_sleep(0.1)")

        async def there() -> bool:
            return bool(await cluster.fetch_value(f"SELECT count(*) FROM {table}"))

        await eventually(there)


async def test_cancelled_before_it_began(server: Node) -> None:
    """Nothing is sent for a call in a scope that was already cancelled."""
    table = unique("t")
    async with cluster_of(server) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int)")
        sent = cluster.statistics().operations
        with anyio.CancelScope() as scope:
            scope.cancel()
            await cluster.execute(f"INSERT INTO {table} VALUES (1)")
        assert scope.cancelled_caught
        assert cluster.statistics().operations == sent
        assert await cluster.fetch_value(f"SELECT count(*) FROM {table}") == 0


async def test_a_cancel_that_the_server_refuses_hurts_nobody() -> None:
    """A cancel works although every connection slot is taken.

    Either the cancel request gets through nonetheless, or the lane is given up.
    """
    async with standalone(settings={"max_connections": "8", "superuser_reserved_connections": "0"}) as nodes:
        node = nodes[0]
        async with cluster_of(node, read_connections=1) as cluster:
            text = unique("sleep")
            operation = cluster.submit(f"SELECT pg_sleep(60) /* {text} */", read=True)
            await started(node, text)
            held: list[psycopg.Connection] = []
            try:
                while True:
                    held.append(psycopg.connect(node.dsn))
            except psycopg.OperationalError:
                pass
            try:
                operation.cancel()
                with pytest.raises(pgha.OperationCancelled), anyio.fail_after(PATIENCE):
                    await operation
                with anyio.fail_after(PATIENCE):
                    assert await cluster.fetch_value("SELECT 1") == 1
            finally:
                for connection in held:
                    connection.close()


async def test_cancels_meet_every_checkpoint(server: Node) -> None:
    """After a scope is cancelled at any loop iteration, nothing is left; later answers are right."""
    async with cluster_of(server) as cluster:
        for rounds in range(40):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(cluster.execute, "SELECT 1")
                    for _ in range(rounds):
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()
            assert await cluster.fetch_value("SELECT %s::int", [rounds]) == rounds
