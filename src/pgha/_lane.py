"""One lane: a connection that many operations share, at most a few of them at a time.

Who owns what: `Pipeline` decides what may be sent and cancelled, `Link` talks to libpq, `LaneOwner` decides
what becomes of operations. This shell moves things between them. Its tasks are one reader and, when needed, a
writer and a canceller, all inside `run`; when `run` ends, the connection is closed and nothing is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import anyio
import psycopg
from anyio.abc import TaskGroup
from psycopg.adapt import AdaptersMap

from ._core.pipeline import Act, Bounds, Pipeline, Slot
from ._core.sqlwords import words
from ._core.verdict import Facts, Handed, ServerError
from ._operation import Attempt, Kind, Operation, Stage
from ._wire import PGresult
from ._wire.compiling import Statement
from ._wire.connect import cancel
from ._wire.link import NO_EXTRAS, Extras, Link, SendFailed
from ._wire.loading import Loader
from ._wire.loops import Loop, uninterrupted
from ._wire.segment import Answer, Segment, plain_success, read_answer

_PER_WAKE_UP = 64
"""Answers taken before other tasks get a turn."""


FlightSlot: TypeAlias = Slot[Operation[Any] | None, Segment]
"""A segment in flight, and whose it is (None: the lane's own ROLLBACK)."""


@dataclass(slots=True)
class Verdict:
    """What a lane knows about a segment that did not simply succeed."""

    facts: Facts
    answer: Answer
    overlapped: bool
    was_head: bool
    rerun_alone: bool
    lost: str | None
    """Why the connection ended, if it did."""


class LaneOwner(Protocol):
    """Who decides what becomes of operations."""

    loop: Loop

    def succeeded(self, lane: Lane, operation: Operation[Any], results: Sequence[PGresult]) -> None: ...
    def judge(self, lane: Lane, operation: Operation[Any], verdict: Verdict) -> None: ...
    def room(self, lane: Lane) -> None: ...
    def lane_broke(self, lane: Lane, reason: str, *, lost: bool) -> None: ...
    def terminate(self, lane: Lane) -> None: ...
    def cancel_sent(self) -> None: ...


@dataclass(frozen=True, slots=True)
class LaneBounds:
    pipeline: Bounds
    cancel_deadline: float
    farewell: float


class Lane:
    """See the head of this file."""

    def __init__(
        self, link: Link, node: str, kind: Kind, adapters: AdaptersMap, owner: LaneOwner, bounds: LaneBounds,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.node = node
        self.kind: Kind = kind
        self.link = link
        self.loader = Loader(link.pgconn, adapters)
        self.pipeline: Pipeline[Operation[Any] | None, Segment] = Pipeline(bounds.pipeline)
        self.broken: str | None = None
        self.idle_since = clock()
        self.asked = 0
        """Suspicious pings caused by the present head."""
        self._bounds = bounds
        self._owner = owner
        self._clock = clock
        self.corked = False
        """More is about to be sent: it is written together, by `uncork`."""
        self._tasks: TaskGroup | None = None
        self._writing = False
        self._farewell_at: float | None = None
        self._farewell_reason = ""

    # What the node and the dispatcher ask

    @property
    def in_flight(self) -> int:
        return len(self.pipeline.slots)

    def has_room(self, now: float) -> bool:
        return self.broken is None and self.pipeline.room(now)

    @property
    def quiet(self) -> bool:
        return self.broken is None and self.pipeline.quiet

    def stuck(self, now: float) -> bool:
        return self.broken is not None or self.pipeline.stuck(now)

    def head_age(self, now: float) -> float:
        """Seconds that the present head has been waiting; 0 without one."""
        slots = self.pipeline.slots
        return now - (slots[0].head_at or now) if slots else 0.0

    # Sending

    def send(self, operation: Operation[Any], now: float) -> None:
        """Hand ``operation`` to libpq, in the calling task. The lane must have room.

        When the link breaks meanwhile, the owner is told to judge, this operation included.
        """
        request = operation.request
        if self.kind == "write":
            # What the server said before it closed would be lost by sending: RST discards it unread
            # (measured: 46 of 47 acknowledgements).
            self.take_in(now)
            if not self.has_room(now):
                self._owner.judge(self, operation, self._never_sent())
                return
        operation.attempts.append(Attempt(self.node, now))
        self._put(request.statements, _extras(operation), operation, now)

    def _never_sent(self) -> Verdict:
        facts = Facts(handed=Handed.NOTHING)
        return Verdict(facts, Answer(), False, False, False, self.broken or "the lane closed")

    def _put(
        self, statements: Sequence[Statement], extras: Extras, operation: Operation[Any] | None, now: float
    ) -> None:
        alone = operation is None or operation.alone
        try:
            segment = self.link.send(statements, extras, corked=self.corked)
            pending = not self.corked and not self.link.flush()
        except (SendFailed, psycopg.Error) as error:
            handed = error.handed if isinstance(error, SendFailed) else Handed.WHOLE
            self._send_failed(operation, handed, extras.framed, error)
            return
        slot = self.pipeline.sent(operation, segment, now, alone)
        if operation is not None:
            operation.stage = Stage.SENT
            operation.place = (self, slot)
            operation.attempts[-1].head_at = slot.head_at
        if pending:
            self._write_later()

    def uncork(self) -> None:
        """Write what was sent since ``corked`` was set."""
        self.corked = False
        if self.broken is not None:
            return
        try:
            pending = not self.link.flush()
        except psycopg.Error as error:
            self.break_off(_words_of(error), lost=True)
            return
        if pending:
            self._write_later()

    def _write_later(self) -> None:
        if not self._writing and self._tasks is not None:
            self._writing = True
            self._tasks.start_soon(self._write_out)

    def _send_failed(
        self, operation: Operation[Any] | None, handed: Handed, framed: bool, error: Exception
    ) -> None:
        reason = _words_of(error)
        self.break_off(reason, lost=True)
        if operation is not None:
            committing = operation.request.self_committing
            facts = Facts(handed=handed, framed=framed, self_committing=committing)
            self._owner.judge(self, operation, Verdict(facts, Answer(), False, False, False, reason))

    @uninterrupted
    async def _write_out(self) -> None:
        """Write what the socket did not take at once; the reader goes on reading meanwhile."""
        try:
            while self.broken is None and not self.link.flush():
                await anyio.wait_writable(self.link.fd)
        except psycopg.Error as error:
            self.take_in(self._clock())
            self.break_off(_words_of(error), lost=True)
        finally:
            self._writing = False

    # Receiving

    @uninterrupted
    async def run(self, opened: Callable[[], None]) -> None:
        """Read until the lane ends; closes the connection on the way out, however it ends.

        ``opened`` is called once operations may be sent.
        """
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                opened()
                # Ends by the cancellation of its task group alone: see `_break`.
                await self._owner.loop.serve(self.link.fd, self._readable)
        finally:
            self._tasks = None
            self.break_off("the lane was closed")
            self.link.finish()

    def _readable(self) -> bool:
        more = self.take_in(self._clock())
        if self.broken is None:
            self._owner.room(self)
        return more

    def take_in(self, now: float) -> bool:
        """Read what is there and settle it, without waiting. True: there is more to read at once."""
        if self.broken is not None:
            return False
        received = self.link.receive(len(self.pipeline.slots), _PER_WAKE_UP)
        for results in received.answers:
            self._answered(results, now)
        if received.broken is not None:
            self._break(_words_of(received.broken))
            return False
        if received.answers and not self.pipeline.slots:
            self._drained(now)
        return received.more

    def _drained(self, now: float) -> None:
        self.idle_since = now
        if self.pipeline.retired:
            self.break_off("retired")
        elif not self.link.clean():
            # Somebody's statement changed the session, unseen: nobody else may get it.
            self.break_off("its session was changed by a statement")

    def _answered(self, results: list[PGresult], now: float) -> None:
        slots = self.pipeline.slots
        slot = self.pipeline.answered(now)
        self.asked = 0
        if slots and (successor := slots[0].item) is not None:
            successor.attempts[-1].head_at = now
        operation, segment = slot.item, slot.segment
        if operation is not None and operation.stage is not Stage.DONE:
            operation.attempts[-1].answered_at = now
            if plain_success(segment, results):
                self._owner.succeeded(self, operation, results)
                return
        answer = read_answer(segment, results)
        self._learn(answer)
        if segment.framed and answer.commit_tag is None:
            self._roll_back(now)
        if operation is None:
            if answer.fault is not None:
                self.break_off("a transaction could not be rolled back")
        elif operation.stage is not Stage.DONE:
            if answer.fault is None and (not segment.framed or answer.commit_tag == "COMMIT"):
                self._owner.succeeded(self, operation, answer.results)
            else:
                self._owner.judge(self, operation, self._verdict(slot, answer, synced=True))

    def _learn(self, answer: Answer) -> None:
        cache = self.link.cache
        for entry in answer.parsed:
            cache.parsed(entry)
        for entry in answer.unparsed:
            cache.failed(entry)
        if answer.spoiled is not None:
            cache.spoiled(answer.spoiled)

    def _roll_back(self, now: float) -> None:
        """A framed batch failed: its block is still open, in the failed state."""
        if self.broken is None:
            self._put((_ROLLBACK,), NO_EXTRAS, None, now)

    def _verdict(
        self, slot: FlightSlot, answer: Answer, *, synced: bool, was_head: bool = True,
        after_fatal: bool = False, lost: str | None = None,
    ) -> Verdict:  # fmt: skip
        operation, segment = slot.item, slot.segment
        facts = Facts(
            synced=synced,
            error=answer.fault,
            completed=answer.completed,
            statements=segment.expected(),
            framed=segment.framed,
            commit_tag=answer.commit_tag,
            self_committing=operation is not None and operation.request.self_committing,
            after_fatal=after_fatal,
        )
        return Verdict(facts, answer, slot.overlapped, was_head, slot.rerun_alone, lost)

    # Ending

    def _break(self, reason: str, *, lost: bool = True) -> None:
        """The connection ended (``lost``: not by our choice): judge all that was on it, by what arrived."""
        if self.broken is not None:
            return
        if words := self.link.last_words():
            reason = f"{words}; {reason}"
        self.broken = reason
        slots = list(self.pipeline.slots)
        self.pipeline.slots.clear()
        self._owner.lane_broke(self, reason, lost=lost)
        after_fatal = False
        for index, slot in enumerate(slots):
            results = self.link.unfinished() if index == 0 else ()
            answer = read_answer(slot.segment, results)
            operation = slot.item
            if operation is not None and operation.stage is not Stage.DONE:
                verdict = self._verdict(
                    slot, answer, synced=False, was_head=index == 0, after_fatal=after_fatal, lost=reason
                )
                self._owner.judge(self, operation, verdict)
            after_fatal = after_fatal or _ends_all(answer.fault)
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()

    def break_off(self, reason: str, *, lost: bool = False) -> None:
        """Give the connection up now; what the socket still holds is read before anything is judged."""
        if self.broken is not None:
            return
        received = self.link.receive(len(self.pipeline.slots), len(self.pipeline.slots))
        for results in received.answers:
            self._answered(results, self._clock())
        self._break(reason if received.broken is None else _words_of(received.broken), lost=lost)

    def condemn(self, reason: str, now: float, *, terminate: bool) -> None:
        """Send nothing more, and give the server a moment to say what became of what is in flight.

        ``terminate``: end the backend by way of the monitor, which proves what was not applied; a plain
        hang-up would prove nothing.
        """
        if self.broken is not None or self._farewell_at is not None:
            return
        self.pipeline.retire()
        if not self.pipeline.slots:
            self.break_off(reason)
            return
        self._farewell_at = now + self._bounds.farewell
        self._farewell_reason = reason
        if terminate:
            self._owner.terminate(self)

    # Time and cancelling

    def tick(self, now: float) -> None:
        """Look at what time brings; called while anything is in flight."""
        if self.link.tls or self._farewell_at is not None:
            # Decrypted bytes inside OpenSSL do not wake anybody.
            self.take_in(now)
        if self._farewell_at is not None and now >= self._farewell_at:
            self.break_off(self._farewell_reason)
        if self.broken is not None:
            return
        if self.pipeline.slots and not self.link.settings_kept():
            # Seen before it is drained: no more of it, then.
            self.pipeline.retire()
        self._perform(self.pipeline.tick(now), now)

    def abandon(self, slot: FlightSlot, now: float, *, urgent: bool) -> None:
        """Nobody waits for this segment any more."""
        if self.broken is None:
            self._perform(self.pipeline.abandon(slot, now, urgent=urgent), now)

    def _perform(self, act: Act, now: float) -> None:
        match act:
            case Act.CANCEL:
                if self._tasks is not None:
                    self._owner.cancel_sent()
                    self._tasks.start_soon(self._deliver_cancel)
            case Act.DISCARD:
                self.condemn("a cancel had no effect in time", now, terminate=True)
            case Act.NOTHING:
                pass

    @uninterrupted
    async def _deliver_cancel(self) -> None:
        certain = False
        try:
            with anyio.move_on_after(self._bounds.cancel_deadline):
                await cancel(self.link.pgconn)
                certain = True
        except psycopg.Error:
            # Refused or cut off: it may or may not arrive. The ladder goes on for its target, and
            # nobody new comes near this connection.
            certain = False
        now = self._clock()
        if self.broken is not None:
            return
        if not certain:
            self.pipeline.retire()
        self.pipeline.cancel_done(now)
        if not certain and not self.pipeline.slots:
            self.break_off("a cancel may still be under way")
        self._owner.room(self)


_ROLLBACK = Statement(b"ROLLBACK", None, (), None, words(b"ROLLBACK"))


def _extras(operation: Operation[Any]) -> Extras:
    extras = operation.request.extras
    if not operation.unprepared:
        return extras
    return Extras(extras.framed, extras.prologue, extras.epilogue, unprepared=True)


def _ends_all(fault: ServerError | None) -> bool:
    """A backend that said FATAL never begins with what was sent behind."""
    return fault is not None and fault.genuine and fault.fatal and not fault.broken_connection


def _words_of(error: BaseException) -> str:
    """libpq's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__
