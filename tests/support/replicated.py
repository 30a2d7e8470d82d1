"""Helpers of tests with replicas: a table t, its rows, and the processes that wait for a standby."""

from __future__ import annotations

from pgha.chaos import Node
from pgha.chaos._topologies.replicas import Replicas


async def ids(node: Node) -> list[int]:
    return [row[0] for row in await node.execute("SELECT id FROM t ORDER BY id")]


async def put(node: Node, number: int) -> None:
    await node.execute("INSERT INTO t VALUES (%s)", [number])


async def fill(nodes: Replicas) -> None:
    """Create a table t with row 1 on all nodes."""
    await nodes.primary.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)")
    await nodes.wait_replicated()


async def everywhere(nodes: Replicas, numbers: list[int]) -> None:
    """Wait until all nodes have replayed the rows, and check that the rows are these."""
    await nodes.wait_replicated()
    for node in nodes:
        assert await ids(node) == numbers, node.name


async def waiting(node: Node) -> list[int]:
    """Return the processes that wait for a standby."""
    rows = await node.execute("SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
    return [row[0] for row in rows]


async def waits(node: Node) -> bool:
    return bool(await waiting(node))
