"""psycopg: its pool on asyncio, a single connection, and its pool for threads.

All use autocommit mode, in which each statement is its own transaction as in pgha. The default mode would add
a BEGIN and a COMMIT to each. psycopg prepares a statement at its fifth use on a connection.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager

import psycopg
from psycopg.rows import TupleRow, dict_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from bench.peers._client import BATCH, INSERT, POOL, ROWS, SELECT, AsyncContestant, Client

_SELECT, _INSERT = f"{SELECT}%s", f"{INSERT}(%s)"
_Connection = psycopg.AsyncConnection[TupleRow]
_AUTOCOMMIT = {"autocommit": True}


class _Bare:
    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def select(self, key: int, /) -> object:
        return await _select(self._connection, key)

    async def insert(self, key: int, /) -> None:
        await self._connection.execute(_INSERT, [key])

    async def batch(self, key: int, /) -> None:
        await _batch(self._connection, key)

    async def rows(self) -> int:
        return len(await (await self._connection.execute(ROWS)).fetchall())

    async def run(self, text: str, /) -> None:
        await self._connection.execute(text)


class _Pool:
    def __init__(self, pool: AsyncConnectionPool[_Connection]) -> None:
        self._pool = pool

    async def select(self, key: int, /) -> object:
        async with self._pool.connection() as connection:
            return await _select(connection, key)

    async def insert(self, key: int, /) -> None:
        async with self._pool.connection() as connection:
            await connection.execute(_INSERT, [key])

    async def batch(self, key: int, /) -> None:
        async with self._pool.connection() as connection:
            await _batch(connection, key)

    async def rows(self) -> int:
        async with self._pool.connection() as connection:
            return len(await (await connection.execute(ROWS)).fetchall())

    async def run(self, text: str, /) -> None:
        async with self._pool.connection() as connection:
            await connection.execute(text)


async def _select(connection: _Connection, key: int) -> object:
    cursor = await connection.execute(_SELECT, [key])
    rows = await cursor.fetchall()
    assert rows[0][0] == key
    return rows


async def _batch(connection: _Connection, key: int) -> None:
    async with connection.pipeline(), connection.transaction():
        for _ in range(BATCH):
            await connection.execute(_INSERT, [key])


@asynccontextmanager
async def pool(dsn: str) -> AsyncGenerator[Client]:
    async with AsyncConnectionPool(dsn, min_size=POOL, max_size=POOL, kwargs=_AUTOCOMMIT) as opened:
        yield _Pool(opened)


@asynccontextmanager
async def connection(dsn: str) -> AsyncGenerator[Client]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as opened:
        yield _Bare(opened)


@asynccontextmanager
async def to_json(dsn: str) -> AsyncGenerator[Callable[[], Awaitable[str]]]:
    """Yield a function that fetches the large result as dicts and dumps them as JSON."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True, row_factory=dict_row) as opened:

        async def dump() -> str:
            rows = await (await opened.execute(ROWS)).fetchall()
            return json.dumps(rows, default=str)

        yield dump


@contextmanager
def threads(dsn: str) -> Generator[Callable[[int], object]]:
    """Yield a function that selects by key, for threads."""
    with ConnectionPool(dsn, min_size=POOL, max_size=POOL, kwargs=_AUTOCOMMIT) as opened:
        opened.wait()

        def select(key: int) -> None:
            with opened.connection() as connection:
                rows = connection.execute(_SELECT, [key]).fetchall()
            assert rows[0][0] == key

        yield select


PSYCOPG_POOL = AsyncContestant("psycopg_pool", pool)
PSYCOPG_BARE = AsyncContestant("psycopg bare", connection)
