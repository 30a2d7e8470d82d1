"""A commit that did not wait for its synchronous standby is not acknowledged, whatever its text does."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from support.common import both_versions, cluster_of, within
from support.keyed import replicating
from support.servers import standalone

import pgha
from pgha.chaos import Node

pytestmark = [pytest.mark.anyio, both_versions]

INSERT = "INSERT INTO t VALUES (1) /* waits */"
HUSH = "set_config('client_min_messages', 'error', {local})"


@asynccontextmanager
async def no_standby(version: int) -> AsyncGenerator[tuple[Node, pgha.Cluster]]:
    """Yield a primary whose commits wait for a synchronous standby that does not exist, and a cluster."""
    async with standalone(version=version) as nodes:
        node = nodes[0]
        await node.execute("CREATE TABLE t (i int)")
        await node.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        await node.execute("SELECT pg_reload_conf()")
        try:
            async with cluster_of(node) as cluster:
                yield node, cluster
        finally:
            await node.execute("ALTER SYSTEM RESET synchronous_standby_names")
            await node.execute("SELECT pg_reload_conf()")


async def not_acknowledged(node: Node, cluster: pgha.Cluster, *batch: Any) -> None:
    """Run the batch, break its wait off, and check that the caller gets `CommitInDoubt`."""
    errors: list[BaseException] = []

    async def write() -> None:
        with pytest.raises(pgha.CommitInDoubt) as caught:
            if len(batch) == 1:
                await cluster.execute(batch[0])
            else:
                await cluster.execute_batch(batch)
        errors.append(caught.value)

    with within():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            pid = await replicating(node, "")
            await node.execute("SELECT pg_cancel_backend(%s)", [pid])
    (error,) = errors
    assert "standby" in str(error)


HUSHING: Sequence[Sequence[Any]] = (
    (INSERT,),
    ("SET LOCAL client_min_messages = error", INSERT),
    (INSERT, 'set local "Client_Min_Messages" to ERROR'),
    ("SELECT " + HUSH.format(local="true"), INSERT),
    ("SELECT " + HUSH.format(local="false"), INSERT),
    (("SELECT set_config(%s, %s, true)", ["client_min_messages", "error"]), INSERT),
    (("UPDATE pg_settings SET setting = %s WHERE name = %s", ["error", "client_min_messages"]), INSERT),
    ("SET LOCAL client_min_messages = error", "LOCK t", INSERT),
    ("INSERT INTO t SELECT 1 FROM " + HUSH.format(local="true"),),
    (f"DO $$BEGIN PERFORM {HUSH.format(local='false')}; INSERT INTO t VALUES (1); END$$",),
)


@pytest.mark.parametrize("batch", HUSHING)
async def test_a_text_that_suppresses_the_servers_warning(version: int, batch: Sequence[Any]) -> None:
    async with no_standby(version) as (node, cluster):
        await not_acknowledged(node, cluster, *batch)


async def test_a_session_that_was_made_silent_by_a_text_is_silent_no_more(version: int) -> None:
    async with no_standby(version) as (node, cluster):
        await cluster.execute("SELECT " + HUSH.format(local="false"))
        await not_acknowledged(node, cluster, INSERT)
