"""Writes that get 25006 although their node counts as a primary, and codes that a function passes on."""

from __future__ import annotations

from typing import Any

import anyio
import psycopg
import pytest
from support.common import PATIENCE, cluster_of
from support.servers import standalone

import pgha
from pgha._node.node import ManagedNode

pytestmark = pytest.mark.anyio


async def test_connections_that_alone_are_read_only() -> None:
    """New connections are read-only, by a setting of the role; the monitor's older one is not."""
    async with standalone(2) as nodes, cluster_of(*nodes, min_ready=2) as cluster:
        await nodes.execute("CREATE TABLE t (id text)")
        first = nodes[(await cluster.fetch("SELECT 1")).node]
        await first.execute("ALTER ROLE ALL SET default_transaction_read_only = on")
        with anyio.fail_after(PATIENCE):
            for number in range(20):
                assert (await cluster.execute("INSERT INTO t VALUES (%s)", [str(number)])).node != first.name
        assert [status.role for status in cluster.nodes.values()] == ["primary", "primary"]


RAISING = """
    CREATE FUNCTION raising(code text) RETURNS int LANGUAGE plpgsql AS $$
        BEGIN RAISE 'far away' USING ERRCODE = code; END $$;
"""


@pytest.mark.parametrize("state", ["25006", "57P01", "57P03"])
async def test_statements_that_pass_on_a_code_move_no_writes(state: str) -> None:
    """Another server's role or shutdown, passed on by a function all the time, is only its caller's error."""
    async with (
        standalone(2) as nodes,
        cluster_of(*nodes, min_ready=2) as cluster,
        cluster.events(buffer=10_000) as events,
    ):
        await nodes.execute("CREATE TABLE t (id text)")
        await nodes.execute(RAISING)
        used: set[str] = set()
        with anyio.fail_after(60):
            for number in range(50):
                good = [cluster.submit("INSERT INTO t VALUES (%s)", [str(number)]) for _ in range(4)]
                with pytest.raises(psycopg.Error, match="far away") as caught:
                    await cluster.execute("SELECT raising(%s)", [state])
                assert caught.value.sqlstate == state
                assert pgha.error_info(caught.value).attempts == 1
                assert pgha.error_info(caught.value).outcome == "not applied"
                used |= {(await one).node for one in good}
        assert len(used) == 1
        assert cluster.statistics().retried == 0
        changes = (pgha.NodeStateChanged, pgha.RoleChanged)
        while True:
            try:
                assert not isinstance(events.receive_nowait(), changes)
            except anyio.WouldBlock:
                break


async def test_a_node_that_is_removed_while_it_is_asked_for_its_role(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that waits for the node's ping goes to another node."""
    async with standalone(2) as nodes, cluster_of(*nodes, min_ready=2, ping_interval=60) as cluster:
        first = nodes[(await cluster.execute("SELECT 1")).node]
        (other,) = (node for node in nodes if node is not first)
        await first.execute(RAISING)
        await other.execute(RAISING.replace("RAISE 'far away' USING ERRCODE = code", "RETURN 7"))
        asked = anyio.Event()
        monkeypatch.setattr(ManagedNode, "request_ping", lambda node: asked.set())
        operation = cluster.submit("SELECT raising('25006')")
        with anyio.fail_after(PATIENCE):
            await asked.wait()
            assert not operation.done
            await cluster.remove_node(first.name)
            result: pgha.Result[Any] = await operation
        assert (result.value(), result.node, result.attempts) == (7, other.name, 2)
