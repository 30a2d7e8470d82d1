"""The faults of the demo: planned from the seed alone, then done to the nodes under the workload."""

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
"""Seconds from one fault to the next, about."""
_SHARE_AT_WRITER = 0.75
_PATIENCE = 10.0
"""Seconds in which pgha has to use a healed node again."""
HOLD = 3.0
"""Seconds that a node stays killed or frozen by hand."""
STRIKES: Mapping[str, DemoFault] = {"k": "kill", "f": "freeze", "r": "restart"}
"""By their keys."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault to be; `at` and `hold` in seconds."""

    at: float
    kind: DemoFault
    hold: float
    """How long the node stays killed or frozen."""
    at_writer: bool
    """Whether it is for the node that takes the writes at that moment, when it is healthy."""
    pick: float
    """Else: where among the healthy nodes it is, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that was."""

    at: float
    kind: DemoFault
    node: str
    at_writer: bool
    by_hand: bool = False


class Refused(Exception):
    """The fault may not be now; the text says why."""


def plan(random: Random, seconds: float) -> list[Planned]:
    """Faults spread over the time, with a rest before and after; each three have all kinds, in any order."""
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
    """Who is shown the faults. `at`: seconds since the workload began."""

    def fault(self, fault: Fault) -> None:
        """A node is about to be killed, frozen or restarted."""
        ...

    def mending(self, node: str) -> None:
        """Its server is being started or thawed again."""
        ...

    def back(self, node: str, at: float, away: float) -> None:
        """pgha uses it again, `away` seconds after the fault."""
        ...


class Saboteur:
    """Does what is planned or asked for, and heals it again; one node at least is healthy at each moment.

    Healthy means that its server accepts connections and pgha uses it. Several nodes may be away at once: a
    permit for each but one is taken before the fault, and given back when its node is healthy again.
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
        """No more faults; what is away is healed at once, and `run` ends when all are healthy."""
        self._stopping.set()

    async def run(self, cluster: pgha.Cluster, faults: list[Planned]) -> None:
        """Do `faults` in their order, and what `strike` asks for; returns when it was stopped and all nodes
        are healthy again.
        """
        async with anyio.create_task_group() as tasks:

            def begin(node: Node, kind: DemoFault, hold: float, by_hand: bool) -> None:
                self._away.add(node.name)
                tasks.start_soon(self._strike, cluster, node, kind, hold, by_hand)

            self._begin = begin
            tasks.start_soon(self._follow, faults, begin)
            await self._stopping.wait()

    def strike(self, kind: DemoFault, name: str) -> None:
        """A fault that was not planned begins now, and is healed after `HOLD` seconds; or `Refused`."""
        if self._begin is None or self._stopping.is_set():
            raise Refused("no faults now")
        if name in self._away:
            raise Refused(f"{name} is away already")
        try:
            self._permits.acquire_nowait()
        except anyio.WouldBlock:
            raise Refused(f"{name} is the last healthy node: it is spared") from None
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
        """Wait until pgha uses the node again; that it does not is a defect to be counted."""
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
        self._recorder.complain(f"{name} is back, and pgha did not use it for {_PATIENCE:g} s")


async def afflict(
    node: Node, kind: DemoFault, hold: Callable[[], Awaitable[object]], mending: Callable[[], None]
) -> None:
    """Do it to the server, await `hold()`, call `mending()`, and wait until it accepts connections again."""
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
    """A time to read: 45 ms, 3.1 s."""
    return f"{seconds:.1f} s" if seconds >= 1.0 else f"{seconds * 1000:.0f} ms"
