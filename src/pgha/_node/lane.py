"""A lane: a pipelined connection that many operations share, a limited number of them at a time.

`Pipeline` decides what may be sent and cancelled, a `PipelinedConnection` talks to libpq, `Watch` performs
what is due by time, and `LaneCallbacks` decides the next step of each operation. `Lane` is the shell that
connects these parts. The tasks of a lane are one reader and, when needed, a writer and a canceller. All of
them run inside `run`; when `run` ends, the connection is closed and nothing is left.

Two kinds of methods must not be mixed. *Commands* (`send`, `abandon`) are called by the owner in the middle
of its work: they neither read nor call back, and leave what went wrong to an act. *Acts* run one at a time,
from the owner's door: they read, and tell the owner what they found.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import anyio
import psycopg
from anyio.abc import TaskGroup

from pgha._core.pace import UNKNOWN
from pgha._core.pipeline import Doing, Pipeline
from pgha._core.sources import Sources
from pgha._core.statement_kind import classify_statement
from pgha._node.callbacks import FlightSlot, LaneBounds, LaneCallbacks, SegmentFailure, ServerFacts
from pgha._node.evidence import failure_of, failures_after_loss, late_outcome
from pgha._node.outgoing import Refusal, extras_of, ledger_part
from pgha._node.watch import Watch
from pgha._operation.operation import AccessMode, AttemptState, Operation, Stage
from pgha._wire import PGresult
from pgha._wire.compiler import Statement
from pgha._wire.interrupts import uninterrupted
from pgha._wire.link import NO_EXTRAS, Extras, LedgerPart, Received, SendFailed
from pgha._wire.protocol import PipelinedConnection
from pgha._wire.segment import Answer, Segment, plain_success, read_answer

_PER_WAKE_UP = 64
"""The largest number of answers handled before other tasks get a turn."""
_MOST_READS = 1024
"""The largest number of reads, of 8 kB and more, before a connection is closed or written to: bounds the time
spent while a server keeps on sending."""
_TOGETHER = 4
"""The number of segments that are written together, if other tasks are about to send more (measured with 10
tasks: 10 to 15 % more throughput than with one system call each)."""
_INTERRUPTED = "interrupted in the middle of the work on it"
_ROLLBACK = Statement(b"ROLLBACK", None, (), None, classify_statement(b"ROLLBACK"))
_UNKNOWN = Segment([])
"""The segment of a slot until libpq was handed all of it."""


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
        self._observers = owner.observers
        self._clock = clock
        self._watch = Watch(self, clock, owner.door.enter, bounds.cancel_deadline)
        self._tasks: TaskGroup | None = None
        self._writing = False
        self._unwritten = 0
        """The number of segments that libpq was handed since it was last told to write."""
        self._paired: deque[tuple[FlightSlot, list[PGresult]]] = deque()
        """The answers that are being handled, with their segments."""
        self._flush_due = False
        """Whether the owner was told to flush the lane."""
        self.fresh = False
        """Whether everything that had arrived was read since the last write; see `freshen`."""
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

    # Sending: commands

    def send(self, operation: Operation[Any], now: float) -> None:
        """Hand ``operation`` to libpq; call only if the lane has capacity, and let `flush` follow.

        If the connection breaks, or if the operation must not be sent on this lane, the owner gets the facts
        in a later act.
        """
        attempts = operation.attempts
        if attempts:
            # The last attempt may have ended while the caller was sending other operations, after the caller
            # had read the clock. Times in the record must not run backwards.
            now = self._clock()
        attempt = AttemptState(self.node, now)
        attempts.append(attempt)
        request = operation.request
        extras = extras_of(operation) if operation.unprepared else request.extras
        ledger: LedgerPart | None = None
        if request.kind == "write":
            attempt.system = self.system
            if request.keyed is not None or operation.lineage is not None:
                part = ledger_part(operation, attempt, self.server, now)
                if isinstance(part, Refusal):
                    self._owner.door.enter(self._refused, (operation, part))
                    return
                ledger = part
        self._put(request.statements, extras, operation, now, ledger)

    def _put(
        self, statements: Sequence[Statement], extras: Extras, operation: Operation[Any] | None, now: float,
        ledger: LedgerPart | None = None,
    ) -> None:  # fmt: skip
        exclusive, expected = True, UNKNOWN
        if operation is not None:
            exclusive, pace = operation.exclusive, operation.request.pace
            if pace is not None:
                expected = pace.expected
        try:
            # The slot comes first, and counts as handed over: whatever interrupts the sending finds the order
            # of the answers, and nothing is taken for unsent that may have been sent.
            slot = self.pipeline.sent(operation, _UNKNOWN, now, exclusive, expected)
            if operation is not None:
                operation.stage = Stage.SENT
                operation.place = (self, slot)
                attempt = operation.attempts[-1]
                attempt.head_at = slot.head_at
                for tell in self._observers.sent:
                    tell(operation, attempt)
                if slot.head_at is not None:
                    self._is_head(operation, attempt)
            self._unwritten += 1
            self._to_flush()
            slot.segment = self.link.send(statements, extras, ledger)
        except SendFailed as failure:
            slot.segment, slot.handed = failure.segment, failure.handed
            self._fail(_one_line(failure), lost=True)
        except BaseException:
            # An exception of a signal's handler, in the middle of it: nobody knows what libpq was handed.
            self._fail(_INTERRUPTED, lost=False)
            raise

    def _is_head(self, operation: Operation[Any], attempt: AttemptState) -> None:
        for tell in self._observers.became_head:
            tell(operation, attempt)

    def _to_flush(self) -> None:
        if not self._flush_due:
            self._owner.handed_over(self)
            self._flush_due = True

    def _fail(self, reason: str, *, lost: bool) -> None:
        """Take no more operations, and close the connection in an act of its own."""
        self.usable = False
        self._owner.door.enter(lambda why: self._close(why, lost=lost), reason)

    def abandon(self, slot: FlightSlot, now: float, *, urgent: bool) -> None:
        """Record that no caller waits for this segment any more; ``urgent`` cancels the head at once."""
        if self.broken is None:
            self._watch.perform(self.pipeline.abandon(slot, now, urgent=urgent), now)

    # Sending: acts

    def _refused(self, refused: tuple[Operation[Any], Refusal]) -> None:
        operation, refusal = refused
        if operation.stage is not Stage.DONE:
            self._owner.segment_failed(self, operation, refusal.failure())

    def reads_before(self, operation: Operation[Any]) -> bool:
        """Return whether `freshen` must come before ``operation`` is sent."""
        return (self.kind == "write" or operation.suspected_crashes > 0) and not self.fresh

    def freshen(self) -> bool:
        """Read everything that has arrived, before something is handed over; return whether anything had.

        Writing to a connection that the server has closed causes an RST, which discards answers that were not
        read yet (measured: 46 of 47 acknowledgements). And if every connection was cut at the same moment,
        before the first attempt, the second loss must not count against an operation that never reached the
        server. libpq writes what it was handed before it reads: reading afterwards would be too late.
        """
        self.fresh = True
        self._to_flush()  # the flush ends the freshness
        if not self.link.readable():
            return False
        for _ in range(_MOST_READS):
            self.receive(self._clock())
            if self.broken is not None or not self.link.readable():
                break
        return True

    def may_flush_later(self) -> bool:
        """Return whether the server has enough to do, so that more may be written with one system call.

        A lane for writes does not wait: it was read just before.
        """
        unwritten = self._unwritten
        return self.kind == "read" and 0 < unwritten < _TOGETHER and len(self.pipeline.slots) > unwritten

    def flush(self) -> None:
        """Write everything that was sent since the last flush."""
        self._flush_due = self.fresh = False
        if self.broken is not None or not self._unwritten:
            return
        self._unwritten = 0
        try:
            if self.link.flush() or self._writing or self._tasks is None:
                return
        except psycopg.Error as error:
            self.abort(_one_line(error), lost=True)
            return
        except BaseException:
            self._fail(_INTERRUPTED, lost=False)
            raise
        self._writing = True
        self._tasks.start_soon(self._write_out)

    @uninterrupted
    async def _write_out(self) -> None:
        """Write the rest that the socket did not take at once; the reader goes on reading meanwhile."""
        failure: psycopg.Error | None = None
        try:
            while self.broken is None and not self.link.flush():
                await anyio.wait_writable(self.link.fd)
        except psycopg.Error as error:
            failure = error
        finally:
            self._writing = False
        if failure is not None:
            self._owner.door.enter(self._writing_failed, failure)

    def _writing_failed(self, failure: psycopg.Error) -> None:
        self.receive(self._clock())
        self.abort(_one_line(failure), lost=True)

    # Receiving: acts

    @uninterrupted
    async def run(self, opened: Callable[[], None]) -> None:
        """Read until the lane ends, then close the connection, also after an error or a cancellation.

        ``opened`` is called once operations may be sent.
        """
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = self._watch.tasks = tasks
                opened()
                # This ends only by cancellation of the task group: see `_break`.
                await self._owner.loop.serve(self.link.fd, self._readable)
        finally:
            self._tasks = self._watch.tasks = None
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
        received = self._read(_PER_WAKE_UP, now)
        if received.broken is not None:
            self._break(_one_line(received.broken))
            return False
        if self.link.turned_writable:
            self.abort("a statement ended the connection's read-only mode")
            return False
        if (received.answers or received.notified) and not self.pipeline.slots and self.usable:
            self._drained(now)
        return received.more

    def _read(self, limit: int, now: float) -> Received:
        """Read at most ``limit`` answers, and handle them."""
        try:
            received = self.link.receive(len(self.pipeline.slots), limit)
            self._handle(received.answers, now)
        except BaseException:
            # Some answers may be lost, and the next would be taken for them: nothing is read any more.
            self._give_up_unread()
            raise
        return received

    def _handle(self, answers: Sequence[list[PGresult]], now: float) -> None:
        """Assign each answer to its segment, and handle the answers.

        All answers are assigned before the first is handled.
        """
        slots = self.pipeline.slots
        if not answers:
            return
        self.asked = 0
        share, known = self._share(slots[0], now, len(answers)), None
        # In both places for a moment, rather than in none when an exception comes in between.
        self._paired += zip(islice(slots, len(answers)), answers, strict=True)
        self.pipeline.take(len(answers), now)
        while self._paired:
            slot, results = self._paired[0]
            operation = slot.item
            if operation is not None:
                pace = operation.request.pace
                if pace is not None and pace is not known:
                    pace.took(share)
                    known = pace
            self._answered(slot, results, now)
            self._paired.popleft()
        if slots and (successor := slots[0].item) is not None and _waits_for(successor, slots[0]):
            successor.attempts[-1].head_at = slots[0].head_at
            self._is_head(successor, successor.attempts[-1])

    def _share(self, head: FlightSlot, now: float, count: int) -> float:
        """Return the seconds for which the server worked on each of the ``count`` segments answered now.

        It worked on them one after another: each gets an equal share. The first of an idle lane also took a
        round trip.
        """
        travelled = self.server.latency if head.head_at == head.sent_at else 0.0
        return max(0.0, now - (head.head_at or now) - travelled) / count

    def _drained(self, now: float) -> None:
        self.idle_since = now
        if self.pipeline.draining:
            self.abort("drained")
        elif not self.link.clean():
            # A statement changed the session without detection: no other operation may use the session.
            changed = "ran LISTEN" if self.link.listened else "changed the connection's session"
            self.abort(f"a statement {changed}")

    def _answered(self, slot: FlightSlot, results: list[PGresult], now: float) -> None:
        operation, segment = slot.item, slot.segment
        pending = operation is not None and _waits_for(operation, slot)
        if pending and operation is not None:
            attempt = operation.attempts[-1]
            attempt.answered_at = now
            attempt.head_at = slot.head_at
            for tell in self._observers.answered:
                tell(operation, attempt)
            if segment.pieces is None and plain_success(segment, results):
                if segment.keyed:
                    del results[0]
                self._owner.succeeded(self, operation, results, segment.entry)
                return
        answer = read_answer(segment, results)
        self._update_cache(answer)
        if answer.protocol_mismatch:
            self._fail("the answers do not match what was sent", lost=False)
        if segment.framed and answer.commit_tag is None and self.usable:
            # The block is still open, in the failed state.
            self._put((_ROLLBACK,), NO_EXTRAS, None, now)
        if operation is None:
            if answer.fault is not None:
                self._fail("a transaction could not be rolled back", lost=False)
        elif pending:
            self._tell(slot, operation, answer)
        elif operation.doubt is not None:
            failure = failure_of(slot, answer, synced=not answer.protocol_mismatch)
            operation.doubt.evidence(late_outcome(operation, failure))

    def _tell(self, slot: FlightSlot, operation: Operation[Any], answer: Answer) -> None:
        good = answer.fault is None and not answer.protocol_mismatch and not answer.unreplicated
        if good and (not slot.segment.framed or answer.commit_tag == "COMMIT"):
            self._owner.succeeded(self, operation, answer.results, None)
        else:
            failure = failure_of(slot, answer, synced=not answer.protocol_mismatch)
            self._owner.segment_failed(self, operation, failure)

    def _update_cache(self, answer: Answer) -> None:
        cache = self.link.cache
        for entry in answer.parsed:
            cache.parsed(entry)
        for entry in answer.unparsed:
            cache.failed(entry)
        if answer.spoiled is not None:
            cache.spoiled(answer.spoiled)

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
        if operation is not None and _waits_for(operation, slot):
            self._owner.segment_failed(self, operation, failure)
        elif operation is not None and operation.doubt is not None:
            operation.doubt.evidence(late_outcome(operation, failure))

    def _give_up_unread(self) -> None:
        """Close the connection without reading: every operation without a handled answer is in doubt."""
        if self.broken is not None:
            return
        self.broken = _INTERRUPTED
        self.usable = False
        slots = list(dict.fromkeys([*(slot for slot, _ in self._paired), *self.pipeline.slots]))
        self._paired.clear()
        self.pipeline.slots.clear()
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
            received = self._read(len(self.pipeline.slots), now)
            if received.broken is not None:
                reason = _one_line(received.broken)
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
            if operation is not None and _waits_for(operation, slot) and operation.parent is None:
                self.pipeline.abandon(slot, now, urgent=False)
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


def _waits_for(operation: Operation[Any], slot: FlightSlot) -> bool:
    """Return whether the operation waits for the answer to this segment, and not to another or to none."""
    return operation.stage is Stage.SENT and operation.place[1] is slot


def _one_line(error: BaseException) -> str:
    """Return the error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__
