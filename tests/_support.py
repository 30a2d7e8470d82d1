"""What the tests share: unique names, polling, and a cluster that must leave nothing behind."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import shutil
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import psutil
import psycopg
import pytest
import sniffio
import trio

import pgha
from pgha.chaos import ChaosError, LocalNode, Node, require_engine
from pgha.chaos._account import run_tool
from pgha.chaos._config import write_config

PATIENCE = 10.0
"""Seconds until a test gives up; never what is measured."""

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


def _trio_tasks(task: Any) -> Iterator[Any]:
    yield task
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _trio_tasks(child)


def tasks() -> set[Any]:
    """Every task of the loop that runs this."""
    if sniffio.current_async_library() == "trio":
        root = trio.lowlevel.current_root_task()
        assert root is not None
        return set(_trio_tasks(root))
    return set(asyncio.all_tasks())


def sockets(*nodes: Node) -> int:
    """Connections of this process to the nodes."""
    ports = {node.port for node in nodes}
    return sum(bool(one.raddr) and one.raddr.port in ports for one in psutil.Process().net_connections("tcp"))


@asynccontextmanager
async def nothing_left(*nodes: Node) -> AsyncGenerator[str]:
    """Gives an application name; afterwards no task, socket or backend may be left.

    Tasks and sockets must be gone at once, backends within a deadline (they end when they notice).
    """
    before, application = tasks(), unique("app")
    linked = sockets(*nodes)
    yield application
    left = {repr(task) for task in tasks() - before}
    assert not left
    assert sockets(*nodes) <= linked
    for node in nodes:
        if node.running and not node.frozen:
            await no_backends(node, application)


async def no_backends(node: Node, application: str) -> None:
    async def look() -> bool:
        try:
            return not await backends(node, application)
        except psycopg.OperationalError:
            return False  # it recovers from a crash

    await eventually(look, what=f"the backends of {application} end on {node.name}")


@asynccontextmanager
async def cluster_of(*nodes: Node, **options: Any) -> AsyncGenerator[pgha.Cluster]:
    """A cluster of running servers, called as they are, that must leave nothing behind."""
    async with nothing_left(*nodes) as application:
        options.setdefault("application_name", application)
        named = [pgha.Node(node.dsn, node.name) for node in nodes]
        async with pgha.open_cluster(*named, **options) as cluster:
            yield cluster


def _make_standby(node: LocalNode, primary: Node) -> None:
    server = node._server
    shutil.rmtree(server.data)
    program = server.installation.program("pg_basebackup")
    arguments: list[str | Path] = [
        program,
        "-D",
        server.data,
        "-d",
        primary.dsn,
        "-R",
        "-X",
        "stream",
        "-c",
        "fast",
    ]
    run_tool(arguments, cwd=server.folder)
    # Its own name, above all: by it the kit finds the processes of a node.
    write_config(server.installation, server.data, server.options, server.folder.name)


@asynccontextmanager
async def standby_of(primary: Node, name: str = "standby") -> AsyncGenerator[Node]:
    """A running hot standby that streams from ``primary``.

    `LocalNode.start` waits for a server that takes writes, so it is started and waited for here.
    """
    node = LocalNode(name, version=primary.version)
    try:
        await node.__aenter__()
        await anyio.to_thread.run_sync(_make_standby, node, primary)
        await anyio.to_thread.run_sync(node._server.launch)

        async def answers() -> bool:
            try:
                return bool((await node.execute("SELECT pg_is_in_recovery()"))[0][0])
            except psycopg.OperationalError:
                return False

        await eventually(answers, 30, f"{name} follows {primary.name}")
        yield node
    finally:
        await node.close()


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
