"""Client deadlines raise OperationTimeout if the operation is proven not applied, else CommitInDoubt."""

from __future__ import annotations

import time
from typing import Any

import anyio
import psycopg
import pytest
from support.common import PATIENCE, PROVEN, cluster_of, eventually, stopped, unique
from support.servers import standalone

import pgha
from pgha.chaos import Node

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("read", [True, False])
async def test_a_running_operation(server: Node, read: bool) -> None:
    """The cancel request stops the backend, and the backend's 57014 is the proof."""
    text = unique("sleep")
    async with cluster_of(server, _tuning=PROVEN) as cluster:
        call: Any = cluster.fetch if read else cluster.execute
        await call("SELECT 1")  # opens the connection, so that later calls are sent in time
        for _ in range(3):
            begun = time.monotonic()
            with pytest.raises(pgha.OperationTimeout) as caught:
                await call(f"SELECT pg_sleep(60) /* {text} */", timeout=0.1)
            assert 0.09 < time.monotonic() - begun < 5
            assert isinstance(caught.value, TimeoutError)
            assert isinstance(caught.value, psycopg.Error)
            assert pgha.error_info(caught.value) == pgha.ErrorInfo(
                server.name, None if read else 0, 1, "not applied"
            )
            await stopped(server, text)
            assert (await call("SELECT 1")).value() == 1
        assert cluster.statistics().timed_out == 3


async def test_a_write_that_timed_out_is_not_there(server: Node) -> None:
    table = unique("t")
    async with cluster_of(server, _tuning=PROVEN) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int)")
        with pytest.raises(pgha.OperationTimeout):
            await cluster.execute(f"INSERT INTO {table} SELECT 1 FROM pg_sleep(60)", timeout=0.1)
        with pytest.raises(pgha.OperationTimeout):
            await cluster.execute_batch(
                [f"INSERT INTO {table} VALUES (1)", "SELECT pg_sleep(60)"], timeout=0.1
            )
        with pytest.raises(pgha.OperationTimeout):
            await cluster.execute_batch(
                ["SAVEPOINT a", f"INSERT INTO {table} VALUES (1)", "SELECT pg_sleep(60)"], timeout=0.1
            )
        assert await cluster.fetch_value(f"SELECT count(*) FROM {table}") == 0


async def test_waiting_for_a_lock(server: Node) -> None:
    table = unique("t")
    await server.execute(f"CREATE TABLE {table} (id int); INSERT INTO {table} VALUES (1)")
    async with cluster_of(server, _tuning=PROVEN) as cluster:
        with psycopg.connect(server.dsn) as blocker:
            blocker.execute(f"UPDATE {table} SET id = 2")
            with pytest.raises(pgha.OperationTimeout):
                await cluster.execute(f"UPDATE {table} SET id = 3", timeout=0.1)
            # Other operations do not suffer from the operation that waits.
            waiting = cluster.submit(f"UPDATE {table} SET id = 4")
            with anyio.fail_after(PATIENCE):
                for number in range(50):
                    assert (await cluster.execute("SELECT %s::int", [number])).value() == number
            assert not waiting.done
        assert (await waiting).rowcount == 1


async def test_behind_a_slow_head(server: Node) -> None:
    """An operation sent behind another statement times out as not applied once the lane proves that."""
    table = unique("t")
    async with cluster_of(server, read_connections=1) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int)")
        sent: list[pgha.SendInfo] = []
        head = cluster.submit("SELECT pg_sleep(0.8)", on_send=sent.append)
        behind = [cluster.submit(f"INSERT INTO {table} VALUES (%s)", [i], timeout=0.1) for i in range(4)]
        await eventually(lambda: bool(sent))
        applied: set[int] = set()
        doubtful: set[int] = set()
        for number, operation in enumerate(behind):
            try:
                await operation
                applied.add(number)
            except pgha.OperationTimeout:
                pass
            except pgha.CommitInDoubt:
                doubtful.add(number)
        await head
        await cluster.execute("SELECT 1")
        there = {row[0] for row in await cluster.fetch(f"SELECT id FROM {table}")}
        assert applied <= there <= applied | doubtful


async def test_a_frozen_backend_that_thaws_after_its_caller_gave_up() -> None:
    """A write that a thawed backend applies after its caller gave up (a zombie) is reported as in doubt."""
    async with standalone() as nodes:
        node = nodes[0]
        await node.execute("CREATE TABLE t (id int)")
        async with cluster_of(node, read_connections=1) as cluster:
            pid = (await cluster.execute("SELECT pg_backend_pid()")).value()
            await node.freeze_backend(pid)
            begun = time.monotonic()
            with pytest.raises(pgha.CommitInDoubt) as caught:
                await cluster.execute("INSERT INTO t VALUES (1)", timeout=0.2)
            assert time.monotonic() - begun < 5
            assert pgha.error_info(caught.value) == pgha.ErrorInfo(node.name, None, 1, "in doubt")
            with pytest.raises(pgha.OperationTimeout):
                read_pid = await cluster.fetch_value("SELECT pg_backend_pid()")
                await node.freeze_backend(read_pid)
                await cluster.fetch("SELECT 1", timeout=0.2)
            await node.thaw()
            with anyio.fail_after(PATIENCE):
                assert (await cluster.execute("SELECT 1")).value() == 1
                assert await cluster.fetch_value("SELECT 1") == 1


async def test_a_frozen_backend_holds_up_nobody_else_for_long() -> None:
    async with standalone() as nodes:
        node = nodes[0]
        async with cluster_of(node, read_connections=1) as cluster:
            pid = await cluster.fetch_value("SELECT pg_backend_pid()")
            await node.freeze_backend(pid)
            operations = [cluster.submit("SELECT %s::int", [i], read=True) for i in range(10)]
            with anyio.fail_after(PATIENCE):
                assert [(await one).value() for one in operations] == list(range(10))
            await node.thaw()


async def test_never_sent() -> None:
    async with standalone() as nodes:
        node = nodes[0]
        async with cluster_of(node) as cluster:
            await cluster.execute("SELECT 1")
            await node.kill()
            await eventually(lambda: cluster.nodes[node.name].state == "down")
            for call in (cluster.fetch, cluster.execute):
                with pytest.raises(pgha.OperationTimeout) as caught:
                    await call("SELECT 1", timeout=0.05)
                assert pgha.error_info(caught.value) == pgha.ErrorInfo(None, None, 0, "not applied")
            with pytest.raises(pgha.OperationTimeout):
                await cluster.submit("SELECT 1", timeout=0)
            assert cluster.statistics().queued == 0


async def test_the_default_and_its_exception(server: Node) -> None:
    async with cluster_of(server, timeout=0.1, _tuning=PROVEN) as cluster:
        with pytest.raises(pgha.OperationTimeout):
            await cluster.fetch("SELECT pg_sleep(60)")
        with pytest.raises(pgha.OperationTimeout):
            await cluster.submit("SELECT pg_sleep(60)")
        assert len(await cluster.fetch("SELECT pg_sleep(0.2)", timeout=None)) == 1
        assert len(await cluster.fetch("SELECT pg_sleep(0.2)", timeout=30)) == 1


async def test_many_deadlines_at_once(server: Node) -> None:
    """Some deadlines pass, most do not, and every answer is right."""
    async with cluster_of(server) as cluster:
        operations = [
            cluster.submit(
                "SELECT %s::int, pg_sleep(%s)", [i, 0.2 if i % 50 == 0 else 0], read=True, timeout=0.1
            )
            for i in range(500)
        ]
        timeouts = 0
        for number, operation in enumerate(operations):
            try:
                assert (await operation)[0][0] == number
            except pgha.OperationTimeout:
                timeouts += 1
        assert timeouts >= 10
        assert await cluster.fetch_value("SELECT 1") == 1


async def test_an_answer_that_was_there_in_time(server: Node) -> None:
    """An answer that arrived in time counts although the loop was busy beyond the deadline.

    The answer is read before the failure is classified.
    """
    async with cluster_of(server) as cluster:
        await cluster.execute("SELECT 1")
        for read in (True, False):
            operation = cluster.submit("SELECT 5", read=read, timeout=0.2)
            assert cluster.statistics().in_flight == 1
            time.sleep(0.5)  # noqa: ASYNC251 - this is what is tested
            assert (await operation).value() == 5
