"""`Cluster.ledger`: installed, inspected, pruned and removed, on real servers, while other clients use it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeAlias, TypeVar

import anyio
import psycopg
import pytest
from anyio.lowlevel import checkpoint
from support.common import PATIENCE, asyncio_only, both_versions, eventually, within
from support.keyed import TABLE, WRITE, ids, keys_of, one_node
from support.servers import standalone

import pgha
from pgha._ledger.admin import LedgerHost
from pgha.chaos import Node, masters, replicas

pytestmark = [pytest.mark.anyio, both_versions]

T = TypeVar("T")
Act: TypeAlias = Callable[[pgha.Ledger], Awaitable[object]]

DAY = 86400.0
MADE_UP = (
    "INSERT INTO pgha.ledger SELECT {system}, gen_random_uuid(), '\\x00',"
    " clock_timestamp() - make_interval(secs => %s) FROM generate_series(1, %s)"
)
OWN = "(SELECT system_identifier FROM pg_control_system())"


async def age(node: Node, seconds: float, count: int, *, system: str = OWN) -> None:
    """Insert ``count`` keys whose deadlines passed ``seconds`` ago."""
    await node.execute(MADE_UP.format(system=system), [seconds, count])


@contextmanager
def inserting(node: Node) -> Iterator[int]:
    """Hold a transaction open that has inserted a key, and yield the process id of its backend."""
    with psycopg.connect(node.dsn) as connection:
        connection.execute(
            f"INSERT INTO pgha.ledger VALUES ({OWN}, gen_random_uuid(), '', clock_timestamp())"
        )
        yield connection.info.backend_pid
        connection.rollback()


async def schema_of(node: Node) -> list[tuple[Any, ...]]:
    return await node.execute("SELECT 1 FROM pg_namespace WHERE nspname = 'pgha'")


async def test_made_twice_and_removed_twice(version: int) -> None:
    async with one_node(version, installed=False) as (node, cluster):
        for _ in range(2):
            status = (await cluster.ledger.install())[node.name]
            assert (status.installed, status.problem, status.keys, status.prunable) == (True, "", 0, True)
        await age(node, 2 * DAY, 5)
        status = (await cluster.ledger.status())[node.name]
        assert status.keys == 5
        assert status.oldest is not None and status.newest is not None and status.bytes > 0
        assert await cluster.ledger.uninstall() == {node.name: True}
        assert await cluster.ledger.uninstall() == {node.name: False}
        assert await schema_of(node) == []


async def test_many_make_it_at_once(version: int) -> None:
    async with one_node(version, installed=False) as (node, cluster):
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(cluster.ledger.install)
        assert (await cluster.ledger.status())[node.name].problem == ""


async def test_a_schema_that_others_use_stays(version: int) -> None:
    async with one_node(version) as (node, cluster):
        await node.execute("CREATE TABLE pgha.somebody (id int)")
        assert await cluster.ledger.uninstall() == {node.name: True}
        assert await node.execute("SELECT * FROM pgha.somebody") == []


async def test_keys_of_the_last_hour_are_not_thrown_away(version: int) -> None:
    async with one_node(version) as (node, cluster):
        await cluster.execute(WRITE, ["a"], idempotency_key=pgha.new_idempotency_key())
        with pytest.raises(pgha.LedgerError, match="1 keys were used within the last hour"):
            await cluster.ledger.uninstall()
        assert await keys_of(node) == 1
        assert await cluster.ledger.uninstall(force=True) == {node.name: True}


async def test_what_is_old_is_pruned_and_nothing_else(version: int) -> None:
    async with one_node(version) as (node, cluster):
        await age(node, 8 * DAY, 20_000)
        await age(node, 6 * DAY, 3)
        await cluster.execute(WRITE, ["a"], idempotency_key=pgha.new_idempotency_key())
        pruned = (await cluster.ledger.prune())[node.name]
        assert (pruned.deleted, pruned.reason, pruned.in_the_way) == (20_000, "", ())
        assert await keys_of(node) == 4
        assert (await cluster.ledger.prune(timedelta(days=1)))[node.name].deleted == 3
        # Keys of the last hour are kept, even with an age of 0.
        await age(node, 3500, 2)
        await age(node, 3700, 2)
        assert (await cluster.ledger.prune(0))[node.name].deleted == 2
        assert await keys_of(node) == 3


async def test_rows_of_masters_that_are_gone_are_pruned_a_day_later(version: int) -> None:
    async with one_node(version) as (node, cluster):
        await age(node, 7.5 * DAY, 3, system="42")
        await age(node, 8.5 * DAY, 5, system="42")
        assert (await cluster.ledger.prune())[node.name].deleted == 5


async def test_pruned_while_writes_run_and_by_two_at_once(version: int) -> None:
    async with one_node(version) as (node, cluster):
        await age(node, 8 * DAY, 50_000)
        written = 0
        done = anyio.Event()

        async def write(writer: int) -> None:
            nonlocal written
            while not done.is_set():
                await cluster.execute(
                    WRITE, [f"{writer}-{written}"], idempotency_key=pgha.new_idempotency_key()
                )
                written += 1

        deleted: list[int] = []

        async def prune() -> None:
            result = (await cluster.ledger.prune())[node.name]
            assert result.reason in ("", "another program is pruning the ledger: try again later")
            deleted.append(result.deleted)

        with within(60):
            async with anyio.create_task_group() as tasks:
                for writer in range(4):
                    tasks.start_soon(write, writer)
                await eventually(lambda: written > 50)
                async with anyio.create_task_group() as pruners:
                    for _ in range(3):
                        pruners.start_soon(prune)
                before = written
                await eventually(lambda: written > before + 50)
                done.set()
            await cluster.ledger.prune()
        assert max(deleted) > 0
        assert await keys_of(node) == written == len(set(await ids(node)))


async def test_an_old_transaction_that_may_still_insert_is_in_the_way(version: int) -> None:
    """A transaction that passed its guard before the cut-off may still insert, and so prevents pruning."""
    async with one_node(version) as (node, cluster):
        await age(node, 2 * DAY, 5)
        with inserting(node) as pid:
            # With one hour kept, every transaction that has begun by now may be one that still inserts.
            pruned = (await cluster.ledger.prune(0, patience=0.2))[node.name]
            assert (pruned.deleted, pruned.in_the_way) == (0, (pid,))
            assert "older transactions still hold the ledger" in pruned.reason
            # With one week kept, the transaction is too young to matter.
            assert (await cluster.ledger.prune(patience=0.2))[node.name].reason == ""
            assert await keys_of(node) == 5
        assert (await cluster.ledger.prune(0))[node.name].deleted == 5


async def test_a_role_without_rights_is_told(version: int) -> None:
    async with one_node(version, TABLE + "; CREATE ROLE poor LOGIN") as (node, cluster):
        await age(node, 8 * DAY, 5)
        poor_dsn = psycopg.conninfo.make_conninfo(node.dsn, user="poor")
        async with pgha.open_cluster(pgha.Node(poor_dsn, "n")) as poor:
            assert "lacks" in (await poor.ledger.status())["n"].problem
            for call in (poor.ledger.prune, poor.ledger.uninstall):
                with pytest.raises(pgha.LedgerError, match="the role may not"):
                    await call()
            with pytest.raises(pgha.LedgerError, match="the role may not"):
                await poor.ledger.uninstall(force=True)
            await cluster.ledger.install(grant_to=["poor"])
            assert (await poor.ledger.prune())["n"].deleted == 5
        assert await keys_of(node) == 0


@pytest.mark.parametrize("wrong", [{"grant_to": "poor"}, {"grant_to": [""]}, {"grant_to": [7]}])
async def test_wrong_roles(version: int, wrong: dict[str, Any]) -> None:
    async with one_node(version, installed=False) as (node, cluster):
        with pytest.raises(pgha.ConfigError):
            await cluster.ledger.install(**wrong)
        with pytest.raises(pgha.ConfigError, match="no node is called 'x'"):
            await cluster.ledger.install(nodes=["x"])
        with pytest.raises(pgha.ConfigError, match="older_than"):
            await cluster.ledger.prune(-1)
        assert not (await cluster.ledger.status())[node.name].installed


async def test_masters_are_done_all_or_none(version: int) -> None:
    async with masters(2, version=version) as nodes:
        named = [pgha.Node(node.dsn, node.name) for node in nodes]
        async with pgha.open_cluster(*named, min_ready=2) as cluster:
            await nodes[1].kill()
            await eventually(lambda: cluster.nodes[nodes[1].name].state not in ("up", "suspect"))
            with pytest.raises(pgha.LedgerError, match=f"{nodes[1].name} is .* nothing was done"):
                await cluster.ledger.install()
            status = await cluster.ledger.status()
            assert not status[nodes[0].name].installed
            assert "the node is" in status[nodes[1].name].problem
            await nodes[1].start()
            await eventually(lambda: cluster.nodes[nodes[1].name].state == "up", PATIENCE)
            installed = await cluster.ledger.install()
            assert sorted(installed) == sorted(nodes.names)


async def test_an_error_tells_which_nodes_are_done(version: int) -> None:
    async with standalone(2, version=version) as nodes:
        first, second = nodes
        await second.execute("CREATE ROLE poor LOGIN")
        poor_dsn = psycopg.conninfo.make_conninfo(second.dsn, user="poor")
        named = [pgha.Node(first.dsn, "first"), pgha.Node(poor_dsn, "second")]
        async with pgha.open_cluster(*named, min_ready=2) as cluster:
            ledger = cluster.ledger
            with pytest.raises(pgha.LedgerError, match="second: the role may not create") as caught:
                await ledger.install()
            assert done(caught.value) == "first"
            async with pgha.open_cluster(second.dsn) as owner:
                await owner.ledger.install()
            with pytest.raises(pgha.LedgerError, match="second: the role may not delete") as caught:
                await ledger.prune()
            assert done(caught.value) == "first"
            with pytest.raises(pgha.LedgerError, match="second: the role may not drop") as caught:
                await ledger.uninstall(force=True)
            assert done(caught.value) == "first"
            with pytest.raises(pgha.LedgerError) as caught:
                await ledger.install(nodes=["second"], grant_to=["poor"])
            assert not hasattr(caught.value, "__notes__")


def done(error: BaseException) -> str:
    (note,) = error.__notes__
    start, _, names = note.partition(": ")
    assert start.startswith("already done")
    return names


async def test_a_standby_has_its_primarys(version: int) -> None:
    async with replicas(1, version=version) as nodes:
        named = [pgha.Node(node.dsn, node.name) for node in nodes]
        async with pgha.open_cluster(*named, min_ready=2) as cluster:
            primary, standby = nodes.primary, nodes.standbys[0]
            assert list(await cluster.ledger.install()) == [primary.name]
            await nodes.wait_replicated()
            status = await cluster.ledger.status()
            assert status[standby.name].installed and status[standby.name].role == "standby"
            with pytest.raises(pgha.LedgerError, match="accepts writes"):
                await cluster.ledger.prune(nodes=[standby.name])


class Leaving:
    """A ledger's host whose caller is cancelled at call number ``at``: before that call, or during it."""

    def __init__(self, host: LedgerHost, at: int, *, asked: bool) -> None:
        self._host = host
        self._to_come = at
        self._asked = asked
        self.leave: Callable[[], object] = lambda: None
        self.left = False

    async def _passed(self, call: Awaitable[T]) -> T:
        self._to_come -= 1
        if self._to_come:
            return await call
        self.left = True
        async with anyio.create_task_group() as tasks:
            if self._asked:
                tasks.start_soon(self._soon)
            else:
                self.leave()
            answer = await call
        return answer  # noqa: RET504 - inside the block, the type checker assumes that the group swallows errors

    async def _soon(self) -> None:
        await checkpoint()
        self.leave()

    async def seen(self) -> None:
        await self._passed(self._host.seen())

    async def ask(self, node: str, query: str, params: Sequence[Any] = ()) -> pgha.Result[Any]:
        return await self._passed(self._host.ask(node, query, params))

    async def run(self, node: str, statements: Sequence[Any]) -> list[pgha.Result[Any]]:
        return await self._passed(self._host.run(node, statements))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)


async def by_scope(leaving: Leaving, act: Act) -> None:
    with anyio.CancelScope() as scope:
        leaving.leave = scope.cancel
        await act(pgha.Ledger(leaving))


async def natively(leaving: Leaving, act: Act) -> None:
    async def body() -> None:
        await act(pgha.Ledger(leaving))

    task = asyncio.ensure_future(body())
    leaving.leave = task.cancel
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


Leave: TypeAlias = Callable[[Leaving, Act], Awaitable[None]]
ACTS: dict[str, Act] = {
    "install": lambda ledger: ledger.install(),
    "status": lambda ledger: ledger.status(),
    "prune": lambda ledger: ledger.prune(DAY),
    "uninstall": lambda ledger: ledger.uninstall(force=True),
}


DONE = {"install": (True, 0), "status": (True, 3), "prune": (True, 0), "uninstall": (False, 0)}


async def leave_at_every_await(
    node: Node, cluster: pgha.Cluster, name: str, leave: Leave, asked: bool
) -> None:
    """Check that after a cancellation at any await the ledger is whole or absent.

    Repeating the action then completes it.
    """
    act, at, leaving = ACTS[name], 0, None
    while leaving is None or leaving.left:
        at += 1
        if name != "install":
            await cluster.ledger.install()
            await age(node, 2 * DAY, 3)

        leaving = Leaving(cluster.ledger._host, at, asked=asked)
        with within():
            await leave(leaving, ACTS[name])
        status = (await cluster.ledger.status())[node.name]
        assert status.problem == "" or not status.installed
        assert status.keys in (None, 0, 3)
        await act(cluster.ledger)
        status = (await cluster.ledger.status())[node.name]
        assert (status.installed, status.keys or 0) == DONE[name]
        assert bool(await schema_of(node)) == status.installed
        await cluster.ledger.uninstall(force=True)
    assert at > 3


@pytest.mark.parametrize("asked", [False, True])
async def test_leaving_it_at_every_await(version: int, asked: bool) -> None:
    async with one_node(version, installed=False) as (node, cluster):
        for name in ACTS:
            await leave_at_every_await(node, cluster, name, by_scope, asked)
        await cluster.ledger.install()
        await cluster.execute(WRITE, ["a"], idempotency_key=pgha.new_idempotency_key())


@asyncio_only
@pytest.mark.parametrize("asked", [False, True])
async def test_leaving_it_at_every_await_natively(version: int, asked: bool) -> None:
    async with one_node(version, installed=False) as (node, cluster):
        for name in ACTS:
            await leave_at_every_await(node, cluster, name, natively, asked)
