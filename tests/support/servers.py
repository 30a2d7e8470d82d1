"""Servers that tests borrow: started once per worker, and emptied between two borrowers.

A server costs half a second of CPU to start and to remove, a borrowed one a few milliseconds. A borrower may
kill, freeze and restart its servers, change their settings and leave sessions behind. What cannot be undone
is thrown away.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import psycopg
from psycopg import sql

import pgha.chaos
from pgha.chaos import ChaosError, LocalNode
from pgha.chaos._topologies.nodes import Nodes

QUIET = {"log_min_messages": "fatal"}
_Key = tuple[str, int | None, tuple[tuple[str, str], ...]]
_idle: dict[_Key, list[LocalNode]] = {}
"""Empty running servers, by name, version and settings."""

# Objects of these catalogs are in no schema that could be dropped.
_OUTSIDE_SCHEMAS = """
    SELECT count(*) FROM (
        SELECT oid FROM pg_extension WHERE extname <> 'plpgsql'
        UNION ALL SELECT oid FROM pg_cast UNION ALL SELECT oid FROM pg_language
        UNION ALL SELECT oid FROM pg_event_trigger UNION ALL SELECT oid FROM pg_foreign_data_wrapper
        UNION ALL SELECT oid FROM pg_publication UNION ALL SELECT oid FROM pg_subscription
        UNION ALL SELECT oid FROM pg_largeobject_metadata UNION ALL SELECT oid FROM pg_default_acl
        UNION ALL SELECT oid FROM pg_tablespace UNION ALL SELECT oid FROM pg_database
    ) found WHERE oid >= 16384
"""
_ELSEWHERE = "SELECT (SELECT count(*) FROM pg_prepared_xacts) + (SELECT count(*) FROM pg_replication_slots)"
_SCHEMAS = "SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema$)'"
_ROLES = "SELECT rolname FROM pg_roles WHERE oid >= 16384"
_NEW_PUBLIC = (
    "CREATE SCHEMA public AUTHORIZATION pg_database_owner",
    "GRANT USAGE ON SCHEMA public TO PUBLIC",
)
_OWN_SETTINGS = "-c client_min_messages=warning -c default_transaction_read_only=off"
_DEFAULTS = (
    "ALTER SYSTEM RESET ALL",
    "ALTER ROLE ALL RESET ALL",
    "ALTER ROLE postgres RESET ALL",
    "ALTER DATABASE postgres RESET ALL",
    "SELECT pg_reload_conf()",
)


async def borrow(
    name: str, version: int | None = None, settings: Mapping[str, str] | None = None
) -> LocalNode:
    """Return a running server without anything in it; give it back with `give_back`."""
    key = (name, version, tuple(sorted((settings or {}).items())))
    if _idle.get(key):
        return _idle[key].pop()
    node = LocalNode(name, version=version, settings=settings)
    try:
        await node.__aenter__()
        await node.start()
    except BaseException:
        await node.close()
        raise
    _keys[node] = key
    return node


_keys: dict[LocalNode, _Key] = {}


async def give_back(node: LocalNode) -> None:
    """Make the server empty for the next borrower, or remove it."""
    with anyio.CancelScope(shield=True):
        try:
            if node.running:
                await node.thaw()
            else:
                await node.start()
            await node.wait_ready()
            # A cluster that still runs in a thread would connect again, in the middle of the next borrower's
            # test.
            clean = not _clusters_in_threads() and await anyio.to_thread.run_sync(_empty, node.dsn)
        except (ChaosError, psycopg.OperationalError, psycopg.errors.DependentObjectsStillExist):
            clean = False
        if clean:
            _idle.setdefault(_keys[node], []).append(node)
        else:
            del _keys[node]
            await node.close()


def _clusters_in_threads() -> bool:
    """Return whether a cluster of `pgha.blocking` still runs in this process."""
    return any(thread.name in ("pgha asyncio", "pgha trio") for thread in threading.enumerate())


def _empty(dsn: str) -> bool:
    """Undo what a borrower did; False if something is left."""
    with psycopg.connect(dsn, autocommit=True, options=_OWN_SETTINGS) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        for query in _DEFAULTS:
            connection.execute(query)
        for (schema,) in connection.execute(_SCHEMAS).fetchall():
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
        for query in _NEW_PUBLIC:
            connection.execute(query)
        for (role,) in connection.execute(_ROLES).fetchall():
            connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))
        left = [connection.execute(query).fetchone() for query in (_OUTSIDE_SCHEMAS, _ELSEWHERE)]
        return left == [(0,), (0,)]


@asynccontextmanager
async def standalone(
    n: int = 1, *, version: int | None = None, settings: Mapping[str, str] | None = None, **more: Any
) -> AsyncGenerator[Nodes]:
    """Lend `n` servers called n1, n2, ...; with other options, call `pgha.chaos.standalone` instead."""
    if more:
        async with pgha.chaos.standalone(n, version=version, settings=settings, **more) as nodes:
            yield nodes
        return
    lent: list[LocalNode] = []
    try:
        async with anyio.create_task_group() as tasks:

            async def one(number: int) -> None:
                lent.append(await borrow(f"n{number}", version, settings))

            for number in range(1, n + 1):
                tasks.start_soon(one, number)
        yield Nodes(sorted(lent, key=lambda node: node.name))
    finally:
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                for node in lent:
                    tasks.start_soon(give_back, node)


async def remove_all() -> None:
    """Remove the servers that are not borrowed."""
    nodes = [node for idle in _idle.values() for node in idle]
    _idle.clear()
    async with anyio.create_task_group() as tasks:
        for node in nodes:
            del _keys[node]
            tasks.start_soon(node.close)
