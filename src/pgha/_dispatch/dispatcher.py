"""The dispatcher: the owner of every operation. Lanes and nodes report to it.

An operation is NEW, then QUEUED or at once SENT. From SENT, the operation goes to DONE, or back to its place
in its line (QUEUED), or to PAUSED until its backoff is over, and then to QUEUED (`retries`). A RACING
operation has legs (`races`); for a RESOLVING one the ledger is asked (`resolution`).

Everything comes in by the door, as an act: what callers start and cancel, what lanes and nodes report, what
is due. Acts run one after another. When none is left, what waits is handed to lanes with capacity
(`feeding`), and then everything that was handed to lanes is written, with one system call for each lane.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import anyio

from pgha._core.door import Door
from pgha._core.health import Transition
from pgha._core.outcome import GaveUp, Outcome
from pgha._core.pipeline import Doing
from pgha._dispatch.cancellation import Cancellation
from pgha._dispatch.common import Common
from pgha._dispatch.failure import given_up, in_doubt
from pgha._dispatch.feeding import Feeding
from pgha._dispatch.flushing import Flushing
from pgha._dispatch.lineages import Lineages
from pgha._dispatch.node_changes import NodeChanges
from pgha._dispatch.orphans import adopt
from pgha._dispatch.placing import Placing
from pgha._dispatch.races import Races
from pgha._dispatch.resolution import Resolver
from pgha._dispatch.results import Results
from pgha._dispatch.retries import Retries
from pgha._dispatch.timers import Timers
from pgha._dispatch.tracker import Tracker
from pgha._dispatch.wait_queue import WaitQueue
from pgha._errors import ClusterClosed, NodeReport, NoNodeAvailable, QueueFull
from pgha._node.callbacks import SegmentFailure
from pgha._node.lane import Lane
from pgha._node.node import ManagedNode
from pgha._operation.in_doubt import InDoubtOutcome
from pgha._operation.operation import DONE, SENT, Operation, Request, Stage
from pgha._options import Options
from pgha._telemetry.log import ClusterLog
from pgha._types import ConnectionLost, Fastest, Pin
from pgha._wire.interrupts import uninterrupted
from pgha._wire.loops import current_loop

# Every act runs to its end, whoever comes in: a task, a timer, a tick.
uninterrupted(Door.enter)
uninterrupted(Door._drain)


class Dispatcher:
    """The owner of every operation of a cluster; see the head of this file."""

    def __init__(self, options: Options, nodes: Mapping[str, ManagedNode]) -> None:
        clock = options.sources.clock
        self.loop = current_loop()
        self.door = Door(self._settle, self._adopt)
        self.times = Timers(clock, self.door.enter)
        self.log = ClusterLog(self.times, clock)
        self.tracker = Tracker(self.times, clock, self.log)
        self.observers = self.tracker.observers
        self.writes_seen = False
        self.closed = False
        self._options = options
        self._nodes = nodes
        self._clock = clock
        self._started = 0
        common = Common(self, options, nodes, self.times, self.tracker, self.door.enter)
        self._waiting = WaitQueue(options, self.times, clock, self, self.observers)
        self._lineages = Lineages(common, self.reroute)
        self._placing = Placing(nodes, self._waiting, options.tuning, self._lineages.incomplete)
        self._feeding = Feeding(nodes, self._waiting, self._placing, self.tracker, clock, self)
        self._changes = NodeChanges(common, self._waiting, self._placing, self._feeding, self._lineages, self)
        self._races = Races(self, self, self.tracker, clock, options.tuning.max_attempts)
        self._resolver = Resolver(common, self)
        self._retries = Retries(common, self._races, self._resolver, self)
        self._proofs = self._retries.proofs
        self._results = Results(common, self.loop, self._retries.budgets)
        self._flushing = Flushing(self.loop, self.door.enter)
        self._cancellation = Cancellation(common, self._races, self._resolver, self)
        # Called for every operation, and so without a call in between.
        self.succeeded = self._results.succeeded
        self.rest = self._flushing.rest

    def _settle(self) -> bool:
        """Do what the acts left to be done; return whether that has caused more."""
        feeding, flushing = self._feeding, self._flushing
        if feeding.hungry:
            feeding.feed()
        if flushing.lanes:
            flushing.flush()
        return bool(feeding.hungry)

    def _adopt(self, _: BaseException) -> None:
        """Look after the lanes and the operations that a failed act left half done."""
        for node in self._nodes.values():
            for lanes in node.sets.values():
                for lane in [one for one in lanes.lanes if one.broken is not None]:
                    lanes.forget(lane)
                    lane.end()
        self._waiting.recount()
        adopt(self.tracker.open, self.tracker, self, self._clock)

    # Starting

    @property
    def queued(self) -> int:
        """The number of operations that wait."""
        return self._waiting.length

    def admit(self, request: Request) -> None:
        """Let an operation through for which nobody waits.

        Raises:
            QueueFull: As many operations of its need wait as may.
        """
        if self._waiting.length and (waiting := self.waiting(request)) >= self._options.max_queued:
            raise QueueFull(f"{waiting} operations are waiting already (max_queued): await some of them")

    def waiting(self, request: Request) -> int:
        """Return the number of operations that wait with the need of this one; for any thread."""
        line = self._waiting.find(request.need, request.exclusive)
        return 0 if line is None else len(line.waiting)

    @uninterrupted
    def start(self, operation: Operation[Any]) -> None:
        """Start an operation, which is sent at once if a lane has capacity.

        Raises:
            ClusterClosed: The cluster is closed.
        """
        if self.closed:
            raise ClusterClosed("the cluster is closed")
        try:
            self.door.enter(self._start, operation)
        except BaseException:
            # An interrupt, for example: nobody is going to wait for the operation.
            self.give_up(operation, "cancelled")
            raise

    def _start(self, operation: Operation[Any]) -> None:
        if operation.stage is DONE:
            return  # cancelled by somebody who entered first
        now = operation.started_at
        request = operation.request
        self._started += 1
        operation.number = self._started
        # As an act of the tracker, without the call.
        self.tracker.open.add(operation)
        for tell in self.observers.began:
            tell(operation)
        if self.closed:
            self.tracker.fail(operation, ClusterClosed("the cluster is closed"), Outcome.NOT_APPLIED)
            return
        if request.timeout is not None:
            operation.deadline = now + request.timeout
            operation.timer = self.times.at(operation.deadline, lambda: self.give_up(operation, "timeout"))
        if request.need.access == "write" and not self.writes_seen:
            self._first_write()
        if type(request.route) is Fastest:
            serving = [node.name for node in self._nodes.values() if node.ready]
            if serving:
                self._races.start(operation, serving, now)
                return
        self._feeding.start(operation, self._clock())

    def _first_write(self) -> None:
        self.writes_seen = True
        for node in self._nodes.values():
            node.keep_lanes()

    def place(self, operation: Operation[Any], now: float) -> None:
        """Send an operation if that is possible at once, else put it into its line."""
        self._feeding.place(operation, now)

    def nowhere(self, operation: Operation[Any]) -> None:
        """Place an operation anew whose node was removed, or fail it if no other node may run it."""
        if operation.exactly_once:
            self.expired(operation, "no node with the ledger row of this write is left")
        elif operation.parent is None and not isinstance(operation.request.route, Pin):
            operation.need = operation.request.need
            self.place(operation, self._clock())
        else:
            self.expired(operation, f"node {operation.need.node} was removed")

    # Waiting

    def leave_queue(self, operation: Operation[Any]) -> BaseException | None:
        """Remove an operation from its line, at whatever position.

        Returns:
            The error of an operation that never had a place within the length of its line; else None.
        """
        beyond = self._waiting.beyond(operation)
        self._waiting.remove(operation)
        self._changes.left(operation)
        if not beyond or operation.gave_up != "timeout":
            return None
        timeout = operation.request.timeout or 0.0
        return QueueFull(f"the queue stayed full for {timeout:g} s (max_queued); the operation was not sent")

    def expired(self, operation: Operation[Any], message: str) -> None:
        """Fail an operation for which there is no node; in doubt if an earlier attempt ended in doubt."""
        self._changes.left(operation)
        doubted = operation.doubted and not operation.request.read
        error = in_doubt(operation, message) if doubted else self.no_node(message)
        self.tracker.fail(operation, error, Outcome.NOT_APPLIED)

    def no_node(self, message: str) -> NoNodeAvailable:
        """Return the error that lists every node."""
        statuses = [node.status() for node in self._nodes.values()]
        reports = [NodeReport(s.name, s.state, s.state_for, s.reason) for s in statuses]
        return NoNodeAvailable(message, reports)

    # Reports of the lanes

    def segment_failed(self, lane: Lane, operation: Operation[Any], failure: SegmentFailure) -> None:
        """Perform the next step after an attempt that did not simply succeed."""
        self._retries.segment_failed(lane, operation, failure)

    def stranded(self, operation: Operation[Any]) -> None:
        """Send a read elsewhere that was taken back from a lane; no attempt of its own fault."""
        operation.hits += 1
        self.place(operation, self._clock())

    def handed_over(self, lane: Lane) -> None:
        """Flush the lane before the present act is over."""
        self._flushing.lanes.append(lane)
        if (node := self._nodes.get(lane.node)) is not None:
            node.busy()

    def capacity_freed(self, lane: Lane) -> None:
        """Send operations that wait, if the lane has capacity."""
        if self._proofs.waiting:
            self._proofs.capacity_freed(lane)
        if self._waiting.length and lane.node in self._nodes:
            self._feeding.hungry.add(self._nodes[lane.node])

    def lane_broke(self, lane: Lane, reason: str, *, lost: bool, in_flight: int) -> None:
        """Stop using a lane whose connection ended; if it was ``lost``, the node becomes suspect.

        ``in_flight`` is the number of operations that the connection carried when it ended.
        """
        self._results.finish(lane)
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
        self._proofs.capacity_freed(lane)

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
        return any(line.target is None and line.need.role == "primary" for line in self._waiting.active)

    def waits_for(self, node: ManagedNode) -> bool:
        """Return whether operations wait that would be sent to the node."""
        return any(line.goes_to(node) for line in self._waiting.active) or any(
            lane.node == node.name for lane in self._proofs.waiting
        )

    def pump(self, node: ManagedNode) -> None:
        """Send operations that wait, if the node has capacity."""
        self._feeding.may_take(node)

    def ticked(self, node: ManagedNode, now: float) -> None:
        """Do what is due by time for the operations that wait for the node."""
        self._flushing.overdue()
        if self._proofs.waiting:
            for lane in tuple(self._proofs.waiting):
                self._proofs.capacity_freed(lane)
        if self._waiting.length:
            self._feeding.hungry.update(self._placing.relieve(node, now))
            self._changes.let_go(node, now)
            self._feeding.hungry.add(node)

    def lanes_changed(self, node: ManagedNode) -> None:
        """Choose nodes anew, and send operations that wait, after a lane opened, closed or failed to open."""
        self._changes.lanes_changed(node)

    def health_changed(self, node: ManagedNode, moved: Transition, reason: str) -> None:
        """Emit events for a change of the node's state or role, and choose nodes anew."""
        self._changes.health_changed(node, moved, reason)
        self._retries.roles.observed(node)

    def status_seen(self, node: ManagedNode) -> None:
        """Compare the node's timeline with the others of its lineage."""
        self._lineages.status_seen(node)

    def clock_changed(self, node: ManagedNode) -> None:
        """Emit an event because the node's clock started or stopped being skewed."""
        self._changes.clock_changed(node)

    def reroute(self) -> None:
        """Choose anew which nodes the lines of waiting operations go to."""
        self.door.enter(self._changes.reroute, None)

    def forget(self, node: ManagedNode) -> None:
        """Place the operations anew that wait for a node that was removed; pinned ones fail."""
        self.door.enter(self._forget, node)

    def _forget(self, node: ManagedNode) -> None:
        self._changes.forget(node)
        self._retries.roles.forget(node)

    async def change(self) -> None:
        """Wait until something about the nodes changed.

        Raises:
            ClusterClosed: The cluster is closed, so that nothing will change.
        """
        if self.closed:
            raise ClusterClosed("the cluster is closed")
        event = anyio.Event()
        self._changes.watchers.add(event)
        try:
            await event.wait()
        finally:
            self._changes.watchers.discard(event)

    # Giving up

    @uninterrupted
    def give_up(self, operation: Operation[Any], why: GaveUp) -> None:
        """End an operation that its caller cancelled, or whose deadline passed."""
        operation.unwanted = True
        self.door.enter(self._give_up, (operation, why))

    def _give_up(self, what: tuple[Operation[Any], GaveUp]) -> None:
        self._cancellation.give_up(*what)

    def abandon_leg(self, operation: Operation[Any]) -> None:
        """End a leg of a race that is over."""
        self._cancellation.abandon_leg(operation)

    def left(self, operation: Operation[Any]) -> None:
        """Take note that the caller was cancelled just when the operation was done."""
        self.door.enter(self._left, operation)

    def _left(self, operation: Operation[Any]) -> None:
        self.tracker.left(operation)
        if operation.doubt is not None:
            self._resolver.left(operation.doubt, operation.guarded_until)

    def in_doubt(self, operation: Operation[Any]) -> InDoubtOutcome:
        """Return the object through which the outcome of a failing operation may still become known."""
        place = operation.place
        outstanding = operation.stage is SENT and place[1] in place[0].pipeline.slots
        return self._resolver.in_doubt(operation, outstanding=outstanding)

    def unretrieved(self, error: BaseException) -> None:
        """Report a failure that was never retrieved; called when the operation is dropped."""
        if self.log.closed:
            self.tracker.unretrieved(error)
        else:
            # Any thread that allocates memory may run the garbage collector, in the middle of anything.
            self.loop.soon(partial(self.tracker.unretrieved, error))

    def close(self) -> None:
        """Take no more operations, and cancel all open ones."""
        self.closed = True
        self.door.enter(self._close, None)

    def _close(self, _: None) -> None:
        for operation in self._waiting.all_beyond():
            self._waiting.remove(operation)
            self.tracker.fail(operation, ClusterClosed("the cluster is closed"), Outcome.NOT_APPLIED)
        for operation in tuple(self.tracker.open):
            self.give_up(operation, "cancelled")

    def fail_all(self) -> None:
        """Fail all open operations, because the nodes have ended and no answer can arrive."""
        self.door.enter(self._fail_all, None)

    def _fail_all(self, _: None) -> None:
        self._resolver.close()
        for operation in tuple(self.tracker.open):
            sent = operation.stage in (SENT, Stage.RESOLVING) and not operation.request.read
            operation.doubted = operation.doubted or sent
            operation.gave_up = operation.gave_up or "cancelled"
            self.tracker.fail(operation, given_up(operation), Outcome.NOT_APPLIED)
        self._changes.notify()
