"""One node: its monitor, its lanes, and the task group in which they run. Never touches another node."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import anyio
from psycopg.adapt import AdaptersMap

from pgha._core.door import Door
from pgha._core.health import Health, Transition, suspicious_age
from pgha._core.ledger_rules import ServerClock
from pgha._core.pipeline import Doing
from pgha._core.routing import Candidate
from pgha._node.callbacks import LaneCallbacks, ServerFacts
from pgha._node.lane import Lane
from pgha._node.lane_set import LaneSet
from pgha._node.monitor import Monitor, Ping
from pgha._operation.operation import ACCESS_MODES, AccessMode
from pgha._options import NodeConfig, Options
from pgha._types import NodeStatus
from pgha._wire.interrupts import uninterrupted

logger = logging.getLogger("pgha.node")


class NodeCallbacks(LaneCallbacks[Lane], Protocol):
    """The owner of nodes and of their lanes."""

    def health_changed(self, node: ManagedNode, moved: Transition, reason: str) -> None:
        """Take an observation of the node's health, which may have changed its state or role."""
        ...

    def lanes_changed(self, node: ManagedNode) -> None:
        """Take note that a lane of the node opened, closed or failed to open."""
        ...

    def pump(self, node: ManagedNode) -> None:
        """Send operations that wait, if the node has capacity."""
        ...

    def status_seen(self, node: ManagedNode) -> None:
        """Compare the node's timeline with the others of its lineage, before anything is sent to the node."""
        ...

    def clock_changed(self, node: ManagedNode) -> None:
        """Take note that the node's clock started or stopped being skewed."""
        ...

    @property
    def writes_seen(self) -> bool:
        """Whether any write was submitted yet."""
        ...

    @property
    def primary_wanted(self) -> bool:
        """Whether writes wait and no node is known to take them."""
        ...

    def waits_for(self, node: ManagedNode) -> bool:
        """Return whether operations wait that would be sent to the node."""
        ...

    def ticked(self, node: ManagedNode, now: float) -> None:
        """Do what is due by time for the operations that wait for the node."""
        ...


class _Reports:
    """Has the monitor's observations run as acts of their own."""

    def __init__(self, node: ManagedNode, door: Door) -> None:
        self._node = node
        self._enter = door.enter

    def alive(self, ping: Ping) -> None:
        self._enter(self._node.alive, ping)

    def ledger_seen(self, usable: bool) -> None:
        self._enter(self._node.ledger_seen, usable)

    def dead(self, reason: str, *, rejected: bool, silent: bool) -> None:
        self._enter(lambda why: self._node.dead(why, rejected=rejected, silent=silent), reason)

    @property
    def ping_often(self) -> bool:
        return self._node.ping_often


class ManagedNode:
    """A node of the cluster, with its monitor, its lanes and its waiting operations."""

    def __init__(
        self, config: NodeConfig, options: Options, adapters: AdaptersMap, host: NodeCallbacks,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.name = config.name
        self.health = Health(clock())
        tuning = options.tuning
        self.server = ServerFacts(
            ServerClock(window=tuning.guard_window, margin=tuning.guard_margin, limit=tuning.clock_skew)
        )
        self.sets: dict[AccessMode, LaneSet] = {
            kind: LaneSet(kind, config, options, adapters, self, host, clock, self.server)
            for kind in ACCESS_MODES
        }
        self.server_version: int | None = None
        self.pinged_at = float("-inf")
        """When the last ping that was answered was sent."""
        self.leaving = False
        self._options = options
        self._host = host
        self._enter = host.door.enter
        self._clock = clock
        self._monitor = Monitor(config, options, _Reports(self, host.door), clock)
        self._scope = anyio.CancelScope()
        self._parked: anyio.Event | None = None
        self._gone: anyio.Event | None = None
        self._ticked = anyio.Event()
        """An event that is set, and then replaced, at each tick and whenever a lane opened or ended."""

    # Life

    @uninterrupted
    async def run(self) -> None:
        """Run until stopped or cancelled.

        After an unexpected exception, which is logged, this node is restarted; other nodes go on.
        """
        self._gone = anyio.Event()
        try:
            with self._scope:
                while True:
                    try:
                        await self._run_once()
                    except Exception as error:
                        logger.exception("node %s failed by a defect and is restarted", self.name)
                        self._enter(self._defect, f"internal error: {error!r}")
                        await anyio.sleep(self._options.tuning.reconnect_most)
        finally:
            self._gone.set()

    async def _run_once(self) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                for lanes in self.sets.values():
                    lanes.attach(tasks)
                tasks.start_soon(self._monitor.run)
                tasks.start_soon(self._tick)
        finally:
            for lanes in self.sets.values():
                lanes.attach(None)

    def stop(self) -> None:
        """Cancel every task of this node; synchronous, the tasks end at their next checkpoint."""
        self.leaving = True
        self._scope.cancel()

    def retire(self) -> None:
        """Take nothing more; what is in flight may end."""
        self.leaving = True
        for lanes in self.sets.values():
            for lane in lanes.lanes:
                lane.pipeline.patient = True

    async def drained(self) -> None:
        """Wait until nothing is in flight."""
        while self.in_flight:
            await self._ticked.wait()

    async def drain(self) -> None:
        """Terminate the backends that are still working, and wait until all lanes have ended.

        Just closing the connections would leave the backends working.
        """
        self.leaving = True
        self._enter(self._drain_lanes, None)
        while any(lanes.lanes for lanes in self.sets.values()):
            await self._ticked.wait()

    def _drain_lanes(self, _: None) -> None:
        now = self._clock()
        for lanes in self.sets.values():
            for lane in list(lanes.lanes):
                lane.drain("the cluster is closed", now, terminate=True)

    async def gone(self) -> None:
        """Wait until every task of this node has ended."""
        if self._gone is not None:
            await self._gone.wait()

    # Health: reports of the monitor and of the lanes

    @property
    def usable(self) -> bool:
        """Whether connections to the node are opened and kept."""
        return self.health.usable and not self.leaving

    @property
    def ping_often(self) -> bool:
        """Whether pings are urgent; see `MonitorCallbacks.ping_often`."""
        return self._host.primary_wanted

    def request_ping(self) -> None:
        """Ping at once instead of at the next interval."""
        self._monitor.request_ping()

    def terminate(self, lane: Lane) -> None:
        """Have the monitor terminate a lane's backend."""
        if self.health.usable:
            self._monitor.terminate(lane.link.pid)

    def inspect(self, lane: Lane, report: Callable[[Doing], None]) -> None:
        """Have the monitor ask what a lane's backend is doing; see `Monitor.inspect`."""
        if self.health.usable:
            self._monitor.inspect(lane.link.pid, report)

    def look_at_ledger(self) -> None:
        """Check at once for the ledger, which was installed or removed just now."""
        self._monitor.look_at_ledger()

    def ledger_seen(self, usable: bool) -> None:
        """Record whether the server has a usable ledger."""
        self.server.ledger = usable

    def alive(self, ping: Ping) -> None:
        """Record the answer to a ping."""
        self.server_version = ping.server_version
        status = ping.status
        self.server.system = status.system
        if status.clock is not None and self.server.clock.measured(
            ping.sent, ping.received, status.clock, ping.wall
        ):
            self._host.clock_changed(self)
        self.pinged_at = ping.sent
        moved = self.health.answered(self._clock(), status, ping.received - ping.sent)
        self._learn_latency()
        self._host.status_seen(self)
        if moved.rose or moved.role_changed:
            self.keep_lanes()
        self._host.health_changed(self, moved, "")

    def _learn_latency(self) -> None:
        """Let the lanes know what a round trip takes."""
        self.server.latency = latency = self.health.latency or 0.0
        behind = max(self._options.tuning.behind, latency)
        for lanes in self.sets.values():
            for lane in lanes.lanes:
                lane.pipeline.behind = behind

    def dead(self, reason: str, *, rejected: bool, silent: bool) -> None:
        """Record that the node does not answer, and close its lanes; see `MonitorCallbacks.dead`."""
        moved = self.health.failed(self._clock(), reason, rejected=rejected)
        # First the routes, then the lanes: operations that are run again now must not come back here.
        self._host.health_changed(self, moved, reason)
        if moved.fell:
            for lanes in self.sets.values():
                lanes.stop_connecting()
            self._drop_lanes(reason, silent=silent)

    def _defect(self, reason: str) -> None:
        self.dead(reason, rejected=False, silent=True)

    def _drop_lanes(self, reason: str, *, silent: bool) -> None:
        now = self._clock()
        for kind in ACCESS_MODES:
            for lane in list(self.sets[kind].lanes):
                if silent:
                    lane.abort(reason, lost=True)
                else:
                    # The monitor's connection ended, and the lanes' connections may be about to end. The
                    # server's final messages may still be on the way. They show which writes were not
                    # applied, and whether the operation on a lane may be the cause.
                    lane.drain(reason, now, terminate=False)

    def suspect(self, reason: str) -> None:
        """Request a ping after something went wrong on a lane; nothing is sent until its answer."""
        moved = self.health.suspected(self._clock(), reason)
        self._monitor.request_ping()
        if moved.state_changed:
            self._host.health_changed(self, moved, reason)

    # Lanes

    def keep_lanes(self) -> None:
        """Open the lanes that should be open: the read lanes and, after the first write, a write lane."""
        if self.usable:
            self.sets["read"].keep(self._options.read_connections)
            if self._host.writes_seen and self.health.writable:
                self.sets["write"].keep(1)

    def lanes_changed(self) -> None:
        """Take note that a lane opened, closed or failed to open."""
        self._signal_tick()
        self._enter(self._host.lanes_changed, self)

    def _signal_tick(self) -> None:
        beat, self._ticked = self._ticked, anyio.Event()
        beat.set()

    def lane_ended(self) -> None:
        """Open the lanes that are missing after one ended, and send operations that wait."""
        self.keep_lanes()
        self._enter(self._host.pump, self)

    def takes(self, kind: AccessMode) -> bool:
        """Return whether the node's state and role allow operations of this access mode.

        Nothing is sent while a ping is to decide: after one lane broke, the others may be about to break,
        and an operation that is lost twice is not run again.
        """
        health = self.health
        return health.state == "up" and not self.leaving and (kind == "read" or health.writable)

    def admits(self, kind: AccessMode) -> bool:
        """Return whether the node takes operations of this access mode now, or once a ping was answered."""
        return self.usable and (kind == "read" or self.health.writable)

    def serves(self, kind: AccessMode) -> bool:
        """Return whether the node takes operations of this access mode now, or once a lane has capacity."""
        return self.takes(kind) and bool(self.sets[kind].lanes)

    def complete(self, kind: AccessMode) -> bool:
        """Return whether the usual number of lanes of this access mode is open."""
        return self.sets[kind].complete

    @property
    def ready(self) -> bool:
        """Whether reads can be sent to the node."""
        return self.serves("read")

    @property
    def rejects(self) -> bool:
        """Whether the node rejects the connection for a reason that waiting does not mend."""
        return self.health.state == "rejected" or self.sets["read"].rejected

    @property
    def in_flight(self) -> int:
        """The number of segments in flight on all lanes."""
        return sum(lanes.in_flight for lanes in self.sets.values())

    # Time

    def busy(self) -> None:
        """Start the regular ticks, because an operation was sent or waits."""
        if self._parked is not None:
            self._parked.set()

    @uninterrupted
    async def _tick(self) -> None:
        while True:
            if not self._anything_to_watch():
                self._parked = anyio.Event()
                await self._parked.wait()
                self._parked = None
            await anyio.sleep(self._options.tuning.tick)
            self._enter(self._tick_now, None)

    def _tick_now(self, _: None) -> None:
        now = self._clock()
        for lanes in self.sets.values():
            for lane in list(lanes.lanes):
                self._check_lane(lane, lanes, now)
        self._signal_tick()
        self._host.ticked(self, now)

    def _anything_to_watch(self) -> bool:
        if self.in_flight or self._host.waits_for(self):
            return True
        return any(lanes.additional for lanes in self.sets.values())

    def _check_lane(self, lane: Lane, lanes: LaneSet, now: float) -> None:
        lane.tick(now)
        if lane.kind == "read":
            for operation in lane.stranded(now):
                self._host.stranded(operation)
        tuning = self._options.tuning
        if lane.in_flight:
            floor, ceiling = tuning.suspicion_floor, self._options.ping_interval
            if lane.head_age(now) > suspicious_age(self.health.p99, floor, ceiling, lane.asked):
                lane.asked += 1
                self._monitor.request_ping()
        elif lanes.additional and now - lane.idle_since > tuning.idle_lane:
            lane.abort("idle")

    # Views

    def candidate(self, kind: AccessMode) -> Candidate:
        """Return the node as seen by routing."""
        health = self.health
        return Candidate(
            name=self.name,
            state=health.state,
            role=health.role,
            latency=float("inf") if health.latency is None else health.latency,
            serving=not self.sets[kind].failing,
            lineage=self.server.system,
            read_only=health.status.read_only,
            superseded=health.superseded,
        )

    def status(self) -> NodeStatus:
        """Return the node as seen by the user."""
        health = self.health
        failing = next((s.failure for s in self.sets.values() if s.failing), "")
        return NodeStatus(
            name=self.name,
            state=health.state,
            role=health.role,
            state_for=self._clock() - health.since,
            reason=health.reason or failing or self._refusal(),
            latency=health.latency,
            clock_skew=self.server.clock.skew,
            server_version=self.server_version,
            read_connections=len(self.sets["read"].lanes),
            write_connections=len(self.sets["write"].lanes),
            in_flight=self.in_flight,
            read_only=health.status.read_only,
            superseded=health.superseded,
            timeline=health.status.timeline,
        )

    def _refusal(self) -> str:
        """Return why a node that is up takes no writes although it says that it is a primary, or ""."""
        if self.health.superseded:
            return f"a primary of timeline {self.health.status.timeline}, and a newer timeline was seen"
        return "read-only by default" if self.health.status.read_only else ""
