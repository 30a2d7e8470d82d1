"""What the dispatcher does when a node changes: events, new targets of the lines, operations placed anew."""

from __future__ import annotations

from typing import Any, Protocol

import anyio

from pgha._core.health import Transition
from pgha._core.outcome import Outcome
from pgha._dispatch.common import Common
from pgha._dispatch.failure import LegLost
from pgha._dispatch.feeding import Feeding
from pgha._dispatch.lineages import Lineages
from pgha._dispatch.placing import Placing
from pgha._dispatch.wait_queue import WaitQueue
from pgha._node.node import ManagedNode
from pgha._operation.operation import Operation
from pgha._types import ClockSkewed, NodeStateChanged, Pin, RoleChanged


class NodeChangesCallbacks(Protocol):
    """The dispatcher, which places operations and ends those that no node may run."""

    def place(self, operation: Operation[Any], now: float) -> None:
        """Send an operation, or put it into its line."""
        ...

    def nowhere(self, operation: Operation[Any]) -> None:
        """Place an operation anew, or end it: its node is gone."""
        ...


class NodeChanges:
    """Follows the nodes; see the head of this file."""

    def __init__(
        self, common: Common, waiting: WaitQueue, placing: Placing, feeding: Feeding, lineages: Lineages,
        owner: NodeChangesCallbacks,
    ) -> None:  # fmt: skip
        self.watchers: set[anyio.Event] = set()
        """Events of the tasks that wait for a change."""
        self._nodes = common.nodes
        self._tracker = common.tracker
        self._log = common.tracker.log
        self._clock = common.clock
        self._patience = common.tuning.overflow_after
        """Seconds for which an operation waits for the node that it was moved to."""
        self._waiting = waiting
        self._placing = placing
        self._feeding = feeding
        self._lineages = lineages
        self._owner = owner

    def notify(self) -> None:
        """Wake the tasks that wait for a change."""
        watchers, self.watchers = self.watchers, set()
        for event in watchers:
            event.set()

    def reroute(self, _: None = None) -> None:
        """Choose anew which nodes the lines go to."""
        for line in self._placing.aim_all():
            if line.target is not None:
                self._feeding.may_take(line.target)
            elif line.waiting and not self._placing.possible(line.need):
                for operation in self._waiting.drain(line):
                    self._owner.nowhere(operation)
        self._waiting.look_after(self._waiting.lines())

    def lanes_changed(self, node: ManagedNode) -> None:
        """Follow the opening, the end, or the failure to open of a lane."""
        self.reroute()
        self.notify()
        self._feeding.may_take(node)

    def health_changed(self, node: ManagedNode, moved: Transition, reason: str) -> None:
        """Follow an observation of the node's health."""
        now, events = self._clock(), self._tracker.events
        if moved.state_changed:
            events.emit(
                NodeStateChanged(
                    at=now, node=node.name, state=moved.after, before=moved.before, reason=reason
                )
            )
            role = f"{moved.role}, read-only" if moved.read_only else moved.role
            self._log.state_changed(node.name, moved.before, moved.after, reason, role)
        if moved.role_changed:
            events.emit(
                RoleChanged(
                    at=now, node=node.name, role=moved.role, before=moved.role_before,
                    read_only=moved.read_only,
                )
            )  # fmt: skip
            self._log.role_changed(node.name, moved.role_before, moved.role, read_only=moved.read_only)
        self.reroute()
        superseded = self._lineages.take_changed()
        for one in superseded:
            self._requeue(one)
        if (moved.fell or moved.role_changed) and node not in superseded:
            self._requeue(node)
        if moved.state_changed or moved.role_changed or superseded:
            self.notify()
        self._feeding.may_take(node)

    def _requeue(self, node: ManagedNode) -> None:
        """Place anew the operations that wait for this node alone, on whatever node they may run.

        Operations that the caller pinned stay; legs of a race fail if the node is lost.
        """
        for line in [one for one in self._waiting.active if one.need.node == node.name]:
            for operation in self._waiting.drain(line):
                if operation.parent is not None and not node.health.usable:
                    lost = LegLost(f"{node.name}: {node.health.reason}")
                    self._tracker.fail(operation, lost, Outcome.NOT_APPLIED)
                elif operation.parent is None and not isinstance(operation.request.route, Pin):
                    operation.need = operation.request.need
                    self._owner.place(operation, operation.queued_at)
                else:
                    # Anew in its line, where its waiting time is limited now.
                    self._waiting.push(operation, line, self._clock())

    def let_go(self, node: ManagedNode, now: float) -> None:
        """Let operations go elsewhere that were moved to this node, and have waited here for too long."""
        for line in [one for one in self._waiting.active if one.need.node == node.name]:
            for operation in list(line):
                if operation.parent is not None or isinstance(operation.request.route, Pin):
                    continue
                if now - operation.queued_at > self._patience:
                    self._waiting.remove(operation)
                    operation.need = operation.request.need
                    self._owner.place(operation, now)

    def clock_changed(self, node: ManagedNode) -> None:
        """Emit an event because the node's clock started or stopped being skewed."""
        clock = node.server.clock
        self._tracker.events.emit(
            ClockSkewed(at=self._clock(), node=node.name, skew=clock.skew or 0.0, skewed=clock.skewed)
        )
        self._log.clock_skewed(node.name, clock.skew or 0.0, skewed=clock.skewed)

    def forget(self, node: ManagedNode) -> None:
        """Place the operations anew that wait for a node that was removed."""
        self._log.forget(node.name)
        waiting = self._waiting.forget(node.name)
        self.reroute()
        for operation in waiting:
            self._owner.nowhere(operation)
        self.notify()

    def left(self, operation: Operation[Any]) -> None:
        """Let go of a lane that is kept free, because an operation that may be the reason left its line."""
        if operation.exclusive:
            for node in self._nodes.values():
                node.sets[operation.need.access].release()
                self._feeding.may_take(node)
