"""Connections that an administrator ends: no suspicion falls on what was running there."""

from __future__ import annotations

import anyio
import psycopg
import pytest
from _support import cluster_of, started, within

import pgha
from pgha.chaos import LocalNode

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("read", [True, False])
async def test_it_is_run_again_more_often_than_what_broke_its_connections(
    server: LocalNode, read: bool
) -> None:
    """FATAL 57P01 proves that it was not applied, and that it was not to blame: twice would be the limit."""
    async with cluster_of(server) as cluster, anyio.create_task_group() as tasks:
        text = f"pg_sleep(1.5) /* ordered {read} */"

        async def terminate() -> None:
            ended: list[int] = []
            while len(ended) < 3:
                pid = await started(server, text)
                if pid not in ended:
                    await server.execute("SELECT pg_terminate_backend(%s)", [pid])
                    ended.append(pid)

        tasks.start_soon(terminate)
        with within(30):
            result = await cluster.submit(f"SELECT {text}", read=read)
        assert result.attempts == 4


async def test_what_breaks_its_connections_is_not(server: LocalNode) -> None:
    """A backend that is killed under it, twice."""
    async with cluster_of(server) as cluster, anyio.create_task_group() as tasks:
        text = "pg_sleep(60) /* poison */"

        async def kill() -> None:
            for _ in range(2):
                await server.kill_backend(await started(server, text))
                await server.wait_ready()

        tasks.start_soon(kill)
        with within(30), pytest.raises(psycopg.OperationalError) as caught:
            await cluster.fetch(f"SELECT {text}")
        assert pgha.info(caught.value).attempts == 2
