"""One node: its monitor, its lanes, and the task group that they live in. Never touches another node."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import anyio
from psycopg.adapt import AdaptersMap

from pgha._core.health import Health, Transition, suspicious_age
from pgha._core.ledger_rules import ServerClock
from pgha._core.pipeline import Doing
from pgha._core.routing import Candidate
from pgha._node.callbacks import LaneCallbacks, ServerFacts
from pgha._node.lane import Lane
from pgha._node.lane_set import LaneSet, Waiting
from pgha._node.monitor import Monitor, Ping
from pgha._operation.operation import ACCESS_MODES, AccessMode
from pgha._options import NodeConfig, Options
from pgha._types import NodeStatus
from pgha._wire.loops import uninterrupted

logger = logging.getLogger("pgha")


class NodeCallbacks(LaneCallbacks[Lane], Protocol):
    """Who owns the nodes."""

    def health_changed(self, node: ManagedNode, moved: Transition, reason: str) -> None: ...
    def lanes_changed(self, node: ManagedNode) -> None: ...
    def pump(self, node: ManagedNode) -> None: ...
    def clock_changed(self, node: ManagedNode) -> None: ...
    @property
    def writes_seen(self) -> bool: ...
    @property
    def primary_wanted(self) -> bool: ...


class ManagedNode:
    """See the head of this file."""

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
        self.waiting: dict[AccessMode, Waiting] = {kind: Waiting() for kind in ACCESS_MODES}
        self.server_version: int | None = None
        self.leaving = False
        self._options = options
        self._host = host
        self._clock = clock
        self._monitor = Monitor(config, options, self, clock)
        self._scope = anyio.CancelScope()
        self._parked: anyio.Event | None = None
        self._gone: anyio.Event | None = None
        self._ticked = anyio.Event()
        """Set when a lane ended and at each tick, and then replaced."""

    # Life

    @uninterrupted
    async def run(self) -> None:
        """Until stopped or cancelled. A defect in here is logged and costs this node a restart, no other."""
        self._gone = anyio.Event()
        try:
            with self._scope:
                while True:
                    try:
                        await self._run_once()
                    except Exception as error:
                        logger.exception("node %s failed by a defect and is restarted", self.name)
                        self.dead(f"internal error: {error!r}", rejected=False, silent=True)
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
        """End every task of this node; synchronous, the tasks end at their next checkpoint."""
        self.leaving = True
        self._scope.cancel()

    async def drained(self) -> None:
        """Wait until nothing is in flight."""
        while self.in_flight:
            await self._ticked.wait()

    async def drain(self) -> None:
        """End the backends of what is in flight: hanging up would leave them working."""
        self.leaving = True
        now = self._clock()
        for lanes in self.sets.values():
            for lane in list(lanes.lanes):
                lane.drain("the cluster is closed", now, terminate=True)
        while any(lanes.lanes for lanes in self.sets.values()):
            await self._ticked.wait()

    async def gone(self) -> None:
        """Wait until nothing of this node is left."""
        if self._gone is not None:
            await self._gone.wait()

    # Health: what the monitor and the lanes report

    @property
    def usable(self) -> bool:
        """Connections to it are kept and opened."""
        return self.health.usable and not self.leaving

    @property
    def ping_often(self) -> bool:
        return self._host.primary_wanted

    def request_ping(self) -> None:
        self._monitor.request_ping()

    def terminate(self, lane: Lane) -> None:
        """End a lane's backend by way of the monitor."""
        if self.health.usable:
            self._monitor.terminate(lane.link.pid)

    def inspect(self, lane: Lane, report: Callable[[Doing], None]) -> None:
        """Ask by way of the monitor what a lane's backend does; never answered when the node is lost."""
        if self.health.usable:
            self._monitor.inspect(lane.link.pid, report)

    def identified(self, system: int | None) -> None:
        """The server that answers from now on."""
        self.server.system = system

    def look_at_ledger(self) -> None:
        """It was made or removed just now."""
        self._monitor.look_at_ledger()

    def ledger_seen(self, usable: bool) -> None:
        self.server.ledger = usable

    def alive(self, ping: Ping) -> None:
        self.server_version = ping.server_version
        if self.server.clock.measured(ping.sent, ping.received, ping.clock, ping.wall):
            self._host.clock_changed(self)
        moved = self.health.answered(self._clock(), ping.role, ping.received - ping.sent)
        if moved.rose or moved.role_changed:
            self.keep_lanes()
        self._host.health_changed(self, moved, "")

    def dead(self, reason: str, *, rejected: bool, silent: bool) -> None:
        moved = self.health.failed(self._clock(), reason, rejected=rejected)
        # First the routes, then the lanes: what is judged now must not come back here.
        self._host.health_changed(self, moved, reason)
        if moved.fell:
            for lanes in self.sets.values():
                lanes.stop_connecting()
            self._drop_lanes(reason, silent=silent)

    def _drop_lanes(self, reason: str, *, silent: bool) -> None:
        now = self._clock()
        for kind in ACCESS_MODES:
            for lane in list(self.sets[kind].lanes):
                if silent:
                    lane.abort(reason, lost=True)
                else:
                    # The monitor's connection ended, and those of the lanes may be about to: their last words
                    # may still be on the way, and they tell which writes were not applied, and whether what
                    # ran there is to blame.
                    lane.drain(reason, now, terminate=False)

    def suspect(self, reason: str) -> None:
        """A lane was lost: ask whether the node lives, and send nothing meanwhile."""
        moved = self.health.suspected(self._clock(), reason)
        self._monitor.request_ping()
        if moved.state_changed:
            self._host.health_changed(self, moved, reason)

    # Lanes

    def keep_lanes(self) -> None:
        """Open what should be open: the reading lanes, one for writes once anybody wrote."""
        if self.usable:
            self.sets["read"].keep(self._options.read_connections)
            if self._host.writes_seen and self.health.role == "primary":
                self.sets["write"].keep(1)

    def lanes_changed(self) -> None:
        self._signal_tick()
        self._host.lanes_changed(self)

    def _signal_tick(self) -> None:
        beat, self._ticked = self._ticked, anyio.Event()
        beat.set()

    def lane_ended(self) -> None:
        self.keep_lanes()
        self._host.pump(self)

    def takes(self, kind: AccessMode) -> bool:
        """Operations of this kind may be sent here, as far as the node is concerned."""
        return self.health.sendable and not self.leaving and (kind == "read" or self.health.role == "primary")

    def serves(self, kind: AccessMode) -> bool:
        """It takes operations of this kind now, or as soon as a lane has room."""
        return self.takes(kind) and bool(self.sets[kind].lanes)

    def complete(self, kind: AccessMode) -> bool:
        return self.sets[kind].complete

    @property
    def ready(self) -> bool:
        """It answers, and reads can be sent to it."""
        return self.serves("read")

    @property
    def rejects(self) -> bool:
        """It will not have us, and waiting does not mend that."""
        return self.health.state == "rejected" or self.sets["read"].rejected

    @property
    def in_flight(self) -> int:
        return sum(lanes.in_flight for lanes in self.sets.values())

    # Time

    def busy(self) -> None:
        """Something was sent or waits: time matters again."""
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
            now = self._clock()
            for lanes in self.sets.values():
                for lane in list(lanes.lanes):
                    self._check_lane(lane, lanes, now)
            self._signal_tick()
            self._host.pump(self)

    def _anything_to_watch(self) -> bool:
        if self.in_flight or any(self.waiting.values()):
            return True
        return any(lanes.additional for lanes in self.sets.values())

    def _check_lane(self, lane: Lane, lanes: LaneSet, now: float) -> None:
        lane.tick(now)
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
        health = self.health
        latency = float("inf") if health.latency is None else health.latency
        return Candidate(self.name, health.state, health.role, latency, not self.sets[kind].failing)

    def status(self) -> NodeStatus:
        health = self.health
        failing = next((s.failure for s in self.sets.values() if s.failing), "")
        return NodeStatus(
            name=self.name,
            state=health.state,
            role=health.role,
            state_for=self._clock() - health.since,
            reason=health.reason or failing,
            latency=health.latency,
            clock_skew=self.server.clock.skew,
            server_version=self.server_version,
            read_connections=len(self.sets["read"].lanes),
            write_connections=len(self.sets["write"].lanes),
            in_flight=self.in_flight,
        )
