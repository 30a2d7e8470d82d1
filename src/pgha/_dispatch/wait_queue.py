"""What waits: the queues that no node has yet, how long an operation may stay in one, and room for more.

An operation in line is in the shared queue of its kind, or in that of the node it has to go to (its home).
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
    """Who puts operations in line."""

    def node_of(self, operation: Operation[Any]) -> ManagedNode | None:
        """Where it would be sent now."""
        ...

    def expired(self, operation: Operation[Any], message: str) -> None:
        """It waited as long as it may for a node; it is out of line."""
        ...


class WaitQueue:
    """See the head of this file."""

    def __init__(
        self, options: Options, nodes: Mapping[str, ManagedNode], times: Timers, clock: Callable[[], float],
        owner: WaitQueueCallbacks,
    ) -> None:  # fmt: skip
        self.length = 0
        """Operations in all queues, those of the nodes included."""
        self.shared: dict[AccessMode, Waiting] = {kind: Waiting() for kind in ACCESS_MODES}
        self.waiting_for_lineage: set[Operation[Any]] = set()
        """For a node that cannot take them, while no server of another lineage may have them."""
        self._most = options.max_queued
        self._failover_timeout = options.failover_timeout
        self._nodes = nodes
        self._times = times
        self._clock = clock
        self._owner = owner
        self._capacity_waiters: list[anyio.Event] = []

    # Room

    @property
    def full(self) -> bool:
        return self.length >= self._most

    async def wait_for_capacity(self) -> None:
        """Wait until there may be room for one more."""
        event = anyio.Event()
        self._capacity_waiters.append(event)
        await event.wait()

    def wake(self) -> None:
        """Those who wait for room look again."""
        waiters, self._capacity_waiters = self._capacity_waiters, []
        for event in waiters:
            event.set()

    # In and out

    def push(self, operation: Operation[Any], now: float, *, front: bool, served: bool) -> None:
        """Put it in line; ``served``: its node takes it as soon as a lane has room."""
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

    def out(self, operation: Operation[Any]) -> None:
        """It was taken from its queue."""
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
        """Take the oldest."""
        operation = queue.take()
        self.out(operation)
        return operation

    def leave(self, operation: Operation[Any]) -> None:
        """Take it out, wherever it stands."""
        operation.place.remove(operation)
        self.out(operation)

    # Until when

    def expire_later(self, operation: Operation[Any]) -> None:
        """Nobody can take it now: it must not wait without a bound."""
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
            # Served again meanwhile, only not this one yet: look again later.
            again = self._clock() + max(self._failover_timeout, 0.5)
            operation.expiry = self._times.at(again, lambda: self._expire(operation))
            return
        what = f"node {operation.home}" if operation.home else "a node"
        self.leave(operation)
        self._owner.expired(
            operation, f"no answer from {what} for {kind}s within {self._failover_timeout:g} s"
        )

    def expire_all_later(self, waiting: Waiting, since: float | None) -> None:
        """All in ``waiting``; counted from ``since``, else from when each got in line."""
        for queue in waiting.queues:
            for operation in queue:
                if since is not None:
                    operation.queued_at = since
                    if operation.expiry is not None:
                        self._times.cancel(operation.expiry)
                        operation.expiry = None
                self.expire_later(operation)
