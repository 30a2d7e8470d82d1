"""Asking the ledger what became of a write, for an operation that waits, or for who was told "in doubt".

====== ========================================== ========================================================
how    what is sent                               when
====== ========================================== ========================================================
decide an insert of the key without a             an operation is about to fail in doubt, or has met its
       fingerprint: where no row is, the write    key; `CommitInDoubt.resolve`
       never is applied
tell   the row is touched, if there is one        in place of it, once the row might have been pruned: no
                                                  row proves nothing then
look   as decide, and then ROLLBACK: nothing      a cancelled write. No row means that it is not applied
       stays                                      once its guard's deadline is over, and nobody holds the
                                                  table who was there before; the key is still good. A row
                                                  is told by a decide
====== ========================================== ========================================================

All wait on the ledger's index for an attempt that is still in flight: a SELECT would not see it. Those that
commit wait for a synchronous standby, and prove that the row has reached it. What asks is an operation of
pgha's own, which goes to the lineage that the write was sent to, and is asked again, by another, until a
limit. It never runs the user's statements.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakSet

import psycopg

from pgha._core.backoff import delay
from pgha._core.ledger_rules import LIFE, RowMeaning, row_meaning
from pgha._core.outcome import GaveUp, Outcome
from pgha._dispatch.failure import in_doubt, note
from pgha._dispatch.timers import Timers
from pgha._dispatch.tracker import Tracker
from pgha._errors import IdempotencyKeyReused
from pgha._operation.in_doubt import InDoubtOutcome
from pgha._operation.key import Keyed, undecided
from pgha._operation.operation import Operation, OperationCallbacks, Request, Stage
from pgha._rows.result import Result
from pgha._types import nearest
from pgha._wire.link import NO_EXTRAS, Extras

_UNDONE = Extras(framed=True, undone=True)
_FIRST, _MOST = 0.02, 1.0
"""Seconds between two questions, growing."""
_PROMPT = 1.0
"""Seconds for the answer to a caller who has given up."""
_PRUNED = "its key may have been pruned"
_SURELY = LIFE - 60.0
"""Seconds after an operation's start in which its row has not been pruned."""


class ResolverCallbacks(Protocol):
    """Who places the questions, and takes them back."""

    def place(self, operation: Operation[Any], now: float, *, front: bool = False) -> None: ...
    def give_up(self, operation: Operation[Any], why: GaveUp) -> None: ...


@dataclass(slots=True, eq=False)
class Resolution:
    """One write that is asked about, by one question after another. Times are of `time.monotonic`."""

    keyed: Keyed
    system: int
    started_at: float
    """When its operation was."""
    wanted: Callable[[], bool]
    told: Callable[[RowMeaning | None, str, str], None]
    """What the ledger says (None: nothing until the limit), by which node, and the last failure."""
    limit: float | None
    """When to stop asking."""
    look: bool = False
    guard: float = 0.0
    """To look: its guard's deadline, by the servers' clocks."""
    question: Operation[Any] | None = None
    attempts: int = 0
    over: bool = False

    def may_be_pruned(self, now: float) -> bool:
        """Its row may have been pruned."""
        return now - self.started_at > _SURELY


class Resolver:
    """See the head of this file."""

    def __init__(
        self, runner: OperationCallbacks, callbacks: ResolverCallbacks, tracker: Tracker, times: Timers,
        clock: Callable[[], float], patience: float,
    ) -> None:  # fmt: skip
        self._runner = runner
        self._callbacks = callbacks
        self._tracker = tracker
        self._times = times
        self._clock = clock
        self._patience = patience
        """Seconds for an operation without a deadline."""
        self._running: dict[object, Resolution] = {}
        """By the operation or the doubt that it is for."""
        self._open: WeakSet[InDoubtOutcome] = WeakSet()
        """Not known, and somebody holds the error: who waits is told when the cluster is left."""
        self._closed = False

    # For an operation that waits

    def begin(self, operation: Operation[Any], failure: psycopg.Error | None) -> None:
        """Have the ledger decide; ``failure``: its error where it was not applied, None where its own key
        was in the way."""
        keyed, system, now = operation.request.keyed, operation.lineage, self._clock()
        assert keyed is not None and system is not None
        operation.stage = Stage.RESOLVING
        operation.place = None
        limit = now + self._patience if operation.deadline is None else operation.deadline
        if operation.gave_up is not None:
            limit = now + min(self._patience, _PROMPT)

        def told(found: RowMeaning | None, node: str, reason: str) -> None:
            self._running.pop(operation, None)
            if operation.stage is Stage.RESOLVING:
                self._end(operation, found, node, reason, failure)

        self._start(operation, Resolution(keyed, system, operation.started_at, lambda: True, told, limit))

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
            reason = "a server of another lineage may have applied it"
            tracker.fail(operation, in_doubt(operation, reason), Outcome.IN_DOUBT)
        else:
            operation.doubted = False
            if failure is None or found is RowMeaning.OTHER_BODY:
                failure = _reused(operation, found, node)
                note(failure, operation, Outcome.NOT_APPLIED)
            tracker.fail(operation, failure, Outcome.NOT_APPLIED, noted=True)

    def drop(self, operation: Operation[Any]) -> None:
        """It does not wait any more."""
        if (resolution := self._running.pop(operation, None)) is not None:
            self._stop(resolution)

    # For a caller who was told "in doubt"

    def in_doubt(self, operation: Operation[Any], *, outstanding: bool) -> InDoubtOutcome:
        """What may still be learned of an operation that is about to fail; ``outstanding``: its lane may yet
        bring an answer."""
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
            self._asked,
            self._told,
        )
        if self._closed or not operation.counted or not (doubt.resolvable or outstanding):
            doubt.hopeless = True
            return doubt
        self._open.add(doubt)
        if operation.gave_up == "cancelled":
            self.left(doubt, operation.guarded_until)
        return doubt

    def left(self, doubt: InDoubtOutcome, at: float) -> None:
        """Nobody waits for it: what became of it is an event, once no attempt can begin any more."""
        if doubt.resolvable and doubt.outcome is None and doubt.timer is None and not self._closed:
            doubt.timer = self._times.at(at, lambda: self._look_later(doubt))

    def _asked(self, doubt: InDoubtOutcome) -> None:
        if not doubt.resolvable or self._closed:
            return
        running = self._running.get(doubt)
        if running is not None and not running.look:
            return
        if running is not None:
            self._stop(running)
        self._follow(doubt, look=False, limit=None, wanted=lambda: doubt.asked > 0)

    def _look_later(self, doubt: InDoubtOutcome) -> None:
        if doubt.outcome is None and not self._closed and doubt not in self._running:
            self._follow(doubt, look=True, limit=self._clock() + self._patience, wanted=lambda: True)

    def _follow(
        self, doubt: InDoubtOutcome, *, look: bool, limit: float | None, wanted: Callable[[], bool]
    ) -> None:
        keyed, system = doubt.keyed, doubt.system
        assert keyed is not None and system is not None

        def told(found: RowMeaning | None, node: str, reason: str) -> None:
            self._running.pop(doubt, None)
            if found is not None:
                doubt.resolved(Outcome.APPLIED if found is RowMeaning.APPLIED else Outcome.NOT_APPLIED)
            elif reason == _PRUNED:
                doubt.give_up()

        self._start(
            doubt, Resolution(keyed, system, doubt.started_at, wanted, told, limit, look, doubt.guard)
        )

    def _told(self, doubt: InDoubtOutcome) -> None:
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
        reason = "" if failure is None else f"the ledger did not tell: {' '.join(str(failure).split())}"
        if failure is None and self._understood(resolution, node, question.value or []):
            return
        now = self._clock()
        wait = delay(resolution.attempts - 1, random.random(), _FIRST, _MOST)
        if (
            self._closed
            or not resolution.wanted()
            or (resolution.limit is not None and now + wait >= resolution.limit)
        ):
            self._end_with(resolution, None, node, reason or "the ledger cannot tell yet")
            return
        self._times.at(now + wait, lambda: self._ask_again(resolution))

    def _understood(self, resolution: Resolution, node: str, values: Sequence[bytes | None]) -> bool:
        """Whether the answer ends it, or the next question is on its way."""
        if values and values[0] is None and resolution.may_be_pruned(self._clock()):
            self._end_with(resolution, None, node, _PRUNED)
            return True
        if not values or values[0] is None:
            return False  # somebody's trigger
        found = row_meaning(bytes.fromhex(values[0].decode("ascii")), resolution.keyed.fingerprint)
        if resolution.look and found is RowMeaning.APPLIED:
            # What was rolled back has waited for no standby.
            resolution.look = False
            self._ask(resolution)
            return True
        if resolution.look and found is RowMeaning.NOT_APPLIED and values[1] != b"0":
            return False
        self._end_with(resolution, found, node, "")
        return True

    def _end_with(self, resolution: Resolution, found: RowMeaning | None, node: str, reason: str) -> None:
        resolution.over = True
        resolution.told(found, node, reason)

    def _ask_again(self, resolution: Resolution) -> None:
        if not resolution.over and not self._closed:
            self._ask(resolution)

    def _stop(self, resolution: Resolution) -> None:
        resolution.over = True
        if resolution.question is not None and not resolution.question.done:
            self._callbacks.give_up(resolution.question, "cancelled")

    def close(self) -> None:
        """The cluster is left: nobody will be told any more."""
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
        "write",
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
            f"{node}: key {key} was used for other statements or parameters: each needs a key of its own"
        )
    return IdempotencyKeyReused(
        f"{node}: key {key} was resolved as not applied, and is used up: give the write another key"
    )
