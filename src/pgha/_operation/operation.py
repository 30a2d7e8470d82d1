"""One operation: what is asked, who waits for it, and the record of what happened to it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar, final
from uuid import UUID

from anyio.lowlevel import checkpoint

from pgha._core.outcome import GaveUp, Outcome
from pgha._core.pace import Pace
from pgha._operation.in_doubt import InDoubtOutcome
from pgha._operation.key import Keyed
from pgha._types import Attempt, Evidence, Fastest, Nearest, Pin, Record, SendInfo
from pgha._wire.compiler import Statement
from pgha._wire.link import NO_EXTRAS, Extras
from pgha._wire.loops import Loop, Waiter, uninterrupted

T = TypeVar("T")
AccessMode = Literal["read", "write"]
ACCESS_MODES: tuple[AccessMode, AccessMode] = ("read", "write")


@dataclass(slots=True)
class Request:
    """What is asked; shared by the legs of `fastest`, and never changed."""

    statements: Sequence[Statement]
    kind: AccessMode
    read: bool
    batch: bool
    route: Nearest | Pin | Fastest
    row_factory: Callable[[Any], Any]
    idempotent: bool = False
    exclusive: bool = False
    """Never pipelined: it commits by itself, or needs a frame."""
    self_committing: bool = False
    extras: Extras = NO_EXTRAS
    timeout: float | None = None
    on_send: Callable[[SendInfo], object] | None = None
    pace: Pace | None = None
    """Of its only statement; None for a batch."""
    keyed: Keyed | None = None
    raw: bool = False
    """pgha's own: its result is the first value, as the server wrote it."""


class AttemptState:
    """One time that the operation was handed to a node. Times are `time.monotonic` seconds."""

    __slots__ = ("answered_at", "head_at", "keyed", "node", "outcome", "sent_at", "suspected", "system")

    def __init__(self, node: str, sent_at: float) -> None:
        self.node = node
        self.sent_at = sent_at
        self.head_at: float | None = None
        self.answered_at: float | None = None
        self.outcome: Outcome | None = None
        self.suspected = False
        """Its connection was lost while it was first in line there: it may have been the cause."""
        self.keyed = False
        """The ledger's statement went with it."""
        self.system: int | None = None
        """The system identifier of the server, as far as it matters."""

    def shown(self) -> Attempt:
        """As its caller sees it."""
        return Attempt(
            self.node,
            self.sent_at,
            self.head_at,
            self.answered_at,
            None if self.outcome is None else self.outcome.value,
        )


class Stage(enum.Enum):
    """Where an operation is.

    NEW: not started. QUEUED: in a queue, sent to nobody. SENT: on a lane. PAUSED: waiting for its backoff.
    RACING: its legs run on every node. RESOLVING: the ledger is asked what became of it. DONE: it has a
    result or an error, for good.
    """

    NEW = enum.auto()
    QUEUED = enum.auto()
    SENT = enum.auto()
    PAUSED = enum.auto()
    RACING = enum.auto()
    RESOLVING = enum.auto()
    DONE = enum.auto()


class OperationCallbacks(Protocol):
    """Who runs operations."""

    loop: Loop

    def give_up(self, operation: Operation[Any], why: GaveUp) -> None:
        """Its caller does not want it any more."""
        ...

    def left(self, operation: Operation[Any]) -> None:
        """Its caller was leaving when it was done, and does not learn what became of it."""
        ...

    def in_doubt(self, operation: Operation[Any]) -> InDoubtOutcome:
        """It is about to fail without proof: what may still be learned of it."""
        ...

    def unretrieved(self, operation: Operation[Any], error: BaseException) -> None:
        """It failed and was dropped before anybody looked."""
        ...


@final
class Operation(Generic[T]):
    """An operation that was started; made by `Cluster.submit` and its like.

    Await it any number of times, from any task of the loop: the same result or the same exception.
    When the last waiter leaves by cancellation, the operation is cancelled, on the server too. Dropping the
    object cancels nothing.
    """

    __slots__ = (
        "_callbacks",
        "_error",
        "_parked",
        "_result",
        "_retrieved",
        "_runner",
        "_waiters",
        "attempts",
        "counted",
        "deadline",
        "doubt",
        "doubted",
        "ended_at",
        "evidence",
        "exclusive",
        "expiry",
        "gave_up",
        "guard",
        "guarded_until",
        "hits",
        "home",
        "legs",
        "lineage",
        "parent",
        "place",
        "queued_at",
        "refusals",
        "request",
        "spread_over_lineages",
        "stage",
        "started_at",
        "suspected_crashes",
        "timer",
        "unkeyed",
        "unprepared",
    )

    def __init__(self, runner: OperationCallbacks, request: Request, now: float) -> None:
        self._runner = runner
        self._result: T | None = None
        self._error: BaseException | None = None
        self._parked: list[Waiter] | None = None
        self._waiters = 0
        self._retrieved = False
        self._callbacks: list[Callable[[Operation[T]], None]] | None = None
        # What follows belongs to the runner.
        self.request = request
        self.stage = Stage.NEW
        self.started_at = now
        self.queued_at = now
        self.ended_at: float | None = None
        self.deadline: float | None = None
        self.attempts: list[AttemptState] = []
        self.suspected_crashes = 0
        self.hits = 0
        """Attempts that a cancel of ours ended, meant for a neighbour."""
        self.doubted = False
        """An earlier attempt ended in doubt (only reads and idempotent writes go on after that)."""
        self.exclusive = request.exclusive
        """Nothing may be in flight with it; also set when it blocked others and is run again."""
        self.unprepared = False
        self.gave_up: GaveUp | None = None
        self.timer: Any = None
        self.expiry: Any = None
        self.place: Any = None
        """QUEUED: its queue. SENT: its lane and slot."""
        self.home: str | None = None
        """The node it must be sent to; None when any will do."""
        self.lineage: int | None = None
        """The only servers, by their system identifier, that it may be sent to: where an attempt ended in
        doubt, and the ledger can tell."""
        self.unkeyed = False
        """There is no ledger for a key of ours."""
        self.refusals = 0
        """Attempts that the ledger's guard refused."""
        self.guarded_until = now
        """No attempt may begin after this."""
        self.guard = 0.0
        """The same by the server's clock, in seconds since 1970."""
        self.spread_over_lineages = False
        """Servers of several lineages may have applied it (only idempotent writes go so far)."""
        self.evidence: Evidence | None = None
        """Of the last attempt that ended in doubt."""
        self.doubt: InDoubtOutcome | None = None
        """It failed without proof, and this may still learn the truth."""
        self.counted = True
        """A user's; False: a part of another operation, or pgha's own."""
        self.parent: Operation[Any] | None = None
        self.legs: list[Operation[Any]] | None = None

    def __repr__(self) -> str:
        return f"<Operation {self.stage.name.lower()} after {len(self.attempts)} attempts>"

    @property
    def runner(self) -> OperationCallbacks:
        """For pgha: who runs it."""
        return self._runner

    @property
    def exactly_once(self) -> bool:
        """For pgha: run twice it does harm, and the ledger tells."""
        return self.lineage is not None and not self.request.idempotent

    @property
    def key(self) -> UUID | None:
        """For pgha: its key, if a server was told of it."""
        keyed = self.request.keyed
        return keyed.key if keyed is not None and any(one.keyed for one in self.attempts) else None

    @property
    def done(self) -> bool:
        """Whether it has a result or an error."""
        return self.stage is Stage.DONE

    @property
    def record(self) -> Record:
        """When it was queued, sent and answered, and where, until now; at any time, also once it is done.

        Made anew each time. Of the losers of `fastest` only the sending is known.
        """
        attempts = self.attempts
        if self.legs is not None:
            attempts = [*attempts, *(attempt for leg in self.legs for attempt in leg.attempts)]
        return Record(self.started_at, self.queued_at, self.ended_at, tuple(one.shown() for one in attempts))

    def cancel(self) -> None:
        """Ask for it to be cancelled, here and on the server; returns at once.

        Awaiting it then gives its result (it was done first), `OperationCancelled` (certainly not
        applied) or `CommitInDoubt`. Does nothing once it is done.
        """
        if self.stage is not Stage.DONE:
            self._runner.give_up(self, "cancelled")

    async def wait(self) -> None:
        """Wait until it is done, without looking at the outcome; leaving does not cancel it."""
        if self.stage is Stage.DONE:
            await checkpoint()
            return
        await self._park().wait()

    def _park(self) -> Waiter:
        waiter = self._runner.loop.waiter()
        if self._parked is None:
            self._parked = [waiter]
        else:
            self._parked.append(waiter)
        return waiter

    @uninterrupted
    def __await__(self) -> Generator[Any, Any, T]:
        if self.stage is Stage.DONE:
            yield from checkpoint().__await__()
        else:
            self._waiters += 1
            try:
                yield from self._park().wait().__await__()
            except BaseException:
                # Cancelled, by a scope or natively. The last one to leave takes the operation along; where
                # that had failed at the same moment, it is no failure which nobody waited for.
                if self._waiters == 1:
                    if self.done:
                        self._runner.left(self)
                    else:
                        self._runner.give_up(self, "cancelled")
                    self._retrieved = True
                raise
            finally:
                self._waiters -= 1
        self._retrieved = True
        error = self._error
        if error is not None:
            try:
                raise error.with_traceback(None)
            finally:
                # The traceback holds this frame: without this the error would keep itself alive.
                del self, error
        return self._result  # type: ignore[return-value]

    def finish(self, result: T | None, error: BaseException | None) -> None:
        """For the runner: it is done."""
        self.stage = Stage.DONE
        self._result = result
        self._error = error
        self.place = None
        self.legs = None
        parked = self._parked
        if parked is not None:
            self._parked = None
            for waiter in parked:
                waiter.set()
        if self._callbacks is not None:
            callbacks, self._callbacks = self._callbacks, None
            for callback in callbacks:
                callback(self)

    def when_done(self, callback: Callable[[Operation[T]], None]) -> None:
        """For pgha: call back once, synchronously, when it is done; at once if it is."""
        if self.stage is Stage.DONE:
            callback(self)
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)

    @property
    def failure(self) -> BaseException | None:
        """The error it ended with, once it is done."""
        return self._error

    @property
    def retrieved(self) -> bool:
        """Whether anybody was given the outcome."""
        return self._retrieved

    def retrieve(self) -> None:
        """For pgha: the outcome was passed on in another way."""
        self._retrieved = True

    @property
    def value(self) -> T | None:
        """For pgha: the result, once it is done."""
        return self._result

    def __del__(self) -> None:
        # Without the attribute, __init__ was interrupted (trio raises KeyboardInterrupt anywhere).
        error = getattr(self, "_error", None)
        if error is not None and not self._retrieved and self.gave_up != "cancelled":
            self._runner.unretrieved(self, error)
