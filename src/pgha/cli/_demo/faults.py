"""The faults of the demo: planned from the seed alone, then inflicted on the nodes under the workload."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal, Protocol, TypeAlias, get_args

import anyio

import pgha
from pgha.chaos import Masters, Node
from pgha.cli._demo.workload import Recorder

DemoFault: TypeAlias = Literal["kill", "freeze", "restart"]

_EVERY = 2.8
"""Approximate seconds from one fault to the next."""
_SHARE_AT_WRITER = 0.75
_PATIENCE = 10.0
"""Seconds within which pgha has to use a healed node again."""
HOLD = 3.0
"""Seconds for which a node stays killed or frozen after a key."""
STRIKES: Mapping[str, DemoFault] = {"k": "kill", "f": "freeze", "r": "restart"}
"""The faults by the keys that begin them."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A planned fault; `at` and `hold` are in seconds."""

    at: float
    kind: DemoFault
    hold: float
    """The time for which the node stays killed or frozen."""
    at_writer: bool
    """Whether the fault hits the node that takes the writes at that moment, if that node is healthy."""
    pick: float
    """If not: the position, from 0 to 1, of the hit node among the healthy ones."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that was inflicted."""

    at: float
    kind: DemoFault
    node: str
    at_writer: bool
    by_hand: bool = False


class Refused(Exception):
    """The fault is not allowed now, for the reason in the message."""


def plan(random: Random, seconds: float) -> list[Planned]:
    """Return faults that are spread over the time, with a pause before the first and after the last.

    Each group of three faults has all three kinds, in random order.
    """
    first, span = 0.06 * seconds, 0.86 * seconds
    count = max(1, round(span / _EVERY))
    kinds: list[DemoFault] = []
    while len(kinds) < count:
        kinds += random.sample(get_args(DemoFault), k=3)
    slot = span / count
    return [
        Planned(
            at=first + (i + random.uniform(0.0, 0.4)) * slot,
            kind=kind,
            hold=random.uniform(0.5, 3.0),
            at_writer=random.random() < _SHARE_AT_WRITER,
            pick=random.random(),
        )
        for i, kind in enumerate(kinds[:count])
    ]


class FaultView(Protocol):
    """A view that shows the faults. `at` is in seconds since the workload began."""

    def fault(self, fault: Fault) -> None:
        """Show that a node is about to be killed, frozen or restarted."""
        ...

    def mending(self, node: str) -> None:
        """Show that the node's server is being started or thawed again."""
        ...

    def back(self, node: str, at: float, away: float) -> None:
        """Show that pgha uses the node again, `away` seconds after the fault."""
        ...


class Saboteur:
    """Inflicts planned and requested faults, and heals them. At least one node is healthy at each moment.

    A node is healthy if its server accepts connections and pgha uses the node. Several nodes may be away at
    once. There is one permit less than nodes: each fault takes a permit, and returns it when the node is
    healthy again.
    """

    def __init__(self, nodes: Masters, recorder: Recorder, view: FaultView) -> None:
        self.done: list[Fault] = []
        self._nodes = nodes
        self._recorder = recorder
        self._view = view
        self._away: set[str] = set()
        self._permits = anyio.Semaphore(len(nodes) - 1)
        self._stopping = anyio.Event()
        self._begin: Callable[[Node, DemoFault, float, bool], None] | None = None

    def stop(self) -> None:
        """Begin no more faults, and heal all nodes at once. `run` returns when all nodes are healthy."""
        self._stopping.set()

    async def run(self, cluster: pgha.Cluster, faults: list[Planned]) -> None:
        """Inflict `faults` in their order, and the faults that `strike` requests.

        Return when `stop` was called and all nodes are healthy again.
        """
        async with anyio.create_task_group() as tasks:

            def begin(node: Node, kind: DemoFault, hold: float, by_hand: bool) -> None:
                self._away.add(node.name)
                tasks.start_soon(self._strike, cluster, node, kind, hold, by_hand)

            self._begin = begin
            tasks.start_soon(self._follow, faults, begin)
            await self._stopping.wait()

    def strike(self, kind: DemoFault, name: str) -> None:
        """Begin a fault that was not planned, and heal it after `HOLD` seconds.

        Raises:
            Refused: The fault is not allowed now.
        """
        if self._begin is None or self._stopping.is_set():
            raise Refused("no faults while no workload runs")
        if name in self._away:
            raise Refused(f"{name} is already away: wait until it is back")
        try:
            self._permits.acquire_nowait()
        except anyio.WouldBlock:
            raise Refused(f"{name} is the last healthy node: wait until another is back") from None
        self._begin(self._nodes[name], kind, HOLD, True)

    async def _follow(
        self, faults: list[Planned], begin: Callable[[Node, DemoFault, float, bool], None]
    ) -> None:
        for planned in faults:
            if await self._stopped_within(planned.at - self._recorder.elapsed):
                return
            await self._permits.acquire()
            if self._stopping.is_set():
                return
            begin(self._victim(planned), planned.kind, planned.hold, False)

    async def _stopped_within(self, seconds: float) -> bool:
        with anyio.move_on_after(max(0.0, seconds)):
            await self._stopping.wait()
        return self._stopping.is_set()

    def _victim(self, planned: Planned) -> Node:
        healthy = [node for node in self._nodes if node.name not in self._away]
        writer = self._recorder.writer
        if planned.at_writer and writer is not None and writer not in self._away:
            return self._nodes[writer]
        return healthy[int(planned.pick * len(healthy))]

    async def _strike(
        self, cluster: pgha.Cluster, node: Node, kind: DemoFault, hold: float, by_hand: bool
    ) -> None:
        began = self._recorder.elapsed
        fault = Fault(began, kind, node.name, node.name == self._recorder.writer, by_hand)
        self.done.append(fault)
        self._view.fault(fault)
        await afflict(node, kind, lambda: self._stopped_within(hold), lambda: self._view.mending(node.name))
        await self._until_used(cluster, node.name)
        self._away.discard(node.name)
        self._permits.release()
        now = self._recorder.elapsed
        self._view.back(node.name, now, now - began)

    async def _until_used(self, cluster: pgha.Cluster, name: str) -> None:
        """Wait until pgha uses the node again. If that takes too long, count a defect."""
        with anyio.move_on_after(_PATIENCE):
            async with cluster.events() as events:
                if cluster.nodes[name].state == "up":
                    return
                async for event in events:
                    if (
                        isinstance(event, pgha.NodeStateChanged)
                        and event.node == name
                        and event.state == "up"
                    ):
                        return
        self._recorder.complain(f"{name} is back, but pgha did not use it within {_PATIENCE:g} s")


async def afflict(
    node: Node, kind: DemoFault, hold: Callable[[], Awaitable[object]], mending: Callable[[], None]
) -> None:
    """Inflict a fault, await `hold()`, call `mending()`, heal the fault, and wait until the server is ready.

    A restart heals itself, so `hold()` is not awaited.
    """
    match kind:
        case "kill":
            await node.kill()
            await hold()
            mending()
            await node.start()
        case "freeze":
            await node.freeze()
            await hold()
            mending()
            await node.thaw()
        case "restart":
            await node.restart()
            mending()
    await node.wait_ready()


def in_words(seconds: float) -> str:
    """Return a time as text: 45 ms, 3.1 s."""
    return f"{seconds:.1f} s" if seconds >= 1.0 else f"{seconds * 1000:.0f} ms"
