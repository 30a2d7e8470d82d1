"""Injecting faults into servers and into the proxies before them, and healing them in every case."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import cast, final

import anyio
import psycopg
from anyio.abc import TaskStatus

from pgha.chaos._errors import ChaosError
from pgha.chaos._faults.acts import NODE_ACTS, WIRE_ACTS, ProxyLike, mend
from pgha.chaos._faults.kinds import TRAITS, FaultKind, Layer, NodeFault, WireFault
from pgha.chaos._faults.schedule import Done, Schedule, Step
from pgha.chaos._servers.protocol import Node

_TROUBLE = (ChaosError, psycopg.Error, OSError)  # TimeoutError is an OSError


class _Refused(ChaosError):
    """The fault cannot be injected in the current state; nothing was touched."""


@dataclass(slots=True)
class _Open:
    """A fault that was injected and is not healed yet."""

    kind: FaultKind
    node: str
    record: int
    """The index of the fault in `Injector.done`."""
    heal: Callable[[], Awaitable[object]]
    until: float
    """When its schedule ends it, on the loop's clock."""
    trouble: str = ""
    """The reason why the last attempt to heal failed; "" if there was none."""
    acted: anyio.Event = field(default_factory=anyio.Event)
    """Set when the fault was injected, or skipped."""
    healing: anyio.Lock = field(default_factory=anyio.Lock)
    healed: bool = False

    @property
    def slot(self) -> tuple[Layer, str]:
        """The layer and the node of the fault: there is at most one fault for each pair."""
        return TRAITS[self.kind].layer, self.node


@final
class Injector:
    """An injector of faults into nodes, and into the proxies before them.

    A node has one fault of its own at a time, and its proxy one as well. A fault that cannot be injected in
    the current state is recorded as skipped, with the reason.

    Args:
        nodes: The nodes.
        proxies: Proxies with the names of the nodes; None: faults of the network cannot be injected.
        spare: The number of nodes that have no fault at any moment.

    Example::

        async with standalone(2) as nodes, proxied(nodes) as proxies:
            injector = Injector(nodes, proxies)
            await injector.strike("freeze", "n1")
            await injector.heal()
            done = await injector.run(Schedule((Step(0.1, "kill", node=1),)))
    """

    def __init__(
        self, nodes: Iterable[Node], proxies: Iterable[ProxyLike] | None = None, *, spare: int = 0
    ) -> None:
        self._nodes = {node.name: node for node in nodes}
        self._names = tuple(self._nodes)
        self._lines = {line.name: line for line in proxies or ()}
        self._spare = spare
        self._open: dict[tuple[Layer, str], _Open] = {}
        self._turns: dict[tuple[Layer, str], anyio.Lock] = {}
        self.done: list[Done] = []
        """All faults that were injected or skipped, in order of time; `until` is inf while a fault lasts."""

    async def run(self, schedule: Schedule) -> list[Done]:
        """Perform a schedule and heal everything.

        When cancelled, the call heals everything first: afterwards every node runs and every proxy is clean.
        That takes some seconds, or at most the nodes' own timeouts (60 s for a start).

        Args:
            schedule: The schedule.

        Returns:
            One `Done` per step, in order of time.

        Raises:
            ChaosError: At once if a step names an unknown node, or needs a proxy that does not exist; at the
                end if something could not be healed.
        """
        for step in schedule.steps:
            self._known(step.kind, step.node)
        first, begun = len(self.done), anyio.current_time()
        try:
            async with anyio.create_task_group() as tasks:
                for step in sorted(schedule.steps, key=lambda step: step.at):
                    await anyio.sleep_until(begun + step.at)
                    await tasks.start(self._perform, step, begun)
        finally:
            with anyio.CancelScope(shield=True):
                await self.heal()
        return self.done[first:]

    async def _perform(self, step: Step, begun: float, *, task_status: TaskStatus[None]) -> None:
        task_status.started()  # the next step begins after this one, also when both are late
        try:
            name, due, until = self._names[step.node], begun + step.at, begun + step.until
            fault = await self._begin(step.kind, name, step.amount, due, until)
        except _TROUBLE:
            return  # `_begin` has recorded it as skipped
        try:
            await anyio.sleep_until(until)
        finally:
            with anyio.CancelScope(shield=True):
                await self._end(fault)

    async def strike(self, kind: FaultKind, node: str | int, amount: float = 0.0) -> None:
        """Inject a fault now. The fault lasts until `heal`.

        Cancellation waits until the fault is injected (a fast shutdown may take seconds), so that it is
        injected completely or not at all.

        Args:
            kind: The kind of fault.
            node: The name or the index of the node.
            amount: The amount, in the unit of the kind (see `Step.amount`); 0: the usual amount of the kind.

        Raises:
            ChaosError: If the fault cannot be injected.
        """
        name = self._known(kind, node)
        await self._begin(kind, name, amount)

    async def heal(self, node: str | int | None = None) -> None:
        """Heal a node and its proxy, or all of them.

        Afterwards the node runs and accepts connections, and the proxy is clean, even if another program
        broke them. After a failure, the other nodes are healed all the same. When cancelled, the call may be
        repeated.

        Args:
            node: The name or the index of the node; None: all nodes.

        Raises:
            ChaosError: If a node cannot be healed.
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
                raise ChaosError(f"there is no node {node}: use an index from 0 to {len(self._names) - 1}")
            return self._names[node]
        if node not in self._nodes:
            raise ChaosError(f"there is no node {node!r}: use one of {', '.join(self._names)}")
        return node

    def _known(self, kind: FaultKind, node: str | int) -> str:
        """Return the name of the node, if this kind of fault can be injected there at all."""
        name = self._name(node)
        if kind not in TRAITS:
            raise ChaosError(f"{kind!r} is not a kind of fault: use one of {', '.join(TRAITS)}")
        if TRAITS[kind].layer == "wire" and name not in self._lines:
            raise ChaosError(f"{kind} needs a proxy before {name}: pass the proxies to the injector")
        return name

    async def _begin(
        self, kind: FaultKind, name: str, amount: float, due: float = 0.0, until: float = math.inf
    ) -> _Open:
        """Inject a fault.

        Shielded from cancellation: to heal the fault, the injector must know whether it was injected.
        """
        slot = TRAITS[kind].layer, name
        # In the order in which they came: a checkpoint would change it on trio.
        turn = self._turns.setdefault(slot, anyio.Lock(fast_acquire=True))
        with anyio.CancelScope(shield=True):
            async with turn:
                await self._over(*slot, due)
                record = len(self.done)
                self.done.append(Done(kind, name, time.monotonic(), math.inf))
                try:
                    self._check(kind, name)
                    fault = self._open_fault(kind, name, record, until)
                    await self._act(fault, amount or (*TRAITS[kind].amounts, 0.0)[0])
                except _TROUBLE as error:
                    self.done[record] = replace(
                        self.done[record], until=time.monotonic(), skipped=str(error) or repr(error)
                    )
                    raise
        if kind in ("terminate", "reset", "close"):
            self._close(fault)  # nothing is left to be healed
        return fault

    async def _over(self, layer: Layer, name: str, due: float) -> None:
        """End earlier faults that must not block the next one.

        These are faults that need no healing, and faults that would have ended by `due` on an idle machine.
        """
        before = self._open.get((layer, name))
        if before is None or before.trouble:
            return
        if before.until <= due or not TRAITS[before.kind].lasting:
            await before.acted.wait()  # a server that goes down now would not let it be done
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

    def _open_fault(self, kind: FaultKind, name: str, record: int, until: float) -> _Open:
        async def heal() -> None:
            if TRAITS[kind].layer == "wire":
                self._lines[name].heal()
            else:
                await NODE_ACTS[cast(NodeFault, kind)][1](self._nodes[name])

        fault = _Open(kind, name, record, heal, until)
        self._open[fault.slot] = fault
        return fault

    async def _act(self, fault: _Open, amount: float) -> None:
        try:
            if TRAITS[fault.kind].layer == "wire":
                WIRE_ACTS[cast(WireFault, fault.kind)](self._lines[fault.node], amount)
            else:
                await NODE_ACTS[cast(NodeFault, fault.kind)][0](self._nodes[fault.node], amount)
        except _TROUBLE:
            await self._end(fault)  # it may have been injected partly
            raise
        finally:
            fault.acted.set()

    async def _end(self, fault: _Open) -> None:
        """Heal a fault, once. A failure is recorded, and the next call tries again."""
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
