"""Corner cases of keyed writes found in a review: each once doubled a write, or reported a false outcome."""

from __future__ import annotations

from typing import Any

import anyio
import psycopg
import pytest
from support.common import PATIENCE, both_versions, eventually, within
from support.keyed import NAPS_ONCE, SLOW_COMMIT, TABLE, WRITE, ids, keys_of, napping, one_node, replicating
from support.servers import standalone

import pgha
from pgha._options import Tuning
from pgha.chaos import Node

pytestmark = [pytest.mark.anyio, both_versions]


def lose(cluster: pgha.Cluster, name: str, pid: int | None = None) -> None:
    """Break the lane of backend ``pid``, or every write lane in use, while the server works on."""
    for lane in list(cluster._nodes[name].sets["write"].lanes):
        if lane.link.pid == pid or (pid is None and lane.in_flight):
            lane.abort("the test says so", lost=True)


async def two_nodes(nodes: Any, cluster: pgha.Cluster) -> tuple[Node, Node]:
    """Return the node that takes the writes, and the other node."""
    first = nodes[(await cluster.execute("SELECT 1")).node]
    return first, next(node for node in nodes if node is not first)


async def test_a_key_that_no_server_was_told_is_not_shown(version: int) -> None:
    """A key that was never sent to a server is not reported: a retry with that key would double the write."""
    async with one_node(version, SLOW_COMMIT, installed=False, ledger="auto") as (node, cluster):
        told: list[pgha.SendInfo] = []
        operation = cluster.submit("INSERT INTO slow VALUES (1, 60)", on_send=told.append)
        pid = await napping(node)
        lose(cluster, node.name, pid)
        with pytest.raises(pgha.CommitInDoubt) as caught, within():
            await operation
        assert caught.value.idempotency_key is None
        assert [one.idempotency_key for one in told] == [None]
        assert await caught.value.resolve(timeout=0.1) == "in doubt"
        await node.execute("SELECT pg_terminate_backend(%s)", [pid])


@pytest.mark.parametrize("second_is_lost", [False, True])
async def test_idempotent_writes_in_doubt_on_two_servers(version: int, second_is_lost: bool) -> None:
    """Each server knows its own keys only: its answer says nothing about the write on another server."""
    async with standalone(2, version=version) as nodes:
        for node in nodes:
            await node.execute(SLOW_COMMIT)
        named = [pgha.Node(node.dsn, node.name) for node in nodes]
        async with pgha.open_cluster(*named, min_ready=2) as cluster:
            await cluster.ledger.install()
            first, other = await two_nodes(nodes, cluster)
            operation = cluster.submit(
                "INSERT INTO slow VALUES (1, 3)", idempotent=True, idempotency_key=pgha.new_idempotency_key()
            )
            # The backend sleeps at its commit, which comes after the thaw: nobody tells it to stop.
            await napping(first)
            await first.freeze()
            pid = await napping(other)
            if second_is_lost:
                await other.freeze_backend(pid)
                lose(cluster, other.name, pid)
                await other.kill_backend(pid)
            else:
                await other.execute("SELECT pg_terminate_backend(%s)", [pid])
            try:
                with within():
                    await operation
            except psycopg.Error as error:
                assert pgha.error_info(error).outcome == "in doubt"
                assert isinstance(error, pgha.CommitInDoubt)
                assert await error.resolve(timeout=2) != "not applied"

            await first.thaw()

            async def applied() -> bool:
                return await ids(first, "slow") == [1]

            await eventually(applied)


async def _done(node: Node, pid: int) -> bool:
    return not await node.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s AND state = 'active'", [pid])


async def test_resolved_behind_pruning(version: int) -> None:
    """When pruning may have removed a row, a missing row proves nothing, and no tombstone is inserted."""
    async with one_node(version) as (node, cluster):
        (pid,) = (await cluster.execute("SELECT pg_backend_pid()")).one()
        await node.freeze_backend(pid)
        with pytest.raises(pgha.CommitInDoubt) as caught, within():
            await cluster.execute(WRITE, ["a"], idempotency_key=pgha.new_idempotency_key(), timeout=0.2)
        error = caught.value
        lose(cluster, node.name)
        await node.thaw_backend(pid)
        doubt = error._resolve.__closure__[0].cell_contents  # type: ignore[union-attr, index]
        doubt.started_at -= 3600.0
        with within():
            failure = await error.resolve()
        # The write may be applied only now: a resolver that sees no row yet cannot tell the outcome.
        assert failure in ("applied", "in doubt")
        await eventually(lambda: _done(node, pid))
        assert await keys_of(node) == len(await ids(node)), "no tombstone was left"


async def test_a_look_does_not_overlook_who_stands_still(version: int) -> None:
    """A write whose backend stalls between guard and insert stays in doubt until the backend goes on."""
    stall = """CREATE FUNCTION stall() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN IF NEW.fingerprint <> '' THEN PERFORM pg_sleep(4); END IF; RETURN NEW; END $$;
        CREATE TRIGGER stall BEFORE INSERT ON pgha.ledger FOR EACH ROW EXECUTE FUNCTION stall()"""
    tuning = Tuning(guard_window=0.5, guard_margin=0.1)
    async with one_node(version, TABLE, _tuning=tuning) as (node, cluster):
        await node.execute(stall)
        async with cluster.events() as events:
            operation = cluster.submit(WRITE, ["a"], idempotency_key=pgha.new_idempotency_key())
            await napping(node)
            operation.gave_up = "cancelled"
            lose(cluster, node.name)
            with pytest.raises(pgha.CommitInDoubt), within():
                await operation
            outcomes = []
            with within():
                async for event in events:
                    if isinstance(event, pgha.OperationResolved):
                        outcomes.append(event.outcome)
                        if event.outcome != "in doubt":
                            break
        assert outcomes == ["in doubt", "applied"]
        assert await ids(node) == ["a"]


async def test_a_look_does_not_believe_what_no_standby_has(version: int) -> None:
    tuning = Tuning(guard_window=0.5, guard_margin=0.2)
    async with one_node(version, TABLE, _tuning=tuning) as (node, cluster):
        await node.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        await node.execute("SELECT pg_reload_conf()")

        async def set_up() -> bool:
            return await node.execute("SHOW synchronous_standby_names") == [("nobody",)]

        await eventually(set_up)
        operation = cluster.submit(WRITE + " /* alone */", ["a"], idempotency_key=pgha.new_idempotency_key())
        await node.execute("SELECT pg_cancel_backend(%s)", [await replicating(node, "/* alone */")])
        await replicating(node, "ON CONFLICT")
        async with cluster.events() as events:
            operation.cancel()
            with pytest.raises(pgha.CommitInDoubt) as caught, within():
                await operation
            assert await caught.value.resolve(timeout=1.5) == "in doubt"
            await node.execute("ALTER SYSTEM RESET synchronous_standby_names")
            await node.execute("SELECT pg_reload_conf()")
            with within():
                assert await caught.value.resolve() == "applied"
            del events


async def test_a_lock_is_taken_before_the_snapshot(version: int) -> None:
    """LOCK comes before the first snapshot, as PostgreSQL's documentation advises, also in a keyed batch."""
    batch = [
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "LOCK TABLE t IN EXCLUSIVE MODE",
        "INSERT INTO t SELECT coalesce(max(id), 0) + 1 FROM t",
    ]
    async with one_node(version, "CREATE TABLE t (id int)") as (node, cluster):
        with psycopg.connect(node.dsn) as other:
            other.execute(batch[1])
            other.execute(batch[2])
            async with anyio.create_task_group() as tasks:

                async def write() -> None:
                    await cluster.execute_batch(batch, idempotency_key=pgha.new_idempotency_key())

                tasks.start_soon(write)

                async def waits() -> bool:
                    return bool(
                        await node.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
                    )

                await eventually(waits)
                other.commit()
        assert await ids(node) == [1, 2]


@pytest.mark.parametrize(
    "batch",
    [
        ["SET LOCAL lock_timeout = '1s'", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "SELECT 1"],
        ["LOCK TABLE t", "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "SELECT 1"],
        ["SET TRANSACTION READ ONLY", "SELECT 1"],
        ["SET LOCAL ROLE poor", "SELECT 1"],
    ],
)
async def test_what_is_valid_without_a_key_is_valid_with_one_of_ours(version: int, batch: list[Any]) -> None:
    async with one_node(version, TABLE + "; CREATE ROLE poor", ledger="auto") as (node, cluster):

        async def seen() -> bool:
            return cluster._nodes[node.name].server.ledger

        await eventually(seen)
        results = await cluster.execute_batch(batch)
        assert [one.attempts for one in results] == [1] * len(batch)
        assert cluster.nodes[node.name].state == "up"


async def test_an_idempotent_write_goes_where_no_ledger_is(version: int) -> None:
    async with standalone(2, version=version) as nodes:
        for node in nodes:
            await node.execute(SLOW_COMMIT)
        named = [pgha.Node(node.dsn, node.name) for node in nodes]
        async with pgha.open_cluster(*named, min_ready=2, ledger="auto") as cluster:
            first, other = await two_nodes(nodes, cluster)
            await cluster.ledger.install(nodes=[first.name])
            await eventually(lambda: cluster._nodes[first.name].server.ledger)
            await other.execute("SELECT nextval('tries')")  # the second attempt does not sleep on this node
            operation = cluster.submit(NAPS_ONCE, idempotent=True)
            await napping(first)
            await first.kill()
            with within():
                result = await operation
            assert result.node == other.name
            assert await ids(other, "slow") == [1]


async def test_a_limit_that_ends_the_wait_for_a_zombie_is_no_fault_of_the_ledger(version: int) -> None:
    async with one_node(version, SLOW_COMMIT, statement_timeout=0.4) as (node, cluster):
        operation = cluster.submit(
            "INSERT INTO slow VALUES (1, 60)", idempotency_key=pgha.new_idempotency_key(), timeout=PATIENCE
        )
        pid = await napping(node)
        await node.freeze_backend(pid)
        lose(cluster, node.name, pid)
        await eventually(lambda: len(operation.attempts) >= 2 and operation.stage.name == "RESOLVING")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(node.execute, "SELECT pg_terminate_backend(%s)", [pid])
            await node.thaw_backend(pid)
        with pytest.raises(psycopg.errors.QueryCanceled) as caught, within():
            await operation
        assert pgha.error_info(caught.value).outcome == "not applied"
        assert await ids(node, "slow") == []


async def test_many_who_leave_resolve_leave_nothing(version: int) -> None:
    async with one_node(version, read_connections=1) as (node, cluster):
        (pid,) = (await cluster.execute("SELECT pg_backend_pid()")).one()
        await node.freeze_backend(pid)
        with pytest.raises(pgha.CommitInDoubt) as caught, within():
            await cluster.execute(WRITE, ["a"], idempotency_key=pgha.new_idempotency_key(), timeout=0.2)
        await node.freeze()
        for _ in range(50):
            assert await caught.value.resolve(timeout=0.001) == "in doubt"
        await node.thaw()  # thaws the backend too
        assert len(cluster._dispatcher._resolver._running) <= 1


async def test_a_node_that_is_removed_while_its_ledger_is_looked_at(version: int) -> None:
    async with standalone(2, version=version) as nodes:
        named = [pgha.Node(node.dsn, node.name) for node in nodes]
        async with pgha.open_cluster(*named, min_ready=2) as cluster:
            status: dict[str, pgha.LedgerStatus] = {}

            async def look() -> None:
                status.update(await cluster.ledger.status())

            async with anyio.create_task_group() as tasks:
                await nodes[0].freeze()
                tasks.start_soon(look)
                await anyio.wait_all_tasks_blocked()
                await cluster.remove_node(nodes[1].name)
                await nodes[0].thaw()
            assert status[nodes[1].name].problem == "the node was removed"
