"""Each rule of the outcome table as a real situation: the facts that a lane saw, and the rows afterwards.

A rule has to be true, and has to be the one that decides: without it, the same facts must give another
outcome. If no PostgreSQL can be made to give the evidence, the situation says so.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import anyio
import anyio.abc
import psycopg
import pytest
from support.common import PATIENCE, both_versions, eventually, started
from support.servers import standalone
from support.witness import MISFIT, Witness, applied, terminate, waits, witnessed

from pgha._core.outcome import RULES, Facts, Handed, Outcome, Rule, outcome
from pgha.chaos import Cut, Node, Proxy, replicas

pytestmark = pytest.mark.anyio

SCHEMA = """
    CREATE TABLE t (id int PRIMARY KEY);
    CREATE SEQUENCE tries;
    CREATE TABLE slow (id int UNIQUE DEFERRABLE INITIALLY DEFERRED, nap float);
    CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_sleep(NEW.nap) /* at the commit */; RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER nap AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION nap();
    CREATE PROCEDURE whole() LANGUAGE plpgsql AS $$ BEGIN INSERT INTO t VALUES (1); COMMIT; END $$;
    CREATE PROCEDURE half() LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO t VALUES (1); COMMIT; RAISE 'and then no more'; END $$;
    CREATE FUNCTION raising(code text) RETURNS int LANGUAGE plpgsql AS $$
        BEGIN RAISE 'far away' USING ERRCODE = code; END $$;
"""
INSERT = "INSERT INTO t VALUES (1)"
SLEEP = "SELECT pg_sleep(60) /* here */"
READY = 6
"""Bytes of ReadyForQuery, the Sync's answer."""


@dataclass(frozen=True)
class Seen:
    facts: Facts
    applied: bool
    """Whether the write was found afterwards."""
    shared: tuple[str, ...] = ()
    """Other rules that hold for these facts and prove the same outcome."""


Situation = Callable[[int], Awaitable[Seen]]
SITUATIONS: list[tuple[str, Situation]] = []


def situation(evidence: str) -> Callable[[Situation], Situation]:
    def add(function: Situation) -> Situation:
        SITUATIONS.append((evidence, function))
        return function

    return add


@asynccontextmanager
async def scene(version: int, **settings: str) -> AsyncGenerator[tuple[Node, Witness]]:
    async with standalone(version=version, settings=settings) as nodes:
        await nodes[0].execute(SCHEMA)
        async with witnessed(nodes[0].dsn) as witness:
            yield nodes[0], witness


# The rules, in their order


@situation("nothing was handed to libpq")
async def the_server_had_hung_up(version: int) -> Seen:
    """Messages that the server sent before the write are read first, and the write is never sent."""
    async with scene(version) as (node, witness):
        with psycopg.connect(node.dsn, autocommit=True) as connection:  # no other task runs meanwhile
            connection.execute("SELECT pg_terminate_backend(%s, 10000)", [witness.pid])
            assert witness.lane.link.readable()
            operation = witness.send(INSERT)
        facts = await witness.told(operation)
        assert not operation.attempts
        return Seen(facts, await applied(node))


@situation("unreplicated")
async def the_wait_for_the_standby_was_cancelled(version: int) -> Seen:
    """The Sync is answered without an error, but a failover would lose the row: it is on the primary only."""
    async with replicas(1, synchronous=1, version=version) as nodes:
        await nodes.primary.execute(SCHEMA)
        standby = nodes.standbys[0]
        await nodes.wait_replicated()
        await nodes.disconnect(standby)
        async with witnessed(nodes.primary.dsn) as witness:
            operation = witness.send(INSERT)
            assert await waits(nodes.primary, "SyncRep") == witness.pid
            await nodes.primary.execute("SELECT pg_cancel_backend(%s)", [witness.pid])
            facts = await witness.told(operation)
            assert facts.synced
            assert facts.error is None
            assert not await applied(standby)
            return Seen(facts, await applied(nodes.primary))


@situation("framed: COMMIT")
async def a_frame(version: int) -> Seen:
    async with scene(version) as (node, witness):
        facts = await witness.told(witness.send("SAVEPOINT a", INSERT, framed=True))
        return Seen(facts, await applied(node))


@situation("framed: COMMIT")
async def a_frame_whose_sync_was_lost(version: int) -> Seen:
    """The connection ends between the COMMIT's CommandComplete and the Sync's answer."""
    async with scene(version) as (node, _), Proxy(node) as proxy:
        async with witnessed(proxy.dsn) as rehearsal:
            await rehearsal.told(rehearsal.send("SAVEPOINT a", "INSERT INTO t VALUES (2)", framed=True))
            whole = proxy.connections[-1].down
        proxy.cut(Cut(whole - READY, "reset", "down", connection=1))
        async with witnessed(proxy.dsn) as witness:
            facts = await witness.told(witness.send("SAVEPOINT a", INSERT, framed=True))
            assert not facts.synced
            assert witness.lane.broken
        return Seen(facts, await applied(node))


@situation("framed: ROLLBACK")
async def the_commit_of_a_failed_block(version: int) -> Seen:
    """COMMIT of a failed block is no error: the server answers ROLLBACK.

    Within one segment an error skips the COMMIT, so that here a Sync stands between the two.
    """
    async with scene(version) as (node, witness):
        witness.send("BEGIN", INSERT, "SELECT 1/0")
        facts = await witness.told(witness.send_commit())
        assert facts.error is None
        assert facts.synced
        return Seen(facts, await applied(node))


@situation("framed: ROLLBACK")
async def a_frame_that_only_asked(version: int) -> Seen:
    async with scene(version) as (node, witness):
        facts = await witness.told(witness.send(INSERT, framed=True, undone=True))
        return Seen(facts, await applied(node))


@situation("Sync")
async def an_insert(version: int) -> Seen:
    async with scene(version) as (node, witness):
        return Seen(await witness.told(witness.send(INSERT)), await applied(node))


@situation("Sync")
async def a_call_that_commits(version: int) -> Seen:
    """SQL that commits by itself is proven by its Sync, like any other write."""
    async with scene(version) as (node, witness):
        facts = await witness.told(witness.send("CALL whole()"))
        assert facts.self_committing
        return Seen(facts, await applied(node))


@situation("after a FATAL")
async def behind_one_that_was_terminated(version: int) -> Seen:
    async with scene(version) as (node, witness):
        head, behind = witness.send(SLEEP), witness.send(INSERT)
        await terminate(node, await started(node, "/* here */"))
        assert outcome(await witness.told(head)) is Outcome.NOT_APPLIED
        facts = await witness.told(behind)
        assert facts.handed is Handed.WHOLE
        return Seen(facts, await applied(node))


@situation("commits by itself")
async def a_call_that_committed_and_failed(version: int) -> Seen:
    """The server sends an ERROR with the V field, and the row is there."""
    async with scene(version) as (node, witness):
        facts = await witness.told(witness.send("CALL half()"))
        assert facts.error is not None
        assert (facts.error.severity, facts.error.sqlstate) == ("ERROR", "P0001")
        seen = Seen(facts, await applied(node))
        assert seen.applied
        return seen


@situation("without the V field")
async def the_acknowledgement_was_lost(version: int) -> Seen:
    """The error that libpq makes up when the connection ends has no fields at all, and the row is there."""
    async with scene(version) as (node, _), Proxy(node) as proxy, witnessed(proxy.dsn) as witness:
        proxy.cut(Cut(proxy.connections[-1].down, "stall", "down"))
        operation = witness.send(INSERT)
        await eventually(lambda: applied(node), what="it was applied")
        proxy.reset()
        return Seen(await witness.told(operation), await applied(node))


@situation("without the V field")
async def a_pooler_that_lost_its_server(version: int) -> Seen:
    """The pooler itself sends FATAL 57P01, and cannot know the outcome on its server."""
    return await _behind_a_pooler(version, b"57P01")


@situation("without the V field")
async def a_pgbouncer_that_lost_its_server(version: int) -> Seen:
    """PgBouncer 1.18 sends FATAL 08P01 without the V field; class 08 alone already means "in doubt"."""
    return await _behind_a_pooler(version, b"08P01", shared=("40003 and class 08",))


async def _behind_a_pooler(version: int, state: bytes, shared: tuple[str, ...] = ()) -> Seen:
    """Run a server of a few protocol bytes as the pooler; it has the node do the insert."""

    async def serve(client: anyio.abc.SocketStream) -> None:
        async with client:
            await client.receive()  # the startup packet
            greeting = _message(b"R", bytes(4)) + _message(b"K", bytes(8)) + _message(b"Z", b"I")
            await client.send(greeting)
            await client.receive()
            await node.execute(INSERT)
            error = b"SFATAL\0C" + state + b"\0Mserver conn crashed?\0\0"
            await client.send(_message(b"E", error))

    async with (
        scene(version) as (node, _),
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        dsn = f"host=127.0.0.1 port={port} user=x dbname=x sslmode=disable gssencmode=disable"
        async with witnessed(dsn) as witness:
            facts = await witness.told(witness.send(INSERT))
        assert facts.error is not None
        assert facts.error.sqlstate == state.decode()
        seen = Seen(facts, await applied(node), shared)
        assert seen.applied
        tasks.cancel_scope.cancel()
    return seen


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


@situation("40003 and class 08")
async def an_error_whose_sync_was_lost(version: int) -> Seen:
    """The connection ends behind an ERROR that might be about this connection."""
    return await _raised_and_lost(version, "08006")


@situation("40003 and class 08")
async def a_statement_completion_unknown_whose_sync_was_lost(version: int) -> Seen:
    return await _raised_and_lost(version, "40003")


async def _raised_and_lost(version: int, state: str) -> Seen:
    raising = f"INSERT INTO t VALUES (raising('{state}'))"
    async with scene(version) as (node, _), Proxy(node) as proxy:
        async with witnessed(proxy.dsn) as rehearsal:
            await rehearsal.told(rehearsal.send(raising))
            whole = proxy.connections[-1].down
        proxy.cut(Cut(whole - READY, "reset", "down", connection=1))
        async with witnessed(proxy.dsn) as witness:
            facts = await witness.told(witness.send(raising))
            assert facts.error is not None
            assert (facts.error.severity, facts.error.sqlstate) == ("ERROR", state)
            assert not facts.synced
        return Seen(facts, await applied(node))


@situation("FATAL after the last CommandComplete")
async def terminated_at_the_sync(version: int) -> Seen:
    """The backend was terminated in a deferred trigger: CommandComplete came, the row was never there."""
    async with scene(version) as (node, witness):
        operation = witness.send("INSERT INTO slow VALUES (1, 60)")
        await terminate(node, await waits(node, "PgSleep"))
        facts = await witness.told(operation)
        assert facts.completed == facts.statements == 1
        return Seen(facts, await applied(node, "slow"))


@situation("PANIC of a frame's COMMIT")
async def the_log_cannot_be_written(version: int) -> Seen:
    """The folder of the write-ahead log is gone when the COMMIT has to write to it.

    Here the commit record was not written. A flush that fails after the write would have left the record.
    """
    settings = {"wal_writer_delay": "10s", "restart_after_crash": "off"}
    async with scene(version, **settings) as (node, witness):
        await node.execute("CHECKPOINT")
        log = anyio.Path(node.datadir / "pg_wal")
        with psycopg.connect(node.dsn, autocommit=True) as gate:
            gate.execute("SELECT pg_advisory_lock(1)")
            operation = witness.send(INSERT, "SELECT pg_advisory_lock(1)", framed=True)
            assert await waits(node, "advisory") == witness.pid
            hidden = await log.rename(log.with_name("pg_wal.hidden"))
            with suppress(psycopg.OperationalError):  # the server may go down before it answers
                gate.execute("SELECT pg_advisory_unlock(1)")
            facts = await witness.told(operation)
        await hidden.rename(log)
        assert facts.error is not None
        assert facts.error.severity == "PANIC"
        assert facts.commit_tag is None
        await eventually(lambda: not node.running, what="the server ends")
        await node.start()
        return Seen(facts, await applied(node))


@situation("ERROR, or FATAL before the end")
async def an_error(version: int) -> Seen:
    async with scene(version) as (node, witness):
        facts = await witness.told(witness.send(INSERT, "SELECT 1/0"))
        return Seen(facts, await applied(node))


@situation("ERROR, or FATAL before the end")
async def an_error_at_the_sync(version: int) -> Seen:
    """A deferred constraint fails with 23505 after the last CommandComplete."""
    async with scene(version) as (node, witness):
        await node.execute("INSERT INTO slow VALUES (2, 0)")
        facts = await witness.told(witness.send("INSERT INTO slow VALUES (1, 0), (2, 0)"))
        assert facts.completed == facts.statements == 1
        return Seen(facts, await applied(node, "slow"))


@situation("ERROR, or FATAL before the end")
async def terminated_before_the_end(version: int) -> Seen:
    async with scene(version) as (node, witness):
        operation = witness.send(INSERT, SLEEP)
        await terminate(node, await started(node, "/* here */"))
        facts = await witness.told(operation)
        assert facts.completed == 1
        return Seen(facts, await applied(node))


@situation("ERROR, or FATAL before the end")
async def a_frame_terminated_at_its_commit(version: int) -> Seen:
    """FATAL comes instead of the COMMIT's CommandComplete."""
    async with scene(version) as (node, witness):
        operation = witness.send("INSERT INTO slow VALUES (1, 60)", framed=True)
        await terminate(node, await waits(node, "PgSleep"))
        facts = await witness.told(operation)
        assert facts.completed == facts.statements - 1
        return Seen(facts, await applied(node, "slow"))


@situation("ERROR, or FATAL before the end")
async def an_error_of_a_foreign_server(version: int) -> Seen:
    """An ERROR with the V field and class 08 is about another connection than the client's."""
    return await _raised(version, "08006")


@situation("ERROR, or FATAL before the end")
async def a_statement_completion_unknown(version: int) -> Seen:
    return await _raised(version, "40003")


@situation("ERROR, or FATAL before the end")
async def a_shutdown_of_a_foreign_server(version: int) -> Seen:
    return await _raised(version, "57P01")


@situation("ERROR, or FATAL before the end")
async def an_error_of_a_foreign_server_in_a_frame(version: int) -> Seen:
    return await _raised(version, "08006", framed=True)


async def _raised(version: int, state: str, *, framed: bool = False) -> Seen:
    async with scene(version) as (node, witness):
        facts = await witness.told(witness.send(INSERT, f"SELECT raising('{state}')", framed=framed))
        return await _seen_alive(node, witness, facts, state)


@situation("ERROR, or FATAL before the end")
async def a_foreign_server_that_was_lost_at_the_commit(version: int) -> Seen:
    return await _raised_at_the_commit(version, framed=False)


@situation("ERROR, or FATAL before the end")
async def a_foreign_server_that_was_lost_at_the_commit_of_a_frame(version: int) -> Seen:
    return await _raised_at_the_commit(version, framed=True)


async def _raised_at_the_commit(version: int, *, framed: bool) -> Seen:
    async with scene(version) as (node, witness):
        await node.execute(
            """
            CREATE FUNCTION far() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN RETURN raising('08006'); END $$;
            CREATE CONSTRAINT TRIGGER far AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION far();
            """
        )
        facts = await witness.told(witness.send(INSERT, framed=framed))
        assert facts.completed == facts.statements - framed
        return await _seen_alive(node, witness, facts, "08006")


async def _seen_alive(node: Node, witness: Witness, facts: Facts, state: str) -> Seen:
    assert facts.synced
    assert facts.error is not None
    assert (facts.error.severity, facts.error.sqlstate) == ("ERROR", state)
    assert not witness.lane.broken
    return Seen(facts, await applied(node))


@situation("its Sync was never handed")
async def the_second_statement_could_not_be_sent(version: int) -> Seen:
    """The server did the insert, and undid it when the connection ended without a Sync."""
    async with scene(version) as (node, witness):
        large = "x" * 1_000_000  # libpq starts writing at 64 kB
        insert = "INSERT INTO t SELECT 1 FROM nextval('tries') WHERE length($1::text) > 0"
        operation = witness.send((insert, [large]), ("SELECT $1::text", [MISFIT]))

        async def done() -> bool:
            return bool((await node.execute("SELECT is_called FROM tries"))[0][0])

        await eventually(done, what="the server did the insert")
        return Seen(await witness.told(operation), await applied(node))


# Checks of the situations


@both_versions
@pytest.mark.parametrize(
    ("evidence", "of"), [pytest.param(*one, id=f"{one[0]}: {one[1].__name__}") for one in SITUATIONS]
)
async def test_the_line_is_true_and_decides(version: int, evidence: str, of: Situation) -> None:
    with anyio.fail_after(6 * PATIENCE):
        seen = await of(version)
    (line,) = [one for one in RULES if one.evidence == evidence]
    assert outcome(seen.facts) is line.proves
    assert _deciding(seen.facts) is line, "another line spoke before it"
    without = [one for one in RULES if one is not line and one.evidence not in seen.shared]
    assert outcome(seen.facts, without) is not line.proves, "the others say the same"
    if line.proves is not Outcome.IN_DOUBT:
        assert seen.applied is (line.proves is Outcome.APPLIED)


def _deciding(facts: Facts) -> Rule:
    return next(line for line in RULES if line.holds(facts))


def test_every_line_has_a_situation() -> None:
    assert {line.evidence for line in RULES} == {evidence for evidence, _ in SITUATIONS}


@both_versions
async def test_the_connection_ended_without_these(version: int) -> None:
    """An operation behind the head of a connection that just ended has no evidence; its row is there."""
    async with scene(version) as (node, _), Proxy(node) as proxy, witnessed(proxy.dsn) as witness:
        proxy.cut(Cut(proxy.connections[-1].down, "stall", "down"))
        witness.send("SELECT 1")
        operation = witness.send(INSERT)
        await eventually(lambda: applied(node), what="it was applied")
        proxy.reset()
        facts = await witness.told(operation)
    assert facts == Facts()
    assert not any(line.holds(facts) for line in RULES)
    assert outcome(facts) is Outcome.IN_DOUBT
