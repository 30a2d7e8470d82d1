"""Which node each line of waiting operations goes to; recorded with the line whenever the nodes change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pgha._core.need import PRIMARY_READ, WRITE, Need
from pgha._core.routing import among, choose, eligible
from pgha._dispatch.wait_queue import Line, WaitQueue
from pgha._node.node import ManagedNode
from pgha._operation.operation import Operation
from pgha._options import Tuning


class Placing:
    """The targets of the lines."""

    def __init__(
        self, nodes: Mapping[str, ManagedNode], waiting: WaitQueue, tuning: Tuning,
        incomplete: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._nodes = nodes
        self._waiting = waiting
        self._incomplete = incomplete
        """Whether a node was not heard of yet that may be a newer primary than all others."""
        self._overflow_after = tuning.overflow_after

    def line(self, need: Need, exclusive: bool) -> Line:
        """Return the line for a need, with its target."""
        line = self._waiting.find(need, exclusive)
        if line is None:
            line = self._waiting.add(need, exclusive)
            self._aim(line)
            line.was_served = line.served
        return line

    def target(self, need: Need) -> ManagedNode | None:
        """Return the node to which operations of this need are sent at present."""
        return self.line(need, exclusive=False).target

    def need_of(self, operation: Operation[Any]) -> Need:
        """Return the need of an operation that may have become bound to a lineage."""
        if operation.lineage is None or not operation.exactly_once:
            return operation.need
        return operation.need._replace(lineage=operation.lineage)

    def possible(self, need: Need) -> bool:
        """Return whether there is a node that this need admits, whatever the state of that node."""
        if need.node is not None:
            return need.node in self._nodes
        if need.lineage is not None:
            return bool(self._members(need.lineage))
        return True

    def _members(self, lineage: int) -> list[ManagedNode]:
        return [one for one in self._nodes.values() if one.server.system == lineage and not one.leaving]

    def aim_all(self) -> list[Line]:
        """Choose the target of every line anew, and return the lines whose target changed."""
        # First the line of the writes, which other lines follow.
        writes = self._waiting.find(WRITE, exclusive=False)
        lines = [line for line in self._waiting.lines() if line is not writes]
        if writes is not None:
            lines.insert(0, writes)
        return [line for line in lines if self._moves(line)]

    def _moves(self, line: Line) -> bool:
        """Choose the target of a line anew; return whether it changed."""
        before = line.target
        self._aim(line)
        return line.target is not before

    def _aim(self, line: Line) -> None:
        need, before = line.need, line.target
        line.overflow = None
        if need.node is not None:
            line.target = self._nodes.get(need.node)
        elif need.lineage is not None:
            line.target = self._of_lineage(need.lineage, before)
        elif need == PRIMARY_READ:
            # It sees what was written where the writes go, also with several masters.
            line.target = self.target(WRITE) or self._nearest(need, before)
        else:
            # Operations that need a lane of their own go to the same node as all others.
            usual = self._waiting.find(need, exclusive=False) if line.exclusive else None
            if line.exclusive and usual is None:
                usual = self.line(need, exclusive=False)
            line.target = usual.target if usual is not None else self._nearest(need, before)

    def _nearest(self, need: Need, before: ManagedNode | None) -> ManagedNode | None:
        views = [node.candidate(need.access) for node in self._nodes.values() if not node.leaving]
        if need.role == "primary" and before is None and self._incomplete():
            views = []  # writes begin on the newest primary, not on the one that happened to answer first
        name = choose(views, before.name if before is not None else None, need)
        return self._nodes[name] if name is not None else None

    def _of_lineage(self, lineage: int, before: ManagedNode | None) -> ManagedNode | None:
        current = self.target(WRITE)
        views = [node.candidate("write") for node in self._members(lineage)]
        current_name, last = (one.name if one is not None else None for one in (current, before))
        name = among(views, current_name, last)
        return self._nodes.get(name) if name is not None else None

    def relieve(self, node: ManagedNode, now: float) -> list[ManagedNode]:
        """Let reads that wait for a node whose lanes are all stuck go to another node as well.

        Writes stay: another master would not see what the stuck statements hold. So do reads that follow the
        writes.
        """
        relieved: list[ManagedNode] = []
        if len(self._nodes) < 2:
            return relieved
        stuck = node.sets["read"].stuck(now)
        for line in self._waiting.active:
            need = line.need
            if need.role == "primary" or need.node is not None or line.target is not node:
                continue
            age = now - line.waiting.oldest().queued_at
            late = stuck and age > self._overflow_after
            line.overflow = self._other(node, need, now) if late else None
            if line.overflow is not None:
                relieved.append(line.overflow)
        return relieved

    def _other(self, node: ManagedNode, need: Need, now: float) -> ManagedNode | None:
        """Return another node for this need where something moves, the nearest one."""
        views = [
            other.candidate(need.access)
            for other in self._nodes.values()
            if other is not node and other.serves(need.access) and not other.sets[need.access].stuck(now)
        ]
        name = choose([one for one in views if eligible(one, need)], None, need)
        return self._nodes[name] if name is not None else None
