"""A lane: a pipelined connection that many operations share, a limited number of them at a time.

`Pipeline` decides what may be sent and cancelled, `Link` talks to libpq, and `LaneCallbacks` decides the next
step of each operation. `Lane` is the shell that connects these parts. The tasks of a lane are one reader and,
when needed, a writer and a canceller. All of them run inside `run`; when `run` ends, the connection is closed
and nothing is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import anyio
import psycopg
from anyio.abc import TaskGroup
from psycopg.adapt import AdaptersMap

from pgha._core.ledger_rules import EXISTS
from pgha._core.outcome import Facts, Handed, Outcome, ServerError, outcome
from pgha._core.pipeline import Act, Doing, Pipeline
from pgha._core.statement_kind import classify_statement
from pgha._node.callbacks import FlightSlot, LaneBounds, LaneCallbacks, SegmentFailure, ServerFacts
from pgha._operation.key import Keyed
from pgha._operation.operation import AccessMode, AttemptState, Operation, Stage
from pgha._wire import PGresult
from pgha._wire.compiler import Statement
from pgha._wire.connect import cancel
from pgha._wire.interrupts import uninterrupted
from pgha._wire.link import ADMIN_SHUTDOWN, NO_EXTRAS, Extras, LedgerPart, Link, SendFailed
from pgha._wire.loader import Loader
from pgha._wire.segment import Answer, Segment, plain_success, read_answer

_PER_WAKE_UP = 64
"""The largest number of answers handled before other tasks get a turn."""
_SLOW_LINE = 2_000.0
"""The speed of a slow line, in bytes per second."""
_SLOWEST = 60.0
"""Seconds after which no request is on its way any more."""
_MOST_READS = 1024
"""The largest number of reads, of 8 kB and more, before a connection is closed or an operation is sent:
bounds the time spent while a server keeps on sending."""


class Lane:
    """A pipelined connection to one node; see the head of this file."""

    def __init__(
        self, link: Link, node: str, kind: AccessMode, adapters: AdaptersMap, owner: LaneCallbacks[Lane],
        bounds: LaneBounds, clock: Callable[[], float], server: ServerFacts | None = None,
        system: int | None = None,
    ) -> None:  # fmt: skip
        self.node = node
        self.server = server or ServerFacts()
        self.system = system
        self.kind: AccessMode = kind
        self.link = link
        self.loader = Loader(link.pgconn, adapters)
        self.pipeline: Pipeline[Operation[Any] | None, Segment] = Pipeline(bounds.pipeline)
        self.broken: str | None = None
        self.idle_since = clock()
        self.asked = 0
        """The number of pings that the present head has caused by its age."""
        self._bounds = bounds
        self._owner = owner
        self._clock = clock
        self.corked = False
        """Whether more operations are about to be sent; `uncork` then writes all of them together."""
        self._tasks: TaskGroup | None = None
        self._writing = False
        self._ending = False
        """Whether the connection is being closed: arriving answers are handled, nothing more is sent."""
        self._drain_until: float | None = None
        self._terminated = False
        """Whether pgha had the backend terminated."""
        self._drain_reason = ""

    # State, for the node and the dispatcher

    @property
    def in_flight(self) -> int:
        """The number of segments in flight."""
        return len(self.pipeline.slots)

    @property
    def usable(self) -> bool:
        """Whether the lane is neither broken nor about to be closed."""
        return self.broken is None and not self._ending

    def has_capacity(self, now: float) -> bool:
        """Return whether one more segment may be sent behind those in flight."""
        return self.broken is None and not self._ending and self.pipeline.has_capacity(now)

    @property
    def quiet(self) -> bool:
        """Whether an exclusive operation may be sent."""
        return self.usable and self.pipeline.quiet

    def stuck(self, now: float) -> bool:
        """Return whether nothing can be sent for a while; see `Pipeline.stuck`."""
        return not self.usable or self.pipeline.stuck(now)

    def head_age(self, now: float) -> float:
        """Return the seconds for which the present head has been the head; 0 if nothing is in flight."""
        slots = self.pipeline.slots
        return now - (slots[0].head_at or now) if slots else 0.0

    # Sending

    def takes(self, operation: Operation[Any], now: float) -> bool:
        """Return whether ``operation`` may be sent at this moment."""
        return self.quiet if operation.exclusive else self.has_capacity(now)

    def send(self, operation: Operation[Any], now: float) -> bool:
        """Hand ``operation`` to libpq, in the calling task; call only if `takes` returned True.

        Return False if the lane has lost its capacity meanwhile, because of answers that this method read.
        If the connection breaks meanwhile, the owner gets the facts of every operation on the lane, this one
        included.
        """
        if self.kind == "write" or operation.suspected_crashes:
            # Sending on a connection that the server has closed causes an RST, which discards answers that
            # were not read yet (measured: 46 of 47 acknowledgements). And if every connection was cut at the
            # same moment, before the first attempt, the second loss must not count against the operation,
            # which never reached the server.
            self._read_ahead()
            if operation.stage is Stage.DONE:
                return True  # cancelled by a row factory, which ran for an answer that was just read
            if not self.takes(operation, now):
                return False
        if operation.attempts:
            # The last attempt may have ended while the caller was sending other operations, after the caller
            # had read the clock. Times in the record must not run backwards.
            now = self._clock()
        attempt = AttemptState(self.node, now)
        operation.attempts.append(attempt)
        request = operation.request
        extras = _unprepared(request.extras) if operation.unprepared else request.extras
        if request.read:
            self._put(request.statements, extras, operation, now)
            return True
        attempt.system = self.system
        if operation.exactly_once and operation.lineage != attempt.system:
            self._refuse(operation, "57P01", "another server has taken the node's place")
            return True
        ledger = None
        if (keyed := request.keyed) is not None and not operation.unkeyed:
            # Once an attempt may have been applied, only the ledger keeps the next from applying it twice.
            use_ledger = self.server.ledger or not keyed.auto or operation.exactly_once
            if attempt.system is not None and use_ledger:
                ledger = self._insert(keyed, operation, attempt, now)
            elif not keyed.auto:
                self._refuse(operation, "42501", "the server did not give its system identifier")
                return True
        self._put(request.statements, extras, operation, now, ledger)
        return True

    def _insert(
        self, keyed: Keyed, operation: Operation[Any], attempt: AttemptState, now: float
    ) -> LedgerPart:
        assert self.system is not None
        attempt.keyed = True
        until, deadline = self.server.clock.guard(
            now, operation.started_at, operation.deadline, operation.refusals
        )
        operation.guarded_until = max(operation.guarded_until, until)
        operation.guard = max(operation.guard, deadline)
        return LedgerPart(keyed.insert(self.system, deadline), keyed.behind)

    def _refuse(self, operation: Operation[Any], sqlstate: str, reason: str) -> None:
        """Fail an operation that must not be sent on this lane, with an error as from its server."""
        facts = Facts(Handed.NOTHING, error=ServerError(sqlstate, "ERROR"), at_ledger=sqlstate == "42501")
        self._owner.segment_failed(
            self, operation, SegmentFailure(facts, Answer(), False, False, False, None, note=reason)
        )

    def _read_ahead(self) -> None:
        for _ in range(_MOST_READS):
            if self.broken is not None or not self.link.readable():
                return
            # The clock is read anew: answers read before may have caused more sending, also on this lane.
            self.receive(self._clock())

    def _put(
        self, statements: Sequence[Statement], extras: Extras, operation: Operation[Any] | None, now: float,
        ledger: LedgerPart | None = None,
    ) -> None:  # fmt: skip
        try:
            segment = self.link.send(statements, extras, ledger=ledger, corked=self.corked)
        except SendFailed as failure:
            if failure.segment is None:
                self._not_sent(operation, extras.framed, failure)
            else:
                # All of the segment was handed over, so it counts as in flight, and is classified as such.
                self._sent(failure.segment, operation, now)
                self.abort(_one_line(failure), lost=True)
            return
        self._sent(segment, operation, now)
        if not self.corked:
            self._flush()

    def _sent(self, segment: Segment, operation: Operation[Any] | None, now: float) -> None:
        exclusive = operation is None or operation.exclusive
        slot = self.pipeline.sent(operation, segment, now, exclusive)
        if operation is not None:
            operation.stage = Stage.SENT
            operation.place = (self, slot)
            operation.attempts[-1].head_at = slot.head_at

    def _not_sent(self, operation: Operation[Any] | None, framed: bool, failure: SendFailed) -> None:
        """Close the connection after libpq took a part of a segment at most, and no Sync."""
        reason = _one_line(failure)
        self.abort(reason, lost=True)
        if operation is not None and operation.stage is not Stage.DONE:
            committing = operation.request.self_committing
            facts = Facts(handed=failure.handed, framed=framed, self_committing=committing)
            self._owner.segment_failed(
                self, operation, SegmentFailure(facts, Answer(), False, False, False, reason)
            )

    def uncork(self) -> None:
        """Write everything that was sent while the lane was ``corked``."""
        self.corked = False
        if self.broken is None:
            self._flush()

    def _flush(self) -> None:
        try:
            if self.link.flush() or self._writing or self._tasks is None:
                return
        except psycopg.Error as error:
            self.abort(_one_line(error), lost=True)
            return
        self._writing = True
        self._tasks.start_soon(self._write_out)

    @uninterrupted
    async def _write_out(self) -> None:
        """Write the rest that the socket did not take at once; the reader goes on reading meanwhile."""
        try:
            while self.broken is None and not self.link.flush():
                await anyio.wait_writable(self.link.fd)
        except psycopg.Error as error:
            self.receive(self._clock())
            self.abort(_one_line(error), lost=True)
        finally:
            self._writing = False

    # Receiving

    @uninterrupted
    async def run(self, opened: Callable[[], None]) -> None:
        """Read until the lane ends, then close the connection, also after an error or a cancellation.

        ``opened`` is called once operations may be sent.
        """
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                opened()
                # This ends only by cancellation of the task group: see `_break`.
                await self._owner.loop.serve(self.link.fd, self._readable)
        finally:
            self._tasks = None
            self.abort("closed by pgha")
            self.link.finish()

    def _readable(self) -> bool:
        more = self.receive(self._clock())
        if self.broken is None:
            self._owner.capacity_freed(self)
        return more

    def receive(self, now: float) -> bool:
        """Read and handle what has arrived, without waiting; return whether there is more to read at once."""
        if self.broken is not None:
            return False
        received = self.link.receive(len(self.pipeline.slots), _PER_WAKE_UP)
        self._handle(received.answers, now)
        if received.broken is not None:
            self._break(_one_line(received.broken))
            return False
        if received.answers and not self.pipeline.slots and self.usable:
            self._drained(now)
        return received.more

    def _handle(self, answers: Sequence[list[PGresult]], now: float) -> None:
        """Assign each answer to its segment, and handle the answers.

        All answers are assigned before the first is handled: handling one may send and read on this lane.
        """
        slots = self.pipeline.slots
        if not answers:
            return
        # The server worked on these segments one after another: each gets an equal share of the time.
        share = (now - (slots[0].head_at or now)) / len(answers)
        for slot, results in [(self._pop_head(now), results) for results in answers]:
            operation = slot.item
            if operation is not None and (pace := operation.request.pace) is not None:
                pace.took(share)
            self._answered(slot, results, now)

    def _pop_head(self, now: float) -> FlightSlot:
        slots = self.pipeline.slots
        slot = self.pipeline.answered(now)
        self.asked = 0
        if slots and (successor := slots[0].item) is not None:
            successor.attempts[-1].head_at = now
        return slot

    def _drained(self, now: float) -> None:
        self.idle_since = now
        if self.pipeline.draining:
            self.abort("drained")
        elif not self.link.clean():
            # A statement changed the session without detection: no other operation may use the session.
            self.abort("a statement changed the connection's session")

    def _answered(self, slot: FlightSlot, results: list[PGresult], now: float) -> None:
        operation, segment = slot.item, slot.segment
        pending = operation is not None and operation.stage is not Stage.DONE
        if pending and operation is not None:
            operation.attempts[-1].answered_at = now
            if plain_success(segment, results):
                if segment.keyed:
                    del results[0]
                self._owner.succeeded(self, operation, results, segment.entry)
                return
        answer = read_answer(segment, results)
        self._update_cache(answer)
        if answer.protocol_mismatch:
            self.abort("the answers do not match what was sent")
        if segment.framed and answer.commit_tag is None:
            self._roll_back(now)
        if operation is None:
            if answer.fault is not None:
                self.abort("a transaction could not be rolled back")
        elif pending:
            good = answer.fault is None and not answer.protocol_mismatch and not answer.unreplicated
            if good and (not segment.framed or answer.commit_tag == "COMMIT"):
                self._owner.succeeded(self, operation, answer.results, None)
            else:
                synced = not answer.protocol_mismatch
                self._owner.segment_failed(self, operation, self._failure_of(slot, answer, synced=synced))
        elif operation.doubt is not None:
            self._report_late(operation, self._failure_of(slot, answer, synced=not answer.protocol_mismatch))

    def _report_late(self, operation: Operation[Any], failure: SegmentFailure) -> None:
        """Report the outcome of an operation whose caller already got `CommitInDoubt`."""
        found, error = outcome(failure.facts), failure.facts.error
        if found is Outcome.NOT_APPLIED:
            exists = failure.facts.at_ledger and error is not None and error.sqlstate == EXISTS
            if operation.doubted or exists:
                found = Outcome.IN_DOUBT  # another attempt may have been applied, or was
        if operation.doubt is not None:
            operation.doubt.evidence(found)

    def _update_cache(self, answer: Answer) -> None:
        cache = self.link.cache
        for entry in answer.parsed:
            cache.parsed(entry)
        for entry in answer.unparsed:
            cache.failed(entry)
        if answer.spoiled is not None:
            cache.spoiled(answer.spoiled)

    def _roll_back(self, now: float) -> None:
        """End the block of a framed batch that failed; the block is still open, in the failed state."""
        if self.broken is None:
            self._put((_ROLLBACK,), NO_EXTRAS, None, now)

    def _failure_of(
        self, slot: FlightSlot, answer: Answer, *, synced: bool, was_head: bool = True,
        after_fatal: bool = False, lost: str | None = None,
    ) -> SegmentFailure:  # fmt: skip
        operation, segment = slot.item, slot.segment
        facts = Facts(
            synced=synced,
            error=answer.fault,
            completed=answer.completed,
            statements=segment.expected(),
            framed=segment.framed,
            commit_tag=answer.commit_tag,
            self_committing=operation is not None and operation.request.self_committing,
            unreplicated=answer.unreplicated,
            at_ledger=answer.at_ledger,
            after_fatal=after_fatal,
        )
        return SegmentFailure(facts, answer, slot.overlapped, was_head, slot.rerun_exclusive, lost)

    # Ending

    def _break(self, reason: str, *, lost: bool = True) -> None:
        """Report the end of the connection, and classify everything in flight by the answers that arrived.

        ``lost`` says that pgha did not end the connection on purpose.
        """
        if self.broken is not None:
            return
        if notice := self.link.closing_notice():
            reason = f"{notice}; {reason}"
        self.broken = reason
        slots = list(self.pipeline.slots)
        self.pipeline.slots.clear()
        self._owner.lane_broke(self, reason, lost=lost, in_flight=len(slots))
        after_fatal = False
        ours, ordered = self._terminated, self.link.ended_by_order()
        for index, slot in enumerate(slots):
            results = self.link.unfinished() if index == 0 else ()
            answer = read_answer(slot.segment, results)
            answer.unreplicated = index == 0 and self.link.unreplicated
            operation = slot.item
            if operation is not None and operation.stage is not Stage.DONE:
                failure = self._failure_of(
                    slot, answer, synced=False, was_head=index == 0, after_fatal=after_fatal, lost=reason
                )
                failure.ours = ours
                failure.not_suspected = not ours and (ordered or not lost or _by_order(answer.fault))
                failure.crashed = self.link.ended_by_crash()
                self._owner.segment_failed(self, operation, failure)
            elif operation is not None and operation.doubt is not None:
                late = self._failure_of(slot, answer, synced=False, after_fatal=after_fatal, lost=reason)
                self._report_late(operation, late)
            after_fatal = after_fatal or _ends_all(answer.fault)
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()

    def abort(self, reason: str, *, lost: bool = False) -> None:
        """Close the connection now.

        Everything that was already received is read first, so that pending operations are classified with
        all the evidence.
        """
        if not self.usable:
            return
        self._ending = True
        now = self._clock()
        for _ in range(_MOST_READS):
            received = self.link.receive(len(self.pipeline.slots), len(self.pipeline.slots))
            self._handle(received.answers, now)
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

    # Time and cancelling

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
        self._perform(self.pipeline.tick(now), now)

    def abandon(self, slot: FlightSlot, now: float, *, urgent: bool) -> None:
        """Record that no caller waits for this segment any more; ``urgent`` cancels the head at once."""
        if self.broken is None:
            self._perform(self.pipeline.abandon(slot, now, urgent=urgent), now)

    def _perform(self, act: Act, now: float, reason: str = "a cancel had no effect in time") -> None:
        match act:
            case Act.CANCEL:
                if self._tasks is not None:
                    self._owner.cancel_sent()
                    self._tasks.start_soon(self._deliver_cancel)
            case Act.DISCARD:
                self.drain(reason, now, terminate=True)
            case Act.INSPECT:
                slot = self.pipeline.slots[0]
                self._owner.inspect(self, lambda doing: self._inspected(slot, doing))
            case Act.NOTHING:
                pass

    def _inspected(self, slot: FlightSlot, doing: Doing) -> None:
        now = self._clock()
        # The server's report is older than the answers that have arrived meanwhile.
        self.receive(now)
        if self.usable:
            moved, travelling = self.link.moved(), self._travelling(slot, now)
            act = self.pipeline.inspected(slot, doing, moved, now, travelling=travelling)
            self._perform(act, now, _LOST)

    def _travelling(self, slot: FlightSlot, now: float) -> bool:
        """Return whether the head's request may still be on its way between a proxy and the server.

        The kernel that confirmed all of the request may be that of a proxy or a gateway. For as long as a
        slow line would take to carry the request, an idle backend proves nothing.
        """
        if slot.item is None or slot.head_at is None or self.link.unsent():
            return False
        size = 0
        for one in slot.item.request.statements:
            size += len(one.query) + sum(len(value) for value in one.params or () if value is not None)
        return now - slot.head_at < min(size / _SLOW_LINE, _SLOWEST)

    @uninterrupted
    async def _deliver_cancel(self) -> None:
        certain = False
        try:
            with anyio.move_on_after(self._bounds.cancel_deadline):
                await cancel(self.link.pgconn)
                certain = True
        except psycopg.Error:
            # Refused or cut off: the request may or may not arrive. The target is cancelled again until the
            # deadline, and nothing new is sent on this connection.
            certain = False
        now = self._clock()
        if self.broken is not None:
            return
        if not certain:
            self.pipeline.stop_sending()
        self.pipeline.cancel_done(now)
        if not certain and not self.pipeline.slots:
            self.abort("a cancel request may still arrive")
        self._owner.capacity_freed(self)


_LOST = "the server is idle although a request is in flight: the request or its answer was lost on the way"
_ROLLBACK = Statement(b"ROLLBACK", None, (), None, classify_statement(b"ROLLBACK"))


def _unprepared(extras: Extras) -> Extras:
    return replace(extras, unprepared=True)


def _by_order(fault: ServerError | None) -> bool:
    return fault is not None and fault.genuine and fault.sqlstate == ADMIN_SHUTDOWN


def _ends_all(fault: ServerError | None) -> bool:
    """Return whether the error ends the backend, so that it never begins with the segments behind."""
    return fault is not None and fault.genuine and fault.fatal and not fault.broken_connection


def _one_line(error: BaseException) -> str:
    """Return the error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__
