"""The lanes of one access mode on one node: their number, opening and closing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import anyio
from anyio.abc import TaskGroup
from psycopg.adapt import AdaptersMap

from pgha._core.backoff import delay
from pgha._core.pipeline import OPEN, Bounds
from pgha._node.callbacks import LaneBounds, LaneCallbacks, ServerFacts
from pgha._node.connector import Connector
from pgha._node.lane import Lane
from pgha._node.load import ProgramLoad
from pgha._operation.operation import AccessMode
from pgha._options import NodeConfig, Options
from pgha._wire.connect import ConnectFailed
from pgha._wire.interrupts import uninterrupted


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
        self._connector = Connector(kind, config, options, server, adapters)
        self._options = options
        self._owner = owner
        self._host = host
        self._clock = clock
        self._server = server
        self._load = ProgramLoad(options.sources)
        self._connecting: set[anyio.CancelScope] = set()
        self._leased: list[Lane] = []
        """Lanes on which nothing ordinary is sent until they are quiet, for exclusive operations."""
        self._tasks: TaskGroup | None = None
        tuning = options.tuning
        self._bounds = LaneBounds(
            Bounds(
                depth=tuning.depth,
                behind=tuning.behind,
                hold_behind=tuning.hold_behind,
                head_of_line=tuning.head_of_line,
                ask_again=tuning.ask_again,
                cancel_grace=tuning.cancel_grace,
                cancel_again=tuning.cancel_again,
                cancel_deadline=tuning.cancel_deadline,
            ),
            tuning.cancel_deadline,
            tuning.drain_timeout,
            tuning.stranded_after,
        )

    # Choosing

    @property
    def failing(self) -> bool:
        """Whether no lane is open and the last attempt to open one failed."""
        return self.failures > 0 and not self.lanes

    def with_capacity(self, now: float, *, pack: bool = False) -> Lane | None:
        """Return the least loaded lane that has capacity, with ``pack`` the most loaded; None without any.

        The load is the time that a lane needs for what is in flight, and then the number of segments.
        """
        best: Lane | None = None
        best_load, best_depth = 0.0, 0
        for lane in self.lanes:
            # As `Lane.has_capacity`, without the calls.
            pipeline = lane.pipeline
            depth = len(pipeline.slots)
            if not lane.usable or not (pipeline.has_capacity(now) if depth else pipeline.gate is OPEN):
                continue
            if self._leased and lane in self._leased:
                continue
            load = pipeline.backlog if depth else 0.0
            if best is not None:
                more = load > best_load or (load == best_load and depth > best_depth)
                if more is not pack:
                    continue
            best, best_load, best_depth = lane, load, depth
        return best

    def alone(self, *, others: bool, older: bool, waited: float) -> Lane | None:
        """Return a lane for an exclusive operation, or None; one is then kept free as soon as it is quiet.

        ``others`` says that ordinary operations wait, too: one lane at least is left to them, if there are
        two. ``older`` says that they have waited for longer: then the only lane is theirs. ``waited`` is the
        seconds for which the exclusive operation has waited.
        """
        most = self._options.tuning.max_lanes
        limit = most - 1 if others and most > 1 else most
        running = sum(1 for lane in self.lanes if lane.alone)
        if running >= limit:
            self._leased = []
            return None
        self._leased = [lane for lane in self._leased if lane in self.lanes]
        found = next((lane for lane in self._leased if lane.quiet), None)
        if found is None:
            found = next((lane for lane in self.lanes if lane.quiet), None)
        if found is not None:
            # The next one in the line takes a lease of its own, if it needs one.
            self._leased = []
            return found
        if not self._leased and (self._full or waited > self._options.tuning.lease_after):
            self._lease(at_least=2 if older else 1)
        return None

    @property
    def _full(self) -> bool:
        """Whether no more lanes may be opened, or the last attempt to open one failed."""
        return self.failures > 0 or len(self.lanes) + self.opening >= self._options.tuning.max_lanes

    def _lease(self, at_least: int) -> None:
        """Keep one of ``at_least`` lanes free: under steady load none would ever become quiet by itself."""
        shared = [lane for lane in self.lanes if not lane.alone]
        if len(shared) >= at_least:
            self._leased.append(min(shared, key=lambda lane: lane.in_flight))

    def stuck(self, now: float) -> bool:
        """Return whether all lanes are open that may be, and nothing can be sent on any for a while."""
        few = len(self.lanes) < self._options.tuning.max_lanes and not self.opening
        return bool(self.lanes) and not few and all(lane.stuck(now) for lane in self.lanes)

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

    def demand(self, now: float, waited: float, *, quiet: bool) -> None:
        """Open one more lane for operations that wait, if allowed and useful.

        One more is useful if the oldest has waited for ``waited`` seconds, and the lanes are held up by the
        time that their statements take: more lanes would not make quick statements quicker. ``quiet`` says
        that an exclusive operation waits.
        """
        count = len(self.lanes)
        if self.opening >= max(1, count) or self.failing or not self._owner.usable:
            return
        if count + self.opening < self._options.read_connections:
            self._open()
        elif count + self.opening < self._options.tuning.max_lanes:
            slow = waited >= self._options.tuning.open_after and all(lane.stuck(now) for lane in self.lanes)
            if quiet:
                if not self.opening:
                    self._open()
            elif slow and not self._load.busy(now):
                self._open()

    def release(self) -> None:
        """Release the lanes that are kept free, because no exclusive operation waits any more."""
        if self._leased:
            self._leased = []

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
            draw = self._options.sources.draw()
            await anyio.sleep(delay(self.failures - 1, draw, tuning.reconnect_first, tuning.reconnect_most))
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
            link,
            self._owner.name,
            self.kind,
            self._host,
            self._bounds,
            self._options.sources,
            self._server,
            system,
        )
