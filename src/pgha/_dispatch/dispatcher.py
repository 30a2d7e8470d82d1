"""The dispatcher: the owner of every operation, which queues operations and sends them to nodes.

An operation is NEW, then QUEUED or at once SENT. From SENT, the operation goes to DONE, or back to the front
of the queue (QUEUED), or to PAUSED until its backoff is over, and then to QUEUED (`retries`). A RACING
operation has legs (`races`); for a RESOLVING one the ledger is asked (`resolution`).

Sending may read answers, and answers may queue other operations. So while `_work` runs, events that free
capacity only mark their node as dirty, and `_work` is never entered twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from uuid import UUID

import anyio

from pgha._core.health import Transition
from pgha._core.need import USUAL
from pgha._core.outcome import GaveUp, Outcome
from pgha._core.pipeline import Doing
from pgha._core.routing import among, choose
from pgha._core.statements import Entry
from pgha._dispatch.cancellation import Cancellation
from pgha._dispatch.failure import LegLost, given_up, in_doubt
from pgha._dispatch.races import Races
from pgha._dispatch.resolution import Resolver
from pgha._dispatch.retries import Retries
from pgha._dispatch.timers import Timers
from pgha._dispatch.tracker import Tracker
from pgha._dispatch.wait_queue import WaitQueue
from pgha._errors import ClusterClosed, NodeReport, NoNodeAvailable
from pgha._node.callbacks import SegmentFailure
from pgha._node.lane import Lane
from pgha._node.node import ManagedNode
from pgha._operation.in_doubt import InDoubtOutcome
from pgha._operation.operation import ACCESS_MODES, AccessMode, Operation, Stage
from pgha._options import Options
from pgha._telemetry.log import ClusterLog
from pgha._types import ClockSkewed, ConnectionLost, Fastest, NodeStateChanged, Pin, RoleChanged, SendInfo
from pgha._wire import PGresult
from pgha._wire.interrupts import uninterrupted
from pgha._wire.loops import current_loop


class Dispatcher:
    """The owner of every operation of a cluster; see the head of this file."""

    def __init__(
        self, options: Options, nodes: Mapping[str, ManagedNode], clock: Callable[[], float]
    ) -> None:
        self.loop = current_loop()
        self.times = Timers(clock)
        self.log = ClusterLog(self.times, clock)
        self.tracker = Tracker(self.times, clock, self.log)
        self.writes_seen = False
        self.closed = False
        self._options = options
        self._nodes = nodes
        self._clock = clock
        self._wait_queue = WaitQueue(options, nodes, self.times, clock, self)
        self._shared = self._wait_queue.shared
        self._target: dict[AccessMode, ManagedNode | None] = dict.fromkeys(ACCESS_MODES)
        self._races = Races(self, self, self.tracker, clock, options.tuning.max_attempts)
        self._resolver = Resolver(self, self, self.tracker, self.times, clock, options.failover_timeout)
        self._retries = Retries(
            self, nodes, self.tracker, self._races, self._resolver, self.times, clock, options.tuning
        )
        self._cancellation = Cancellation(
            self, self.tracker, self._races, self._resolver, self.times, clock, options.tuning.proof_time
        )
        self._dirty: set[ManagedNode] = set()
        self._working = False
        self._changed: list[anyio.Event] = []

    # Starting

    @property
    def queued(self) -> int:
        """The number of operations in all queues."""
        return self._wait_queue.length

    @property
    def full(self) -> bool:
        """Whether the queues hold as many operations as they may."""
        return self._wait_queue.full

    async def wait_for_capacity(self) -> None:
        """Wait until the queues take one more operation, or the cluster is closed."""
        while self._wait_queue.full and not self.closed:
            await self._wait_queue.wait_for_capacity()

    @uninterrupted
    def start(self, operation: Operation[Any]) -> None:
        """Start an operation, which is sent at once if a lane has capacity.

        Raises:
            ClusterClosed: The cluster is closed.
        """
        if self.closed:
            raise ClusterClosed("the cluster is closed")
        now = operation.started_at
        request = operation.request
        self.tracker.begin(operation)
        if request.timeout is not None:
            operation.deadline = now + request.timeout
            operation.timer = self.times.at(operation.deadline, lambda: self.give_up(operation, "timeout"))
        if not request.read and not self.writes_seen:
            self._first_write()
        route = request.route
        if type(route) is Pin:
            operation.home = route.name
        elif type(route) is Fastest and (serving := [n.name for n in self._nodes.values() if n.ready]):
            self._races.start(operation, serving, now)
            return
        # The clock is read anew: the operation may have waited for capacity since `started_at`.
        self.place(operation, self._clock())

    def _first_write(self) -> None:
        self.writes_seen = True
        for node in self._nodes.values():
            node.keep_lanes()

    def place(self, operation: Operation[Any], now: float, *, front: bool = False) -> None:
        """Send an operation if that is possible at once, else put it into a queue."""
        kind = operation.request.kind
        if operation.lineage is not None and operation.exactly_once:
            operation.home = self._node_in_lineage(operation)
            if operation.home is None:
                self.expired(operation, "no node with the ledger row of this write is left")
                return
        home = operation.home
        if home is None:
            node = self._target[kind]
        elif (node := self._nodes.get(home)) is None:
            self._node_removed(operation)
            return
        if front or operation.exclusive or self._working or node is None or not node.takes(kind):
            self._enqueue(operation, node, now, front=front)
            return
        lanes = node.sets[kind]
        if not node.waiting[kind] and (home is not None or not self._shared[kind]):
            pace = operation.request.pace
            lane = lanes.with_capacity(now, pack=pace is not None and pace.quick)
            if lane is not None:
                self._send(lane, node, operation, now)
                return
        # The usual case under load, and so kept cheap: there is no capacity, or others already wait for it.
        # Whatever frees capacity looks at the queues.
        self._enqueue(operation, node, now, front=False, feed=not lanes.complete)

    def _node_in_lineage(self, operation: Operation[Any]) -> str | None:
        """Return the node for a write that may only be sent to servers of its lineage."""
        route, lineage = operation.request.route, operation.lineage
        if isinstance(route, Pin):
            return route.name
        nodes = [node for node in self._nodes.values() if node.server.system == lineage and not node.leaving]
        current, last = self._target["write"], operation.home
        if operation.attempts:
            last = operation.attempts[-1].node
        return among([node.candidate("write") for node in nodes], current.name if current else None, last)

    def _place_waiting_for_lineage(self) -> None:
        """Place operations anew that wait for one node, if another of the same lineage takes writes now."""
        for operation in tuple(self._wait_queue.waiting_for_lineage):
            if operation.stage is Stage.QUEUED and operation.exactly_once:
                home = self._node_in_lineage(operation)
                node = self._nodes.get(home) if home is not None else None
                if home == operation.home or node is None or not node.takes("write"):
                    continue
                since = operation.queued_at
                self.leave_queue(operation)
                self.place(operation, since, front=True)
            else:
                self._wait_queue.waiting_for_lineage.discard(operation)

    def _node_removed(self, operation: Operation[Any]) -> None:
        """Place an operation anew whose node was removed, or fail it if no other node may run it."""
        if operation.parent is None and not isinstance(operation.request.route, Pin):
            if operation.exactly_once and self._node_in_lineage(operation) not in self._nodes:
                self.expired(operation, "the node of this write was removed, and no other has its ledger row")
                return
            operation.home = None
            self.place(operation, self._clock(), front=True)
        else:
            self.expired(operation, f"node {operation.home} was removed")

    def _enqueue(
        self,
        operation: Operation[Any],
        node: ManagedNode | None,
        now: float,
        *,
        front: bool,
        feed: bool = True,
    ) -> None:
        kind = operation.request.kind
        self._wait_queue.push(operation, now, front=front, served=node is not None and node.serves(kind))
        if node is None:
            if kind == "write":
                for one in self._nodes.values():
                    one.request_ping()
            return
        node.busy()
        if feed:
            self._mark(node)

    # Waiting

    def leave_queue(self, operation: Operation[Any]) -> None:
        """Remove an operation from its queue, at whatever position."""
        self._wait_queue.remove(operation)
        if operation.exclusive and (node := self.node_of(operation)) is not None:
            self._mark(node)

    def node_of(self, operation: Operation[Any]) -> ManagedNode | None:
        """Return the node to which the operation would be sent now."""
        if operation.home is None:
            return self._target[operation.request.kind]
        return self._nodes.get(operation.home)

    def expired(self, operation: Operation[Any], message: str) -> None:
        """Fail an operation for which there is no node; in doubt if an earlier attempt ended in doubt."""
        if operation.exclusive and (node := self.node_of(operation)) is not None:
            self._mark(node)
        doubted = operation.doubted and not operation.request.read
        error = in_doubt(operation, message) if doubted else self.no_node(message)
        self.tracker.fail(operation, error, Outcome.NOT_APPLIED)

    def no_node(self, message: str) -> NoNodeAvailable:
        """Return the error that lists every node."""
        statuses = [node.status() for node in self._nodes.values()]
        reports = [NodeReport(s.name, s.state, s.state_for, s.reason) for s in statuses]
        return NoNodeAvailable(message, reports)

    # Sending

    def _send(self, lane: Lane, node: ManagedNode, operation: Operation[Any], now: float) -> bool:
        """Send an operation.

        Return False if the operation was queued again, because the lane lost its capacity or ended.
        """
        if operation.request.on_send is not None:
            self._call_on_send(operation, node.name)
            if operation.stage is Stage.DONE:
                return True
            if not lane.takes(operation, now):
                self._enqueue(operation, self.node_of(operation), now, front=True)
                return False
        if sent := lane.send(operation, now):
            node.busy()
        else:
            self._enqueue(operation, self.node_of(operation), now, front=True)
        if self._dirty:
            # Send the operations that ``on_send`` submitted.
            self._work()
        return sent

    def _call_on_send(self, operation: Operation[Any], node: str) -> None:
        """Run the user's ``on_send``, which may submit and cancel: nothing else is sent meanwhile."""
        request = operation.request
        pairs = [(one.query, one.params) for one in request.statements]
        working, self._working = self._working, True
        try:
            if request.on_send is not None:
                request.on_send(
                    SendInfo(node, len(operation.attempts) + 1, pairs, self._key_for(operation, node))
                )
        except BaseException as error:  # noqa: BLE001 - the user's callback: its error goes to its operation
            if operation.stage is not Stage.DONE:
                self.tracker.fail(operation, error, Outcome.NOT_APPLIED)
        finally:
            self._working = working

    def _key_for(self, operation: Operation[Any], node: str) -> UUID | None:
        """Return the key that is sent with the operation, or None."""
        keyed = operation.request.keyed
        if keyed is None or operation.unkeyed:
            return None
        use_ledger = not keyed.auto or operation.exactly_once or self._nodes[node].server.ledger
        return keyed.key if use_ledger else None

    def _mark(self, node: ManagedNode) -> None:
        self._dirty.add(node)
        self._work()

    def _work(self) -> None:
        if self._working:
            return
        self._working = True
        try:
            while self._dirty:
                node = self._dirty.pop()
                for kind in ACCESS_MODES:
                    if node.takes(kind):
                        self._feed(node, kind)
        finally:
            self._working = False

    def _feed(self, node: ManagedNode, kind: AccessMode) -> None:
        """Send operations that wait for ``node``, as far as its lanes have capacity."""
        own = node.waiting[kind]
        shared = self._shared[kind] if self._target[kind] is node else own
        lanes = node.sets[kind]
        now = self._clock()
        while queue := own.exclusive or shared.exclusive:
            lane = lanes.quiet()
            if lane is None:
                lanes.demand(now, quiet=True)
                break
            if not self._send(lane, node, self._wait_queue.take(queue), now) or not node.takes(kind):
                self._dirty.add(node)
                return
        else:
            lanes.unreserve()
        corked: list[Lane] = []
        try:
            while queue := own.ordinary or shared.ordinary:
                lane = lanes.with_capacity(now)
                if lane is None:
                    lanes.demand(now, quiet=False)
                    break
                if not lane.corked:
                    lane.corked = True
                    corked.append(lane)
                if not self._send(lane, node, self._wait_queue.take(queue), now) or not node.takes(kind):
                    # Sending also reads: the node may be suspect by now, and another node may take the rest.
                    self._dirty.add(node)
                    break
        finally:
            for lane in corked:
                lane.uncork()

    # Reports of the lanes

    def succeeded(
        self, lane: Lane, operation: Operation[Any], results: Sequence[PGresult], entry: Entry | None
    ) -> None:
        """Load the results of an operation, and end the operation."""
        request = operation.request
        attempts = operation.attempts
        attempts[-1].outcome = Outcome.APPLIED
        if request.raw:
            self.tracker.succeed(operation, [one.get_value(0, 0) if one.ntuples else None for one in results])
            return
        self._retries.budget.success()
        operation.ended_at = now = self._clock()
        latency = now - operation.started_at
        make, load, count = request.row_factory, lane.loader.load, len(attempts)
        # A row factory or loader is the user's code, and may submit operations. While this lane's loader is
        # in use nothing is sent, and so nothing is read.
        working, self._working = self._working, True
        try:
            if request.batch:
                loaded: Any = [load(result, None, make, lane.node, count, latency) for result in results]
            else:
                loaded = load(results[0], entry, make, lane.node, count, latency)
        except BaseException as error:  # noqa: BLE001 - the user's code: its error goes to its operation
            self.tracker.fail(operation, error, Outcome.APPLIED)
            return
        finally:
            self._working = working
        self.tracker.succeed(operation, loaded)
        if self._dirty:
            self._work()

    def segment_failed(self, lane: Lane, operation: Operation[Any], failure: SegmentFailure) -> None:
        """Perform the next step after an attempt that did not simply succeed."""
        self._retries.segment_failed(lane, operation, failure)

    def delivered(self, lane: Lane, operation: Operation[Any], results: Sequence[PGresult]) -> None:
        """Take the results of an operation that succeeded in spite of a failure."""
        self.succeeded(lane, operation, results, None)

    def capacity_freed(self, lane: Lane) -> None:
        """Send operations that wait, if the lane has capacity."""
        if self._wait_queue.length and lane.node in self._nodes:
            self._mark(self._nodes[lane.node])

    def lane_broke(self, lane: Lane, reason: str, *, lost: bool, in_flight: int) -> None:
        """Stop using a lane whose connection ended; if it was ``lost``, the node becomes suspect.

        ``in_flight`` is the number of operations that the connection carried when it ended.
        """
        self.tracker.counters.connections_lost += 1
        events = self.tracker.events
        if events.has_subscribers:
            events.emit(ConnectionLost(at=self._clock(), node=lane.node, reason=reason, in_flight=in_flight))
        if not self.closed:
            self.log.connection_lost(lane.node, reason, in_flight, by_choice=not lost)
        if lane.node in self._nodes:
            self._nodes[lane.node].sets[lane.kind].forget(lane)
            if lost:
                self._nodes[lane.node].suspect(reason)

    def terminate(self, lane: Lane) -> None:
        """Have the lane's backend terminated."""
        if lane.node in self._nodes:
            self._nodes[lane.node].terminate(lane)

    def inspect(self, lane: Lane, report: Callable[[Doing], None]) -> None:
        """Have the server asked what the lane's backend is doing."""
        if lane.node in self._nodes:
            self._nodes[lane.node].inspect(lane, report)

    def cancel_sent(self) -> None:
        """Count a cancel request."""
        self.tracker.counters.cancels_sent += 1

    # Reports of the nodes

    @property
    def primary_wanted(self) -> bool:
        """Whether writes wait and no node is known to take them."""
        return self._target["write"] is None and bool(self._shared["write"])

    def pump(self, node: ManagedNode) -> None:
        """Send operations that wait, if the node has capacity."""
        if self._wait_queue.length:
            self._mark(node)

    def lanes_changed(self, node: ManagedNode) -> None:
        """Choose nodes anew, and send operations that wait, after a lane opened, closed or failed to open."""
        self.reroute()
        for kind in ACCESS_MODES:
            if node.sets[kind].failing:
                self._wait_queue.expire_all_later(node.waiting[kind], None)
                if self._target[kind] is node:
                    self._wait_queue.expire_all_later(self._shared[kind], None)
        self._notify_changed()
        self._mark(node)

    def health_changed(self, node: ManagedNode, moved: Transition, reason: str) -> None:
        """Emit events for a change of the node's state or role, and choose nodes anew."""
        now, events = self._clock(), self.tracker.events
        if moved.state_changed:
            events.emit(
                NodeStateChanged(
                    at=now, node=node.name, state=moved.after, before=moved.before, reason=reason
                )
            )
            self.log.state_changed(node.name, moved.before, moved.after, reason, moved.role)
        if moved.role_changed:
            events.emit(RoleChanged(at=now, node=node.name, role=moved.role, before=moved.role_before))
            self.log.role_changed(node.name, moved.role_before, moved.role)
        self.reroute()
        if moved.fell or moved.role_changed:
            self._requeue(node)
        if moved.state_changed or moved.role_changed:
            self._notify_changed()
        self._mark(node)

    def _requeue(self, node: ManagedNode) -> None:
        """Queue again, for any node, the operations that wait for this node.

        Operations that the caller pinned stay; legs of a race fail if the node is lost.
        """
        for kind in ACCESS_MODES:
            for queue in node.waiting[kind].queues:
                for operation in queue.drain():
                    self._wait_queue.removed(operation)
                    if operation.parent is None and not isinstance(operation.request.route, Pin):
                        operation.home = None
                    if operation.exactly_once:
                        self.place(operation, operation.queued_at, front=True)
                    elif operation.parent is not None and not node.health.usable:
                        lost = LegLost(f"{node.name}: {node.health.reason}")
                        self.tracker.fail(operation, lost, Outcome.NOT_APPLIED)
                    else:
                        self._enqueue(operation, self.node_of(operation), operation.queued_at, front=False)

    def clock_changed(self, node: ManagedNode) -> None:
        """Emit an event because the node's clock started or stopped being skewed."""
        clock = node.server.clock
        self.tracker.events.emit(
            ClockSkewed(at=self._clock(), node=node.name, skew=clock.skew or 0.0, skewed=clock.skewed)
        )
        self.log.clock_skewed(node.name, clock.skew or 0.0, skewed=clock.skewed)

    def reroute(self) -> None:
        """Choose anew the nodes for the route `nearest`."""
        for kind in ACCESS_MODES:
            views = [node.candidate(kind) for node in self._nodes.values() if not node.leaving]
            before = self._target[kind]
            name = choose(views, before.name if before else None, USUAL[kind])
            target = self._target[kind] = self._nodes[name] if name is not None else None
            if target is None and before is not None:
                self._wait_queue.expire_all_later(self._shared[kind], self._clock())
            elif target is not None and target is not before:
                self._dirty.add(target)
        if self._wait_queue.waiting_for_lineage:
            self._place_waiting_for_lineage()
        self._work()

    async def change(self) -> None:
        """Wait until something about the nodes changed.

        Raises:
            ClusterClosed: The cluster is closed, so that nothing will change.
        """
        if self.closed:
            raise ClusterClosed("the cluster is closed")
        event = anyio.Event()
        self._changed.append(event)
        await event.wait()

    def _notify_changed(self) -> None:
        events, self._changed = self._changed, []
        for event in events:
            event.set()

    # Giving up

    @uninterrupted
    def give_up(self, operation: Operation[Any], why: GaveUp) -> None:
        """End an operation that its caller cancelled, or whose deadline passed."""
        self._cancellation.give_up(operation, why)

    def abandon_leg(self, operation: Operation[Any]) -> None:
        """End a leg of a race that is over."""
        self._cancellation.abandon_leg(operation)

    def left(self, operation: Operation[Any]) -> None:
        """Take note that the caller was cancelled just when the operation was done."""
        self.tracker.left(operation)
        if operation.doubt is not None:
            self._resolver.left(operation.doubt, operation.guarded_until)

    def in_doubt(self, operation: Operation[Any]) -> InDoubtOutcome:
        """Return the object through which the outcome of a failing operation may still become known."""
        place = operation.place
        outstanding = operation.stage is Stage.SENT and place[1] in place[0].pipeline.slots
        return self._resolver.in_doubt(operation, outstanding=outstanding)

    def unretrieved(self, operation: Operation[Any], error: BaseException) -> None:
        """Report a failure that was never retrieved; called from the operation's ``__del__``."""
        if self.log.closed:
            self.tracker.unretrieved(error)
        else:
            # Any thread that allocates memory may run the garbage collector, in the middle of anything.
            self.loop.soon(partial(self.tracker.unretrieved, error))

    def fail_all(self) -> None:
        """Fail all open operations, because the nodes have ended and no answer can arrive."""
        self._resolver.close()
        for operation in tuple(self.tracker.open):
            sent = operation.stage in (Stage.SENT, Stage.RESOLVING) and not operation.request.read
            operation.doubted = operation.doubted or sent
            operation.gave_up = operation.gave_up or "cancelled"
            self.tracker.fail(operation, given_up(operation), Outcome.NOT_APPLIED)
        self._wait_queue.wake()
        self._notify_changed()

    def forget(self, node: ManagedNode) -> None:
        """Place the operations anew that wait for a node that was removed; pinned ones fail."""
        self.log.forget(node.name)
        self.reroute()
        for kind in ACCESS_MODES:
            for queue in node.waiting[kind].queues:
                for operation in queue.drain():
                    self._wait_queue.removed(operation)
                    self._node_removed(operation)
        self._notify_changed()
