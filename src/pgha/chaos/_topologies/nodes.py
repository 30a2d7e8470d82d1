"""Several nodes as one thing, and the topology without replication."""

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
Step: TypeAlias = Literal["starting", "started", "linked"]
"""How far a node is: it has a data folder; it accepts connections; it replicates to and from all others."""
Progress: TypeAlias = Callable[[str, Step], None]
"""Told a node's name and the step it came to, in a task of the caller's loop."""


def unheard(node: str, step: Step) -> None:
    """The progress that nobody asked for."""


async def in_parallel(function: Callable[[N], Awaitable[T]], nodes: Iterable[N]) -> dict[str, T]:
    """`function` of every node at the same time; the results by name. The first error cancels the others and
    comes out as itself, not in a group.
    """
    results: dict[str, T] = {}
    errors: list[Exception] = []

    async with anyio.create_task_group() as group:

        async def call(node: N) -> None:
            try:
                results[node.name] = await function(node)
            except Exception as error:  # noqa: BLE001 - it is raised below
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
                answer = [str(error).strip() or "no answer"]  # a node which comes back is waited for
            if not answer:
                return
            await anyio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
    raise ChaosError(f"{what} after {timeout} s: {'; '.join(answer) or 'no answer'}")


class Nodes(Sequence[Node]):
    """The nodes of a topology, in order; `nodes[0]` and `nodes["n1"]` are the same."""

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
        return tuple(node.name for node in self._nodes)

    @property
    def dsns(self) -> tuple[str, ...]:
        """The conninfo string of each node, in order."""
        return tuple(node.dsn for node in self._nodes)

    async def execute(
        self, sql: str, params: _sql.Params = None, *, timeout: float = 10.0
    ) -> dict[str, list[TupleRow]]:
        """`LocalNode.execute` on every node at the same time; the rows by node name. The first error ends
        all.
        """
        return await in_parallel(lambda node: node.execute(sql, params, timeout=timeout), self._nodes)


@asynccontextmanager
async def opened(nodes: Sequence[ServerNode], progress: Progress = unheard) -> AsyncGenerator[None]:
    """Start all nodes in parallel; kill and remove all in parallel at the end, whatever happened."""

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
    """`n` nodes called n1, n2, ..."""
    if n < 1:
        raise ChaosError(f"a topology needs at least one node, not {n}")
    if ports is not None and len(ports) != n:
        raise ChaosError(f"{n} nodes need {n} ports, not {len(ports)}")
    if (make := _KINDS.get(kind)) is None:
        raise ChaosError(f"{kind!r} is no kind of node: {' or '.join(map(repr, _KINDS))}")
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
    """`n` independent running servers, called n1, n2, ...; the options are those of `LocalNode`.

    `ports`: one for each node, instead of any free ones; `ChaosError` when one is taken. `kind`: `local` or
    `container`, what each server runs in (`LocalNode`, `ContainerNode`). `progress`: called with a node's
    name and `starting` or `started`, as it comes up.

    Leaving kills them, frozen or not, and removes every trace, shielded from cancellation and bounded in
    time.
    """
    nodes = make_nodes(n, version, settings, hba, password, tls, ports, kind)
    async with opened(nodes, progress):
        yield Nodes(nodes)
