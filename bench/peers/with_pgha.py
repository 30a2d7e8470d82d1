"""pgha with its default options: health checks, pipelined connections and failover are all on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pgha
import pgha.blocking
from bench.peers._client import BATCH, INSERT, ROWS, SELECT, AsyncContestant, Client

BACKENDS = ("asyncio", "trio")
SELECT_BY_KEY, _INSERT = f"{SELECT}%s", f"{INSERT}(%s)"


class _Pgha:
    def __init__(self, cluster: pgha.Cluster[Any]) -> None:
        self._cluster = cluster

    async def select(self, key: int, /) -> object:
        rows = await self._cluster.fetch(SELECT_BY_KEY, [key])
        assert rows[0][0] == key
        return rows

    async def insert(self, key: int, /) -> None:
        await self._cluster.execute(_INSERT, [key])

    async def batch(self, key: int, /) -> None:
        await self._cluster.execute_batch([(_INSERT, [key])] * BATCH)

    async def rows(self) -> int:
        return len(await self._cluster.fetch(ROWS))

    async def run(self, text: str, /) -> None:
        await (self._cluster.fetch if text.startswith("SELECT") else self._cluster.execute)(text)


@asynccontextmanager
async def cluster(dsn: str) -> AsyncGenerator[Client]:
    async with pgha.open_cluster(dsn) as opened:
        yield _Pgha(opened)


@asynccontextmanager
async def to_json(dsn: str) -> AsyncGenerator[Callable[[], Awaitable[str]]]:
    """Yield a function that fetches the large result as JSON."""
    async with pgha.open_cluster(dsn) as opened:

        async def dump() -> str:
            return (await opened.fetch(ROWS)).json()

        yield dump


@contextmanager
def threads(dsn: str) -> Generator[Callable[[int], object]]:
    """Yield a function that selects by key, for threads."""
    with pgha.blocking.open_cluster(dsn) as opened:

        def select(key: int) -> None:
            rows = opened.fetch(SELECT_BY_KEY, [key])
            assert rows[0][0] == key

        yield select


ON_UVLOOP = AsyncContestant("pgha uvloop", cluster, uvloop=True)
OURS = [AsyncContestant(f"pgha {backend}", cluster, backend) for backend in BACKENDS]
