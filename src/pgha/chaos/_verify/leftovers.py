"""Leftovers of a client: tasks of the loop, sockets of the process, backends of the servers."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeGuard

import anyio
import psycopg
import trio

from pgha.chaos._servers.protocol import Node
from pgha.chaos._verify.evidence import Violation

RULE = "leftovers"
_OWN = "pgha.chaos."
"""The prefix of the names of the kit's own tasks, which are named after their functions."""
_POLL, _LONGEST_POLL = 0.005, 0.1
_BACKENDS = (
    "SELECT pid, coalesce(state, backend_type), left(query, 60) FROM pg_stat_activity"
    " WHERE application_name = %s ORDER BY pid"
)
_TABLES = ("/proc/self/net/tcp", "/proc/self/net/tcp6")
_CONNECTING = "02"
_STATES = {"01": "established", _CONNECTING: "connecting", "08": "closed by the server"}


class Port(Protocol):
    """An object with a port that clients connect to, such as a proxy."""

    @property
    def name(self) -> str:
        """The name, for messages."""
        ...

    @property
    def port(self) -> int:
        """The port number."""
        ...


Target: TypeAlias = Node | Port


@dataclass(frozen=True, slots=True)
class Socket:
    """A TCP connection of this process. The inode distinguishes it from all others that are open."""

    inode: str
    port: int
    """The port of the other side."""


def tasks() -> set[Any]:
    """Return every task of the running loop; on trio, trio's own tasks too."""
    if trio.lowlevel.in_trio_run():
        root = trio.lowlevel.current_root_task()
        return set(_below(root)) if root is not None else set()
    return set(asyncio.all_tasks())


def _below(task: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    yield task
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _below(child)


def sockets(ports: Iterable[int]) -> dict[Socket, str]:
    """Return the connections of this process to `ports` (of any host), with the state of each in words."""
    wanted = set(ports)
    found, connecting = {}, set()
    for descriptor in Path("/proc/self/fd").iterdir():
        state, inode, port = _connection(int(descriptor.name))
        if state == _CONNECTING:
            connecting.add(inode)
        elif port in wanted:
            found[Socket(inode, port)] = _STATES.get(state, f"TCP state {state}")
    if connecting:
        # Only the tables have the other side of a connection that is not made yet. They have every socket of
        # the machine, and those that ended a minute ago: reading them takes 10 ms of CPU.
        for table in _TABLES:
            for remote, state, inode in _entries(table):
                port = int(remote.rpartition(":")[2], 16)
                if port in wanted and inode in connecting:
                    found[Socket(inode, port)] = _STATES.get(state, f"TCP state {state}")
    return found


def _connection(descriptor: int) -> tuple[str, str, int]:
    """Return the TCP state, the inode and the remote port; 0 as the port if there is none."""
    state, inode = "", ""
    try:
        found = socket.socket(fileno=descriptor)
    except OSError:
        return state, inode, 0  # no socket, or closed by now
    try:
        inode = str(os.fstat(descriptor).st_ino)
        if found.family in (socket.AF_INET, socket.AF_INET6):
            state = f"{found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]:02X}"
            return state, inode, int(found.getpeername()[1])
    except OSError:
        pass  # not TCP, or not connected
    finally:
        found.detach()
    return state, inode, 0


def _entries(table: str) -> Iterator[tuple[str, str, str]]:
    """Yield the remote address, the state and the inode of each line."""
    try:
        lines = Path(table).read_text().splitlines()
    except FileNotFoundError:
        return  # a kernel without IPv6
    for line in lines[1:]:
        words = line.split()
        yield words[2], words[3], words[9]


async def backends_left(node: Node, application_name: str, timeout: float = 10.0) -> list[Violation]:
    """Wait until `node` has no backend with this application_name.

    Returns a violation for each backend that is left after `timeout` seconds.

    A server notices only after some time that a client has gone. A server that does not answer, because it
    recovers from a crash, is asked again; a server that never answers is a violation too.
    """
    found: list[Any] | None = None
    pause = _POLL
    with anyio.move_on_after(timeout):
        while True:
            try:
                found = await node.execute(_BACKENDS, [application_name], timeout=timeout)
            except (psycopg.OperationalError, TimeoutError):
                found = None
            if found == []:
                return []
            await anyio.sleep(pause)
            pause = min(2 * pause, _LONGEST_POLL)  # each look is a process that the server starts
    if found is None:
        return [Violation(RULE, None, f"{node.name} did not answer which backends it has")]
    return [
        Violation(RULE, None, f"backend {pid} of {node.name} is left ({state}; last: {query})")
        for pid, state, query in found
    ]


@asynccontextmanager
async def nothing_left(
    *targets: Target, application_name: str | None = None, timeout: float = 10.0
) -> AsyncGenerator[list[Violation]]:
    """Find the tasks, sockets and backends that the body leaves behind.

    The tasks of this loop, and the connections of this process to the ports of the targets, must be gone at
    once, unless they existed before. Backends must be gone within `timeout`. A proxy among the targets
    notices a moment later that its clients have gone, so the kit's own tasks then have `timeout` seconds too.
    Nothing is checked if the body raises. Cancellation ends the checks: the list is then incomplete.

    Args:
        *targets: Nodes and proxies.
        application_name: The name of the backends to look for, on the nodes among the targets that run; None:
            backends are not checked.
        timeout: Seconds to wait for backends to end.

    Returns:
        An async context manager that gives a list. After leaving, the list has one `Violation` for each task,
        socket and backend that is left.

    Example::

        async with nothing_left(*nodes, application_name="shop") as left:
            await run_the_program()
        assert left == []
    """
    left: list[Violation] = []
    names = {target.port: target.name for target in targets}
    nodes = [target for target in targets if _is_node(target)]
    before, linked = tasks(), sockets(names)
    yield left
    remaining = tasks() - before
    if len(nodes) < len(targets):
        own = {task for task in remaining if _name(task).startswith(_OWN)}
        with anyio.move_on_after(timeout):
            while own & tasks():  # noqa: ASYNC110 - no event tells that a foreign task ended
                await anyio.sleep(_POLL)
        remaining = (remaining - own) | (own & tasks())
    left += [Violation(RULE, None, f"task {_name(task)} is left: {task!r}") for task in remaining]
    for link, state in sockets(names).items():
        if link not in linked:
            where = f"{names[link.port]} (port {link.port})"
            left.append(Violation(RULE, None, f"a connection to {where} is left: {state}"))
    for node in nodes:
        if application_name is not None and node.running and not node.frozen:
            left += await backends_left(node, application_name, timeout)
    left.sort()


def _is_node(target: Target) -> TypeGuard[Node]:
    return hasattr(target, "execute")


def _name(task: Any) -> str:
    return str(task.name if isinstance(task, trio.lowlevel.Task) else task.get_name())
