"""Questions to the ledger about the outcome of a write, for a waiting operation or after `CommitInDoubt`.

====== ========================================== ========================================================
how    statement                                  use
====== ========================================== ========================================================
decide inserts the key without a fingerprint; if  an operation is about to fail in doubt, or its key
       there was no row, the write is never       exists already; `CommitInDoubt.resolve`
       applied
tell   updates the row, if there is one           instead of *decide*, once the row may have been pruned:
                                                  then a missing row proves nothing
look   as *decide*, then ROLLBACK: changes        a cancelled write. No row means *not applied* once the
       nothing                                    guard's deadline is over and no transaction from before
                                                  the deadline holds a lock on the table; the key stays
                                                  usable. If there is a row, a *decide* follows
====== ========================================== ========================================================

Each statement waits on the ledger's index for an attempt that is still in flight; a SELECT would not see that
attempt. A statement that commits also waits for a synchronous standby, and so proves that the row has reached
the standby. Each question is an operation of pgha's own, which is sent to the lineage of the write. Questions
are repeated until a time limit. They never run the user's statements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakSet

import psycopg

from pgha._core.backoff import delay
from pgha._core.ledger_rules import LIFE, RowMeaning, row_meaning
from pgha._core.need import WRITE
from pgha._core.outcome import GaveUp, Outcome
from pgha._dispatch.common import Common
from pgha._dispatch.failure import in_doubt, note
from pgha._errors import IdempotencyKeyReused
from pgha._operation.in_doubt import InDoubtOutcome
from pgha._operation.key import Keyed, undecided
from pgha._operation.operation import Operation, Request, Stage
from pgha._rows.result import Result
from pgha._types import nearest
from pgha._wire.link import NO_EXTRAS, Extras

_UNDONE = Extras(framed=True, undone=True)
_FIRST, _MOST = 0.02, 1.0
"""The shortest and the longest backoff between two questions, in seconds."""
_PROMPT = 1.0
"""Seconds for a question on behalf of a caller that has given up."""
_PRUNED = "the key may have been pruned"
_SURELY = LIFE - 60.0
"""Seconds after an operation's start within which the operation's row has certainly not been pruned."""


class ResolverCallbacks(Protocol):
    """The dispatcher, which places and cancels the questions."""

    def place(self, operation: Operation[Any], now: float) -> None:
        """Send an operation, or put it into a queue."""
        ...

    def give_up(self, operation: Operation[Any], why: GaveUp) -> None:
        """Cancel an operation."""
        ...


@dataclass(slots=True, eq=False)
class Resolution:
    """The questions about one write, sent one after another. Times are `time.monotonic` seconds."""

    keyed: Keyed
    system: int
    started_at: float
    """The time at which the write's operation started."""
    still_wanted: Callable[[], bool]
    """Whether the answer is still of use to a caller."""
    on_end: Callable[[RowMeaning | None, str, str], None]
    """Takes the answer (None if none came until the limit), the node that answered, and the last failure."""
    limit: float | None
    """The time at which to stop asking; None without a limit."""
    look: bool = False
    guard: float = 0.0
    """The deadline of the write's guard, by the servers' clocks; needed for a *look*."""
    question: Operation[Any] | None = None
    attempts: int = 0
    over: bool = False

    def may_be_pruned(self, now: float) -> bool:
        """Return whether the write's row may have been pruned."""
        return now - self.started_at > _SURELY


class Resolver:
    """Asks the ledger for the outcomes of writes; see the head of this file."""

    def __init__(self, common: Common, callbacks: ResolverCallbacks) -> None:
        self._runner = common.runner
        self._callbacks = callbacks
        self._tracker = common.tracker
        self._times = common.times
        self._clock = common.clock
        self._draw = common.sources.draw
        self._enter = common.enter
        self._patience = common.options.failover_timeout
        """Seconds to ask for an operation without a deadline."""
        self._running: dict[object, Resolution] = {}
        """The running resolutions, by the operation or the `InDoubtOutcome` that they are for."""
        self._open: WeakSet[InDoubtOutcome] = WeakSet()
        """The unknown outcomes whose errors still exist; tasks that wait for them are woken by `close`."""
        self._closed = False

    # For an operation that waits

    def begin(self, operation: Operation[Any], failure: psycopg.Error | None) -> None:
        """Have the ledger decide the outcome of ``operation``.

        ``failure`` is the error to raise if the write was not applied; None if the operation's own key was
        refused because it exists.
        """
        keyed, system, now = operation.request.keyed, operation.lineage, self._clock()
        assert keyed is not None and system is not None
        operation.stage = Stage.RESOLVING
        operation.place = None
        limit = now + self._patience if operation.deadline is None else operation.deadline
        if operation.gave_up is not None:
            limit = now + min(self._patience, _PROMPT)

        def on_end(found: RowMeaning | None, node: str, reason: str) -> None:
            self._running.pop(operation, None)
            if operation.stage is Stage.RESOLVING:
                self._end(operation, found, node, reason, failure)

        self._start(operation, Resolution(keyed, system, operation.started_at, lambda: True, on_end, limit))

    def _end(
        self, operation: Operation[Any], found: RowMeaning | None, node: str, reason: str,
        failure: psycopg.Error | None,
    ) -> None:  # fmt: skip
        tracker = self._tracker
        if found is None:
            tracker.fail(operation, in_doubt(operation, reason), Outcome.IN_DOUBT)
        elif found is RowMeaning.APPLIED:
            operation.ended_at = now = self._clock()
            tracker.counters.replayed += 1
            request = operation.request
            lost = Result.lost(node, len(operation.attempts), now - operation.started_at)
            tracker.succeed(operation, [lost] * len(request.statements) if request.batch else lost)
        elif operation.spread_over_lineages:
            reason = "a server of another lineage may have applied the write"
            tracker.fail(operation, in_doubt(operation, reason), Outcome.IN_DOUBT)
        else:
            operation.doubted = False
            if failure is None or found is RowMeaning.OTHER_BODY:
                failure = _reused(operation, found, node)
                note(failure, operation, Outcome.NOT_APPLIED)
            tracker.fail(operation, failure, Outcome.NOT_APPLIED, noted=True)

    def drop(self, operation: Operation[Any]) -> None:
        """Stop asking for an operation that does not wait any more."""
        if (resolution := self._running.pop(operation, None)) is not None:
            self._stop(resolution)

    # After CommitInDoubt

    def in_doubt(self, operation: Operation[Any], *, outstanding: bool) -> InDoubtOutcome:
        """Return the object through which the outcome of a failing operation may still become known.

        ``outstanding`` says that the operation's lane may still bring an answer.
        """
        attempts = operation.attempts
        keyed = operation.request.keyed if operation.key is not None else None
        system = operation.lineage
        if system is None and attempts and attempts[-1].keyed:
            system = attempts[-1].system
        doubt = InDoubtOutcome(
            keyed,
            None if operation.spread_over_lineages else system,
            attempts[-1].node if attempts else None,
            len(attempts),
            operation.started_at,
            operation.guard,
            lambda doubt: self._enter(self._on_asked, doubt),
            self._on_resolved,
        )
        if self._closed or not operation.counted or not (doubt.resolvable or outstanding):
            doubt.hopeless = True
            return doubt
        self._open.add(doubt)
        if operation.gave_up == "cancelled":
            self.left(doubt, operation.guarded_until)
        return doubt

    def left(self, doubt: InDoubtOutcome, at: float) -> None:
        """Look for the outcome at the time ``at``, after which no attempt can begin, and emit it as an event.

        Called for a write whose caller does not wait any more.
        """
        if doubt.resolvable and doubt.outcome is None and doubt.timer is None and not self._closed:
            doubt.timer = self._times.at(at, lambda: self._look_later(doubt))

    def _on_asked(self, doubt: InDoubtOutcome) -> None:
        if not doubt.resolvable or self._closed:
            return
        running = self._running.get(doubt)
        if running is not None and not running.look:
            return
        if running is not None:
            self._stop(running)
        self._resolve(doubt, look=False, limit=None, still_wanted=lambda: doubt.asked > 0)

    def _look_later(self, doubt: InDoubtOutcome) -> None:
        if doubt.outcome is None and not self._closed and doubt not in self._running:
            limit = self._clock() + self._patience
            self._resolve(doubt, look=True, limit=limit, still_wanted=lambda: True)

    def _resolve(
        self, doubt: InDoubtOutcome, *, look: bool, limit: float | None, still_wanted: Callable[[], bool]
    ) -> None:
        keyed, system = doubt.keyed, doubt.system
        assert keyed is not None and system is not None

        def on_end(found: RowMeaning | None, node: str, reason: str) -> None:
            self._running.pop(doubt, None)
            if found is not None:
                doubt.resolved(Outcome.APPLIED if found is RowMeaning.APPLIED else Outcome.NOT_APPLIED)
            elif reason == _PRUNED:
                doubt.give_up()

        self._start(
            doubt,
            Resolution(keyed, system, doubt.started_at, still_wanted, on_end, limit, look, doubt.guard),
        )

    def _on_resolved(self, doubt: InDoubtOutcome) -> None:
        self._open.discard(doubt)
        if doubt.timer is not None:
            self._times.cancel(doubt.timer)
        self._tracker.resolved(doubt)

    # Asking

    def _start(self, target: object, resolution: Resolution) -> None:
        self._running[target] = resolution
        self._ask(resolution)

    def _ask(self, resolution: Resolution) -> None:
        now, limit = self._clock(), resolution.limit
        resolution.attempts += 1
        question: Operation[Any] = Operation(self._runner, _question(resolution, now), now)
        question.counted = False
        question.lineage = resolution.system
        resolution.question = question
        if limit is not None:
            question.deadline = limit
            question.timer = self._times.at(limit, lambda: self._callbacks.give_up(question, "timeout"))
        question.when_done(lambda done: self._answered(resolution, done))
        self._callbacks.place(question, now)

    def _answered(self, resolution: Resolution, question: Operation[Any]) -> None:
        question.retrieve()
        if resolution.over or resolution.question is not question:
            return
        resolution.question = None
        node = question.attempts[-1].node if question.attempts else ""
        failure = question.failure
        reason = "" if failure is None else f"the ledger did not answer: {' '.join(str(failure).split())}"
        if failure is None and self._understood(resolution, node, question.value or []):
            return
        now = self._clock()
        wait = delay(resolution.attempts - 1, self._draw(), _FIRST, _MOST)
        if (
            self._closed
            or not resolution.still_wanted()
            or (resolution.limit is not None and now + wait >= resolution.limit)
        ):
            self._end_with(resolution, None, node, reason or "the ledger has no answer yet")
            return
        self._times.at(now + wait, lambda: self._ask_again(resolution))

    def _understood(self, resolution: Resolution, node: str, values: Sequence[bytes | None]) -> bool:
        """Handle an answer; return whether the resolution ended or the next question was sent."""
        if values and values[0] is None and resolution.may_be_pruned(self._clock()):
            self._end_with(resolution, None, node, _PRUNED)
            return True
        if not values or values[0] is None:
            return False  # a trigger on the table suppressed the row
        found = row_meaning(bytes.fromhex(values[0].decode("ascii")), resolution.keyed.fingerprint)
        if resolution.look and found is RowMeaning.APPLIED:
            # The question was rolled back and so waited for no standby: ask again with a commit.
            resolution.look = False
            self._ask(resolution)
            return True
        if resolution.look and found is RowMeaning.NOT_APPLIED and values[1] != b"0":
            return False
        self._end_with(resolution, found, node, "")
        return True

    def _end_with(self, resolution: Resolution, found: RowMeaning | None, node: str, reason: str) -> None:
        resolution.over = True
        resolution.on_end(found, node, reason)

    def _ask_again(self, resolution: Resolution) -> None:
        if not resolution.over and not self._closed:
            self._ask(resolution)

    def _stop(self, resolution: Resolution) -> None:
        resolution.over = True
        if resolution.question is not None and not resolution.question.done:
            self._callbacks.give_up(resolution.question, "cancelled")

    def close(self) -> None:
        """Stop all questions, because the cluster closes; open outcomes stay unknown."""
        self._closed = True
        running, self._running = self._running, {}
        for resolution in running.values():
            self._stop(resolution)
        for doubt in tuple(self._open):
            doubt.give_up()
        self._open.clear()


def _question(resolution: Resolution, now: float) -> Request:
    keyed, system = resolution.keyed, resolution.system
    asked = keyed.tell(system) if resolution.may_be_pruned(now) else keyed.decide(system)
    return Request(
        (asked, undecided(resolution.guard)) if resolution.look else (asked,),
        WRITE,
        read=False,
        batch=False,
        route=nearest(),
        row_factory=tuple,
        idempotent=False,
        exclusive=resolution.look,
        extras=_UNDONE if resolution.look else NO_EXTRAS,
        timeout=None if resolution.limit is None else max(0.0, resolution.limit - now),
        raw=True,
    )


def _reused(operation: Operation[Any], found: RowMeaning, node: str) -> IdempotencyKeyReused:
    keyed = operation.request.keyed
    key = None if keyed is None else keyed.key
    if found is RowMeaning.OTHER_BODY:
        return IdempotencyKeyReused(
            f"{node}: key {key} was used for other statements or parameters:"
            " each write needs a key of its own"
        )
    return IdempotencyKeyReused(
        f"{node}: key {key} was resolved as not applied, and is used up: give the write another key"
    )
