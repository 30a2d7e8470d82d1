"""A finalizer or a handler of a signal adds or removes a node, whatever pgha is doing."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from anyio.abc import TaskGroup
from support.interruption import Interruption

from pgha import nearest
from pgha._cluster.cluster import Cluster
from pgha._core.server_status import ServerStatus
from pgha._operation.operation import Operation
from pgha._options import Options, parse_nodes

pytestmark = pytest.mark.anyio


class Scene:
    """A cluster of two nodes that answer, without connections."""

    def __init__(self) -> None:
        cluster: Cluster[Any] = Cluster(parse_nodes(["host=a dbname=x", "host=b dbname=x"]), Options())
        cluster._tasks = cast(TaskGroup, SimpleNamespace(start_soon=lambda call: None))
        for node in cluster._nodes.values():
            node.health.answered(0.0, ServerStatus(system=7), 0.0001)
            node.server.system = 7
        cluster._dispatcher.reroute()
        self.cluster = cluster
        self.operations = {read: self._make(read=read) for read in (True, False)}

    def _make(self, *, read: bool) -> Operation[Any]:
        request = self.cluster._maker.single(
            "SELECT 1", None, read=read, route=nearest(), timeout=60.0, statement_timeout=None,
            row_factory=None, on_send=None,
        )  # fmt: skip
        return Operation(self.cluster._dispatcher, request, 0.0)

    def start(self, *, read: bool) -> None:
        self.cluster._dispatcher.start(self.operations[read])

    def add(self, name: str) -> None:
        self.cluster.add_node(f"host={name} dbname=x")

    def remove(self) -> None:
        node = next(iter(self.cluster._nodes.values()))
        self.cluster._dispatcher.door.enter(self.cluster._remove, node)


CHANGES: dict[str, Callable[[Scene], object]] = {
    "a node comes": lambda scene: scene.add("c"),
    "a node goes": lambda scene: scene.remove(),
}
MEANWHILE: dict[str, Callable[[Scene], object]] = {
    "a read starts": lambda scene: scene.start(read=True),
    "a write starts": lambda scene: scene.start(read=False),
    "another node comes": lambda scene: scene.add("d"),
    "another node goes": lambda scene: scene.remove(),
    "the nodes are shown": lambda scene: scene.cluster.nodes,
    "figures are shown": lambda scene: scene.cluster.statistics(),
}


@pytest.mark.parametrize(
    "meanwhile",
    [pytest.param(one, marks=() if "shown" in one else pytest.mark.thorough) for one in MEANWHILE],
)
@pytest.mark.parametrize("change", CHANGES)
async def test_between_any_two_bytecodes(change: str, meanwhile: str) -> None:
    position = 0
    while True:
        scene = Scene()
        interruption = Interruption(position, lambda: CHANGES[change](scene))  # noqa: B023 - in this round
        with interruption.lurking():
            MEANWHILE[meanwhile](scene)
        if not interruption.happened:
            break
        assert ("c:5432" in scene.cluster.nodes) == (change == "a node comes")
        position += 1
    assert position > 30
