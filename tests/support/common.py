"""Helpers of most tests: unique names, polling, and a cluster that must leave nothing behind."""

from __future__ import annotations

import inspect
import itertools
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import psycopg
import pytest

import pgha
from pgha._options import Tuning
from pgha.chaos import ChaosError, Node, require_engine
from pgha.chaos._verify import leftovers

PATIENCE = 30.0
"""Seconds until a test gives up. No measurement depends on it."""
PROVEN = Tuning(
    cancel_deadline=PATIENCE, proof_time=PATIENCE, cancelled_proof_time=PATIENCE, drain_timeout=PATIENCE
)
"""For writes whose outcome a test needs: on a slow machine, they must not end in doubt."""
asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])
"""A mark for tests of features that only asyncio has, such as `Task.cancel`."""

BOTH_VERSIONS = (pytest.param(16, marks=pytest.mark.thorough), 18)
"""PostgreSQL's major versions, for behaviour of the server; `just test` runs only the newer version."""
both_versions = pytest.mark.parametrize("version", BOTH_VERSIONS)

loop_aside = pytest.mark.parametrize(
    "anyio_backend", ["asyncio", pytest.param("trio", marks=pytest.mark.thorough)]
)
"""A mark for tests of other programs and threads, independent of the loop: `just test` runs only asyncio."""

_numbers = itertools.count(1)


def unique(prefix: str) -> str:
    """Return a name that no other test uses, for a table, a row or an application."""
    return f"{prefix}_{os.getpid()}_{next(_numbers)}"


async def eventually(
    condition: Callable[[], bool | Awaitable[bool]], timeout: float = PATIENCE, what: str = ""
) -> None:
    """Poll `condition` until it is true; fail the test after `timeout` seconds."""
    pause = 0.005
    with anyio.move_on_after(timeout):
        while True:
            answer = condition()
            asks_a_server = inspect.isawaitable(answer)
            if await answer if inspect.isawaitable(answer) else answer:
                return
            await anyio.sleep(pause)
            if asks_a_server:
                pause = min(1.5 * pause, 0.05)  # each poll makes the server start a process
    pytest.fail(f"not true within {timeout} s: {what or condition}")


async def backends(node: Node, application: str, state: str | None = None) -> list[int]:
    """Return the process ids of a server's backends that have this application name."""
    rows = await node.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND coalesce(state = %s, true)",
        [application, state],
    )
    return [row[0] for row in rows]


async def running(node: Node, text: str) -> list[int]:
    """Return the process ids of backends that are running a statement that contains `text`."""
    rows = await node.execute(
        "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()"
        " AND strpos(query, %s) > 0",
        [text],
    )
    return [row[0] for row in rows]


async def started(node: Node, text: str) -> int:
    """Wait until a backend runs a statement that contains `text`; return its process id."""
    found: list[int] = []

    async def look() -> bool:
        found[:] = await running(node, text)
        return bool(found)

    await eventually(look, what=f"{text!r} runs on {node.name}")
    return found[0]


async def stopped(node: Node, text: str) -> None:
    """Wait until no backend runs a statement that contains `text`."""

    async def look() -> bool:
        return not await running(node, text)

    await eventually(look, what=f"{text!r} ends on {node.name}")


@contextmanager
def gate(node: Node) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield an SQL expression that waits at this server, and the function that ends all waits for good."""
    key = next(_numbers)
    with psycopg.connect(node.dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [key])
        yield (
            f"pg_advisory_xact_lock_shared({key})",
            lambda: connection.execute("SELECT pg_advisory_unlock(%s)", [key]),
        )


def tasks() -> set[Any]:
    """Return all tasks of the running event loop."""
    return leftovers.tasks()


def sockets(*nodes: Node) -> int:
    """Return the number of connections of this process to the nodes."""
    return len(leftovers.sockets(node.port for node in nodes))


@asynccontextmanager
async def nothing_left(*nodes: Node) -> AsyncGenerator[str]:
    """Yield an application name; afterwards, fail if a task, socket or backend is left.

    Tasks and sockets must be gone at once. Backends have a deadline, since they end when they notice the
    loss.
    """
    application = unique("app")
    async with leftovers.nothing_left(*nodes, application_name=application, timeout=PATIENCE) as left:
        yield application
    assert left == [], "\n".join(str(one) for one in left)


async def no_backends(node: Node, application: str) -> None:
    assert await leftovers.backends_left(node, application, PATIENCE) == []


@asynccontextmanager
async def cluster_of(*nodes: Node, **options: Any) -> AsyncGenerator[pgha.Cluster]:
    """Open a cluster of running servers, under their names, that must leave nothing behind."""
    ready = options.get("min_ready", 1)
    if "failover_timeout" in options:
        # A test may have made it short: the nodes are not waited for within it.
        options["min_ready"] = 0
    async with nothing_left(*nodes) as application:
        options.setdefault("application_name", application)
        named = [pgha.Node(node.dsn, node.name) for node in nodes]
        async with pgha.open_cluster(*named, **options) as cluster:
            if ready and "failover_timeout" in options:
                with within():
                    await cluster.wait_ready(ready)
            yield cluster


@contextmanager
def within(seconds: float = PATIENCE) -> Iterator[None]:
    """Fail a test that hangs after `seconds`, instead of waiting for the test runner's limit."""
    with anyio.fail_after(seconds):
        yield


def demand_engine() -> None:
    """Skip the test if no container engine can be used; with PGHA_REQUIRE_ENGINE=1, fail the test."""
    try:
        require_engine()
    except ChaosError as error:
        assert "cannot talk to this program" not in str(error), "an engine that answers is not absent"
        if os.environ.get("PGHA_REQUIRE_ENGINE") == "1":
            pytest.fail(f"PGHA_REQUIRE_ENGINE is set, but {error}")
        pytest.skip(str(error))
