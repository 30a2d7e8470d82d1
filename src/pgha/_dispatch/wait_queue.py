"""Operations that wait: the shared queues, the capacity for more, and the limit of the waiting time.

A waiting operation is in the shared queue of its access mode, or in a queue of its home, the node to which
the operation must be sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import anyio

from pgha._core.queues import Queue
from pgha._dispatch.timers import Timers
from pgha._node.lane_set import Waiting
from pgha._node.node import ManagedNode
from pgha._operation.operation import ACCESS_MODES, AccessMode, Operation, Stage
from pgha._options import Options
from pgha._types import Pin


class WaitQueueCallbacks(Protocol):
    """The dispatcher, which puts operations into the queues."""

    def node_of(self, operation: Operation[Any]) -> ManagedNode | None:
        """Return the node to which the operation would be sent now."""
        ...

    def expired(self, operation: Operation[Any], message: str) -> None:
        """Fail an operation that has waited too long for a node, and is in no queue any more."""
        ...


class WaitQueue:
    """The queues of operations that are not sent yet; see the head of this file."""

    def __init__(
        self, options: Options, nodes: Mapping[str, ManagedNode], times: Timers, clock: Callable[[], float],
        owner: WaitQueueCallbacks,
    ) -> None:  # fmt: skip
        self.length = 0
        """The number of operations in all queues, those of the nodes included."""
        self.shared: dict[AccessMode, Waiting] = {kind: Waiting() for kind in ACCESS_MODES}
        self.waiting_for_lineage: set[Operation[Any]] = set()
        """Operations whose node cannot take them, and which no server of another lineage may run."""
        self._limit = options.max_queued
        self._failover_timeout = options.failover_timeout
        self._nodes = nodes
        self._times = times
        self._clock = clock
        self._owner = owner
        self._capacity_waiters: list[anyio.Event] = []

    # Capacity

    @property
    def full(self) -> bool:
        """Whether the queues hold as many operations as they may."""
        return self.length >= self._limit

    async def wait_for_capacity(self) -> None:
        """Wait until there may be capacity for one more operation."""
        event = anyio.Event()
        self._capacity_waiters.append(event)
        await event.wait()

    def wake(self) -> None:
        """Wake all tasks that wait for capacity, so that they check again."""
        waiters, self._capacity_waiters = self._capacity_waiters, []
        for event in waiters:
            event.set()

    # Adding and removing

    def push(self, operation: Operation[Any], now: float, *, front: bool, served: bool) -> None:
        """Put an operation into its queue.

        ``served`` says that its node takes the operation once a lane has capacity; if not, the waiting time
        is limited.
        """
        kind, home = operation.request.kind, operation.home
        waiting = self.shared[kind] if home is None else self._nodes[home].waiting[kind]
        queue = waiting.of(operation)
        if front:
            queue.push_front(operation)
        else:
            queue.push(operation)
        operation.stage = Stage.QUEUED
        operation.place = queue
        operation.queued_at = now
        self.length += 1
        if not served:
            if operation.exactly_once:
                self.waiting_for_lineage.add(operation)
            self.expire_later(operation)

    def removed(self, operation: Operation[Any]) -> None:
        """Record that an operation was removed from its queue."""
        operation.place = None
        operation.stage = Stage.NEW
        self.length -= 1
        if self.waiting_for_lineage:
            self.waiting_for_lineage.discard(operation)
        if self._capacity_waiters and not self.full:
            self.wake()
        if operation.expiry is not None:
            self._times.cancel(operation.expiry)
            operation.expiry = None

    def take(self, queue: Queue[Operation[Any]]) -> Operation[Any]:
        """Remove and return the first operation of ``queue``."""
        operation = queue.take()
        self.removed(operation)
        return operation

    def remove(self, operation: Operation[Any]) -> None:
        """Remove an operation from its queue, at whatever position."""
        operation.place.remove(operation)
        self.removed(operation)

    # Expiry

    def expire_later(self, operation: Operation[Any]) -> None:
        """Limit the waiting time of an operation that no node can take now."""
        if operation.expiry is not None or operation.stage is not Stage.QUEUED:
            return
        if (
            operation.exactly_once or isinstance(operation.request.route, Pin)
        ) and operation.deadline is not None:
            return
        when = operation.queued_at + self._failover_timeout
        operation.expiry = self._times.at(when, lambda: self._expire(operation))

    def _expire(self, operation: Operation[Any]) -> None:
        operation.expiry = None
        if operation.stage is not Stage.QUEUED:
            return
        kind = operation.request.kind
        node = self._owner.node_of(operation)
        if node is not None and node.serves(kind):
            # The node takes operations again, but has not come to this one yet: check again later.
            again = self._clock() + max(self._failover_timeout, 0.5)
            operation.expiry = self._times.at(again, lambda: self._expire(operation))
            return
        what = f"node {operation.home} was not" if operation.home else "no node was"
        self.remove(operation)
        self._owner.expired(operation, f"{what} usable for {kind}s within {self._failover_timeout:g} s")

    def expire_all_later(self, waiting: Waiting, since: float | None) -> None:
        """Limit the waiting time of all operations in ``waiting``.

        The time counts from ``since``, or if that is None, from when each operation was queued.
        """
        for queue in waiting.queues:
            for operation in queue:
                if since is not None:
                    operation.queued_at = since
                    if operation.expiry is not None:
                        self._times.cancel(operation.expiry)
                        operation.expiry = None
                self.expire_later(operation)
