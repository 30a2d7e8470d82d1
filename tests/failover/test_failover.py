"""Nodes that are killed, frozen, restarted, started late or never there: one of them, and several."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import psycopg
import pytest
from support.common import (
    PATIENCE,
    backends,
    cluster_of,
    eventually,
    gate,
    no_backends,
    nothing_left,
    started,
    unique,
)
from support.servers import standalone

import pgha
from pgha.chaos import Node, StopMode

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def reading(cluster: pgha.Cluster, tasks: int = 20) -> AsyncGenerator[list[str]]:
    """Run tasks that read all the time; yield the list of nodes that answered. An error fails the test."""
    answered: list[str] = []
    done = anyio.Event()

    async def read(number: int) -> None:
        for turn in itertools.count():
            if done.is_set():
                return
            result = await cluster.fetch("SELECT %s::text", [f"{number}-{turn}"])
            assert result.value() == f"{number}-{turn}"
            answered.append(result.node)

    async with anyio.create_task_group() as group:
        for number in range(tasks):
            group.start_soon(read, number)
        yield answered
        done.set()


async def more(answered: list[str], count: int = 100, *, node: str | None = None) -> None:
    """Wait for ``count`` further answers, and then until ``node`` answers."""
    before = len(answered)
    await eventually(lambda: len(answered) >= before + count)
    if node is not None:
        await eventually(lambda: answered[-1] == node)


async def state_of(cluster: pgha.Cluster, node: Node, *states: str) -> None:
    await eventually(lambda: cluster.nodes[node.name].state in states, what=f"{node.name} becomes {states}")


Fault = Callable[[Node], Awaitable[object]]


async def _kill(node: Node) -> None:
    await node.kill()


async def _freeze(node: Node) -> None:
    await node.freeze()


async def _stop_fast(node: Node) -> None:
    await node.stop("fast")


async def _stop_immediate(node: Node) -> None:
    await node.stop("immediate")


@pytest.mark.parametrize("fault", [_kill, _freeze, _stop_fast, _stop_immediate])
async def test_readers_notice_nothing(fault: Fault) -> None:
    async with standalone(2) as nodes, cluster_of(*nodes, min_ready=2) as cluster:
        with anyio.fail_after(60):
            async with reading(cluster) as answered:
                await more(answered)
                victim = nodes[answered[-1]]
                await fault(victim)
                await more(answered)
                await state_of(cluster, victim, "down")
                assert answered[-1] != victim.name
                await (victim.thaw() if victim.frozen else victim.start())
                await state_of(cluster, victim, "up")
                await more(answered)


async def test_idempotent_writes_notice_nothing() -> None:
    for_each = "CREATE TABLE t (id text)"
    async with standalone(2) as nodes:
        await nodes.execute(for_each)
        async with cluster_of(*nodes, min_ready=2) as cluster:
            acknowledged: list[tuple[str, str]] = []
            done = anyio.Event()

            async def write(number: int) -> None:
                for turn in itertools.count():
                    if done.is_set():
                        return
                    key = f"{number}-{turn}"
                    result = await cluster.execute("INSERT INTO t VALUES (%s)", [key], idempotent=True)
                    acknowledged.append((result.node, key))

            with anyio.fail_after(60):
                async with anyio.create_task_group() as group:
                    for number in range(10):
                        group.start_soon(write, number)
                    await eventually(lambda: len(acknowledged) > 100)
                    for fault in (_kill, _freeze, _stop_fast, _stop_immediate):
                        victim = nodes[acknowledged[-1][0]]
                        await fault(victim)
                        count = len(acknowledged)
                        await eventually(lambda count=count: len(acknowledged) > count + 100)  # type: ignore[misc]
                        await (victim.thaw() if victim.frozen else victim.start())
                        await state_of(cluster, victim, "up")
                    done.set()
            there = await nodes.execute("SELECT id FROM t")
            found = {(name, row[0]) for name, rows in there.items() for row in rows}
            assert set(acknowledged) <= found


async def test_other_writes_are_told_the_truth() -> None:
    """Writes that are not idempotent get true outcomes.

    An acknowledged write is in the table, a failed one is not, one in doubt may be; no write is in the table
    twice.
    """
    async with standalone(2) as nodes:
        await nodes.execute("CREATE TABLE t (id text)")
        async with cluster_of(*nodes, min_ready=2) as cluster:
            acknowledged: set[str] = set()
            doubtful: set[str] = set()
            failed: set[str] = set()
            last = ""
            done = anyio.Event()

            async def write(number: int) -> None:
                nonlocal last
                for turn in itertools.count():
                    if done.is_set():
                        return
                    key = f"{number}-{turn}"
                    try:
                        last = (await cluster.execute("INSERT INTO t VALUES (%s)", [key])).node
                        acknowledged.add(key)
                    except pgha.CommitInDoubt:
                        doubtful.add(key)
                    except psycopg.Error as error:
                        assert pgha.error_info(error).outcome == "not applied"
                        failed.add(key)

            with anyio.fail_after(60):
                async with anyio.create_task_group() as group:
                    for number in range(10):
                        group.start_soon(write, number)
                    for fault in (_kill, _stop_fast, _freeze, _stop_immediate):
                        count = len(acknowledged)
                        await eventually(lambda count=count: len(acknowledged) > count + 100)  # type: ignore[misc]
                        victim = nodes[last]
                        await fault(victim)
                        count = len(acknowledged)
                        await eventually(lambda count=count: len(acknowledged) > count + 100)  # type: ignore[misc]
                        await (victim.thaw() if victim.frozen else victim.start())
                        await state_of(cluster, victim, "up")
                    done.set()
            rows = await nodes.execute("SELECT id FROM t")
            keys = [row[0] for found in rows.values() for row in found]
            assert len(keys) == len(set(keys)), "a write was applied twice"
            assert acknowledged <= set(keys)
            assert not failed & set(keys)
            assert set(keys) <= acknowledged | doubtful
            assert failed == set(), "a write that is proven not applied goes elsewhere"


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_the_only_node_restarts_under_load(mode: StopMode) -> None:
    async with standalone() as nodes:
        node = nodes[0]
        await node.execute("CREATE TABLE t (id int)")
        async with cluster_of(node) as cluster:
            written: list[int] = []
            numbers = itertools.count()
            done = anyio.Event()

            async def write() -> None:
                while not done.is_set():
                    number = next(numbers)
                    await cluster.execute("INSERT INTO t VALUES (%s)", [number], idempotent=True)
                    written.append(number)

            with anyio.fail_after(60):
                async with anyio.create_task_group() as group, reading(cluster, 10) as answered:
                    for _ in range(5):
                        group.start_soon(write)
                    for _ in range(3):
                        await more(answered)
                        await node.restart(mode)
                        await more(answered)
                    done.set()
            rows = {row[0] for row in await node.execute("SELECT id FROM t")}
            assert set(written) <= rows


async def test_a_smart_stop_waits_for_us_and_gets_through() -> None:
    """A smart shutdown waits for the server's clients, and ends once the node is removed from the cluster."""
    async with (
        standalone(2) as nodes,
        cluster_of(*nodes, min_ready=2) as cluster,
        anyio.create_task_group() as group,
    ):
        group.start_soon(nodes[0].stop, "smart")
        for _ in range(50):
            assert await cluster.fetch_value("SELECT 1") == 1
        await cluster.remove_node(nodes[0].name)
        await eventually(lambda: not nodes[0].running)
        assert await cluster.fetch_value("SELECT 1") == 1


async def test_all_nodes_gone_and_back() -> None:
    async with standalone(2) as nodes, cluster_of(*nodes, min_ready=2) as cluster:
        await cluster.execute("SELECT 1")
        for node in nodes:
            await node.kill()
        for node in nodes:
            await state_of(cluster, node, "down")
        read = cluster.submit("SELECT 1", read=True)
        write = cluster.submit("SELECT 2")
        with pytest.raises(pgha.OperationTimeout):
            await cluster.fetch("SELECT 1", timeout=0.1)
        assert not read.done
        for node in nodes:
            await node.start()
        with anyio.fail_after(PATIENCE):
            assert (await read).value() == 1
            assert (await write).value() == 2
        await cluster.wait_ready()


async def test_no_node_available_lists_them_all() -> None:
    async with standalone(2) as nodes, cluster_of(*nodes, min_ready=2, failover_timeout=0.3) as cluster:
        for node in nodes:
            await node.kill()
            await state_of(cluster, node, "down")
        for call in (cluster.fetch, cluster.execute):
            with pytest.raises(pgha.NoNodeAvailable) as caught, anyio.fail_after(PATIENCE):
                await call("SELECT 1")
            assert [report.name for report in caught.value.nodes] == ["n1", "n2"]
            for report in caught.value.nodes:
                assert report.state == "down"
                assert report.reason
                assert report.state_for >= 0
                assert report.name in str(caught.value)
            assert pgha.error_info(caught.value) == pgha.ErrorInfo(None, None, 0, "not applied")


async def test_started_late() -> None:
    async with standalone() as nodes:
        node = nodes[0]
        await node.kill()
        async with anyio.create_task_group() as group:
            group.start_soon(node.start)
            async with cluster_of(node) as cluster:
                assert await cluster.fetch_value("SELECT 1") == 1


async def test_started_late_and_not_waited_for() -> None:
    async with standalone(2) as nodes:
        await nodes[0].kill()
        async with cluster_of(*nodes, min_ready=0) as cluster:
            operation = cluster.submit("SELECT 1", read=True, route=pgha.pin("n1"))
            assert await cluster.fetch_value("SELECT 1") == 1
            assert not operation.done
            await nodes[0].start()
            with anyio.fail_after(PATIENCE):
                assert (await operation).node == "n1"
                await cluster.wait_ready(2)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


async def test_never_there(server: Node) -> None:
    absent = pgha.Node(f"host=127.0.0.1 port={free_port()}", "absent")
    async with nothing_left(server) as application:
        async with pgha.open_cluster(
            absent, pgha.Node(server.dsn, "there"), application_name=application
        ) as cluster:
            for _ in range(20):
                assert (await cluster.fetch("SELECT 1")).node == "there"
                assert (await cluster.execute("SELECT 1")).node == "there"
            await eventually(lambda: cluster.nodes["absent"].state == "down")
            assert "refused" in cluster.nodes["absent"].reason
        with pytest.raises(pgha.NoNodeAvailable, match="absent: "), anyio.fail_after(PATIENCE):
            async with pgha.open_cluster(
                absent,
                pgha.Node(server.dsn, "there"),
                application_name=application,
                min_ready=2,
                failover_timeout=0.3,
            ):
                pytest.fail("entered")
        with pytest.raises(pgha.NoNodeAvailable), anyio.fail_after(PATIENCE):
            async with pgha.open_cluster(absent, failover_timeout=0.3):
                pytest.fail("entered")


async def test_a_node_that_swallows_connections_holds_nobody_up(server: Node) -> None:
    """A listener that accepts connections and never answers delays no operation on the other node."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, nothing_left(server) as application:
        begun = time.monotonic()
        async with pgha.open_cluster(
            pgha.Node(f"host=127.0.0.1 port={port}", "mute"),
            pgha.Node(server.dsn, "there"),
            application_name=application,
        ) as cluster:
            assert (await cluster.fetch("SELECT 1")).node == "there"
        assert time.monotonic() - begun < 5


async def test_pin_waits_for_its_node_until_the_deadline() -> None:
    async with standalone(2) as nodes, cluster_of(*nodes, min_ready=2, failover_timeout=0.4) as cluster:
        await nodes[0].kill()
        await state_of(cluster, nodes[0], "down")
        for call in (cluster.fetch, cluster.execute):
            with pytest.raises(pgha.OperationTimeout) as timeout, anyio.fail_after(PATIENCE):
                await call("SELECT 1", route=pgha.pin("n1"), timeout=0.1)
            assert pgha.error_info(timeout.value).outcome == "not applied"
            with pytest.raises(pgha.NoNodeAvailable), anyio.fail_after(PATIENCE):
                await call("SELECT 1", route=pgha.pin("n1"))
            operation = cluster.submit(
                "SELECT 1", route=pgha.pin("n1"), timeout=30, read=call == cluster.fetch
            )
            await anyio.sleep(0.6)
            assert not operation.done, "with a deadline of its own it outlives failover_timeout"
            operation.cancel()
            with pytest.raises(pgha.OperationCancelled):
                await operation
        late = cluster.submit("SELECT 1", route=pgha.pin("n1"), timeout=30)
        await nodes[0].start()
        with anyio.fail_after(PATIENCE):
            assert (await late).node == "n1"


async def test_pin_stays_with_its_node(server: Node) -> None:
    async with standalone(2) as nodes, cluster_of(*nodes, min_ready=2) as cluster:
        for name in ("n1", "n2", "n1"):
            for call in (cluster.fetch, cluster.execute):
                assert (await call("SELECT 1", route=pgha.pin(name))).node == name


async def test_a_backend_terminated_under_load() -> None:
    """A write that is proven not applied is run again without an error, and a read is always run again."""
    async with standalone() as nodes:
        node = nodes[0]
        await node.execute("CREATE TABLE t (id int)")
        async with (
            nothing_left(node) as application,
            pgha.open_cluster(node.dsn, application_name=application) as cluster,
        ):
            done = anyio.Event()
            written = 0

            async def write() -> None:
                nonlocal written
                for number in itertools.count():
                    if done.is_set():
                        return
                    await cluster.execute("INSERT INTO t VALUES (%s)", [number], idempotent=True)
                    written += 1

            with anyio.fail_after(60):
                async with anyio.create_task_group() as group, reading(cluster, 10) as answered:
                    group.start_soon(write)
                    for _ in range(10):
                        await more(answered, 50)
                        for pid in await backends(node, application):
                            await node.execute("SELECT pg_terminate_backend(%s)", [pid])
                    await more(answered)
                    done.set()
            assert (await node.execute("SELECT count(*) FROM t"))[0][0] >= written


async def test_a_backend_killed_under_load() -> None:
    """PostgreSQL ends all its connections after a killed backend, and recovers; no reader gets an error."""
    async with standalone() as nodes:
        node = nodes[0]
        async with (
            nothing_left(node) as application,
            pgha.open_cluster(node.dsn, application_name=application) as cluster,
        ):
            with anyio.fail_after(60):
                async with reading(cluster, 10) as answered:
                    for _ in range(2):
                        await more(answered)
                        pids = await backends(node, application)
                        await node.kill_backend(pids[-1])
                        await more(answered)
                        await node.wait_ready()


async def test_a_terminated_write_without_doubt_is_run_again(server: Node) -> None:
    """A FATAL before the last CommandComplete proves that the write was not applied."""
    table, text = unique("t"), unique("sleep")
    async with cluster_of(server) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int)")
        with gate(server) as (wait, go_on):
            operation = cluster.submit(f"INSERT INTO {table} SELECT 1 FROM {wait} /* {text} */")
            pid = await started(server, text)
            await server.execute("SELECT pg_terminate_backend(%s)", [pid])
            go_on()
        assert (await operation).attempts == 2
        assert await cluster.fetch_value(f"SELECT count(*) FROM {table}") == 1


async def test_a_killed_backend_leaves_its_write_in_doubt() -> None:
    async with standalone() as nodes:
        node = nodes[0]
        await node.execute("CREATE TABLE t (id int)")
        async with cluster_of(node) as cluster:
            text = unique("sleep")
            operation = cluster.submit(f"INSERT INTO t SELECT 1 FROM pg_sleep(30) /* {text} */")
            pid = await started(node, text)
            await node.kill_backend(pid)
            with pytest.raises(pgha.CommitInDoubt) as caught, anyio.fail_after(PATIENCE):
                await operation
            assert pgha.error_info(caught.value).outcome == "in doubt"
            assert pgha.error_info(caught.value).node == node.name
            assert psycopg.OperationalError not in type(caught.value).__mro__
            assert cluster.statistics().in_doubt == 1


async def test_connections_exhausted() -> None:
    """Without free slots, the existing lanes work on; more lanes are opened when slots are free again."""
    settings = {"max_connections": "10", "superuser_reserved_connections": "0"}
    async with standalone(settings=settings) as nodes:
        node = nodes[0]
        async with cluster_of(node) as cluster:
            held: list[psycopg.Connection] = []
            try:
                while True:
                    held.append(psycopg.connect(node.dsn))
            except psycopg.OperationalError:
                pass
            try:
                with anyio.fail_after(PATIENCE):
                    assert await cluster.fetch_value("SELECT 1") == 1
                    for operation in [cluster.submit("SELECT 1", read=True) for _ in range(200)]:
                        assert (await operation).value() == 1
                write = cluster.submit("SELECT 2")
                with anyio.move_on_after(0.2):
                    await write.wait()
                assert not write.done
            finally:
                for connection in held:
                    connection.close()
            with anyio.fail_after(PATIENCE):
                assert (await write).value() == 2


async def test_connections_exhausted_from_the_start() -> None:
    settings = {"max_connections": "5", "superuser_reserved_connections": "0"}
    async with standalone(settings=settings) as nodes:
        node = nodes[0]
        held = [psycopg.connect(node.dsn) for _ in range(5)]
        try:
            with pytest.raises(pgha.NoNodeAvailable, match="too many clients"), anyio.fail_after(PATIENCE):
                async with pgha.open_cluster(node.dsn, failover_timeout=0.5):
                    pytest.fail("entered")
        finally:
            for connection in held:
                connection.close()
        async with cluster_of(node) as cluster:
            with anyio.fail_after(PATIENCE):
                assert await cluster.fetch_value("SELECT 1") == 1
                assert (await cluster.execute("SELECT 2")).value() == 2


async def test_nodes_added_and_removed_under_load() -> None:
    async with standalone(3) as nodes, nothing_left(*nodes) as application:
        first = pgha.Node(nodes[0].dsn, "n1")
        async with pgha.open_cluster(first, application_name=application) as cluster:
            with anyio.fail_after(60):
                async with reading(cluster, 10) as answered:
                    await more(answered)
                    cluster.add_node(pgha.Node(nodes[1].dsn, "n2"))
                    await cluster.wait_ready(2)
                    await cluster.remove_node("n1")
                    assert set(cluster.nodes) == {"n2"}
                    await no_backends(nodes[0], application)
                    await more(answered, node="n2")
                    for _ in range(5):
                        cluster.add_node(pgha.Node(nodes[2].dsn, "n3"))
                        await cluster.wait_ready()
                        await more(answered, 30)
                        await cluster.remove_node("n3")
                        await more(answered, 30)
            with pytest.raises(pgha.ConfigError, match="n1"):
                await cluster.remove_node("n1")
            with pytest.raises(pgha.ConfigError, match="n2"):
                cluster.add_node(pgha.Node(nodes[0].dsn, "n2"))
            with pytest.raises(pgha.ConfigError, match="n1"):
                await cluster.fetch("SELECT 1", route=pgha.pin("n1"))


async def test_removing_a_node_drains_it() -> None:
    """Removing a node does not cancel a slow head with others behind it, unlike on a node that stays."""
    async with standalone(2) as nodes, cluster_of(*nodes, min_ready=2) as cluster:
        text = unique("sleep")
        slow = cluster.submit(f"SELECT pg_sleep(1.5), 5 /* {text} */", route=pgha.pin("n1"))
        pinned = [cluster.submit("SELECT 1", route=pgha.pin("n1")) for _ in range(5)]
        await started(nodes[0], text)
        await cluster.remove_node("n1")
        assert (await slow)[0][1] == 5
        for operation in pinned:
            assert (await operation).value() == 1


async def test_removing_a_frozen_node_is_bounded() -> None:
    async with standalone(2) as nodes, cluster_of(*nodes, min_ready=2) as cluster:
        await cluster.execute("SELECT 1")
        await nodes[0].freeze()
        with anyio.fail_after(PATIENCE):
            await cluster.remove_node("n1", timeout=0.1)
            assert await cluster.fetch_value("SELECT 1") == 1
            assert (await cluster.execute("SELECT 1")).node == "n2"


async def test_removing_the_last_node(server: Node) -> None:
    async with cluster_of(server, failover_timeout=0.2) as cluster:
        await cluster.remove_node(server.name)
        with pytest.raises(pgha.NoNodeAvailable), anyio.fail_after(PATIENCE):
            await cluster.fetch("SELECT 1")
        cluster.add_node(pgha.Node(server.dsn, "again"))
        with anyio.fail_after(PATIENCE):
            assert (await cluster.fetch("SELECT 1")).node == "again"


@pytest.mark.parametrize("nodes_used", [1, 2])
async def test_a_blocked_loop_kills_no_node(nodes_used: int) -> None:
    async with standalone(nodes_used) as nodes, cluster_of(*nodes, min_ready=nodes_used) as cluster:
        await cluster.execute("SELECT 1")
        async with cluster.events() as events:
            read = cluster.submit("SELECT pg_sleep(0.1), 1", read=True)
            write = cluster.submit("SELECT pg_sleep(0.1), 2")
            await anyio.sleep(0.03)
            time.sleep(1.5)  # noqa: ASYNC251 - blocking the loop is the fault under test
            assert (await read)[0][1] == 1
            assert (await write)[0][1] == 2
            assert (await read).attempts == (await write).attempts == 1
            for _ in range(20):
                assert await cluster.fetch_value("SELECT 1") == 1
                await anyio.sleep(0.01)
            seen = []
            while True:
                try:
                    seen.append(events.receive_nowait())
                except anyio.WouldBlock:
                    break
            assert not [one for one in seen if isinstance(one, pgha.ConnectionLost)]
            assert not [one for one in seen if isinstance(one, pgha.NodeStateChanged) and one.state == "down"]


async def test_a_loop_blocked_again_and_again() -> None:
    async with standalone() as nodes, cluster_of(*nodes, ping_interval=0.1) as cluster:
        for _ in range(5):
            time.sleep(0.4)  # noqa: ASYNC251 - blocking the loop is the fault under test
            assert await cluster.fetch_value("SELECT 1") == 1
        assert cluster.nodes["n1"].state == "up"
        assert cluster.statistics().connections_lost == 0


async def test_events_tell_what_happened() -> None:
    async with standalone(2) as nodes, cluster_of(*nodes, min_ready=2) as cluster, cluster.events() as events:
        victim = nodes[(await cluster.fetch("SELECT 1")).node]
        text = unique("sleep")
        async with reading(cluster, 5) as answered:
            await more(answered)
            with gate(victim) as (wait, _):
                slow = cluster.submit(f"SELECT {wait} /* {text} */", read=True)
                await started(victim, text)
                await victim.kill()
            assert (await slow).attempts == 2
            await more(answered)
            await state_of(cluster, victim, "down")
            await victim.start()
            await state_of(cluster, victim, "up")
        moves = []
        lost = retried = 0
        with anyio.move_on_after(0.2):
            async for event in events:
                lost += isinstance(event, pgha.ConnectionLost)
                retried += isinstance(event, pgha.OperationRetried)
                if isinstance(event, pgha.NodeStateChanged):
                    moves.append((event.node, event.before, event.state))
        assert lost >= 2
        assert retried >= 1
        mine = [move[1:] for move in moves if move[0] == victim.name]
        assert mine[-1][1] == "up"
        assert "down" in [after for _, after in mine]
        statistics = cluster.statistics()
        assert statistics.retried >= retried
        assert statistics.connections_lost >= 2


async def test_statuses_of_nodes(server: Node) -> None:
    async with cluster_of(server) as cluster:
        await cluster.execute("SELECT 1")
        await cluster.wait_ready()
        status = cluster.nodes[server.name]
        assert (status.name, status.state, status.role, status.reason) == (server.name, "up", "primary", "")
        assert status.server_version is not None
        assert status.server_version // 10000 == server.version
        assert status.latency is not None
        assert status.read_connections >= 1
        assert status.write_connections == 1
        assert status.in_flight == 0
        with pytest.raises(TypeError):
            cluster.nodes["x"] = status  # type: ignore[index]
