"""The lanes of one access mode on one node: their number, opening and closing."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Protocol

import anyio
from anyio.abc import TaskGroup
from psycopg.adapt import AdaptersMap

from pgha._core.backoff import delay
from pgha._core.pipeline import Bounds
from pgha._core.queues import Queue
from pgha._node.callbacks import LaneBounds, LaneCallbacks, ServerFacts
from pgha._node.connector import Connector
from pgha._node.lane import Lane
from pgha._operation.operation import AccessMode, Operation
from pgha._options import NodeConfig, Options
from pgha._wire.connect import ConnectFailed
from pgha._wire.interrupts import uninterrupted


class Waiting:
    """Operations that wait, in two queues: ordinary ones, and exclusive ones, which need a quiet lane."""

    __slots__ = ("exclusive", "ordinary")

    def __init__(self) -> None:
        self.ordinary: Queue[Operation[Any]] = Queue()
        self.exclusive: Queue[Operation[Any]] = Queue()

    @property
    def queues(self) -> tuple[Queue[Operation[Any]], Queue[Operation[Any]]]:
        """Both queues."""
        return self.ordinary, self.exclusive

    def of(self, operation: Operation[Any]) -> Queue[Operation[Any]]:
        """Return the queue in which ``operation`` belongs."""
        return self.exclusive if operation.exclusive else self.ordinary

    def __bool__(self) -> bool:
        return bool(self.ordinary or self.exclusive)


class LaneSetCallbacks(Protocol):
    """The node to which the lanes belong."""

    name: str

    @property
    def usable(self) -> bool:
        """Whether connections to the node are opened and kept."""
        ...

    def lanes_changed(self) -> None:
        """Take note that a lane opened, closed or failed to open."""
        ...

    def lane_ended(self) -> None:
        """Open the lanes that are missing after one ended."""
        ...


class LaneSet:
    """The lanes of one access mode on one node."""

    def __init__(
        self, kind: AccessMode, config: NodeConfig, options: Options, adapters: AdaptersMap,
        owner: LaneSetCallbacks, host: LaneCallbacks[Lane], clock: Callable[[], float], server: ServerFacts,
    ) -> None:  # fmt: skip
        self.kind: AccessMode = kind
        self.lanes: list[Lane] = []
        self.opening = 0
        self.failures = 0
        self.failure = ""
        self.rejected = False
        self._connector = Connector(kind, config, options, server)
        self._options = options
        self._adapters = adapters
        self._owner = owner
        self._host = host
        self._clock = clock
        self._server = server
        self._connecting: set[anyio.CancelScope] = set()
        self._reserved: Lane | None = None
        """A lane on which nothing ordinary is sent until it is quiet, for an exclusive operation."""
        self._tasks: TaskGroup | None = None
        tuning = options.tuning
        self._bounds = LaneBounds(
            Bounds(
                depth=tuning.depth,
                hold_behind=tuning.hold_behind,
                head_of_line=tuning.head_of_line,
                ask_again=tuning.ask_again,
                cancel_grace=tuning.cancel_grace,
                cancel_again=tuning.cancel_again,
                cancel_deadline=tuning.cancel_deadline,
            ),
            tuning.cancel_deadline,
            tuning.drain_timeout,
        )

    # Choosing

    @property
    def failing(self) -> bool:
        """Whether no lane is open and the last attempt to open one failed."""
        return self.failures > 0 and not self.lanes

    def with_capacity(self, now: float, *, pack: bool = False) -> Lane | None:
        """Return the least loaded lane that has capacity, with ``pack`` the most loaded; None without any."""
        best: Lane | None = None
        found = -1 if pack else 1 << 30
        for lane in self.lanes:
            load = len(lane.pipeline.slots)
            better = load > found if pack else load < found
            if better and lane is not self._reserved and lane.has_capacity(now):
                best, found = lane, load
        return best

    def quiet(self) -> Lane | None:
        """Return a lane on which an exclusive operation may be sent, or None."""
        return next((lane for lane in self.lanes if lane.quiet), None)

    @property
    def in_flight(self) -> int:
        """The number of segments in flight on all lanes."""
        return sum(lane.in_flight for lane in self.lanes)

    # The number of lanes

    @property
    def complete(self) -> bool:
        """Whether the usual number of lanes is open."""
        return len(self.lanes) >= self._options.read_connections

    @property
    def additional(self) -> bool:
        """Whether more lanes are open than usual."""
        return len(self.lanes) > self._options.read_connections

    def keep(self, count: int) -> None:
        """Open lanes until ``count`` are open or opening."""
        while len(self.lanes) + self.opening < count and self._open():
            pass

    def demand(self, now: float, *, quiet: bool) -> None:
        """Open one more lane for operations that wait, if allowed and useful.

        ``quiet`` says that an exclusive operation waits. If no more lanes may be opened, one is reserved for
        that operation.
        """
        if self.opening or self.failing or not self._owner.usable:
            return
        count = len(self.lanes)
        stuck = quiet or all(lane.stuck(now) for lane in self.lanes)
        if not self.complete or (count < self._options.tuning.max_lanes and stuck):
            self._open()
        elif quiet and self.lanes and self._reserved not in self.lanes:
            # No more lanes may be opened, and under steady load no lane would ever become quiet by itself.
            self._reserved = min(self.lanes, key=lambda lane: lane.in_flight)

    def unreserve(self) -> None:
        """Release the reserved lane, because no operation waits for a quiet lane any more."""
        self._reserved = None

    # Opening and closing

    def attach(self, tasks: TaskGroup | None) -> None:
        """Set the task group in which the lanes run; None once that task group has ended."""
        self._tasks = tasks
        if tasks is None:
            self.opening = 0
            self._connecting.clear()

    def forget(self, lane: Lane) -> None:
        """Stop using a lane that broke, although its task has yet to end."""
        if lane in self.lanes:
            self.lanes.remove(lane)

    def stop_connecting(self) -> None:
        """Cancel the attempts to open a lane."""
        for scope in self._connecting:
            scope.cancel()

    def _open(self) -> bool:
        if self._tasks is None:
            return False
        self.opening += 1
        self._tasks.start_soon(self._life)
        return True

    @uninterrupted
    async def _life(self) -> None:
        """Open a lane and run it to its end; after a failure to open, wait for the backoff."""
        lane: Lane | None = None
        try:
            with anyio.CancelScope() as scope:
                self._connecting.add(scope)
                try:
                    lane = await self._connect()
                finally:
                    self._connecting.discard(scope)
        except ConnectFailed as error:
            self.failures += 1
            self.failure, self.rejected = str(error), error.rejected
            self._owner.lanes_changed()
            tuning = self._options.tuning
            await anyio.sleep(
                delay(self.failures - 1, random.random(), tuning.reconnect_first, tuning.reconnect_most)
            )
        finally:
            self.opening -= 1
        if lane is not None:
            self.failures, self.rejected = 0, False
            await self._serve(lane)
        self._owner.lane_ended()

    async def _serve(self, lane: Lane) -> None:
        if not self._owner.usable:
            lane.link.finish()
            return

        def opened() -> None:
            self.lanes.append(lane)
            self._owner.lanes_changed()

        try:
            await lane.run(opened)
        finally:
            self.forget(lane)
        self._owner.lanes_changed()

    async def _connect(self) -> Lane:
        link, system = await self._connector.connect()
        return Lane(
            link, self._owner.name, self.kind, self._adapters, self._host, self._bounds, self._clock,
            self._server, system,
        )  # fmt: skip
