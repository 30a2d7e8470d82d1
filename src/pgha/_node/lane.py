"""A lane: a pipelined connection that many operations share, a limited number of them at a time.

`Pipeline` decides what may be sent and cancelled, a `PipelinedConnection` talks to libpq, `Sender` hands it
the segments, `Receiver` handles the answers, `Watch` performs what is due by time, and `LaneCallbacks`
decides the next step of each operation. `Lane` connects these parts, and ends the connection. The tasks of a
lane are one reader and, when needed, a writer and a canceller. All of them run inside `run`; when `run` ends,
the connection is closed and nothing is left.

Two kinds of methods must not be mixed. *Commands* (`send`, `abandon`) are called by the owner in the middle
of its work: they neither read nor call back, and leave what went wrong to an act. *Acts* run one at a time,
from the owner's door: they read, and tell the owner what they found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import anyio
from anyio.abc import TaskGroup

from pgha._core.pipeline import Doing, Pipeline
from pgha._core.sources import Sources
from pgha._node.callbacks import FlightSlot, LaneBounds, LaneCallbacks, SegmentFailure, ServerFacts
from pgha._node.evidence import failure_of, failures_after_loss, late_outcome, one_line
from pgha._node.receiving import Receiver, waits_for
from pgha._node.sending import Sender
from pgha._node.watch import Watch
from pgha._operation.operation import AccessMode, Operation, Stage
from pgha._wire.interrupts import uninterrupted
from pgha._wire.protocol import PipelinedConnection
from pgha._wire.segment import Answer, Segment

_PER_WAKE_UP = 64
"""The largest number of answers handled before other tasks get a turn."""
_MOST_READS = 1024
"""The largest number of reads, of 8 kB and more, before a connection is closed or written to: bounds the time
spent while a server keeps on sending."""
_INTERRUPTED = "interrupted in the middle of the work on it"


class Lane:
    """A pipelined connection to one node; see the head of this file."""

    def __init__(
        self, link: PipelinedConnection, node: str, kind: AccessMode, owner: LaneCallbacks[Lane],
        bounds: LaneBounds, sources: Sources, server: ServerFacts | None = None,
        system: int | None = None,
    ) -> None:  # fmt: skip
        clock = sources.clock
        self.node = node
        self.server = server or ServerFacts()
        self.system = system
        self.kind: AccessMode = kind
        self.link = link
        self.pipeline: Pipeline[Operation[Any] | None, Segment] = Pipeline(
            bounds.pipeline, ask_first=kind == "write"
        )
        self.pipeline.behind = max(bounds.pipeline.behind, self.server.latency)
        self.broken: str | None = None
        self.usable = True
        """Whether the lane is neither broken nor about to be closed."""
        self.idle_since = clock()
        self.asked = 0
        """The number of pings that the present head has caused by its age."""
        self._bounds = bounds
        self._owner = owner
        self._clock = clock
        self._watch = Watch(self, clock, owner.door.enter, bounds.cancel_deadline)
        self._tasks: TaskGroup | None = None
        sender = self._sender = Sender(self, owner, clock)
        self._receiver = Receiver(self, owner, sender.rollback)
        # The sending half, for the dispatcher; called for every operation, and so without a call in between.
        self.send = sender.send
        self.reads_before = sender.reads_before
        self.freshen = sender.freshen
        self.may_flush_later = sender.may_flush_later
        self.flush = sender.flush
        self._more = False
        """Whether there is more to read at once."""
        self._drain_until: float | None = None
        self._drain_reason = ""
        self._terminated = False
        """Whether pgha had the backend terminated."""

    # State, for the node and the dispatcher

    @property
    def in_flight(self) -> int:
        """The number of segments in flight."""
        return len(self.pipeline.slots)

    @property
    def alone(self) -> bool:
        """Whether an exclusive operation is in flight."""
        slots = self.pipeline.slots
        return bool(slots) and slots[0].exclusive

    @property
    def quiet(self) -> bool:
        """Whether an exclusive operation may be sent."""
        return self.usable and self.pipeline.quiet

    def has_capacity(self, now: float) -> bool:
        """Return whether one more segment may be sent behind those in flight."""
        return self.usable and self.pipeline.has_capacity(now)

    def stuck(self, now: float) -> bool:
        """Return whether nothing can be sent for a while; see `Pipeline.stuck`."""
        return not self.usable or self.pipeline.stuck(now)

    def head_age(self, now: float) -> float:
        """Return the seconds for which the present head has been the head; 0 if nothing is in flight."""
        slots = self.pipeline.slots
        return now - (slots[0].head_at or now) if slots else 0.0

    # Commands

    def fail(self, reason: str, *, lost: bool) -> None:
        """Take no more operations, and close the connection in an act of its own."""
        self.usable = False
        self._owner.door.enter(lambda why: self._close(why, lost=lost), reason)

    def interrupted(self) -> None:
        """Do the same after an exception of a signal's handler, in the middle of the work on the lane."""
        self.fail(_INTERRUPTED, lost=False)

    def abandon(self, slot: FlightSlot, now: float, *, urgent: bool) -> None:
        """Record that no caller waits for this segment any more; ``urgent`` cancels the head at once."""
        if self.broken is None:
            self._watch.perform(self.pipeline.abandon(slot, now, urgent=urgent), now)

    # Receiving: acts

    @uninterrupted
    async def run(self, opened: Callable[[], None]) -> None:
        """Read until the lane ends, then close the connection, also after an error or a cancellation.

        ``opened`` is called once operations may be sent.
        """
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = self._watch.tasks = self._sender.tasks = tasks
                opened()
                # This ends only by cancellation of the task group: see `_break`.
                await self._owner.loop.serve(self.link.fd, self._readable)
        finally:
            self._tasks = self._watch.tasks = self._sender.tasks = None
            self._owner.door.enter(self._finish, None)

    def _finish(self, _: None) -> None:
        self._close("closed by pgha", lost=False)
        self.link.finish()

    def _readable(self) -> bool:
        self._owner.door.enter(self._take_in, None)
        return self._more

    def _take_in(self, _: None) -> None:
        self._more = self.receive(self._clock())
        if self.broken is None:
            self._owner.capacity_freed(self)

    def receive(self, now: float) -> bool:
        """Read and handle what has arrived, without waiting; return whether there is more to read at once."""
        if self.broken is not None:
            return False
        received = self._receiver.read(_PER_WAKE_UP, now)
        if received.broken is not None:
            self._break(one_line(received.broken))
            return False
        if self.link.turned_writable:
            self.abort("a statement ended the connection's read-only mode")
            return False
        if (received.answers or received.notified) and not self.pipeline.slots and self.usable:
            self._drained(now)
        return received.more

    def _drained(self, now: float) -> None:
        self.idle_since = now
        if self.pipeline.draining:
            self.abort("drained")
        elif not self.link.clean():
            # A statement changed the session without detection: no other operation may use the session.
            changed = "ran LISTEN" if self.link.listened else "changed the connection's session"
            self.abort(f"a statement {changed}")

    # Ending: acts

    def _break(self, reason: str, *, lost: bool = True) -> None:
        """Report the end of the connection, and classify everything in flight by the answers that arrived.

        ``lost`` says that pgha did not end the connection on purpose.
        """
        if self.broken is not None:
            return
        if notice := self.link.closing_notice():
            reason = f"{notice}; {reason}"
        self.broken = reason
        self.usable = False
        slots = list(self.pipeline.slots)
        self.pipeline.slots.clear()
        self._owner.lane_broke(self, reason, lost=lost, in_flight=len(slots))
        failures = failures_after_loss(slots, self.link, reason, lost=lost, terminated=self._terminated)
        self._report(zip(slots, failures, strict=True))

    def _report(self, lost: Iterable[tuple[FlightSlot, SegmentFailure]]) -> None:
        """Report what became of the segments, and end the lane's tasks.

        Each segment gets its turn, also if an exception of a signal's handler comes in between.
        """
        raised: BaseException | None = None
        for slot, failure in lost:
            for _ in range(2):
                try:
                    self._report_one(slot, failure)
                except BaseException as error:  # noqa: BLE001 - raised below
                    raised = raised or error
                    failure.not_suspected = True  # it may be counted already
                else:
                    break
            slot.item = None
        self.end()
        if raised is not None:
            try:
                raise raised
            finally:
                del raised

    def end(self) -> None:
        """End the tasks of a lane that broke."""
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()

    def _report_one(self, slot: FlightSlot, failure: SegmentFailure) -> None:
        operation = slot.item
        if operation is not None and waits_for(operation, slot):
            self._owner.segment_failed(self, operation, failure)
        elif operation is not None and operation.doubt is not None:
            operation.doubt.evidence(late_outcome(operation, failure))

    def give_up_unread(self, slots: Sequence[FlightSlot]) -> None:
        """Close the connection without reading: every operation without a handled answer is in doubt."""
        if self.broken is not None:
            return
        self.broken = _INTERRUPTED
        self.usable = False
        self._owner.lane_broke(self, self.broken, lost=False, in_flight=len(slots))
        failures = [
            failure_of(slot, Answer(), synced=False, was_head=False, lost=self.broken) for slot in slots
        ]
        for failure in failures:
            failure.not_suspected = True
        self._report(zip(slots, failures, strict=True))

    def abort(self, reason: str, *, lost: bool = False) -> None:
        """Close the connection now.

        Everything that was already received is read first, so that pending operations are classified with
        all the evidence.
        """
        if self.usable:
            self._close(reason, lost=lost)

    def _close(self, reason: str, *, lost: bool) -> None:
        if self.broken is not None:
            return
        self.usable = False
        now = self._clock()
        for _ in range(_MOST_READS):
            received = self._receiver.read(len(self.pipeline.slots), now)
            if received.broken is not None:
                reason = one_line(received.broken)
                break
            if not self.link.readable():
                break
        self._break(reason, lost=lost)

    def drain(self, reason: str, now: float, *, terminate: bool) -> None:
        """Send nothing more, and wait up to ``drain_timeout`` for the answers to the segments in flight.

        With ``terminate``, the monitor has the backend terminated, which proves that a segment was not
        applied; just closing the connection would prove nothing.
        """
        if self.broken is not None or self._drain_until is not None:
            return
        self.pipeline.stop_sending()
        if not self.pipeline.slots:
            self.abort(reason)
            return
        self._drain_until = now + self._bounds.drain_timeout
        self._drain_reason = reason
        if terminate:
            self._terminated = True
            self._owner.terminate(self)

    # Time: acts

    def tick(self, now: float) -> None:
        """Do what is due by time; called regularly while anything is in flight."""
        if self.link.tls or self._drain_until is not None:
            # Decrypted bytes inside OpenSSL do not make the socket readable, and so wake no task.
            self.receive(self._clock())
        if self._drain_until is not None and now >= self._drain_until:
            self.abort(self._drain_reason)
        if self.broken is not None:
            return
        if self.pipeline.slots and not self.link.settings_kept():
            # A statement changed a setting: send nothing more; `_drained` closes the connection.
            self.pipeline.stop_sending()
        self._watch.tick(now)

    def stranded(self, now: float) -> list[Operation[Any]]:
        """Take back the reads behind a head that holds them up; their answers will be ignored.

        Running a read twice does no harm, and nobody knows how long the head will take.
        """
        slots = self.pipeline.slots
        if len(slots) < 2 or self.head_age(now) < self._bounds.stranded_after:
            return []
        behind = [slot for slot in slots if slot is not slots[0] and slot.item is not None]
        taken = []
        for slot in behind:
            operation = slot.item
            if operation is not None and waits_for(operation, slot) and operation.parent is None:
                self.pipeline.abandon(slot, now, urgent=False)
                slot.item = None  # its result will come from elsewhere, and is not kept alive here
                operation.place = None
                operation.stage = Stage.NEW
                taken.append(operation)
        return taken

    # Reports for the watch

    def capacity_freed(self) -> None:
        """Tell the owner that more may be sent."""
        self._owner.capacity_freed(self)

    def cancel_sent(self) -> None:
        """Tell the owner that a cancel request is sent."""
        self._owner.cancel_sent()

    def inspect(self, report: Callable[[Doing], None]) -> None:
        """Have the owner ask what the lane's backend is doing."""
        self._owner.inspect(self, report)
