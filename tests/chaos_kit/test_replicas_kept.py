"""Replicas whose primary stays the same: one set of nodes for all tests of the module."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.to_thread
import psutil
import psycopg
import pytest
from anyio.from_thread import start_blocking_portal
from anyio.lowlevel import checkpoint
from support.common import eventually, within
from support.replicated import everywhere, fill, ids, put, waiting, waits

from pgha.chaos import ChaosError
from pgha.chaos._topologies import replica_data
from pgha.chaos._topologies.replicas import Replicas, replicas

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def kept() -> Iterator[Replicas]:
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(replicas(2)) as nodes:
        yield nodes


@pytest.fixture
async def nodes(kept: Replicas) -> AsyncIterator[Replicas]:
    """Prepare replicas that all have a table t with row 1, and repair them afterwards."""
    await fill(kept)
    yield kept
    for node in kept:
        await (node.thaw() if node.running else node.start())
    await kept.set_synchronous(0)
    for node in kept.standbys:
        await kept.resume_replay(node)
        await kept.reconnect(node)
    await kept.primary.execute("DROP TABLE t")


async def test_a_standby_that_was_away_catches_up(nodes: Replicas) -> None:
    n2, n3 = nodes.standbys
    await n2.kill()
    await n3.freeze()
    await put(nodes.primary, 2)
    await nodes.wait_replicated()  # nodes that are down or frozen do not count
    await n2.start()
    await n3.thaw()
    await everywhere(nodes, [1, 2])
    for node in nodes.standbys:
        await node.restart()
    await put(nodes.primary, 3)
    await everywhere(nodes, [1, 2, 3])


async def test_a_cancelled_wait_is_a_warning_and_the_row_is_there(nodes: Replicas) -> None:
    n1, n2, _ = nodes
    await nodes.set_synchronous(1, ["n2"])
    await n2.freeze()
    notices: list[tuple[str | None, str | None]] = []

    def write() -> None:
        with psycopg.connect(n1.dsn, autocommit=True) as connection:
            connection.add_notice_handler(lambda n: notices.append((n.severity_nonlocalized, n.sqlstate)))
            connection.execute("INSERT INTO t VALUES (2)")

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, write)
        await eventually(functools.partial(waits, n1))
        await n1.execute("SELECT pg_cancel_backend(%s)", [(await waiting(n1))[0]])
    assert notices == [("WARNING", "01000")]
    assert await ids(n1) == [1, 2]


async def test_the_first_commit_after_set_synchronouswaits(nodes: Replicas) -> None:
    """The server's processes read the setting one after the other: the call returns when the last one has."""
    n1, n2, _ = nodes
    await nodes.disconnect(n2)
    for turn in range(5):
        await nodes.set_synchronous(1, ["n2"])
        with anyio.move_on_after(0.1) as scope:
            await put(n1, 2)
        assert scope.cancelled_caught, f"turn {turn}"
        await nodes.set_synchronous(0)
        await put(n1, 2)


async def test_set_synchronouswaits_for_the_checkpointer(nodes: Replicas) -> None:
    """The checkpointer decides whether commits wait: until it has read the setting, they would not."""
    n1, n2, _ = nodes
    rows = await n1.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
    await n1.freeze_backend(rows[0][0])
    with anyio.move_on_after(1) as scope:
        await nodes.set_synchronous(1, ["n2"])
    assert scope.cancelled_caught
    await n1.thaw_backend(rows[0][0])
    await nodes.set_synchronous(1, ["n2"])
    await n2.freeze()
    async with anyio.create_task_group() as group:
        group.start_soon(put, n1, 2)
        await eventually(functools.partial(waits, n1))
        await n2.thaw()


async def test_disconnected_and_reconnected(nodes: Replicas) -> None:
    n1, n2, n3 = nodes
    for number in range(2, 5):
        await nodes.disconnect(n2)
        await put(n1, number)
        await n2.restart()
        await nodes.wait_replicated()
        assert await ids(n3) == [*range(1, number + 1)]
        assert await ids(n2) == [*range(1, number)]
        await nodes.reconnect(n2)
        await everywhere(nodes, [*range(1, number + 1)])


async def test_what_makes_no_sense_says_so(nodes: Replicas) -> None:
    n1, n2, _ = nodes
    with pytest.raises(ChaosError, match="'n9' is not one of these nodes: n1, n2, n3"):
        await nodes.promote("n9")
    with pytest.raises(ChaosError, match="n1 is the primary, not a standby"):
        await nodes.promote(n1)
    with pytest.raises(ChaosError, match="n1 is the primary: promote another"):
        await nodes.rejoin(n1)
    with pytest.raises(ChaosError, match="how must be 'rewind', 'basebackup' or 'auto', not 'force'"):
        await nodes.rejoin(n2, how="force")  # type: ignore[arg-type]
    with pytest.raises(ChaosError, match="3 synchronous standbys of 2"):
        await nodes.set_synchronous(3)
    with pytest.raises(ChaosError, match="1 synchronous standbys of 0"):
        await nodes.set_synchronous(1, ["n1"])
    with pytest.raises(ChaosError, match="'n9' is not one"):
        await nodes.set_synchronous(1, ["n9"])
    await n2.freeze()
    with pytest.raises(ChaosError, match="n2 frozen> does not answer: start or thaw"):
        await nodes.promote(n2)
    await n2.kill()
    with pytest.raises(ChaosError, match="n2 down> does not answer"):
        await nodes.disconnect(n2)
    await n1.freeze()
    for call in (nodes.wait_replicated(), nodes.set_synchronous(1), nodes.rejoin(n2)):
        with pytest.raises(ChaosError, match="n1 frozen> is the primary: start or thaw it, or promote"):
            await call


def tool_runs() -> bool:
    """Whether pg_basebackup runs; the process of the primary that serves it merely has the same name."""
    programs = psutil.Process().children(recursive=True)
    return any(one.name() == "pg_basebackup" and one.status() != psutil.STATUS_ZOMBIE for one in programs)


async def test_a_cancelled_base_backup_of_a_frozen_primary(
    nodes: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program would wait for the primary; until the new copy is complete, the node keeps the old one."""
    n1, n2, _ = nodes
    copy = replica_data.base_backup

    async def freeze_and_copy(*words: Any) -> None:
        await n1.freeze()
        await copy(*words)

    monkeypatch.setattr(replica_data, "base_backup", freeze_and_copy)
    await n2.kill()
    with within(60), anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(functools.partial(nodes.rejoin, n2, how="basebackup"))
            await eventually(tool_runs, 30)
            scope.cancel()
    monkeypatch.undo()
    assert not tool_runs()
    assert not n2.running
    await n1.thaw()
    await n2.start()
    await put(n1, 2)
    await everywhere(nodes, [1, 2])
    await n2.kill()
    assert await nodes.rejoin(n2, how="basebackup") == "basebackup"
    await everywhere(nodes, [1, 2])


async def test_cancelled_when_the_new_copy_is_there(nodes: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node is a standby by then: started as a primary, it would diverge from the others unnoticed."""
    n1, n2, _ = nodes
    scope, copy = anyio.CancelScope(), replica_data.base_backup

    async def copy_and_cancel(*words: Any) -> None:
        await copy(*words)
        scope.cancel()
        await checkpoint()

    monkeypatch.setattr(replica_data, "base_backup", copy_and_cancel)
    await n2.kill()
    with scope:
        await nodes.rejoin(n2, how="basebackup")
    assert scope.cancelled_caught
    assert not n2.running
    await n2.start()
    await put(n1, 2)
    await everywhere(nodes, [1, 2])
