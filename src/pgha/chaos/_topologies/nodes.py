"""Several nodes as one object, and the topology without replication."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from os import PathLike
from typing import Literal, TypeAlias, TypeVar, overload

import anyio
import psycopg
from psycopg.rows import TupleRow

from pgha.chaos._containers.container import ContainerNode
from pgha.chaos._errors import ChaosError
from pgha.chaos._servers import sql as _sql
from pgha.chaos._servers.node import LocalNode, ServerNode
from pgha.chaos._servers.protocol import Node, NodeKind

T = TypeVar("T")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.1
N = TypeVar("N", bound=Node)
_KINDS: Mapping[NodeKind, type[LocalNode] | type[ContainerNode]] = {
    "local": LocalNode,
    "container": ContainerNode,
}
Files: TypeAlias = tuple[str | PathLike[str], str | PathLike[str]]
"""The paths of a certificate and of its key."""
Step: TypeAlias = Literal["starting", "started", "linked"]
"""The progress of a node: it has a data folder; it accepts connections; it replicates with all others."""
Progress: TypeAlias = Callable[[str, Step], None]
"""A function that gets a node's name and the step it has reached, in a task of the caller's loop."""


def unheard(node: str, step: Step) -> None:
    """Ignore the progress."""


async def in_parallel(function: Callable[[N], Awaitable[T]], nodes: Iterable[N]) -> dict[str, T]:
    """Call `function` with every node at the same time; return the results by name.

    The first error cancels the other calls and is raised unwrapped, without a group.
    """
    results: dict[str, T] = {}
    errors: list[Exception] = []

    async with anyio.create_task_group() as group:

        async def call(node: N) -> None:
            try:
                results[node.name] = await function(node)
            except Exception as error:  # noqa: BLE001 - raised below
                errors.append(error)
                group.cancel_scope.cancel()

        ordered = list(nodes)
        for node in ordered:
            group.start_soon(call, node)
    if errors:
        for other in errors[1:]:
            errors[0].add_note(f"and then: {other!r}")
        raise errors[0]
    return {node.name: results[node.name] for node in ordered}


async def until_nothing(missing: Callable[[], Awaitable[list[str]]], timeout: float, what: str) -> None:
    """Ask until the answer is empty; `ChaosError` with the last answer after `timeout` seconds."""
    answer: list[str] = []
    pause = _FIRST_PAUSE
    with anyio.move_on_after(timeout):
        while True:
            try:
                answer = await missing()
            except (psycopg.OperationalError, TimeoutError) as error:
                answer = [str(error).strip() or "no answer"]  # wait for a node that comes back
            if not answer:
                return
            await anyio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
    raise ChaosError(f"{what} after {timeout} s: {'; '.join(answer) or 'no answer'}")


class Nodes(Sequence[Node]):
    """The nodes of a topology, in order; `nodes[0]` and `nodes["n1"]` are the same node.

    Args:
        nodes: The nodes.

    Example::

        async with standalone(2) as nodes:
            await nodes["n2"].kill()
            print(nodes.dsns)
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._nodes = tuple(nodes)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self._nodes)})"

    @overload
    def __getitem__(self, key: int | str) -> Node: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Node, ...]: ...
    def __getitem__(self, key: int | str | slice) -> Node | tuple[Node, ...]:
        if not isinstance(key, str):
            return self._nodes[key]
        for node in self._nodes:
            if node.name == key:
                return node
        raise KeyError(key)

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each node, in order."""
        return tuple(node.name for node in self._nodes)

    @property
    def dsns(self) -> tuple[str, ...]:
        """The conninfo string of each node, in order."""
        return tuple(node.dsn for node in self._nodes)

    async def execute(
        self, sql: str, params: _sql.Params = None, *, timeout: float = 10.0
    ) -> dict[str, list[TupleRow]]:
        """Run SQL on every node at the same time, see `LocalNode.execute`.

        The first error cancels the calls on the other nodes. When cancelled, the call returns at once and
        closes its connections: the servers may still finish the statement.

        Args:
            sql: The SQL text; several statements are allowed without `params`.
            params: The parameters, as psycopg takes them.
            timeout: Seconds to wait for each node.

        Returns:
            The rows of the last statement, by node name.

        Raises:
            psycopg.Error: If the connection or the statement fails on a node.
            TimeoutError: If a node does not answer within `timeout`.
        """
        return await in_parallel(lambda node: node.execute(sql, params, timeout=timeout), self._nodes)


@asynccontextmanager
async def opened(nodes: Sequence[ServerNode], progress: Progress = unheard) -> AsyncGenerator[None]:
    """Start all nodes in parallel, and at the end kill and remove all in parallel, whatever happened."""

    async def bring_up(node: ServerNode) -> None:
        await node.__aenter__()
        progress(node.name, "starting")
        await node.start()
        progress(node.name, "started")

    try:
        await in_parallel(bring_up, nodes)
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await in_parallel(lambda node: node.close(), nodes)


def make_nodes(
    n: int,
    version: int | None,
    settings: Mapping[str, str] | None,
    hba: Sequence[str] | None,
    password: str | None,
    tls: Files | None,
    ports: Sequence[int] | None,
    kind: NodeKind = "local",
) -> list[ServerNode]:
    """Return `n` nodes named n1, n2, ..."""
    if n < 1:
        raise ChaosError(f"a topology needs at least one node, not {n}")
    if ports is not None and len(ports) != n:
        raise ChaosError(f"{n} nodes need {n} ports, not {len(ports)}")
    if (make := _KINDS.get(kind)) is None:
        raise ChaosError(f"{kind!r} is not a kind of node: use {' or '.join(map(repr, _KINDS))}")
    return [
        make(f"n{i}", version=version, settings=settings, hba=hba, password=password, tls=tls, port=port)
        for i, port in enumerate(ports or [None] * n, 1)
    ]


@asynccontextmanager
async def standalone(
    n: int = 1,
    *,
    version: int | None = None,
    settings: Mapping[str, str] | None = None,
    hba: Sequence[str] | None = None,
    password: str | None = None,
    tls: Files | None = None,
    ports: Sequence[int] | None = None,
    kind: NodeKind = "local",
    progress: Progress = unheard,
) -> AsyncGenerator[Nodes]:
    """Run `n` independent servers, named n1, n2, ...

    Leaving kills the servers, frozen or not, and removes all their files. The time for that is bounded, and
    cancellation cannot interrupt it. If entering is cancelled, the servers are removed in the same way.

    Args:
        n: The number of servers.
        version: PostgreSQL's major version; None: the default (18).
        settings: Settings for postgresql.conf, in addition to the kit's own.
        hba: The lines of pg_hba.conf. None: all clients on 127.0.0.1 are trusted, or need the password if
            there is one.
        password: The password of the user `postgres`; None: no password.
        tls: The paths of the certificate and of the key; None: no TLS.
        ports: One port per node; None: any free ports.
        kind: The environment of each server, `local` (`LocalNode`) or `container` (`ContainerNode`).
        progress: A function that gets a node's name and `starting` or `started` as the node comes up.

    Returns:
        An async context manager that gives the running `Nodes`.

    Raises:
        ChaosError: On entering, if an argument is invalid, a port is taken, or a server does not start.

    Example::

        async with standalone(2, version=16) as nodes:
            print(await nodes.execute("SHOW server_version"))
    """
    nodes = make_nodes(n, version, settings, hba, password, tls, ports, kind)
    async with opened(nodes, progress):
        yield Nodes(nodes)
