"""The clients of several nodes, each opened as its documentation recommends, for the failover rows.

Every client waits at most `PATIENCE` seconds for anything for which it has such an option. By default,
asyncpg, psycopg and hasql would wait forever for a frozen server. A read may use any node, whatever its role.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import anyio
import asyncpg
import hasql.driver.asyncpg
from psycopg_pool import AsyncConnectionPool

import pgha
from bench.peers._client import POOL, SELECT, parts

PATIENCE = 5.0
"""Seconds."""
_PORT = "SELECT inet_server_port()"
_NUMBERED, _PERCENT = f"{SELECT}$1", f"{SELECT}%s"


class Reader(Protocol):
    """An open client of several nodes."""

    async def select(self, key: int, /) -> object:
        """Read a row by its primary key, from any node."""
        ...

    async def port(self) -> int:
        """Return the port of a server that the client is using now."""
        ...


MultihostOpener: TypeAlias = Callable[[Sequence[str]], AbstractAsyncContextManager[Reader]]


@dataclass(frozen=True, slots=True)
class Multihost:
    """A client on one of the event loops."""

    name: str
    open: MultihostOpener
    backend: str = "asyncio"


class _Pgha:
    def __init__(self, cluster: pgha.Cluster[Any]) -> None:
        self._cluster = cluster

    async def select(self, key: int, /) -> object:
        rows = await self._cluster.fetch(_PERCENT, [key])
        assert rows[0][0] == key
        return rows

    async def port(self) -> int:
        return int(await self._cluster.fetch_value(_PORT))


@asynccontextmanager
async def _pgha(dsns: Sequence[str]) -> AsyncGenerator[Reader]:
    async with pgha.open_cluster(*dsns, min_ready=len(dsns), timeout=PATIENCE) as cluster:
        yield _Pgha(cluster)


class _Asyncpg:
    """A pool of asyncpg, or hasql's pools of several nodes."""

    def __init__(self, acquire: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        self._acquire = acquire

    async def select(self, key: int, /) -> object:
        async with self._acquire() as connection:
            rows = await connection.fetch(_NUMBERED, key)
        assert rows[0][0] == key
        return rows

    async def port(self) -> int:
        async with self._acquire() as connection:
            return int(await connection.fetchval(_PORT))


@asynccontextmanager
async def _asyncpg(dsns: Sequence[str]) -> AsyncGenerator[Reader]:
    found = [parts(dsn) for dsn in dsns]
    pool = await asyncpg.create_pool(
        host=[one["host"] for one in found],
        port=[one["port"] for one in found],
        user=found[0]["user"],
        database=found[0]["dbname"],
        min_size=POOL,
        max_size=POOL,
        timeout=PATIENCE,
        command_timeout=PATIENCE,
    )
    try:
        yield _Asyncpg(pool.acquire)
    finally:
        pool.terminate()  # close() could wait forever for a server that does not answer


@asynccontextmanager
async def _hasql(dsns: Sequence[str]) -> AsyncGenerator[Reader]:
    for name in ("hasql", "asyncpg"):  # both log a traceback for every failed connection
        logging.getLogger(name).setLevel(logging.CRITICAL)
    found = [parts(dsn) for dsn in dsns]
    hosts = ",".join(f"{one['host']}:{one['port']}" for one in found)
    untyped: Any = hasql.driver.asyncpg.PoolManager
    manager = untyped(
        f"postgresql://{found[0]['user']}@{hosts}/{found[0]['dbname']}",
        acquire_timeout=PATIENCE,
        refresh_timeout=PATIENCE,
        pool_factory_kwargs={
            "min_size": POOL,
            "max_size": POOL,
            "timeout": PATIENCE,
            "command_timeout": PATIENCE,
        },
    )
    try:
        await manager.ready(masters_count=len(dsns), replicas_count=0)
        yield _Asyncpg(manager.acquire_master)
    finally:
        with anyio.move_on_after(PATIENCE, shield=True):
            await manager.close()


class _Psycopg:
    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool

    async def select(self, key: int, /) -> object:
        async with self._pool.connection() as connection:
            rows = await (await connection.execute(_PERCENT, [key])).fetchall()
        assert rows[0][0] == key
        return rows

    async def port(self) -> int:
        async with self._pool.connection() as connection:
            row = await (await connection.execute(_PORT)).fetchone()
        assert row is not None
        return int(row[0])


@asynccontextmanager
async def _psycopg(dsns: Sequence[str]) -> AsyncGenerator[Reader]:
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)  # no warning for every lost connection
    found = [parts(dsn) for dsn in dsns]
    conninfo = (
        f"host={','.join(one['host'] for one in found)} port={','.join(str(one['port']) for one in found)}"
        f" user={found[0]['user']} dbname={found[0]['dbname']} connect_timeout={PATIENCE:.0f}"
    )
    async with AsyncConnectionPool(
        conninfo, min_size=POOL, max_size=POOL, timeout=PATIENCE, kwargs={"autocommit": True}
    ) as pool:
        await pool.wait(PATIENCE)
        yield _Psycopg(pool)


MULTIHOSTS = [
    Multihost("pgha asyncio", _pgha, "asyncio"),
    Multihost("pgha trio", _pgha, "trio"),
    Multihost("hasql, asyncpg", _hasql),
    Multihost("asyncpg, multi-host", _asyncpg),
    Multihost("psycopg_pool, m.-host", _psycopg),
]
