"""One node: its monitor, its lanes, and the task group that they live in. Never touches another node."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Protocol

import anyio
import psycopg
from anyio.abc import TaskGroup
from psycopg.adapt import AdaptersMap

from ._config import NodeConfig, Options
from ._core.backoff import delay
from ._core.dispatch import Queue
from ._core.health import Health, Transition, suspicious_age
from ._core.pipeline import Bounds
from ._core.routing import Candidate
from ._lane import Lane, LaneBounds, LaneOwner
from ._monitor import Monitor
from ._operation import Kind, Operation
from ._types import NodeStatus, Role
from ._wire.connect import ConnectFailed, open_pgconn, set_up
from ._wire.link import Link

logger = logging.getLogger("pgha")

KINDS: tuple[Kind, Kind] = ("read", "write")


class NodeHost(LaneOwner, Protocol):
    """Who owns the nodes."""

    def health_changed(self, node: Node, moved: Transition, reason: str) -> None: ...
    def lanes_changed(self, node: Node) -> None: ...
    def pump(self, node: Node) -> None: ...
    @property
    def writes_seen(self) -> bool: ...
    @property
    def primary_wanted(self) -> bool: ...


class Waiting:
    """Operations in line: the usual ones, and those that nothing may be in flight with."""

    __slots__ = ("alone", "usual")

    def __init__(self) -> None:
        self.usual: Queue[Operation[object]] = Queue()
        self.alone: Queue[Operation[object]] = Queue()

    def of(self, operation: Operation[object]) -> Queue[Operation[object]]:
        return self.alone if operation.alone else self.usual

    def __len__(self) -> int:
        return len(self.usual) + len(self.alone)


class LaneSet:
    """The lanes of one kind, and how the attempts to open more of them went."""

    def __init__(self, kind: Kind) -> None:
        self.kind: Kind = kind
        self.lanes: list[Lane] = []
        self.opening = 0
        self.failures = 0
        self.failure = ""
        self.refused = False

    @property
    def failing(self) -> bool:
        """None is open, and the last attempt failed."""
        return self.failures > 0 and not self.lanes

    def with_room(self, now: float) -> Lane | None:
        """The least loaded lane that takes one more."""
        best: Lane | None = None
        for lane in self.lanes:
            if lane.has_room(now) and (best is None or lane.in_flight < best.in_flight):
                best = lane
        return best

    def quiet(self) -> Lane | None:
        return next((lane for lane in self.lanes if lane.quiet), None)

    def all_stuck(self, now: float) -> bool:
        return all(lane.stuck(now) for lane in self.lanes)


class Node:
    """See the head of this file."""

    def __init__(
        self, config: NodeConfig, options: Options, adapters: AdaptersMap, host: NodeHost,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.name = config.name
        self.health = Health(clock())
        self.sets: dict[Kind, LaneSet] = {kind: LaneSet(kind) for kind in KINDS}
        self.waiting: dict[Kind, Waiting] = {kind: Waiting() for kind in KINDS}
        self.server_version: int | None = None
        self.leaving = False
        self._config = config
        self._options = options
        self._adapters = adapters
        self._host = host
        self._clock = clock
        self._monitor = Monitor(config, options, self, clock)
        self._tasks: TaskGroup | None = None
        self._connecting: set[anyio.CancelScope] = set()
        self._parked: anyio.Event | None = None
        self._gone: anyio.Event | None = None
        tuning = options.tuning
        self._bounds = LaneBounds(
            Bounds(
                tuning.depth,
                tuning.hold_behind,
                tuning.head_of_line,
                tuning.cancel_grace,
                tuning.cancel_again,
                tuning.cancel_deadline,
            ),
            tuning.cancel_deadline,
            tuning.farewell,
        )

    # Life

    async def run(self) -> None:
        """Until stopped or cancelled. A defect in here is logged and costs this node a restart, no other."""
        self._gone = anyio.Event()
        try:
            while not self.leaving:
                try:
                    await self._run_once()
                except Exception as error:  # noqa: BLE001 - a defect of one node must not end the others
                    logger.exception("node %s failed by a defect and is restarted", self.name)
                    self.dead(f"internal error: {error!r}", refused=False, silent=True)
                    await anyio.sleep(self._options.tuning.reconnect_most)
        finally:
            self._gone.set()

    async def _run_once(self) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._monitor.run)
                tasks.start_soon(self._tick)
        finally:
            self._tasks = None
            for lanes in self.sets.values():
                lanes.opening = 0
            self._connecting.clear()

    def stop(self) -> None:
        """End every task of this node; synchronous, the tasks end at their next checkpoint."""
        self.leaving = True
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()

    async def drained(self) -> None:
        """Wait until nothing is in flight."""
        while self.in_flight:
            await anyio.sleep(self._options.tuning.tick)

    async def farewell(self) -> None:
        """End the backends of what is in flight: hanging up would leave them working."""
        self.leaving = True
        now = self._clock()
        for lanes in self.sets.values():
            for lane in list(lanes.lanes):
                lane.condemn("the cluster is closed", now, terminate=True)
        while any(lanes.lanes for lanes in self.sets.values()):
            await anyio.sleep(self._options.tuning.tick / 4)

    async def gone(self) -> None:
        """Wait until nothing of this node is left."""
        if self._gone is not None:
            await self._gone.wait()

    # Health: what the monitor and the lanes report

    @property
    def in_a_hurry(self) -> bool:
        return self._host.primary_wanted

    def poke(self) -> None:
        self._monitor.poke()

    def terminate(self, lane: Lane) -> None:
        """End a lane's backend by way of the monitor."""
        if self.health.usable:
            self._monitor.terminate(lane.link.pid)

    def alive(self, role: Role, trip: float, server_version: int) -> None:
        self.server_version = server_version
        moved = self.health.answered(self._clock(), role, trip)
        if moved.rose or moved.role_changed:
            self.keep_lanes()
        self._host.health_changed(self, moved, "")

    def dead(self, reason: str, *, refused: bool, silent: bool) -> None:
        moved = self.health.failed(self._clock(), reason, refused=refused)
        if moved.fell:
            for scope in self._connecting:
                scope.cancel()
        # First the routes, then the lanes: what is judged now must not come back here.
        self._host.health_changed(self, moved, reason)
        if moved.fell:
            self._drop_lanes(reason, silent=silent)

    def _drop_lanes(self, reason: str, *, silent: bool) -> None:
        now = self._clock()
        for kind in KINDS:
            for lane in list(self.sets[kind].lanes):
                if kind == "read" or silent:
                    lane.break_off(reason, lost=True)
                else:
                    # The server closed in order: its last words to this lane may still be on the way,
                    # and they tell which writes were not applied.
                    lane.condemn(reason, now, terminate=False)

    def doubt(self, reason: str) -> None:
        """A lane was lost: ask whether the node lives, and prefer others meanwhile."""
        moved = self.health.doubted(self._clock(), reason)
        self._monitor.poke()
        if moved.state_changed:
            self._host.health_changed(self, moved, reason)

    # Lanes

    def keep_lanes(self) -> None:
        """Open what should be open: the reading lanes, one for writes once anybody wrote."""
        if not self.health.usable or self.leaving:
            return
        wanted = {"read": self._options.lanes, "write": 0}
        if self._host.writes_seen and self.health.role == "primary":
            wanted["write"] = 1
        for kind, lanes in self.sets.items():
            while len(lanes.lanes) + lanes.opening < wanted[kind]:
                self._open(lanes)

    def demand(self, kind: Kind, now: float, *, quiet: bool) -> None:
        """Work waits for a lane of ``kind``: open one more if that is the way to serve it."""
        lanes = self.sets[kind]
        if lanes.opening or lanes.failing or not self.health.usable or self.leaving:
            return
        count = len(lanes.lanes)
        few = count < self._options.lanes
        if few or (count < self._options.tuning.max_lanes and (quiet or lanes.all_stuck(now))):
            self._open(lanes)

    def _open(self, lanes: LaneSet) -> None:
        if self._tasks is not None:
            lanes.opening += 1
            self._tasks.start_soon(self._lane_life, lanes)

    async def _lane_life(self, lanes: LaneSet) -> None:
        try:
            with anyio.CancelScope() as scope:
                self._connecting.add(scope)
                try:
                    lane = await self._connect(lanes.kind)
                finally:
                    self._connecting.discard(scope)
            if scope.cancelled_caught:
                lanes.opening -= 1
                return
        except ConnectFailed as error:
            await self._connect_failed(lanes, error)
            return
        except BaseException:
            lanes.opening -= 1
            raise
        lanes.opening -= 1
        lanes.failures, lanes.refused = 0, False
        await self._serve(lanes, lane)

    async def _connect_failed(self, lanes: LaneSet, error: ConnectFailed) -> None:
        lanes.failures += 1
        lanes.failure, lanes.refused = str(error), error.refused
        self._host.lanes_changed(self)
        tuning = self._options.tuning
        try:
            await anyio.sleep(
                delay(lanes.failures - 1, random.random(), tuning.reconnect_first, tuning.reconnect_most)
            )
        finally:
            lanes.opening -= 1
        self._again(lanes)

    async def _serve(self, lanes: LaneSet, lane: Lane) -> None:
        if not self.health.usable or self.leaving:
            lane.link.finish()
            return
        lanes.lanes.append(lane)
        self._host.lanes_changed(self)
        try:
            await lane.run()
        finally:
            lanes.lanes.remove(lane)
        self._host.lanes_changed(self)
        self._again(lanes)

    def _again(self, lanes: LaneSet) -> None:
        self.keep_lanes()
        self._host.pump(self)

    async def _connect(self, kind: Kind) -> Lane:
        options = self._options
        settings = [self._config.params.get("options", "")]
        if kind == "read":
            settings.append("-c default_transaction_read_only=on")
        if options.statement_timeout is not None:
            settings.append(f"-c statement_timeout={max(1, round(options.statement_timeout * 1000))}")
        pgconn = await open_pgconn(
            self._config,
            options.connect_timeout,
            application_name=options.application_name,
            options=" ".join(filter(None, settings)),
        )
        try:
            with anyio.fail_after(options.connect_timeout):
                await set_up(pgconn, options.on_connect)
            link = Link(pgconn, options.prepare_threshold, options.tuning.statements)
        except TimeoutError:
            pgconn.finish()
            raise ConnectFailed(f"on_connect took more than {options.connect_timeout:g} s") from None
        except Exception as error:
            pgconn.finish()
            refused = not isinstance(error, psycopg.OperationalError)
            raise ConnectFailed(f"on_connect failed: {error}", refused=refused) from error
        except BaseException:
            pgconn.finish()
            raise
        return Lane(link, self.name, kind, self._adapters, self._host, self._bounds, self._clock)

    def serves(self, kind: Kind) -> bool:
        """It takes operations of this kind now, or as soon as a lane has room."""
        return self.health.sendable and bool(self.sets[kind].lanes)

    @property
    def ready(self) -> bool:
        """It answers, and reads can be sent to it."""
        return self.serves("read")

    @property
    def refuses(self) -> bool:
        """It will not have us, and waiting does not mend that."""
        return self.health.state == "refused" or self.sets["read"].refused

    # Time

    def busy(self) -> None:
        """Something was sent: time matters again."""
        if self._parked is not None:
            self._parked.set()

    @property
    def in_flight(self) -> int:
        return sum(lane.in_flight for lanes in self.sets.values() for lane in lanes.lanes)

    async def _tick(self) -> None:
        while True:
            if not self._anything_to_watch():
                self._parked = anyio.Event()
                await self._parked.wait()
                self._parked = None
            await anyio.sleep(self._options.tuning.tick)
            now = self._clock()
            for kind in KINDS:
                for lane in list(self.sets[kind].lanes):
                    self._look_at(lane, now)
            self._host.pump(self)

    def _anything_to_watch(self) -> bool:
        if self.in_flight or any(self.waiting[kind] for kind in KINDS):
            return True
        return any(len(self.sets[kind].lanes) > self._options.lanes for kind in KINDS)

    def _look_at(self, lane: Lane, now: float) -> None:
        lane.tick(now)
        tuning = self._options.tuning
        if lane.in_flight:
            bound = suspicious_age(
                self.health.p99, tuning.suspicion_floor, self._options.ping_interval, lane.asked
            )
            if lane.head_age(now) > bound:
                lane.asked += 1
                self._monitor.poke()
        elif (
            len(self.sets[lane.kind].lanes) > self._options.lanes and now - lane.idle_since > tuning.idle_lane
        ):
            lane.break_off("idle")

    # Views

    def candidate(self, kind: Kind) -> Candidate:
        latency = self.health.latency
        return Candidate(
            self.name,
            self.health.state,
            self.health.role,
            float("inf") if latency is None else latency,
            not self.sets[kind].failing,
        )

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
            server_version=self.server_version,
            read_lanes=len(self.sets["read"].lanes),
            write_lanes=len(self.sets["write"].lanes),
            in_flight=self.in_flight,
        )
