"""Keyed writes whose answers are lost, on PostgreSQL 16 and 18: applied once, or in doubt until resolved."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any
from uuid import UUID

import anyio
import anyio.to_thread
import psycopg
import pytest
from support.common import PATIENCE, PROVEN, both_versions, eventually, started, within
from support.keyed import NAPS_ONCE, SLOW_COMMIT, TABLE, WRITE, ids, keys_of, napping, one_node, replicating
from support.servers import standalone

import pgha
from pgha._options import Tuning
from pgha.chaos import masters, proxied, replicas

pytestmark = [pytest.mark.anyio, both_versions]


# Lost answers


async def test_terminated_at_its_commit(version: int) -> None:
    """A keyed write in doubt is run again; here the first attempt had not been applied."""
    async with one_node(version, SLOW_COMMIT) as (node, cluster):
        operation = cluster.submit(NAPS_ONCE, idempotency_key=pgha.new_idempotency_key())
        pid = await napping(node)
        await node.execute("SELECT pg_terminate_backend(%s)", [pid])
        with within():
            result = await operation
        assert (result.attempts, result.replayed) == (2, False)
        assert [one.outcome for one in operation.record.attempts] == ["in doubt", "applied"]
        assert await ids(node, "slow") == [1]


async def test_a_lost_acknowledgement(version: int) -> None:
    """The write is applied and its answer is lost: the second attempt meets the row of the first."""
    async with standalone(version=version) as nodes, proxied(nodes) as proxies:
        node, proxy = nodes[0], proxies[0]
        await node.execute(TABLE)
        async with pgha.open_cluster(pgha.Node(proxy.dsn, node.name)) as cluster:
            await cluster.ledger.install()
            await cluster.execute(WRITE, ["first"], idempotency_key=pgha.new_idempotency_key())
            proxy.drop("down")
            operation = cluster.submit(WRITE, ["lost"], idempotency_key=pgha.new_idempotency_key())

            async def there() -> bool:
                return "lost" in await ids(node)

            await eventually(there)
            proxy.reset()
            proxy.heal()
            with within():
                result = await operation
            assert result.replayed
            assert await ids(node) == ["first", "lost"]


async def test_a_retry_waits_for_a_zombie(version: int) -> None:
    """The first attempt is frozen in its transaction; the second waits for it on the unique index."""
    async with one_node(version, TABLE + "; CREATE TABLE gate (id int)") as (node, cluster):
        query = "WITH one AS (INSERT INTO t VALUES (%s)) SELECT pg_sleep(3) /* zombie */"
        operation = cluster.submit(query, ["a"], idempotency_key=pgha.new_idempotency_key())
        pid = await started(node, "/* zombie */")
        await node.freeze_backend(pid)
        lane = next(lane for lane in cluster._nodes[node.name].sets["write"].lanes if lane.link.pid == pid)
        lane.abort("the test says so", lost=True)

        async def waits() -> bool:
            rows = await node.execute(
                "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ 'pgha.ledger'"
            )
            return bool(rows)

        await eventually(waits, what="the retry waits for the zombie")
        assert not operation.done
        await node.thaw_backend(pid)
        with within():
            assert (await operation).replayed
        assert await ids(node) == ["a"]


async def test_head_of_two_lost_connections_is_resolved_not_sent_again(version: int) -> None:
    async with one_node(version, SLOW_COMMIT) as (node, cluster):
        key = pgha.new_idempotency_key()
        operation = cluster.submit("INSERT INTO slow VALUES (1, 60)", idempotency_key=key)
        for _ in range(2):
            pid = await napping(node)
            await node.kill_backend(pid)
            await node.wait_ready()
        with pytest.raises(psycopg.OperationalError, match="certainly not applied") as caught, within():
            await operation
        assert pgha.error_info(caught.value) == pgha.ErrorInfo(node.name, None, 2, "not applied")
        assert await ids(node, "slow") == []
        with pytest.raises(pgha.IdempotencyKeyReused, match="resolved as not applied"):
            await cluster.execute("INSERT INTO slow VALUES (1, 60)", idempotency_key=key)


async def test_a_broken_off_wait_for_the_standby(version: int) -> None:
    """The interrupted write is on the primary alone; it is acknowledged only when the standby has it, too."""
    async with replicas(2, version=version, synchronous=1) as nodes:
        primary, standby = nodes.primary, nodes.standbys[0]
        await primary.execute(TABLE)
        named = [pgha.Node(node.dsn, node.name) for node in nodes]
        async with pgha.open_cluster(*named, min_ready=2) as cluster:
            await cluster.ledger.install()
            await standby.freeze()
            operation = cluster.submit(
                WRITE + " /* unreplicated */", ["a"], idempotency_key=pgha.new_idempotency_key()
            )
            pid = await replicating(primary, "/* unreplicated */")
            await primary.execute("SELECT pg_cancel_backend(%s)", [pid])
            await replicating(primary, "ON CONFLICT")
            assert not operation.done
            await standby.thaw()
            with within():
                assert (await operation).replayed
            assert await ids(standby) == ["a"]


# Other nodes


async def test_masters_do_not_take_what_another_may_have_applied(version: int) -> None:
    """A write that a node may have applied waits for it; one that never began goes elsewhere at once."""
    async with masters(2, version=version) as nodes:
        await nodes.create(SLOW_COMMIT + TABLE)
        named = [pgha.Node(node.dsn, node.name) for node in nodes]
        async with pgha.open_cluster(*named, min_ready=2) as cluster:
            await cluster.ledger.install()
            first = nodes[(await cluster.execute("SELECT 1")).node]
            other = next(node for node in nodes if node is not first)
            operation = cluster.submit(
                "INSERT INTO slow VALUES (1, 5)", idempotency_key=pgha.new_idempotency_key()
            )
            await napping(first)
            await first.kill()
            result = await cluster.execute(WRITE, ["b"], idempotency_key=pgha.new_idempotency_key())
            assert result.node == other.name
            assert not operation.done
            await first.start()
            with within():
                result = await operation
            assert result.node == first.name
            await nodes.wait_replicated()
            assert await ids(other, "slow") == await ids(first, "slow") == [1]


async def test_masters_and_a_deadline(version: int) -> None:
    """The write is in doubt at its deadline. Then resolve() waits for the node, and the key stays used."""
    async with masters(2, version=version) as nodes:
        await nodes.create(SLOW_COMMIT)
        named = [pgha.Node(node.dsn, node.name) for node in nodes]
        async with pgha.open_cluster(*named, min_ready=2) as cluster:
            await cluster.ledger.install()
            first = nodes[(await cluster.execute("SELECT 1")).node]
            key = pgha.new_idempotency_key()
            operation = cluster.submit("INSERT INTO slow VALUES (1, 5)", idempotency_key=key, timeout=4)
            await napping(first)
            await first.kill()
            with pytest.raises(pgha.CommitInDoubt) as caught, within():
                await operation
            error = caught.value
            assert (error.idempotency_key, error.node, error.attempts) == (key, first.name, 1)
            assert error.evidence is not None and error.evidence.sent == "whole"
            assert error.record is not None and error.record.attempts[0].outcome == "in doubt"
            assert await error.resolve(timeout=0.1) == "in doubt"
            async with cluster.events() as events:
                await first.start()
                with within():
                    assert await error.resolve() == "not applied"
                resolved = await _next_resolved(events)
            assert (resolved.idempotency_key, resolved.outcome) == (key, "not applied")
            assert await error.resolve() == "not applied"
            with pytest.raises(pgha.IdempotencyKeyReused, match="used up"):
                await cluster.execute(
                    "INSERT INTO slow VALUES (1, 5)", idempotency_key=key, route=pgha.pin(first.name)
                )
            assert await ids(first, "slow") == []


async def _next_resolved(events: Any) -> pgha.OperationResolved:
    with within():
        async for event in events:
            if isinstance(event, pgha.OperationResolved):
                return event
    raise AssertionError("the events ended")


async def test_a_promoted_standby_knows(version: int) -> None:
    """The primary is killed before its answer arrives; the row of the key is on the synchronous standby."""
    async with replicas(2, version=version, synchronous=1) as nodes:
        primary, standby = nodes.primary, nodes.standbys[0]
        await primary.execute(TABLE)
        async with proxied([primary]) as proxies:
            proxy = proxies[0]
            named = [pgha.Node(proxy.dsn, primary.name), pgha.Node(standby.dsn, standby.name)]
            async with pgha.open_cluster(*named, min_ready=2) as cluster:
                await cluster.ledger.install()
                await cluster.execute(WRITE, ["first"], idempotency_key=pgha.new_idempotency_key())
                proxy.drop("down")
                operation = cluster.submit(WRITE, ["a"], idempotency_key=pgha.new_idempotency_key())

                async def there() -> bool:
                    return "a" in await ids(standby)

                await eventually(there)
                await primary.kill()
                await nodes.promote(standby)
                with within():
                    result = await operation
                assert (result.replayed, result.node) == (True, standby.name)
                assert await ids(standby) == ["a", "first"]


# Deadlines, zombies, cancellation


async def test_a_zombie_that_thaws_after_its_deadline_does_nothing(version: int) -> None:
    async with one_node(version, read_connections=1) as (node, cluster):
        (pid,) = (await cluster.execute("SELECT pg_backend_pid()")).one()
        await node.freeze_backend(pid)
        keyed = cluster.submit(WRITE, ["keyed"], idempotency_key=pgha.new_idempotency_key(), timeout=0.3)
        with pytest.raises(pgha.CommitInDoubt) as caught, within():
            await keyed
        # The guard refuses the write after its deadline plus one second.
        await anyio.sleep(1.5)
        await node.thaw_backend(pid)
        with within():
            assert await caught.value.resolve() == "not applied"
        assert await ids(node) == []


async def test_resolve_decides_against_a_zombie(version: int) -> None:
    """An outcome that resolve() returns long before the guard's deadline stays true when the zombie thaws."""
    async with one_node(version, read_connections=1) as (node, cluster):
        (pid,) = (await cluster.execute("SELECT pg_backend_pid()")).one()
        await node.freeze_backend(pid)
        with pytest.raises(pgha.CommitInDoubt) as caught, within():
            await cluster.execute(WRITE, ["a"], idempotency_key=pgha.new_idempotency_key(), timeout=0.2)
        with within():
            failure = await caught.value.resolve()
        await node.thaw_backend(pid)

        async def done() -> bool:
            rows = await node.execute("SELECT state FROM pg_stat_activity WHERE pid = %s", [pid])
            return rows in ([], [("idle",)])

        await eventually(done)
        assert failure == "not applied"
        assert await ids(node) == []


async def test_resolve_without_a_key_hears_a_late_answer(version: int) -> None:
    patient = Tuning(cancel_deadline=60.0, drain_timeout=60.0)
    async with one_node(version, installed=False, _tuning=patient) as (node, cluster):
        (pid,) = (await cluster.execute("SELECT pg_backend_pid()")).one()
        await node.freeze_backend(pid)
        with pytest.raises(pgha.CommitInDoubt) as caught, within():
            await cluster.execute(WRITE, ["a"], timeout=0.1)
        assert caught.value.idempotency_key is None
        assert await caught.value.resolve(timeout=0.05) == "in doubt"
        await node.thaw_backend(pid)
        with within():
            failure = await caught.value.resolve(timeout=PATIENCE)
        # Either the request or the cancel came first; resolve() reports which.
        assert failure == ("applied" if await ids(node) == ["a"] else "not applied")


async def test_leaving_resolve_changes_nothing(version: int) -> None:
    async with one_node(version, read_connections=1) as (node, cluster):
        (pid,) = (await cluster.execute("SELECT pg_backend_pid()")).one()
        await node.freeze_backend(pid)
        with pytest.raises(pgha.CommitInDoubt) as caught, within():
            await cluster.execute(WRITE, ["a"], idempotency_key=pgha.new_idempotency_key(), timeout=0.2)
        await node.freeze()
        with anyio.move_on_after(0.1) as scope:
            await caught.value.resolve()
        assert scope.cancelled_caught
        await node.thaw()  # thaws the backend too
        with within():
            assert await caught.value.resolve() in ("applied", "not applied")


async def test_resolve_in_another_loop_is_refused(version: int) -> None:
    async with one_node(version, read_connections=1) as (node, cluster):
        (pid,) = (await cluster.execute("SELECT pg_backend_pid()")).one()
        await node.freeze_backend(pid)
        with pytest.raises(pgha.CommitInDoubt) as caught, within():
            await cluster.execute(WRITE, ["a"], idempotency_key=pgha.new_idempotency_key(), timeout=0.2)
        for backend in ("asyncio", "trio"):
            with pytest.raises(pgha.ConfigError, match="in the event loop of its cluster"):
                await anyio.to_thread.run_sync(partial(anyio.run, caught.value.resolve, backend=backend))
        await node.thaw_backend(pid)
        with within():
            told = await caught.value.resolve()
        # The outcome is known by now, so that any event loop can ask for it.
        assert (
            await anyio.to_thread.run_sync(partial(anyio.run, caught.value.resolve, backend="trio")) == told
        )


async def test_a_cancelled_write_is_told_of_later(version: int) -> None:
    """A write in doubt whose caller left is resolved by an event.

    The caller left and the connection broke: the event comes after the guard's deadline. The key can still be
    used, because the write was not applied.
    """
    async with one_node(version, read_connections=1) as (node, cluster):
        (pid,) = (await cluster.execute("SELECT pg_backend_pid()")).one()
        await node.freeze_backend(pid)
        key = pgha.new_idempotency_key()
        async with cluster.events() as events:
            with anyio.move_on_after(0.1) as scope:
                await cluster.execute(WRITE, ["a"], idempotency_key=key, timeout=1.0)
            assert scope.cancelled_caught
            lane = next(
                lane for lane in cluster._nodes[node.name].sets["write"].lanes if lane.link.pid == pid
            )
            lane.abort("the test says so", lost=True)
            resolved = await _next_resolved(events)
            while resolved.outcome == "in doubt":
                resolved = await _next_resolved(events)
        assert (resolved.idempotency_key, resolved.outcome) == (key, "not applied")
        await node.thaw_backend(pid)
        assert not (await cluster.execute(WRITE, ["a"], idempotency_key=key)).replayed
        assert await ids(node) == ["a"]


async def test_cancelled_and_proven(version: int) -> None:
    async with one_node(version, _tuning=PROVEN) as (node, cluster):
        key: UUID = pgha.new_idempotency_key()
        async with cluster.events() as events:
            operation = cluster.submit(
                "INSERT INTO t SELECT '' FROM pg_sleep(60) /* long */", idempotency_key=key
            )
            await started(node, "/* long */")
            operation.cancel()
            with pytest.raises(pgha.OperationCancelled), within():
                await operation
            resolved = await _next_resolved(events)
        assert (resolved.idempotency_key, resolved.outcome) == (key, "not applied")
        assert await keys_of(node) == 0


async def test_what_nobody_can_tell_is_told_at_once(version: int) -> None:
    async with one_node(version, SLOW_COMMIT, installed=False) as (node, cluster):
        operation = cluster.submit("INSERT INTO slow VALUES (1, 60)")
        pid = await napping(node)
        await node.execute("SELECT pg_terminate_backend(%s)", [pid])
        with pytest.raises(pgha.CommitInDoubt) as caught, within():
            await operation
        with within():
            assert await caught.value.resolve() == "in doubt"
        evidence = caught.value.evidence
        assert evidence is not None
        assert (evidence.sqlstate, evidence.severity, evidence.completed) == ("57P01", "FATAL", 1)
        copy = pickle.loads(pickle.dumps(caught.value))
        assert (str(copy), copy.evidence, copy.node) == (str(caught.value), evidence, node.name)
        assert pgha.error_info(copy) == pgha.error_info(caught.value)
        assert await copy.resolve() == "in doubt"


async def test_resolve_ends_with_its_cluster(version: int) -> None:
    async with standalone(version=version) as nodes:
        node = nodes[0]
        await node.execute(TABLE)
        async with anyio.create_task_group() as tasks:
            async with pgha.open_cluster(pgha.Node(node.dsn, node.name), read_connections=1) as cluster:
                await cluster.ledger.install()
                (pid,) = (await cluster.execute("SELECT pg_backend_pid()")).one()
                await node.freeze_backend(pid)
                with pytest.raises(pgha.CommitInDoubt) as caught, within():
                    await cluster.execute(
                        WRITE, ["a"], idempotency_key=pgha.new_idempotency_key(), timeout=0.2
                    )
                await node.freeze()
                said: list[str] = []

                async def ask() -> None:
                    said.append(await caught.value.resolve())

                tasks.start_soon(ask)
                await anyio.wait_all_tasks_blocked()
            await eventually(lambda: said == ["in doubt"])
            assert await caught.value.resolve() == "in doubt"
            await node.thaw()
