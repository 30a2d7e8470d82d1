"""Operations that wait, in lines: one line for each need, in the order of age.

An operation that is run again keeps its age, and so comes before all that were started later. A line is as
long as `max_queued` says. Behind that stand the callers that wait for their operation anyway (``execute``,
``fetch``): they cost the line nothing but their place. Only ``submit`` is refused there. Lines do not share
their length: writes that wait for a primary leave the reads alone.

While no node serves a line, the time that its operations wait is limited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, Protocol

from pgha._core.need import Need
from pgha._core.queues import AgeQueue
from pgha._dispatch.timers import Timers
from pgha._node.node import ManagedNode
from pgha._operation.observer import Observers
from pgha._operation.operation import NEW, QUEUED, Operation
from pgha._options import Options
from pgha._types import Pin


class Line:
    """The operations that wait with one need; those that must be alone on a lane have a line of their own."""

    __slots__ = ("behind", "exclusive", "need", "overflow", "target", "waiting", "was_served")

    def __init__(self, need: Need, exclusive: bool) -> None:
        self.need = need
        self.exclusive = exclusive
        self.waiting: AgeQueue[Operation[Any]] = AgeQueue()
        """The operations within the length of the line."""
        self.behind: AgeQueue[Operation[Any]] = AgeQueue()
        """The operations beyond it, which move up; all are younger, and were never sent."""
        self.target: ManagedNode | None = None
        """The node to which the operations are sent; None while no node is eligible."""
        self.overflow: ManagedNode | None = None
        """Another node to which they are sent as well, because nothing moves on the target."""
        self.was_served = False
        """Whether the line was `served` when somebody looked last."""

    def __iter__(self) -> Iterator[Operation[Any]]:
        return chain(self.waiting, self.behind)

    def __len__(self) -> int:
        return len(self.waiting) + len(self.behind)

    def goes_to(self, node: ManagedNode) -> bool:
        """Return whether the operations are sent to this node at present."""
        return self.target is node or self.overflow is node

    @property
    def served(self) -> bool:
        """Whether the target takes the operations, now or after a ping, once a lane has capacity."""
        target, access = self.target, self.need.access
        return target is not None and target.admits(access) and not target.sets[access].failing


def oldest(line: Line) -> int:
    """Return the age of the line's first operation."""
    return line.waiting.oldest_age()


class WaitQueueCallbacks(Protocol):
    """The dispatcher, which ends operations that have waited too long."""

    def expired(self, operation: Operation[Any], message: str) -> None:
        """Fail an operation that has waited too long for a node, and is in no line any more."""
        ...


class WaitQueue:
    """The lines of operations that are not sent yet; see the head of this file."""

    def __init__(
        self, options: Options, times: Timers, clock: Callable[[], float], owner: WaitQueueCallbacks,
        observers: Observers,
    ) -> None:  # fmt: skip
        self.length = 0
        """The number of operations in all lines."""
        self.active: dict[Line, None] = {}
        """The lines in which somebody waits."""
        self.usual: dict[Need, Line] = {}
        """The lines of operations that share their lanes, by need."""
        self._exclusive: dict[Need, Line] = {}
        self._limit = options.max_queued
        self._failover_timeout = options.failover_timeout
        self._times = times
        self._clock = clock
        self._owner = owner
        self._observers = observers

    # Lines

    def find(self, need: Need, exclusive: bool) -> Line | None:
        """Return the line for this need, if there is one."""
        return (self._exclusive if exclusive else self.usual).get(need)

    def add(self, need: Need, exclusive: bool) -> Line:
        """Make and return the line for this need."""
        line = (self._exclusive if exclusive else self.usual)[need] = Line(need, exclusive)
        return line

    def lines(self) -> Iterator[Line]:
        """Return all lines."""
        yield from self.usual.values()
        yield from self._exclusive.values()

    def forget(self, node: str) -> list[Operation[Any]]:
        """Remove the lines for the node ``node`` alone, and return the operations that waited there."""
        waiting: list[Operation[Any]] = []
        for lines in (self.usual, self._exclusive):
            for need in [need for need in lines if need.node == node]:
                waiting += self.drain(lines.pop(need))
        return waiting

    # Length

    def beyond(self, operation: Operation[Any]) -> bool:
        """Return whether a waiting operation stands beyond the length of its line, and was never sent."""
        line = operation.place
        return operation.stage is QUEUED and line.behind.has(operation, operation.number)

    def all_beyond(self) -> list[Operation[Any]]:
        """Return the operations that stand beyond the length of their lines."""
        return [one for line in self.active for one in line.behind]

    # Joining and leaving

    def push(self, operation: Operation[Any], line: Line, now: float) -> None:
        """Put an operation into a line, at the place of its age."""
        waiting = line.waiting
        if not waiting.count:
            self.active[line] = None
        elif waiting.count >= self._limit and operation.number > waiting.newest and not operation.attempts:
            waiting = line.behind
        waiting.push(operation, operation.number)
        operation.stage = QUEUED
        operation.place = line
        operation.queued_at = now
        for tell in self._observers.queued:
            tell(operation)
        self.length += 1
        if (target := line.target) is None or not target.serves(line.need.access):
            self.expire_later(operation)

    def _left(self, operation: Operation[Any], line: Line) -> None:
        operation.place = None
        operation.stage = NEW
        self.length -= 1
        if line.behind.count:
            self._move_up(line)
        if not line.waiting.count:
            self.active.pop(line, None)
        if operation.expiry is not None:
            self._times.cancel(operation.expiry)
            operation.expiry = None

    def _move_up(self, line: Line) -> None:
        waiting, behind = line.waiting, line.behind
        while behind and len(waiting) < self._limit:
            operation = behind.oldest()
            # In both for a moment, rather than in none when an exception comes in between.
            waiting.push(operation, operation.number)
            behind.remove(operation, operation.number)

    def recount(self) -> None:
        """Count anew what waits, after something was interrupted between two counts."""
        for line in self.lines():
            line.waiting.recount()
            line.behind.recount()
            for operation in line.waiting:
                line.behind.remove(operation, operation.number)
            self._move_up(line)
        self.active = {line: None for line in self.lines() if line.waiting}
        self.length = sum(len(line) for line in self.active)

    def take(self, line: Line) -> Operation[Any]:
        """Remove and return the oldest operation of ``line``."""
        operation = line.waiting.take()
        self._left(operation, line)
        return operation

    def remove(self, operation: Operation[Any]) -> None:
        """Remove an operation from its line, at whatever position."""
        line = operation.place
        if not line.waiting.remove(operation, operation.number):
            line.behind.remove(operation, operation.number)
        self._left(operation, line)

    def drain(self, line: Line) -> list[Operation[Any]]:
        """Remove and return all operations of a line, the oldest first."""
        operations = [*line.waiting.drain(), *line.behind.drain()]
        for operation in operations:
            self._left(operation, line)
        return operations

    # Expiry

    def expire_later(self, operation: Operation[Any]) -> None:
        """Limit the waiting time of an operation that no node can take now."""
        if operation.expiry is not None or operation.stage is not QUEUED:
            return
        if self._unlimited(operation):
            return
        self._expire_at(operation, operation.queued_at + self._failover_timeout)

    def _expire_at(self, operation: Operation[Any], when: float) -> None:
        operation.expiry = self._times.at(when, lambda: self._expire(operation))

    def _expire(self, operation: Operation[Any]) -> None:
        operation.expiry = None
        if operation.stage is not QUEUED:
            return
        line = operation.place
        if line.served:
            # The node takes operations again, but has not come to this one yet: check again later.
            self._expire_at(operation, self._clock() + max(self._failover_timeout, 0.5))
            return
        node = line.need.node
        any_node = "no primary was" if line.need.role == "primary" else "no node was"
        what = f"node {node} was not" if node else any_node
        self.remove(operation)
        self._owner.expired(
            operation, f"{what} usable for {line.need.access}s within {self._failover_timeout:g} s"
        )

    def look_after(self, lines: Iterable[Line]) -> None:
        """Limit the waiting time in each line that is not served any more, from now on."""
        for line in lines:
            served = line.served
            if line.was_served and not served:
                self._expire_all(line)
            line.was_served = served

    def _expire_all(self, line: Line) -> None:
        when = self._clock() + self._failover_timeout
        for operation in line:
            if operation.expiry is not None:
                self._times.cancel(operation.expiry)
                operation.expiry = None
            if not self._unlimited(operation):
                self._expire_at(operation, when)

    @staticmethod
    def _unlimited(operation: Operation[Any]) -> bool:
        """Return whether only the deadline limits the waiting time: no other node may run the operation."""
        bound = operation.exactly_once or isinstance(operation.request.route, Pin)
        return bound and operation.deadline is not None
