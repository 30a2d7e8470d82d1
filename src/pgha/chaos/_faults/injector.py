"""Performing faults on servers and on the lines before them, and healing them whatever happens."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import cast, final

import anyio
import psycopg

from pgha.chaos._errors import ChaosError
from pgha.chaos._faults.acts import NODE_ACTS, WIRE_ACTS, ProxyLike, mend
from pgha.chaos._faults.kinds import TRAITS, FaultKind, Layer, NodeFault, WireFault
from pgha.chaos._faults.schedule import Done, Schedule, Step
from pgha.chaos._servers.protocol import Node

_TROUBLE = (ChaosError, psycopg.Error, OSError)  # TimeoutError is an OSError


class _Refused(ChaosError):
    """The fault cannot be done as things are; nothing was touched."""


@dataclass(slots=True)
class _Open:
    """A fault that was begun and not healed yet."""

    kind: FaultKind
    node: str
    record: int
    """Its place in `Injector.done`."""
    heal: Callable[[], Awaitable[object]]
    trouble: str = ""
    """Why it could not be healed so far."""
    healing: anyio.Lock = field(default_factory=anyio.Lock)
    healed: bool = False

    @property
    def slot(self) -> tuple[Layer, str]:
        return TRAITS[self.kind].layer, self.node


@final
class Injector:
    """Does faults to `nodes`, and to the lines before them if there are `proxies` (of the nodes' names).

    A node has one fault of its own at a time, and its line one. `spare`: at least so many nodes are left
    alone at any moment. A fault that cannot be done as things are is recorded as skipped, with the reason.
    """

    def __init__(
        self, nodes: Iterable[Node], proxies: Iterable[ProxyLike] | None = None, *, spare: int = 0
    ) -> None:
        self._nodes = {node.name: node for node in nodes}
        self._names = tuple(self._nodes)
        self._lines = {line.name: line for line in proxies or ()}
        self._spare = spare
        self._open: dict[tuple[Layer, str], _Open] = {}
        self.done: list[Done] = []
        """All that was done or skipped, in order of time; what lasts still has no end (`until` is inf)."""

    async def run(self, schedule: Schedule) -> list[Done]:
        """Perform the schedule and heal everything; gives what became of its steps.

        Raises `ChaosError` at once if a step is for a node or a line that there is not, and at the end if
        something could not be healed. When cancelled, it heals everything first: afterwards every node runs
        and every line is clean. That takes seconds at most, or the nodes' own timeouts (60 s to start).
        """
        for step in schedule.steps:
            self._known(step.kind, step.node)
        first, begun = len(self.done), anyio.current_time()
        try:
            async with anyio.create_task_group() as tasks:
                for step in sorted(schedule.steps, key=lambda step: step.at):
                    tasks.start_soon(self._perform, step, begun)
        finally:
            with anyio.CancelScope(shield=True):
                await self.heal()
        return self.done[first:]

    async def _perform(self, step: Step, begun: float) -> None:
        await anyio.sleep_until(begun + step.at)
        try:
            fault = await self._begin(step.kind, self._names[step.node], step.amount)
        except _TROUBLE:
            return  # recorded as skipped
        try:
            await anyio.sleep_until(begun + step.until)
        finally:
            with anyio.CancelScope(shield=True):
                await self._end(fault)

    async def strike(self, kind: FaultKind, node: str | int, amount: float = 0.0) -> None:
        """Do it now; it lasts until `heal`. `ChaosError` when it cannot be done.

        Cancellation waits for it (a fast shutdown may take seconds), so that it is done whole or not at all.
        """
        name = self._known(kind, node)
        await self._begin(kind, name, amount)

    async def heal(self, node: str | int | None = None) -> None:
        """Heal what was done to the node and its line (None: to all). Afterwards the node runs and accepts
        connections and the line is clean, whoever had broken them.

        `ChaosError` when that cannot be had; the others are healed all the same. When cancelled it can be
        called again.
        """
        names = self._names if node is None else (self._name(node),)
        troubles: list[str] = []

        async def one(name: str) -> None:
            try:
                await self._heal(name)
            except _TROUBLE as error:
                troubles.append(f"{name} could not be healed: {error}")

        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(one, name)
        if troubles:
            raise ChaosError("\n".join(troubles))

    async def _heal(self, name: str) -> None:
        if line := self._lines.get(name):
            line.heal()
        for fault in [fault for fault in self._open.values() if fault.node == name]:
            await self._end(fault)
            if fault.trouble:
                raise ChaosError(f"{fault.kind}: {fault.trouble}")
        await mend(self._nodes[name])

    def _name(self, node: str | int) -> str:
        if isinstance(node, int):
            if not 0 <= node < len(self._names):
                raise ChaosError(f"there is no node {node}, only {len(self._names)} nodes")
            return self._names[node]
        if node not in self._nodes:
            raise ChaosError(f"there is no node {node!r}, only {', '.join(self._names)}")
        return node

    def _known(self, kind: FaultKind, node: str | int) -> str:
        """The name of a node to which this can be done at all."""
        name = self._name(node)
        if kind not in TRAITS:
            raise ChaosError(f"{kind!r} is no kind of fault; there are {', '.join(TRAITS)}")
        if TRAITS[kind].layer == "wire" and name not in self._lines:
            raise ChaosError(f"{kind} needs a proxy before {name}: give the injector the proxies")
        return name

    async def _begin(self, kind: FaultKind, name: str, amount: float) -> _Open:
        """Do it. Shielded: whether it happened must be known to heal it."""
        with anyio.CancelScope(shield=True):
            await self._over(TRAITS[kind].layer, name)
            record = len(self.done)
            self.done.append(Done(kind, name, time.monotonic(), math.inf))
            try:
                self._check(kind, name)
                fault = self._open_fault(kind, name, record)
                await self._act(fault, amount or (*TRAITS[kind].amounts, 0.0)[0])
            except _TROUBLE as error:
                self.done[record] = replace(
                    self.done[record], until=time.monotonic(), skipped=str(error) or repr(error)
                )
                raise
        if kind in ("terminate", "reset", "close"):
            self._close(fault)  # nothing of it is left to be healed
        return fault

    async def _over(self, layer: Layer, name: str) -> None:
        """What needs no healing, only time, is no obstacle."""
        before = self._open.get((layer, name))
        if before is not None and not TRAITS[before.kind].lasting:
            await self._end(before)

    def _check(self, kind: FaultKind, name: str) -> None:
        node, layer = self._nodes[name], TRAITS[kind].layer
        if other := self._open.get((layer, name)):
            raise _Refused(f"{other.kind} lasts on {name}" + (f": {other.trouble}" if other.trouble else ""))
        if layer == "node" and (not node.running or node.frozen):
            raise _Refused(f"{name} is {'frozen' if node.frozen else 'down'}")
        harmed = {fault.node for fault in self._open.values()} | {name}
        if len(harmed) > len(self._nodes) - self._spare:
            raise _Refused(f"{self._spare} of {len(self._nodes)} nodes are spared")

    def _open_fault(self, kind: FaultKind, name: str, record: int) -> _Open:
        async def heal() -> None:
            if TRAITS[kind].layer == "wire":
                self._lines[name].heal()
            else:
                await NODE_ACTS[cast(NodeFault, kind)][1](self._nodes[name])

        fault = _Open(kind, name, record, heal)
        self._open[fault.slot] = fault
        return fault

    async def _act(self, fault: _Open, amount: float) -> None:
        try:
            if TRAITS[fault.kind].layer == "wire":
                WIRE_ACTS[cast(WireFault, fault.kind)](self._lines[fault.node], amount)
            else:
                await NODE_ACTS[cast(NodeFault, fault.kind)][0](self._nodes[fault.node], amount)
        except _TROUBLE:
            await self._end(fault)  # it may have been done by half
            raise

    async def _end(self, fault: _Open) -> None:
        """Heal it, once. What fails is kept for the next try."""
        async with fault.healing:
            if fault.healed:
                return
            try:
                await fault.heal()
            except _TROUBLE as error:
                fault.trouble = str(error) or repr(error)
            else:
                self._close(fault)

    def _close(self, fault: _Open) -> None:
        fault.healed, fault.trouble = True, ""
        del self._open[fault.slot]
        self.done[fault.record] = replace(self.done[fault.record], until=time.monotonic())
