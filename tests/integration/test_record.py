"""`Operation.record`: what happened to an operation, where and when, while it runs and afterwards."""

from __future__ import annotations

import time
from dataclasses import FrozenInstanceError
from itertools import pairwise
from typing import Any

import anyio
import psycopg
import pytest
from support.common import PATIENCE, PROVEN, cluster_of, eventually, gate, started, stopped, unique, within
from support.servers import standalone

import pgha
from pgha.chaos import Node
from pgha.chaos.checkers import Observations, disordered
from pgha.chaos.history import Recorder

pytestmark = pytest.mark.anyio


def in_order(record: pgha.Record) -> bool:
    """Return whether the times are in order: started, sent, head, answered, sent again and so on, ended."""
    moments: list[float | None] = [record.started_at]
    for one in record.attempts:
        moments += [one.sent_at, one.head_at, one.answered_at]
    moments.append(record.ended_at)
    known = [at for at in moments if at is not None]
    return all(before <= after for before, after in pairwise(known)) and known[-1] <= time.monotonic()


def told(record: pgha.Record) -> list[tuple[str, str | None]]:
    return [(one.node, one.outcome) for one in record.attempts]


async def test_a_plain_operation(server: Node) -> None:
    async with cluster_of(server) as cluster:
        before = time.monotonic()
        operation = cluster.submit("SELECT 1", read=True)
        await operation
        record = operation.record
        assert before <= record.started_at <= record.queued_at
        assert told(record) == [(server.name, "applied")]
        (one,) = record.attempts
        assert one.head_at is not None
        assert one.answered_at is not None
        assert record.ended_at is not None
        assert in_order(record)
        assert operation.record == record
        with pytest.raises(FrozenInstanceError):
            one.node = "another"  # type: ignore[misc]


async def test_while_it_runs_and_behind_another(server: Node) -> None:
    async with cluster_of(server, read_connections=1) as cluster:
        await cluster.execute("SELECT 1")
        text = unique("sleep")
        first = cluster.submit(f"SELECT pg_sleep(0.1) /* {text} */")
        second = cluster.submit("SELECT 2")
        early = first.record, second.record
        assert told(early[0]) == [(server.name, None)]
        assert early[0].attempts[0].head_at is not None
        assert early[1].attempts[0].head_at is None, "it stands behind the first"
        assert early[1].ended_at is None
        await second
        answered = first.record.attempts[0].answered_at
        assert answered is not None
        assert second.record.attempts[0].head_at == answered, "then it was the head"
        assert in_order(first.record)
        assert in_order(second.record)


async def test_an_error_of_sql(server: Node) -> None:
    async with cluster_of(server) as cluster:
        operation = cluster.submit("SELECT 1/0")
        with pytest.raises(psycopg.errors.DivisionByZero):
            await operation
        assert told(operation.record) == [(server.name, "not applied")]
        assert operation.record.attempts[0].answered_at is not None
        assert in_order(operation.record)


async def test_run_again_on_proof(server: Node) -> None:
    table, text = unique("t"), unique("sleep")
    async with cluster_of(server) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int)")
        with gate(server) as (wait, go_on):
            operation = cluster.submit(f"INSERT INTO {table} SELECT 1 FROM {wait} /* {text} */")
            await server.execute("SELECT pg_terminate_backend(%s)", [await started(server, text)])
            go_on()
        await operation
        assert told(operation.record) == [(server.name, "not applied"), (server.name, "applied")]
        assert in_order(operation.record)


@pytest.mark.parametrize("idempotent", [False, True])
async def test_failing_over(idempotent: bool) -> None:
    """A killed node proves nothing: an idempotent operation is run elsewhere, any other ends in doubt."""
    async with standalone(2) as nodes:
        await nodes.execute("CREATE TABLE t (id int)")
        async with cluster_of(*nodes, min_ready=2) as cluster:
            first = (await cluster.execute("SELECT 1")).node
            (other,) = {"n1", "n2"} - {first}
            for name, seconds in ((first, 60), (other, 0)):
                sleep = f"CREATE FUNCTION nap() RETURNS void LANGUAGE sql AS 'SELECT pg_sleep({seconds})'"
                await nodes[name].execute(sleep)
            operation = cluster.submit("INSERT INTO t SELECT 1 FROM nap()", idempotent=idempotent)
            await started(nodes[first], "INSERT INTO t")
            await nodes[first].kill()
            with within():
                if idempotent:
                    assert (await operation).node == other
                    assert told(operation.record) == [(first, "in doubt"), (other, "applied")]
                else:
                    with pytest.raises(pgha.CommitInDoubt):
                        await operation
                    assert told(operation.record) == [(first, "in doubt")]
            assert operation.record.attempts[0].answered_at is None
            assert in_order(operation.record)


async def test_a_cancelled_write(server: Node) -> None:
    async with cluster_of(server, _tuning=PROVEN) as cluster:
        text = unique("sleep")
        operation = cluster.submit(f"SELECT pg_sleep(60) /* {text} */")
        await started(server, text)
        operation.cancel()
        with pytest.raises(pgha.OperationCancelled), within():
            await operation
        assert told(operation.record) == [(server.name, "not applied")]
        assert in_order(operation.record)


async def test_a_cancelled_read_is_known_to_have_been_sent(server: Node) -> None:
    async with cluster_of(server) as cluster:
        text = unique("sleep")
        operation = cluster.submit(f"SELECT pg_sleep(60) /* {text} */", read=True)
        await started(server, text)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await operation
        assert told(operation.record) == [(server.name, None)]
        assert operation.record.attempts[0].answered_at is None
        assert in_order(operation.record)
        await stopped(server, text)


async def test_never_sent() -> None:
    async with standalone() as nodes, cluster_of(*nodes) as cluster:
        await nodes[0].kill()
        await eventually(lambda: cluster.nodes["n1"].state == "down")
        operation = cluster.submit("SELECT 1", timeout=0.05)
        assert operation.record.ended_at is None
        with pytest.raises(pgha.OperationTimeout), within():
            await operation
        record = operation.record
        assert record.attempts == ()
        assert record.ended_at is not None
        assert record.started_at <= record.queued_at <= record.ended_at


async def test_it_waited_in_line(server: Node) -> None:
    """Operations beyond a lane's capacity are queued, and sent later."""
    async with cluster_of(server, read_connections=1) as cluster:
        operations = [cluster.submit("SELECT pg_sleep(0.002)") for _ in range(40)]
        assert operations[-1].record.attempts == ()
        with within():
            for operation in operations:
                await operation
        last = operations[-1].record
        assert last.started_at <= last.queued_at <= last.attempts[0].sent_at
        assert all(in_order(one.record) for one in operations)


async def test_the_legs_of_fastest() -> None:
    """The record includes the slow leg's attempt, while it runs and afterwards."""
    async with standalone(2) as nodes:
        for node, seconds in zip(nodes, (60, 0), strict=True):
            sleep = f"CREATE FUNCTION wait() RETURNS void LANGUAGE sql AS 'SELECT pg_sleep({seconds})'"
            await node.execute(sleep)
        async with cluster_of(*nodes, min_ready=2) as cluster:
            await cluster.wait_ready()
            operation = cluster.submit("SELECT wait()", read=True, route=pgha.fastest())
            assert {one.node for one in operation.record.attempts} == {"n1", "n2"}
            with anyio.fail_after(PATIENCE):
                assert (await operation).node == "n2"
            assert sorted(told(operation.record)) == [("n1", None), ("n2", "applied")]
            assert operation.record.ended_at is not None
            for one in operation.record.attempts:
                assert operation.record.started_at <= one.sent_at <= operation.record.ended_at
            await stopped(nodes[0], "wait()")


@pytest.mark.parametrize("way", ["cancel", "timeout"])
async def test_the_legs_of_a_race_that_was_given_up(way: str) -> None:
    async with standalone(2) as nodes, cluster_of(*nodes, min_ready=2) as cluster:
        await cluster.wait_ready()
        text = unique("sleep")
        operation = cluster.submit(
            f"SELECT pg_sleep(60) /* {text} */",
            read=True,
            route=pgha.fastest(),
            timeout=0.5 if way == "timeout" else None,
        )
        for node in nodes:
            await started(node, text)
        if way == "cancel":
            operation.cancel()
        with pytest.raises(pgha.Error) as caught, within():
            await operation
        assert sorted(told(operation.record)) == [("n1", None), ("n2", None)]
        assert pgha.error_info(caught.value).attempts == 2
        for node in nodes:
            await stopped(node, text)


async def test_time_never_runs_backwards(server: Node) -> None:
    """Times never run backwards with many operations at once on one lane.

    Some operations fail, and some are submitted while others are answered.
    """
    table = unique("t")
    recorder = Recorder()
    async with cluster_of(server, read_connections=1) as cluster:
        await cluster.execute(f"CREATE TABLE {table} (id int PRIMARY KEY)")

        async def work(number: int) -> None:
            for turn in range(30):
                one = recorder.begin("write")
                # Every other primary key is already taken.
                query, key = f"INSERT INTO {table} VALUES (%s)", (number // 2) * 1000 + turn
                operation: pgha.Operation[Any] = cluster.submit(query, [key])
                try:
                    result = await operation
                except psycopg.errors.UniqueViolation as error:
                    one.failed(error, pgha.error_info(error).outcome, record=operation.record)
                else:
                    one.acknowledged(node=result.node, record=operation.record)
                assert in_order(operation.record)

        with within():
            async with anyio.create_task_group() as group:
                for number in range(20):
                    group.start_soon(work, number)
    history = recorder.history()
    assert {entry.ending for entry in history} == {"acknowledged", "refused"}
    assert len(history) == 600
    assert list(disordered(Observations(history))) == []
