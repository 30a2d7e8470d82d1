"""Helpers of the tests of keyed writes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pgha
from pgha.chaos import Node
from support.common import eventually, nothing_left
from support.servers import standalone

TABLE = "CREATE TABLE t (id text)"
WRITE = "INSERT INTO t VALUES (%s)"
SLOW_COMMIT = """
    CREATE TABLE slow (id int, nap float);
    CREATE SEQUENCE tries;
    CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_sleep(NEW.nap) /* at the commit */; RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER nap AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION nap();
"""
NAPS_ONCE = "INSERT INTO slow SELECT 1, CASE WHEN nextval('tries') = 1 THEN 60 ELSE 0 END"


@asynccontextmanager
async def one_node(
    version: int, sql: str = TABLE, *, installed: bool = True, **options: Any
) -> AsyncGenerator[tuple[Node, pgha.Cluster]]:
    async with standalone(version=version) as nodes:
        node = nodes[0]
        await node.execute(sql)
        async with (
            nothing_left(node) as application,
            pgha.open_cluster(
                pgha.Node(node.dsn, node.name), application_name=application, **options
            ) as cluster,
        ):
            if installed:
                await cluster.ledger.install()
            yield node, cluster


async def ids(node: Node, table: str = "t") -> list[Any]:
    return sorted(row[0] for row in await node.execute(f"SELECT id FROM {table}"))


async def napping(node: Node) -> int:
    """Wait until a backend sleeps at its commit; return its process id."""
    found: list[int] = []

    async def look() -> bool:
        rows = await node.execute(
            "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND state = 'active'"
            " AND pid <> pg_backend_pid()"
        )
        found[:] = [row[0] for row in rows]
        return bool(found)

    await eventually(look, what="a backend sleeps at its commit")
    return found[0]


async def replicating(node: Node, text: str) -> int:
    """Wait until the commit of a statement with `text` waits for a standby; return the process id."""
    found: list[int] = []

    async def look() -> bool:
        rows = await node.execute(
            "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND strpos(query, %s) > 0", [text]
        )
        found[:] = [row[0] for row in rows]
        return bool(found)

    await eventually(look, what=f"{text!r} waits for a standby")
    return found[0]


async def keys_of(node: Node) -> int:
    ((count,),) = await node.execute("SELECT count(*) FROM pgha.ledger")
    return int(count)
