"""What waits, where it goes, and what becomes of it: the one owner of every operation.

An operation is NEW, then QUEUED or at once SENT; from SENT it goes to DONE, or back to QUEUED (at the front),
or to PAUSED until its backoff is over, then QUEUED. RACING has legs, which are operations pinned to a node
each. Whatever gives room or changes a route marks the node as *dirty* and calls `_work`, which is never
entered twice: an answer that comes in while something is being sent cannot turn the order around.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
from psycopg.pq.abc import PGresult

from ._config import Options
from ._core.backoff import RetryBudget, delay
from ._core.dispatch import Queue, Timers
from ._core.health import Transition
from ._core.routing import choose, elsewhere
from ._core.verdict import GaveUp, Outcome, Then
from ._errors import ClusterClosed, Error, NodeReport, NoNodeAvailable, OperationCancelled
from ._events import EventHub
from ._judging import Fate, LegLost, error_for, final_outcome, in_doubt, note, timed_out, weigh
from ._lane import Lane, Verdict
from ._node import KINDS, Node, Waiting
from ._operation import Kind, Operation, Stage
from ._types import (
    FailureUnretrieved,
    Fastest,
    LaneLost,
    NodeChanged,
    OperationInDoubt,
    OperationRetried,
    Pin,
    RoleChanged,
    Sent,
)


logger = logging.getLogger("pgha")


@dataclass(slots=True)
class Counters:
    operations: int = 0
    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    in_doubt: int = 0
    cancelled: int = 0
    timed_out: int = 0
    unretrieved: int = 0
    cancels_sent: int = 0
    lanes_lost: int = 0


class Dispatcher:
    """See the head of this file."""

    def __init__(self, options: Options, nodes: Mapping[str, Node], clock: Callable[[], float]) -> None:
        self.counters = Counters()
        self.events = EventHub()
        self.writes_seen = False
        self.closed = False
        self._options = options
        self._tuning = options.tuning
        self._nodes = nodes
        self._clock = clock
        self._shared: dict[Kind, Waiting] = {kind: Waiting() for kind in KINDS}
        self._target: dict[Kind, str | None] = dict.fromkeys(KINDS)
        self._timers: Timers[Callable[[], None]] = Timers()
        self._timer_nap: anyio.CancelScope | None = None
        self._timer_wake = float("inf")
        self._budget = RetryBudget(clock())
        self._dirty: set[str] = set()
        self._working = False
        self._queued = 0
        self._open: set[Operation[Any]] = set()
        """Started and not done; without the legs of races."""
        self._room_waiters: list[anyio.Event] = []
        self._idle: anyio.Event | None = None
        self._changed: list[anyio.Event] = []

    # Starting

    @property
    def queued(self) -> int:
        return self._queued

    @property
    def full(self) -> bool:
        return self._queued >= self._options.max_queued

    async def queue_room(self) -> None:
        """Wait until the queue takes one more."""
        while self.full:
            event = anyio.Event()
            self._room_waiters.append(event)
            await event.wait()

    def start(self, operation: Operation[Any]) -> None:
        """Take an operation on; it is sent at once if a lane has room."""
        if self.closed:
            raise ClusterClosed("the cluster is closed")
        now = operation.started_at
        request = operation.request
        self.counters.operations += 1
        self._open.add(operation)
        if request.timeout is not None:
            operation.deadline = now + request.timeout
            operation.timer = self._at(operation.deadline, lambda: self.give_up(operation, "timeout"))
        if not request.read and not self.writes_seen:
            self._first_write()
        route = request.route
        if isinstance(route, Fastest):
            self._race(operation, now)
            return
        if isinstance(route, Pin):
            operation.home = route.name
        self._place(operation, now)

    def _first_write(self) -> None:
        self.writes_seen = True
        for node in self._nodes.values():
            node.keep_lanes()

    def _place(self, operation: Operation[Any], now: float, *, front: bool = False) -> None:
        """Send it if that is possible at once, else put it in line."""
        kind: Kind = "read" if operation.request.read else "write"
        name = operation.home or self._target[kind]
        node = self._nodes.get(name) if name is not None else None
        if (
            node is not None
            and not front
            and not self._working
            and not operation.alone
            and node.health.sendable
        ):
            own, shared = node.waiting[kind], self._shared[kind]
            if not own.usual and not own.alone and (operation.home or not (shared.usual or shared.alone)):
                lane = node.sets[kind].with_room(now)
                if lane is not None and not self._unfit(node, kind):
                    self._send(lane, node, operation, now)
                    return
        self._enqueue(operation, kind, now, front=front)

    def _unfit(self, node: Node, kind: Kind) -> bool:
        return kind == "write" and node.health.role != "primary"

    def _enqueue(self, operation: Operation[Any], kind: Kind, now: float, *, front: bool) -> None:
        home = operation.home
        waiting = self._nodes[home].waiting[kind] if home else self._shared[kind]
        queue = waiting.of(operation)
        if front:
            queue.push_front(operation)
        else:
            queue.push(operation)
        operation.stage = Stage.QUEUED
        operation.place = queue
        operation.waiting_since = now
        self._queued += 1
        node = self._nodes.get(home or self._target[kind] or "")
        if node is None or not node.serves(kind):
            self._expire_later(operation)
        if node is not None:
            node.busy()
            self._mark(node)
        elif kind == "write":
            for one in self._nodes.values():
                one.poke()

    def _expire_later(self, operation: Operation[Any]) -> None:
        """Nobody can take it now: it must not wait without a bound."""
        if operation.expiry is not None:
            return
        if isinstance(operation.request.route, Pin) and operation.deadline is not None:
            return
        when = operation.waiting_since + self._options.node_wait
        operation.expiry = self._at(when, lambda: self._expire(operation))

    def _out_of_line(self, operation: Operation[Any]) -> None:
        operation.place = None
        self._queued -= 1
        if operation.expiry is not None:
            self._timers.cancel(operation.expiry)
            operation.expiry = None

    def _expire(self, operation: Operation[Any]) -> None:
        operation.expiry = None
        kind: Kind = "read" if operation.request.read else "write"
        node = self._nodes.get(operation.home or self._target[kind] or "")
        if node is not None and node.serves(kind):
            # Served again meanwhile, only not this one yet: begin anew.
            operation.waiting_since = self._clock()
            self._expire_later(operation)
            return
        what = f"node {operation.home}" if operation.home else "a node"
        message = f"no answer from {what} for {kind}s within {self._options.node_wait:g} s"
        self._leave_queue(operation)
        self._fail(operation, self.no_node(message), Outcome.NOT_APPLIED)

    def no_node(self, message: str) -> NoNodeAvailable:
        """The error that lists every node."""
        statuses = [node.status() for node in self._nodes.values()]
        return NoNodeAvailable(
            message, [NodeReport(s.name, s.state, s.state_for, s.reason) for s in statuses]
        )

    # Sending

    def _send(self, lane: Lane, node: Node, operation: Operation[Any], now: float) -> None:
        request = operation.request
        if request.on_send is not None:
            pairs = [(one.query, one.params) for one in request.statements]
            try:
                request.on_send(Sent(node.name, len(operation.attempts) + 1, pairs))
            except Exception as error:  # noqa: BLE001 - the user's callback: its error goes to its operation
                self._fail(operation, error, Outcome.NOT_APPLIED)
                return
        lane.send(operation, now)
        node.busy()

    def _mark(self, node: Node) -> None:
        self._dirty.add(node.name)
        self._work()

    def _work(self) -> None:
        if self._working:
            return
        self._working = True
        try:
            while self._dirty:
                node = self._nodes.get(self._dirty.pop())
                if node is not None and node.health.sendable:
                    for kind in KINDS:
                        self._feed(node, kind)
        finally:
            self._working = False
        if self._room_waiters and not self.full:
            waiters, self._room_waiters = self._room_waiters, []
            for event in waiters:
                event.set()

    def _feed(self, node: Node, kind: Kind) -> None:
        """Send to ``node`` what waits for it, as far as its lanes have room."""
        if self._unfit(node, kind):
            return
        sources = [node.waiting[kind]]
        if self._target[kind] == node.name:
            sources.append(self._shared[kind])
        lanes = node.sets[kind]
        now = self._clock()
        for quiet in (True, False):
            queues = [source.alone if quiet else source.usual for source in sources]
            while (queue := next((q for q in queues if q), None)) is not None:
                lane = lanes.quiet() if quiet else lanes.with_room(now)
                if lane is None:
                    node.demand(kind, now, quiet=quiet)
                    node.busy()
                    break
                self._send(lane, node, self._pop(queue), now)

    def _pop(self, queue: Queue[Operation[Any]]) -> Operation[Any]:
        operation = queue.pop()
        self._out_of_line(operation)
        return operation

    def _leave_queue(self, operation: Operation[Any]) -> None:
        operation.place.remove(operation)
        self._out_of_line(operation)

    # The lanes report

    def succeeded(self, lane: Lane, operation: Operation[Any], results: Sequence[PGresult]) -> None:
        now = self._clock()
        request = operation.request
        operation.attempts[-1].outcome = Outcome.APPLIED
        self._budget.success()
        try:
            loaded = [
                lane.loader.load(
                    result,
                    request.row_factory,
                    node=lane.node,
                    attempts=len(operation.attempts),
                    latency=now - operation.started_at,
                )
                for result in results
            ]
        except Exception as error:  # noqa: BLE001 - a loader or row factory: its error goes to its operation
            self._fail(operation, error, Outcome.APPLIED)
            return
        self._finish(operation, loaded if request.batch else loaded[0], None)

    def judge(self, lane: Lane, operation: Operation[Any], verdict: Verdict) -> None:
        """An attempt ended in another way than by plain success."""
        fate = weigh(operation, verdict, self._tuning, budget=self._budget.available(self._clock()))
        match fate.then:
            case Then.DELIVER:
                self.succeeded(lane, operation, verdict.answer.results)
            case Then.AGAIN_ELSEWHERE:
                self._again(operation, fate, away_from=lane.node if verdict.lost is None else None)
            case Then.AGAIN_LATER:
                self._again(operation, fate, pause=True)
            case Then.AGAIN_NOW:
                operation.alone = operation.alone or verdict.rerun_alone
                self._again(operation, fate)
            case Then.AGAIN_UNPREPARED:
                operation.unprepared = True
                self._again(operation, fate)
            case _:
                self._fail(operation, error_for(operation, verdict, fate), fate.outcome, known=True)

    def _again(
        self, operation: Operation[Any], fate: Fate, *, pause: bool = False, away_from: str | None = None
    ) -> None:
        self._budget.take()
        self.counters.retried += 1
        if self.events.wanted:
            self.events.emit(
                OperationRetried(
                    at=self._clock(),
                    node=operation.attempts[-1].node if operation.attempts else None,
                    attempt=len(operation.attempts),
                    reason=fate.reason,
                )
            )
        if operation.parent is not None:
            self._leg_lost(operation, fate)
            return
        now = self._clock()
        pinned = isinstance(operation.request.route, Pin)
        if away_from is not None and not pinned:
            kind: Kind = "read" if operation.request.read else "write"
            views = [node.candidate(kind) for node in self._nodes.values()]
            operation.home = elsewhere(views, away_from, write=kind == "write")
            pause = operation.home is None
        elif not pinned:
            operation.home = None
        if pause or (away_from is not None and pinned):
            operation.stage = Stage.PAUSED
            operation.place = None
            wait = delay(len(operation.attempts) - 1, random.random(), 0.01, 0.5)
            self._at(now + wait, lambda: self._resume(operation))
            return
        self._place(operation, now, front=True)

    def _resume(self, operation: Operation[Any]) -> None:
        if operation.stage is Stage.PAUSED:
            self._place(operation, self._clock(), front=True)

    def room(self, lane: Lane) -> None:
        if self._queued:
            node = self._nodes.get(lane.node)
            if node is not None:
                self._mark(node)

    def lane_broke(self, lane: Lane, reason: str, *, lost: bool) -> None:
        self.counters.lanes_lost += 1
        if self.events.wanted:
            self.events.emit(
                LaneLost(at=self._clock(), node=lane.node, reason=reason, in_flight=lane.in_flight)
            )
        node = self._nodes.get(lane.node)
        if node is not None and lost:
            node.doubt(reason)

    def terminate(self, lane: Lane) -> None:
        node = self._nodes.get(lane.node)
        if node is not None:
            node.terminate(lane)

    def cancel_sent(self) -> None:
        self.counters.cancels_sent += 1

    # The nodes report

    @property
    def primary_wanted(self) -> bool:
        return self._target["write"] is None and bool(self._shared["write"])

    def pump(self, node: Node) -> None:
        if self._queued:
            self._mark(node)

    def lanes_changed(self, node: Node) -> None:
        self.reroute()
        for kind in KINDS:
            if node.sets[kind].failing:
                self._expire_all_later(node.waiting[kind], None)
                if self._target[kind] == node.name:
                    self._expire_all_later(self._shared[kind], None)
        self._tell_changed()
        self._mark(node)

    def health_changed(self, node: Node, moved: Transition, reason: str) -> None:
        now = self._clock()
        if moved.state_changed:
            self.events.emit(
                NodeChanged(at=now, node=node.name, state=moved.after, before=moved.before, reason=reason)
            )
        if moved.role_changed:
            self.events.emit(RoleChanged(at=now, node=node.name, role=moved.role, before=moved.role_before))
        if moved.fell or moved.role_changed:
            self._bring_home(node)
        self.reroute()
        if moved.state_changed or moved.role_changed:
            self._tell_changed()
        self._mark(node)

    def _bring_home(self, node: Node) -> None:
        """What was put to this node by us may go to any again; what its caller pinned stays."""
        for kind in KINDS:
            waiting = node.waiting[kind]
            for queue in (waiting.usual, waiting.alone):
                for operation in queue.drain():
                    self._out_of_line(operation)
                    if not isinstance(operation.request.route, Pin) and operation.parent is None:
                        operation.home = None
                    self._enqueue(operation, kind, operation.waiting_since, front=False)

    def reroute(self) -> None:
        """Choose anew where `nearest` goes."""
        for kind in KINDS:
            views = [node.candidate(kind) for node in self._nodes.values() if not node.leaving]
            before = self._target[kind]
            target = choose(views, before, write=kind == "write")
            self._target[kind] = target
            if target is not None and target != before:
                self._dirty.add(target)
            elif target is None and before is not None:
                self._expire_all_later(self._shared[kind], self._clock())
        self._work()

    def _expire_all_later(self, waiting: Waiting, since: float | None) -> None:
        for queue in (waiting.usual, waiting.alone):
            for operation in queue:
                operation.waiting_since = since or operation.waiting_since
                self._expire_later(operation)

    async def change(self) -> None:
        """Wait until something about the nodes changed."""
        event = anyio.Event()
        self._changed.append(event)
        await event.wait()

    def _tell_changed(self) -> None:
        events, self._changed = self._changed, []
        for event in events:
            event.set()

    # Giving up

    def give_up(self, operation: Operation[Any], why: GaveUp) -> None:
        """The caller cancelled, or the deadline passed."""
        if operation.stage is Stage.SENT and why == "timeout":
            # The loop may have been busy: the answer may have been there in time.
            operation.place[0].take_in(self._clock())
        if operation.stage is Stage.DONE or operation.gave_up is not None:
            return
        operation.gave_up = why
        match operation.stage:
            case Stage.SENT:
                self._give_up_sent(operation, why)
            case Stage.RACING:
                for leg in operation.legs or ():
                    self._drop_leg(leg)
                self._fail(operation, self._given_up(operation), Outcome.NOT_APPLIED)
            case stage:
                if stage is Stage.QUEUED:
                    self._leave_queue(operation)
                self._fail(operation, self._given_up(operation), Outcome.NOT_APPLIED)

    def _give_up_sent(self, operation: Operation[Any], why: GaveUp) -> None:
        lane, slot = operation.place
        now = self._clock()
        if operation.request.read:
            self._fail(operation, self._given_up(operation), Outcome.NOT_APPLIED)
        elif why == "timeout":
            self._at(now + self._tuning.proof_time, lambda: self._no_proof(operation))
        lane.abandon(slot, now, urgent=True)

    def _no_proof(self, operation: Operation[Any]) -> None:
        if operation.stage is Stage.SENT:
            operation.place[0].take_in(self._clock())
        if operation.stage is not Stage.DONE:
            reason = f"no answer within {operation.request.timeout:g} s, nor to the cancel"
            self._fail(operation, in_doubt(operation, reason), Outcome.IN_DOUBT)

    def _given_up(self, operation: Operation[Any]) -> Error:
        if operation.doubted and not operation.request.read:
            return in_doubt(operation, "an earlier attempt ended without proof")
        if operation.gave_up == "timeout":
            return timed_out(operation)
        return OperationCancelled("the operation was cancelled, and certainly not applied")

    # Racing

    def _race(self, operation: Operation[Any], now: float) -> None:
        names = [node.name for node in self._nodes.values() if node.health.sendable and not node.leaving]
        if not names:
            self._place(operation, now)
            return
        operation.stage = Stage.RACING
        operation.legs = []
        for name in names:
            leg: Operation[Any] = Operation(self, operation.request, now)
            leg.home = name
            leg.parent = operation
            operation.legs.append(leg)
        for leg in tuple(operation.legs):
            if operation.stage is Stage.RACING:
                leg.when_done(self._leg_done)
                self._place(leg, now)

    def _leg_done(self, leg: Operation[Any]) -> None:
        operation = leg.parent
        leg.retrieve()
        if operation is None or operation.stage is not Stage.RACING:
            return
        legs = operation.legs or []
        if leg.failure is None:
            operation.attempts.extend(leg.attempts)
            for other in legs:
                if other is not leg:
                    self._drop_leg(other)
            self._finish(operation, leg.value, None)
        elif all(one.done for one in legs):
            operation.attempts.extend(leg.attempts)
            self._lost_race(operation, legs)

    def _lost_race(self, operation: Operation[Any], legs: Sequence[Operation[Any]]) -> None:
        """Every node failed: an error of SQL is the answer; lost connections only mean another try."""
        for leg in legs:
            if leg.failure is not None and not isinstance(leg.failure, LegLost):
                self._fail(operation, leg.failure, Outcome.NOT_APPLIED, known=True)
                return
        if len(operation.attempts) >= self._tuning.max_attempts:
            error = legs[-1].failure or LegLost("every node was lost")
            self._fail(operation, error, Outcome.NOT_APPLIED)
            return
        operation.legs = None
        self._place(operation, self._clock(), front=True)

    def _leg_lost(self, leg: Operation[Any], fate: Fate) -> None:
        error = LegLost(f"{leg.home}: {fate.reason}")
        note(error, leg, fate.outcome)
        self._finish(leg, None, error)

    def _drop_leg(self, leg: Operation[Any]) -> None:
        if leg.stage is Stage.DONE:
            return
        place, stage = leg.place, leg.stage
        if stage is Stage.QUEUED:
            self._leave_queue(leg)
        leg.retrieve()
        leg.finish(None, LegLost("another node was faster"))
        if stage is Stage.SENT:
            lane, slot = place
            lane.abandon(slot, self._clock(), urgent=False)

    # Ending

    def _fail(
        self, operation: Operation[Any], error: BaseException, outcome: Outcome, *, known: bool = False
    ) -> None:
        if not known:
            note(error, operation, final_outcome(operation, outcome))
        self._finish(operation, None, error)

    def _finish(self, operation: Operation[Any], result: Any, error: BaseException | None) -> None:
        if operation.timer is not None:
            self._timers.cancel(operation.timer)
            operation.timer = None
        if operation.parent is None:
            self._count(operation, error)
        operation.finish(result, error)
        if operation.parent is None:
            self._open.discard(operation)
            if self._idle is not None and not self._open:
                self._idle.set()

    def _count(self, operation: Operation[Any], error: BaseException | None) -> None:
        counters = self.counters
        if error is None:
            counters.succeeded += 1
            return
        counters.failed += 1
        name = type(error).__name__
        if name == "CommitInDoubt":
            counters.in_doubt += 1
            self.events.emit(
                OperationInDoubt(
                    at=self._clock(),
                    node=operation.attempts[-1].node if operation.attempts else None,
                    attempt=len(operation.attempts),
                    reason=str(error),
                )
            )
        elif name == "OperationCancelled":
            counters.cancelled += 1
        elif name == "OperationTimeout":
            counters.timed_out += 1

    def unretrieved(self, operation: Operation[Any], error: BaseException) -> None:
        self.counters.unretrieved += 1
        logger.error("an operation failed, and nobody awaited it: %s", error)
        self.events.emit(FailureUnretrieved(at=self._clock(), node=None, error=error))

    async def retire(self, node: Node, timeout: float) -> None:
        """Let a node end what it does, then forget it."""
        node.leaving = True
        self.reroute()
        self._bring_home(node)
        try:
            with anyio.move_on_after(timeout):
                await node.drained()
        finally:
            await self._dismiss([node])
            del self._nodes[node.name]
            for kind in KINDS:
                for queue in (node.waiting[kind].usual, node.waiting[kind].alone):
                    for operation in list(queue):
                        self._leave_queue(operation)
                        message = f"node {node.name} was removed"
                        self._fail(operation, self.no_node(message), Outcome.NOT_APPLIED)
            self.reroute()
            self._tell_changed()

    async def _dismiss(self, nodes: Sequence[Node]) -> None:
        """End nodes, and the backends of what is in flight on them, in bounded time."""
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(self._tuning.farewell + 0.2):
                async with anyio.create_task_group() as tasks:
                    for node in nodes:
                        tasks.start_soon(node.farewell)
            for node in nodes:
                node.stop()
            for node in nodes:
                await node.gone()

    async def shut(self) -> None:
        """Take no more, cancel what is not done, end every node."""
        self.closed = True
        for operation in tuple(self._open):
            self.give_up(operation, "cancelled")
        await self._dismiss(tuple(self._nodes.values()))
        for operation in tuple(self._open):
            # Nothing runs any more that could tell.
            sent = operation.stage is Stage.SENT and not operation.request.read
            outcome = Outcome.IN_DOUBT if sent or operation.doubted else Outcome.NOT_APPLIED
            operation.doubted = outcome is Outcome.IN_DOUBT
            self._fail(operation, self._given_up(operation), outcome)
        self.events.close()

    async def idle(self) -> None:
        """Wait until every operation is done."""
        while self._open:
            self._idle = anyio.Event()
            await self._idle.wait()
        self._idle = None

    # Time

    def _at(self, when: float, call: Callable[[], None]) -> Any:
        timer = self._timers.add(when, call)
        if when < self._timer_wake and self._timer_nap is not None:
            self._timer_nap.cancel()
        return timer

    async def keep_time(self) -> None:
        """Call what is due, until cancelled."""
        while True:
            for call in self._timers.due(self._clock()):
                call()
            when = self._timers.next()
            self._timer_wake = float("inf") if when is None else when
            with anyio.CancelScope() as self._timer_nap:
                if when is None:
                    await anyio.sleep_forever()
                else:
                    await anyio.sleep(max(0.0, when - self._clock()))
            self._timer_nap = None
