"""psqlpy, a driver written in Rust: its pool. psqlpy prepares every statement by default."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import psqlpy

from bench.peers._client import BATCH, INSERT, POOL, ROWS, SELECT, AsyncContestant, Client, uri

_SELECT, _INSERT = f"{SELECT}$1", f"{INSERT}($1)"


class _Psqlpy:
    def __init__(self, pool: psqlpy.ConnectionPool) -> None:
        self._pool = pool

    async def select(self, key: int, /) -> object:
        async with self._pool.acquire() as connection:
            found = await connection.fetch(_SELECT, [key])
        rows = found.result(as_tuple=True)
        assert rows[0][0] == key
        return rows

    async def insert(self, key: int, /) -> None:
        async with self._pool.acquire() as connection:
            await connection.execute(_INSERT, [key])

    async def batch(self, key: int, /) -> None:
        async with self._pool.acquire() as connection, connection.transaction() as transaction:
            await transaction.pipeline([(_INSERT, [key])] * BATCH)

    async def rows(self) -> int:
        async with self._pool.acquire() as connection:
            found = await connection.fetch(ROWS)
        return len(found.result(as_tuple=True))

    async def run(self, text: str, /) -> None:
        async with self._pool.acquire() as connection:
            await connection.execute(text)


@asynccontextmanager
async def pool(dsn: str) -> AsyncGenerator[Client]:
    opened = psqlpy.ConnectionPool(dsn=uri(dsn), max_db_pool_size=POOL)
    try:
        yield _Psqlpy(opened)
    finally:
        opened.close()


PSQLPY_POOL = AsyncContestant("psqlpy pool", pool)
