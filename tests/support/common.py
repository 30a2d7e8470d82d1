"""What the tests share: unique names, polling, and a cluster that must leave nothing behind."""

from __future__ import annotations

import inspect
import itertools
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import pytest

import pgha
from pgha.chaos import ChaosError, Node, require_engine
from pgha.chaos._verify import leftovers

PATIENCE = 10.0
"""Seconds until a test gives up; never what is measured."""
asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])
"""For what only asyncio has, such as `Task.cancel`."""

BOTH_VERSIONS = (pytest.param(16, marks=pytest.mark.thorough), 18)
"""PostgreSQL's major versions, for what a server decides; `just test` tries the newer one alone."""
both_versions = pytest.mark.parametrize("version", BOTH_VERSIONS)

_numbers = itertools.count(1)


def unique(prefix: str) -> str:
    """A name that no other test uses: of a table, of a row, of an application."""
    return f"{prefix}_{os.getpid()}_{next(_numbers)}"


async def eventually(
    condition: Callable[[], bool | Awaitable[bool]], timeout: float = PATIENCE, what: str = ""
) -> None:
    """Ask until it is so; fails after ``timeout`` seconds."""
    with anyio.move_on_after(timeout):
        while True:
            answer = condition()
            if await answer if inspect.isawaitable(answer) else answer:
                return
            await anyio.sleep(0.005)
    pytest.fail(f"did not come about in {timeout} s: {what or condition}")


async def backends(node: Node, application: str, state: str | None = None) -> list[int]:
    """Process ids of the server's backends of one cluster."""
    rows = await node.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND coalesce(state = %s, true)",
        [application, state],
    )
    return [row[0] for row in rows]


async def running(node: Node, text: str) -> list[int]:
    """Backends that run a statement with ``text`` in it at this moment."""
    rows = await node.execute(
        "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()"
        " AND strpos(query, %s) > 0",
        [text],
    )
    return [row[0] for row in rows]


async def started(node: Node, text: str) -> int:
    """Wait until a backend runs ``text``; its process id."""
    found: list[int] = []

    async def look() -> bool:
        found[:] = await running(node, text)
        return bool(found)

    await eventually(look, what=f"{text!r} runs on {node.name}")
    return found[0]


async def stopped(node: Node, text: str) -> None:
    """Wait until no backend runs ``text``."""

    async def look() -> bool:
        return not await running(node, text)

    await eventually(look, what=f"{text!r} ends on {node.name}")


def tasks() -> set[Any]:
    """Every task of the loop that runs this."""
    return leftovers.tasks()


def sockets(*nodes: Node) -> int:
    """Connections of this process to the nodes."""
    return len(leftovers.sockets(node.port for node in nodes))


@asynccontextmanager
async def nothing_left(*nodes: Node) -> AsyncGenerator[str]:
    """Gives an application name; afterwards no task, socket or backend may be left.

    Tasks and sockets must be gone at once, backends within a deadline (they end when they notice).
    """
    application = unique("app")
    async with leftovers.nothing_left(*nodes, application_name=application, timeout=PATIENCE) as left:
        yield application
    assert left == []


async def no_backends(node: Node, application: str) -> None:
    assert await leftovers.backends_left(node, application, PATIENCE) == []


@asynccontextmanager
async def cluster_of(*nodes: Node, **options: Any) -> AsyncGenerator[pgha.Cluster]:
    """A cluster of running servers, called as they are, that must leave nothing behind."""
    async with nothing_left(*nodes) as application:
        options.setdefault("application_name", application)
        named = [pgha.Node(node.dsn, node.name) for node in nodes]
        async with pgha.open_cluster(*named, **options) as cluster:
            yield cluster


@contextmanager
def within(seconds: float = PATIENCE) -> Iterator[None]:
    """What hangs fails here, not by the patience of the machine that runs the tests."""
    with anyio.fail_after(seconds):
        yield


def demand_engine() -> None:
    """Where no container engine can be used, skip the test and say why; with PGHA_REQUIRE_ENGINE=1 fail."""
    try:
        require_engine()
    except ChaosError as error:
        if os.environ.get("PGHA_REQUIRE_ENGINE") == "1":
            pytest.fail(f"PGHA_REQUIRE_ENGINE is set, but {error}")
        pytest.skip(str(error))
