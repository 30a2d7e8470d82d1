"""Ctrl-C ends a separate program by KeyboardInterrupt, promptly, and leaves no backend behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import anyio.to_thread
import pytest
from support.common import no_backends, unique

from pgha.chaos import LocalNode

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),  # the test's own loop; the program's is `loop`
    pytest.mark.parametrize("loop", ["asyncio", "trio"]),
]

PATIENCE = 120.0
"""Seconds until a test gives up: at a load of 30, a program needs 30 s to start."""

PROGRAM = """
import gc
import sys
import anyio
import pgha

async def load(cluster):
    number = 0
    while True:
        number += 1
        call = cluster.fetch if number % 2 else cluster.execute
        assert (await call("SELECT %s::int", [number])).value() == number

async def say(word):
    print(word, flush=True)

async def main():
    async with pgha.open_cluster(sys.argv[2], application_name=sys.argv[3]) as cluster:
        BODY

try:
    anyio.run(main, backend=sys.argv[1])
except BaseException as error:
    ended = type(error).__name__
    leaves = error
    while isinstance(leaves, BaseExceptionGroup) and len(leaves.exceptions) == 1:
        leaves = leaves.exceptions[0]
    del error
    gc.collect()
    print(ended, type(leaves).__name__, flush=True)
"""

BODIES = {
    "sleeping on the server": """
        async with anyio.create_task_group() as group:
            for call in (cluster.fetch, cluster.execute):
                group.start_soon(call, "SELECT pg_sleep(60)")
            await anyio.sleep(0.1)
            await say("ready")
    """,
    "idle": """
        await cluster.execute("SELECT 1")
        await say("ready")
        await anyio.sleep(60)
    """,
    "under load": """
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(load, cluster)
            await anyio.sleep(0.1)
            await say("ready")
    """,
    "computing": """
        operations = [cluster.submit("SELECT pg_sleep(60)") for _ in range(50)]
        await anyio.sleep(0.1)
        await say("ready")
        while True:
            sum(range(1000))
            await anyio.sleep(0)
    """,
    "draining": """
        cluster.submit("SELECT pg_sleep(60)")
        await anyio.sleep(0.1)
        await say("ready")
    """,
}


@contextmanager
def program(loop: str, dsn: str, application: str, body: str) -> Iterator[subprocess.Popen[str]]:
    indented = textwrap.indent(textwrap.dedent(body), " " * 8).strip()
    text = PROGRAM.replace("BODY", indented)
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", text, loop, dsn, application],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def interrupt(process: subprocess.Popen[str], *, grouped: bool = False) -> None:
    """Send SIGINT, and check that nothing but KeyboardInterrupt ends the program.

    With ``grouped``, the task group around the body may wrap the KeyboardInterrupt.
    """
    process.send_signal(signal.SIGINT)
    said, complaints = process.communicate(timeout=PATIENCE)
    assert complaints == ""
    ended, leaf = said.split()[-2:]
    assert leaf == "KeyboardInterrupt", said
    assert ended == "KeyboardInterrupt" or (grouped and ended == "BaseExceptionGroup"), said


def interrupted(process: subprocess.Popen[str], pause: float = 0.0, *, grouped: bool = False) -> None:
    """Wait until the program says "ready", and interrupt it."""
    assert process.stdout is not None
    word = process.stdout.readline().strip()
    assert word == "ready", process.communicate(timeout=PATIENCE)
    time.sleep(pause)
    interrupt(process, grouped=grouped)


@pytest.mark.parametrize("body", BODIES)
async def test_interrupted(server: LocalNode, loop: str, body: str) -> None:
    application = unique("app")
    with program(loop, server.dsn, application, BODIES[body]) as process:
        grouped = "create_task_group" in BODIES[body]
        await anyio.to_thread.run_sync(lambda: interrupted(process, grouped=grouped))
    await no_backends(server, application)


@pytest.mark.thorough
async def test_interrupted_at_any_moment(server: LocalNode, loop: str) -> None:
    for number in range(5):
        application = unique("app")
        with program(loop, server.dsn, application, BODIES["under load"]) as process:
            await anyio.to_thread.run_sync(
                lambda: interrupted(process, number * 0.0137, grouped=True)  # noqa: B023
            )
        await no_backends(server, application)


async def test_interrupted_while_it_waits_for_nodes(loop: str) -> None:
    """An interrupt ends a program that waits for nodes.

    The node hangs up on each connection: when a second connection comes, the program is waiting for the node.
    """
    with socket.create_server(("127.0.0.1", 0)) as hanging_up:
        hanging_up.settimeout(PATIENCE)
        dsn = f"host=127.0.0.1 port={hanging_up.getsockname()[1]}"
        with program(loop, dsn, unique("app"), "pass") as process:
            for _ in range(2):
                connection, _ = await anyio.to_thread.run_sync(hanging_up.accept)
                connection.close()
            assert process.poll() is None
            await anyio.to_thread.run_sync(lambda: interrupt(process))
