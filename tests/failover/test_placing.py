"""The queues of waiting operations and the times of sending, nodes and lanes that come and go, and races."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import anyio
import psycopg
import pytest
from psycopg.adapt import AdaptersMap
from psycopg.conninfo import make_conninfo
from psycopg.rows import tuple_row
from support.common import PATIENCE, backends, cluster_of, eventually, nothing_left, started, unique, within
from support.servers import standalone

import pgha
from pgha._core.door import Door
from pgha._core.need import READ
from pgha._core.outcome import Outcome
from pgha._dispatch.failure import LegLost
from pgha._dispatch.races import Races
from pgha._dispatch.timers import Timers
from pgha._dispatch.tracker import Tracker
from pgha._errors import ErrorInfo, annotate
from pgha._operation.in_doubt import InDoubtOutcome
from pgha._operation.operation import AttemptState, Operation, Request, Stage
from pgha._options import Tuning
from pgha._telemetry.log import ClusterLog
from pgha._wire.compiler import Compiler
from pgha.chaos import Node

pytestmark = pytest.mark.anyio

ONE_AT_A_TIME = Tuning(max_lanes=1, depth=1)


async def demote(node: Node) -> None:
    await node.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    await node.execute("SELECT pg_reload_conf()")


async def promote(node: Node) -> None:
    await node.execute("ALTER SYSTEM RESET default_transaction_read_only")
    await node.execute("SELECT pg_reload_conf()")


# Queues


async def test_what_comes_back_from_a_fallen_node_is_sent_at_once() -> None:
    """A retried operation is sent to an idle node at once, not at that node's next tick."""
    async with (
        standalone(2) as nodes,
        cluster_of(*nodes, min_ready=2, ping_interval=60, ping_timeout=2, failover_timeout=60) as cluster,
    ):
        await cluster.wait_ready()
        target = nodes[(await cluster.fetch("SELECT 1")).node]
        (other,) = (node for node in nodes if node is not target)
        await target.execute(
            "CREATE TABLE disk_is_full (); CREATE FUNCTION ask() RETURNS text LANGUAGE plpgsql AS $$ BEGIN"
            " IF to_regclass('disk_is_full') IS NOT NULL THEN RAISE EXCEPTION 'full' USING ERRCODE = '53100';"
            " END IF; RETURN 'well'; END $$"
        )
        await other.freeze()
        pinned = pgha.pin(other.name)
        busy = [cluster.submit("SELECT 1", read=True, route=pinned) for _ in range(60)]
        # The operation fails on the one node, and is to be sent to the other, which has no capacity left.
        operation = cluster.submit("SELECT ask()", read=True)
        await eventually(lambda: operation.need.node == other.name)
        assert operation.stage is Stage.QUEUED
        await target.execute("DROP TABLE disk_is_full")
        await eventually(lambda: cluster.nodes[other.name].state == "down")
        with within():
            result = await operation
        assert (result.value(), result.node, result.attempts) == ("well", target.name, 2)
        assert not any(one.done for one in busy)
        await other.thaw()
        with within():
            assert [(await one).value() for one in busy] == [1] * 60


async def test_a_write_waits_for_a_primary() -> None:
    """A node may be read-only for a while; a write that the node rejected does not use up its attempts."""
    async with (
        standalone() as nodes,
        cluster_of(*nodes, ping_interval=60) as cluster,
        anyio.create_task_group() as group,
    ):
        (node,) = nodes
        await node.execute("CREATE TABLE t (id int)")
        await cluster.execute("SELECT 1")
        await demote(node)

        async def refuses() -> bool:
            return bool((await node.execute("SHOW default_transaction_read_only"))[0][0] == "on")

        await eventually(refuses)

        async def back() -> None:
            await anyio.sleep(1.5)
            await promote(node)

        group.start_soon(back)
        begun = time.monotonic()
        operations = [cluster.submit("INSERT INTO t VALUES (%s)", [i]) for i in range(20)]
        with within():
            batch = await cluster.execute_batch(["SAVEPOINT a", "INSERT INTO t VALUES (20)"])
            assert all(one.attempts <= 4 for one in batch)
            for one in operations:
                assert (await one).attempts <= 4
        assert time.monotonic() - begun > 1
        assert await node.execute("SELECT count(*), count(DISTINCT id) FROM t") == [(21, 21)]
        assert cluster.statistics().failed == 0


async def test_the_wait_for_a_node_begins_when_the_last_one_left() -> None:
    """The failover timeout starts when the last node goes down.

    This holds also for operations that had waited for a node before, and then waited behind another on its
    lane.
    """
    wait = 3.0
    text = unique("sleep")
    async with standalone() as nodes:
        (node,) = nodes
        await node.stop()
        async with cluster_of(
            node, min_ready=0, read_connections=1, failover_timeout=wait, _tuning=ONE_AT_A_TIME
        ) as cluster:
            running = cluster.submit(f"SELECT pg_sleep(60) /* {text} */", read=True)
            early = [cluster.submit("SELECT 1", read=True) for _ in range(3)]
            await node.start()
            await started(node, text)
            late = [cluster.submit("SELECT 1", read=True) for _ in range(3)]
            await anyio.sleep(wait / 2)
            begun = time.monotonic()
            await node.kill()
            for operation in (*early, *late, running):
                with pytest.raises(pgha.NoNodeAvailable) as caught, within(wait + PATIENCE):
                    await operation
                assert wait * 0.95 < time.monotonic() - begun < wait + PATIENCE / 2
                assert pgha.error_info(caught.value).attempts == (1 if operation is running else 0)


# Lanes


async def test_idle_lanes_are_closed_down_to_the_usual_number(server: Node) -> None:
    """Closing idle lanes never leaves fewer usable lanes than ``read_connections``."""
    tuning = Tuning(idle_lane=0.3, head_of_line=60)
    async with cluster_of(server, read_connections=2, _tuning=tuning) as cluster:
        lanes = cluster._dispatcher._nodes[server.name].sets["read"].lanes
        await eventually(lambda: len(lanes) == 2)

        def usable() -> int:
            return sum(lane.broken is None for lane in lanes)

        key = random.randrange(1 << 31)
        operations = []
        with within(), psycopg.connect(server.dsn) as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [key])
            # Each query blocks a lane, so that the next query needs another lane; all queries end together.
            while cluster.nodes[server.name].read_connections < 6:
                query = "SELECT pg_advisory_xact_lock_shared(%s)"
                operations.append(cluster.submit(query, [key], read=True))
                await anyio.sleep(0.07)
            connection.rollback()
            for one in operations:
                await one
        fewest = 100

        def look() -> bool:
            nonlocal fewest
            fewest = min(fewest, usable())
            return fewest <= 2 and cluster.nodes[server.name].read_connections == 2

        await eventually(look)
        until = time.monotonic() + 1
        while time.monotonic() < until:
            look()
            await anyio.sleep(0.002)
        assert fewest == 2
        assert await cluster.fetch_value("SELECT 1") == 1
        assert cluster.nodes[server.name].state == "up"


# Nodes that come and go


async def test_a_node_that_is_removed_twice_at_once() -> None:
    text = unique("sleep")
    async with standalone(2) as nodes, cluster_of(*nodes, min_ready=2) as cluster:
        first, second = nodes
        pinned = pgha.pin(second.name)
        running = cluster.submit(f"SELECT pg_sleep(2) /* {text} */", read=True, route=pinned)
        await started(second, text)
        sent: list[pgha.SendInfo] = []
        with within():
            async with anyio.create_task_group() as group:
                group.start_soon(cluster.remove_node, second.name)
                await eventually(lambda: cluster._dispatcher._nodes[second.name].leaving)
                for _ in range(3):
                    with pytest.raises(pgha.ConfigError, match="no node is called"):
                        await cluster.remove_node(second.name)
                # Its name is taken until the removed node has gone.
                with pytest.raises(pgha.ConfigError, match="already"):
                    cluster.add_node(pgha.Node(second.dsn, second.name))
                late = [
                    cluster.submit("SELECT 1", read=read, route=pinned, on_send=sent.append)
                    for read in (True, False)
                ]
                assert (await running).node == second.name
            for one in late:
                with pytest.raises(pgha.NoNodeAvailable, match="was removed") as caught:
                    await one
                assert pgha.error_info(caught.value) == pgha.ErrorInfo(None, None, 0, "not applied")
            assert sent == []
            assert list(cluster.nodes) == [first.name]
            cluster.add_node(pgha.Node(second.dsn, second.name))
            await cluster.wait_ready(2)
            for call in (cluster.fetch, cluster.execute):
                assert (await call("SELECT 1", route=pinned)).node == second.name
            await cluster.remove_node(second.name)
            assert list(cluster.nodes) == [first.name]


async def test_of_several_hosts_none_is_added_when_one_is_there(server: Node) -> None:
    async with pgha.open_cluster(server.dsn) as cluster:
        before = list(cluster.nodes)
        for hosts in (f"127.0.0.1:1,127.0.0.1:{server.port}", f"127.0.0.1:{server.port},127.0.0.1:1"):
            with pytest.raises(pgha.ConfigError, match="already"):
                cluster.add_node(f"postgresql://postgres@{hosts}/postgres")
            assert list(cluster.nodes) == before
        # The name of the other node is free.
        cluster.add_node("postgresql://postgres@127.0.0.1:1/postgres")
        assert len(cluster.nodes) == 2
        assert await cluster.fetch_value("SELECT 1") == 1


async def test_the_application_name_of_a_conninfo_is_kept(server: Node) -> None:
    own = unique("own")
    async with nothing_left(server) as application:
        conninfo = make_conninfo(server.dsn, application_name=own)
        async with pgha.open_cluster(conninfo, application_name=application) as cluster:
            for call in (cluster.fetch, cluster.execute):
                assert (await call("SHOW application_name")).value() == own
            assert len(await backends(server, own)) >= 3, "lanes for reads and writes, and the monitor"
            assert await backends(server, application) == []
        cluster_wide = pgha.open_cluster(server.dsn, application_name=application)
        async with cluster_wide as cluster:
            assert await cluster.fetch_value("SHOW application_name") == application


# Races


class Track:
    """A stand-in that collects the placed operations, and sends nothing."""

    loop: Any = None

    def __init__(self) -> None:
        self.placed: list[Operation[Any]] = []

    def place(self, operation: Operation[Any], now: float) -> None:
        self.placed.append(operation)

    def abandon_leg(self, operation: Operation[Any]) -> None:
        operation.finish(None, LegLost("another node was faster"))

    def give_up(self, operation: Operation[Any], why: object) -> None: ...

    def left(self, operation: Operation[Any]) -> None: ...

    def in_doubt(self, operation: Operation[Any]) -> InDoubtOutcome:
        raise AssertionError("a read is never in doubt")

    def unretrieved(self, error: BaseException) -> None: ...


class Race:
    """An operation that runs on nodes a, b and so on, and the outcomes of its legs."""

    MOST = 5

    def __init__(self) -> None:
        self.track = Track()
        times = Timers(time.monotonic, Door(lambda: False).enter)
        self.tracker = Tracker(times, time.monotonic, ClusterLog(times, time.monotonic))
        self.races = Races(self.track, self.track, self.tracker, time.monotonic, self.MOST)
        statement = Compiler(AdaptersMap(psycopg.adapters)).compile("SELECT 1", None)
        request = Request((statement,), READ, True, False, pgha.fastest(), tuple_row)
        self.operation: Operation[Any] = Operation(self.track, request, 0.0)

    def run(self, *ends: BaseException | str) -> None:
        """Run one round: each leg is sent once, and ends with an error or a result."""
        self.track.placed.clear()
        names = "abcdefg"[: len(ends)]
        self.races.start(self.operation, names, 0.0)
        legs = list(self.track.placed)
        self.track.placed.clear()
        assert [leg.need.node for leg in legs] == list(names)
        for leg, name, end in zip(legs, names, ends, strict=True):
            if not isinstance(end, pgha.NoNodeAvailable):
                leg.attempts.append(AttemptState(name, 0.0))
            if isinstance(end, str):
                self.tracker.succeed(leg, end)
            else:
                annotate(end, ErrorInfo(name, None, len(leg.attempts), "not applied"))
                self.tracker.fail(leg, end, Outcome.NOT_APPLIED, noted=True)

    @property
    def goes_on(self) -> bool:
        """Whether the operation has no answer yet and is to be placed like any other."""
        return self.track.placed == [self.operation] and not self.operation.done


def sql_error() -> psycopg.Error:
    return psycopg.errors.UndefinedTable("no such table")


def lost() -> psycopg.Error:
    """Return the error of a leg that was not to be sent again."""
    return psycopg.OperationalError("a: the connection was lost, and nothing was applied")


NO_ANSWER: dict[str, Callable[[], psycopg.Error]] = {
    "lost": lambda: LegLost("b: gone"),
    "lost at last": lost,
    "no node": lambda: pgha.NoNodeAvailable("node c was removed"),
}


@pytest.mark.parametrize("first", NO_ANSWER)
@pytest.mark.parametrize("second", NO_ANSWER)
def test_legs_without_an_answer_are_no_answer(first: str, second: str) -> None:
    race = Race()
    race.run(NO_ANSWER[first](), NO_ANSWER[second]())
    assert race.goes_on
    assert race.operation.legs is None
    # Such errors do not hide another leg's answer from the caller either.
    race.run(NO_ANSWER[first](), "rows", NO_ANSWER[second]())
    assert race.operation.value == "rows"


@pytest.mark.parametrize("other", NO_ANSWER)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_error_of_sql_is_the_answer_when_the_others_are_lost(other: str, at: int) -> None:
    race, error = Race(), sql_error()
    ends: list[BaseException] = [NO_ANSWER[other]() for _ in range(2)]
    ends.insert(at, error)
    race.run(*ends)
    assert race.operation.done
    assert race.operation.failure is error
    race.operation.retrieve()


def test_the_attempts_of_all_legs_count() -> None:
    race = Race()
    race.run(sql_error(), sql_error(), sql_error())
    assert [one.node for one in race.operation.attempts] == ["a", "b", "c"]
    race.operation.retrieve()


def test_a_race_that_is_lost_again_and_again_ends() -> None:
    race = Race()
    race.run(LegLost("a"), LegLost("b"))
    assert race.goes_on
    race.run(LegLost("a"), LegLost("b"))
    assert race.goes_on
    assert len(race.operation.attempts) == 4
    race.run(LegLost("a"), LegLost("b"))
    assert len(race.operation.attempts) == 6 > Race.MOST
    assert isinstance(race.operation.failure, psycopg.OperationalError)
    assert race.track.placed == []
    race.operation.retrieve()


async def test_an_error_of_all_counts_each_leg() -> None:
    async with standalone(2) as nodes, cluster_of(*nodes, min_ready=2) as cluster:
        await cluster.wait_ready()
        operation = cluster.submit("SELECT * FROM nowhere", read=True, route=pgha.fastest())
        with pytest.raises(psycopg.errors.UndefinedTable), within():
            await operation
        assert sorted(one.node for one in operation.attempts) == ["n1", "n2"]
