"""Sending: operations that wait are handed to lanes with capacity, the oldest first.

Nothing here reads or calls back, except the caller's ``on_send``, which may submit and cancel: that is put in
line at the door, and done when the present act is over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol
from uuid import UUID

from pgha._core.outcome import Outcome
from pgha._core.pace import QUICK
from pgha._dispatch.placing import Placing
from pgha._dispatch.tracker import Tracker
from pgha._dispatch.wait_queue import Line, WaitQueue, oldest
from pgha._node.lane import Lane
from pgha._node.node import ManagedNode
from pgha._operation.operation import ACCESS_MODES, DONE, NEW, AccessMode, Operation
from pgha._types import SendInfo


class FeedingCallbacks(Protocol):
    """The dispatcher, which ends operations that cannot be placed."""

    def nowhere(self, operation: Operation[Any]) -> None:
        """Place an operation anew, or end it: no node is left that it may run on."""
        ...


class Feeding:
    """Hands operations to lanes; see the head of this file."""

    def __init__(
        self, nodes: Mapping[str, ManagedNode], waiting: WaitQueue, placing: Placing, tracker: Tracker,
        clock: Callable[[], float], owner: FeedingCallbacks,
    ) -> None:  # fmt: skip
        self._nodes = nodes
        self._waiting = waiting
        self._placing = placing
        self._tracker = tracker
        self._clock = clock
        self._owner = owner
        self.hungry: set[ManagedNode] = set()
        """The nodes that may be able to take more of what waits."""

    # One operation

    def start(self, operation: Operation[Any], now: float) -> None:
        """Send a new operation if that is possible at once, else put it into its line.

        Only for the beginning of an act: a lane for writes is read first.
        """
        line = self._waiting.usual.get(operation.need)
        if line is None or operation.exclusive or (node := line.target) is None:
            self.place(operation, now)
            return
        if line.waiting.count:
            # The usual case under load, and so kept cheap. Whatever frees a lane looks at the line.
            self._waiting.push(operation, line, now)
            return
        if not node.takes(operation.need.access) or (self._waiting.active and not self._first(line, node)):
            self.place(operation, now)
            return
        lanes = node.sets[operation.need.access]
        pace = operation.request.pace
        lane = lanes.with_capacity(now, pack=pace is not None and pace.seconds < QUICK)
        if lane is None:
            self._waiting.push(operation, line, now)
            node.busy()
            lanes.demand(now, 0.0, quiet=False)
            return
        if (
            (lane.kind == "write" or operation.suspected_crashes)
            and lane.reads_before(operation)
            and lane.freshen()
            and not (lane.has_capacity(now) and self._first(line, node))
        ):
            self.place(operation, now)
            return
        if operation.unwanted or operation.request.on_send is not None:
            self._send(lane, node, operation, now)
        else:
            lane.send(operation, now)

    def place(self, operation: Operation[Any], now: float) -> None:
        """Put an operation into its line, from where it is sent before the door is left, if possible."""
        need = operation.need if operation.lineage is None else self._placing.need_of(operation)
        line = self._waiting.find(need, operation.exclusive)
        if (line is None or line.target is None) and not self._placing.possible(need):
            self._owner.nowhere(operation)
            return
        line = line or self._placing.line(need, operation.exclusive)
        self._waiting.push(operation, line, now)
        self._wait_for_node(line)
        if line.target is not None:
            self.hungry.add(line.target)

    def _first(self, line: Line, node: ManagedNode) -> bool:
        """Return whether a new operation of this line is the first that may be sent to the node."""
        if not node.takes(line.need.access):
            return False
        active = self._waiting.active
        return not active or not any(one.goes_to(node) for one in active)

    def _wait_for_node(self, line: Line) -> None:
        """Ask the nodes at once when the first write finds none that takes it."""
        if line.target is not None:
            line.target.busy()
        elif line.need.role == "primary" and len(line.waiting) == 1:
            for node in self._nodes.values():
                node.request_ping()

    # Lines

    def may_take(self, node: ManagedNode) -> None:
        """Take note that a node may be able to take more of what waits."""
        if self._waiting.length:
            self.hungry.add(node)

    def feed(self) -> None:
        """Send what can be sent."""
        hungry, self.hungry = self.hungry, set()
        for node in hungry:
            for access in ACCESS_MODES:
                if node.takes(access):
                    self._feed(node, access)

    def _feed(self, node: ManagedNode, access: AccessMode) -> None:
        lanes, waiting = node.sets[access], self._waiting
        lines = [one for one in waiting.active if one.need.access == access and one.goes_to(node)]
        now = self._clock()
        ordinary = [one for one in lines if not one.exclusive]
        while lines:
            line = lines[0] if len(lines) == 1 else min(lines, key=oldest)
            if line.exclusive:
                age, waited = oldest(line), now - line.waiting.oldest().queued_at
                older = any(one.waiting and oldest(one) < age for one in ordinary)
                lane = lanes.alone(others=bool(ordinary), older=older, waited=waited)
            else:
                lane = lanes.with_capacity(now)
            if lane is None:
                lanes.demand(now, now - line.waiting.oldest().queued_at, quiet=line.exclusive)
                # A lane for one that must be alone may become quiet later; others need not wait for that.
                lines = [one for one in lines if one.exclusive is not line.exclusive]
                continue
            operation = line.waiting.oldest()
            if lane.reads_before(operation) and lane.freshen():
                if not node.takes(access):
                    return
                lines = [one for one in lines if one.waiting.count]
                continue
            self._take_and_send(lane, node, line, operation, now)
            if not line.waiting.count:
                lines.remove(line)
        node.busy()
        exclusive = (one for one in waiting.active if one.exclusive and one.need.access == access)
        if not any(one.goes_to(node) for one in exclusive):
            lanes.release()

    # Sending

    def _take_and_send(
        self, lane: Lane, node: ManagedNode, line: Line, operation: Operation[Any], now: float
    ) -> None:
        """Send the operation, which is the oldest in its line."""
        try:
            self._waiting.take(line)
            self._send(lane, node, operation, now)
        except BaseException:
            # An exception of a signal's handler must not leave the operation nowhere.
            if operation.stage is NEW and operation.place is None and not operation.unwanted:
                self._waiting.push(operation, line, now)
            raise

    def _send(self, lane: Lane, node: ManagedNode, operation: Operation[Any], now: float) -> None:
        if operation.unwanted or (
            operation.request.on_send is not None and not self._told(operation, node.name)
        ):
            # The act that ends it is in line at the door, or it has ended.
            return
        lane.send(operation, now)

    def _told(self, operation: Operation[Any], node: str) -> bool:
        """Run the caller's ``on_send``; return whether the operation is to be sent."""
        request = operation.request
        pairs = [(one.query, one.params) for one in request.statements]
        key = self._key_for(operation, node)
        try:
            if request.on_send is not None:
                request.on_send(SendInfo(node, len(operation.attempts) + 1, pairs, key))
        except BaseException as error:  # noqa: BLE001 - the user's callback: its error goes to its operation
            if operation.stage is not DONE:
                self._tracker.fail(operation, error, Outcome.NOT_APPLIED)
        return not operation.unwanted and operation.stage is not DONE

    def _key_for(self, operation: Operation[Any], node: str) -> UUID | None:
        """Return the key that is sent with the operation, or None."""
        keyed = operation.request.keyed
        if keyed is None or operation.unkeyed:
            return None
        use_ledger = not keyed.auto or operation.exactly_once or self._nodes[node].server.ledger
        return keyed.key if use_ledger else None
