"""A keyed write whose caller is cancelled at the very moment when the answer arrives."""

from __future__ import annotations

import time

import anyio
import pytest
from support.common import PATIENCE, eventually
from support.keyed import TABLE, WRITE, ids, one_node

import pgha

pytestmark = pytest.mark.anyio


async def test_an_event_tells_of_a_write_whose_caller_was_leaving_when_its_answer_came() -> None:
    """An event reports a write that was answered after its caller was cancelled.

    The answer arrives before the caller's task runs again: the caller sees the cancellation alone.
    """
    async with one_node(18, TABLE, read_connections=1) as (node, cluster):
        await cluster.execute(WRITE, ["first"])
        (lane,) = cluster._nodes[node.name].sets["write"].lanes
        told: list[pgha.OperationResolved] = []
        async with cluster.events() as events, anyio.create_task_group() as tasks:

            async def listen() -> None:
                async for event in events:
                    if isinstance(event, pgha.OperationResolved):
                        told.append(event)

            tasks.start_soon(listen)
            key, scope = pgha.new_idempotency_key(), anyio.CancelScope()

            async def write() -> None:
                with scope:
                    await cluster.execute(
                        "INSERT INTO t SELECT 'left' FROM pg_sleep(0.3)", idempotency_key=key
                    )

            tasks.start_soon(write)
            await eventually(lambda: lane.in_flight == 1)
            scope.cancel()
            deadline = time.monotonic() + PATIENCE
            while (
                lane.in_flight and time.monotonic() < deadline
            ):  # the loop is blocked, but the server is not
                lane.receive(time.monotonic())
            await eventually(lambda: scope.cancelled_caught)
            await eventually(lambda: bool(told))
            tasks.cancel_scope.cancel()
        assert await ids(node) == ["first", "left"]
        assert [(one.idempotency_key, one.outcome) for one in told] == [(key, "applied")]
