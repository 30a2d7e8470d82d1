"""asyncpg: its pool, and a single connection. asyncpg prepares every statement by default."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from bench.peers._client import BATCH, INSERT, POOL, ROWS, SELECT, AsyncContestant, Client, parts

_SELECT, _INSERT = f"{SELECT}$1", f"{INSERT}($1)"


class _Asyncpg:
    """A pool or a connection, which have the same methods."""

    def __init__(self, source: Any) -> None:
        self._source = source

    async def select(self, key: int, /) -> object:
        rows = await self._source.fetch(_SELECT, key)
        assert rows[0][0] == key
        return rows

    async def insert(self, key: int, /) -> None:
        await self._source.execute(_INSERT, key)

    async def batch(self, key: int, /) -> None:
        async with self._source.acquire() as connection, connection.transaction():
            for _ in range(BATCH):
                await connection.execute(_INSERT, key)

    async def rows(self) -> int:
        return len(await self._source.fetch(ROWS))

    async def run(self, text: str, /) -> None:
        await self._source.fetch(text)


def arguments(dsn: str) -> dict[str, Any]:
    """Return the arguments for `asyncpg.connect` and `asyncpg.create_pool`."""
    found = parts(dsn)
    found["database"] = found.pop("dbname")
    return found


@asynccontextmanager
async def pool(dsn: str) -> AsyncGenerator[Client]:
    async with asyncpg.create_pool(**arguments(dsn), min_size=POOL, max_size=POOL) as opened:
        yield _Asyncpg(opened)


@asynccontextmanager
async def connection(dsn: str) -> AsyncGenerator[Client]:
    opened = await asyncpg.connect(**arguments(dsn))
    try:
        yield _Asyncpg(opened)
    finally:
        await opened.close()


ASYNCPG_POOL = AsyncContestant("asyncpg pool", pool)
ASYNCPG_POOL_UVLOOP = AsyncContestant("asyncpg pool uvloop", pool, uvloop=True)
ASYNCPG_BARE_UVLOOP = AsyncContestant("asyncpg bare uvloop", connection, uvloop=True)
ASYNCPG_BARE = AsyncContestant("asyncpg bare", connection)
