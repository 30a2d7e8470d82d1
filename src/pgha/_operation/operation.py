"""`Operation`: one operation, its request, its attempts and its record."""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar, final
from uuid import UUID

from anyio.lowlevel import checkpoint

from pgha._core.need import ACCESS_MODES as ACCESS_MODES
from pgha._core.need import AccessMode as AccessMode
from pgha._core.need import Need
from pgha._core.outcome import GaveUp, Outcome
from pgha._core.pace import Pace
from pgha._operation.in_doubt import InDoubtOutcome
from pgha._operation.key import Keyed
from pgha._types import Attempt, Evidence, ReadRoute, Record, SendInfo
from pgha._wire.compiler import Statement
from pgha._wire.interrupts import uninterrupted
from pgha._wire.link import NO_EXTRAS, Extras
from pgha._wire.loops import Loop, Waiter

T = TypeVar("T")


@dataclass(slots=True)
class Request:
    """The caller's validated request; shared by the legs of `fastest`, never changed."""

    statements: Sequence[Statement]
    need: Need
    """What the request asks of its node, by its access mode and its route."""
    read: bool
    batch: bool
    route: ReadRoute
    row_factory: Callable[[Any], Any]
    idempotent: bool = False
    exclusive: bool = False
    """Never pipelined: the operation commits by itself, or needs a frame."""
    self_committing: bool = False
    extras: Extras = NO_EXTRAS
    timeout: float | None = None
    on_send: Callable[[SendInfo], object] | None = None
    pace: Pace | None = None
    """Pace of the only statement; None for a batch."""
    keyed: Keyed | None = None
    raw: bool = False
    """Whether this is pgha's own query: its result is the first value, as the server wrote it."""


class AttemptState:
    """One attempt: the operation was handed to a node. Times are `time.monotonic` seconds."""

    __slots__ = ("answered_at", "head_at", "keyed", "node", "outcome", "sent_at", "suspected", "system")

    def __init__(self, node: str, sent_at: float) -> None:
        self.node = node
        self.sent_at = sent_at
        self.head_at: float | None = None
        self.answered_at: float | None = None
        self.outcome: Outcome | None = None
        self.suspected = False
        """Whether the attempt may have caused the loss of its connection, at whose head it was."""
        self.keyed = False
        """Whether the ledger's statement was sent with the attempt."""
        self.system: int | None = None
        """The server's system identifier, if it matters for the attempt."""

    def shown(self) -> Attempt:
        """Return the attempt as the caller sees it."""
        return Attempt(
            self.node,
            self.sent_at,
            self.head_at,
            self.answered_at,
            None if self.outcome is None else self.outcome.value,
        )


class Stage(enum.Enum):
    """The stage of an operation.

    NEW: not started. QUEUED: in a queue, not sent to any node. SENT: on a lane. PAUSED: waiting for its
    backoff. RACING: its legs run on every node. RESOLVING: the ledger is queried for its outcome. DONE: it
    has a result or an error, for good.
    """

    NEW = enum.auto()
    QUEUED = enum.auto()
    SENT = enum.auto()
    PAUSED = enum.auto()
    RACING = enum.auto()
    RESOLVING = enum.auto()
    DONE = enum.auto()


# Looked up for every operation, and CPython 3.11 looks up a member of an enumeration by a Python function.
NEW: Final = Stage.NEW
QUEUED: Final = Stage.QUEUED
SENT: Final = Stage.SENT
DONE: Final = Stage.DONE


class OperationCallbacks(Protocol):
    """The dispatcher's methods that an operation calls."""

    loop: Loop

    def give_up(self, operation: Operation[Any], why: GaveUp) -> None:
        """Cancel the operation: its caller left, or its deadline passed."""
        ...

    def left(self, operation: Operation[Any]) -> None:
        """Report the outcome of a finished operation whose caller was cancelled at the same moment."""
        ...

    def in_doubt(self, operation: Operation[Any]) -> InDoubtOutcome:
        """Return the pending outcome of an operation that is about to fail without proof."""
        ...

    def unretrieved(self, error: BaseException) -> None:
        """Report the error of an operation that was dropped without being awaited."""
        ...


class Unretrieved:
    """Reports the failure of an operation that is dropped without being awaited.

    An object of its own, so that an operation without a failure costs no finalizer.
    """

    __slots__ = ("_runner", "error")

    def __init__(self, runner: OperationCallbacks, error: BaseException) -> None:
        self.error: BaseException | None = None
        self._runner = runner
        self.error = error

    def __del__(self) -> None:
        # The attribute is missing if __init__ was interrupted (trio raises KeyboardInterrupt anywhere).
        error = getattr(self, "error", None)
        if error is not None:
            self._runner.unretrieved(error)


@final
class Operation(Generic[T]):
    """A started operation, made by `Cluster.submit` and `Group.submit`.

    An operation can be awaited any number of times, from any task of the event loop: each await returns the
    same result or raises the same exception. When the last waiting task leaves by cancellation, the operation
    is cancelled, on the server too. Dropping the object cancels nothing.

    Example::

        operation = cluster.submit("SELECT count(*) FROM item", read=True)
        result = await operation
        print(result.value(), operation.record.attempts)
    """

    __slots__ = (
        "_callbacks",
        "_error",
        "_first",
        "_more",
        "_result",
        "_retrieved",
        "_runner",
        "_unretrieved",
        "_waiters",
        "attempts",
        "context",
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
        "legs",
        "lineage",
        "need",
        "number",
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
        "unwanted",
    )

    def __init__(
        self, runner: OperationCallbacks, request: Request, now: float, context: Context | None = None
    ) -> None:
        self._runner = runner
        self._result: T | None = None
        self._error: BaseException | None = None
        # The tasks that wait: mostly one, and any number of others, each removed at once when it leaves.
        self._first: Waiter | None = None
        self._more: dict[Waiter, None] | None = None
        self._waiters = 0
        self._retrieved = False
        self._unretrieved: Unretrieved | None = None
        self._callbacks: list[Callable[[Operation[T]], None]] | None = None
        # The attributes below belong to the runner.
        self.request = request
        # The context variables of the caller, for observers.
        self.context = context or copy_context()
        self.stage = NEW
        self.started_at = now
        self.queued_at = now
        self.ended_at: float | None = None
        self.deadline: float | None = None
        self.attempts: list[AttemptState] = []
        self.suspected_crashes = 0
        # Attempts that pgha itself made fail, for example by a cancel for a neighbour.
        self.hits = 0
        # An earlier attempt ended in doubt (only reads and idempotent writes continue after that).
        self.doubted = False
        # Nothing else may be in flight with the operation; also set when it blocked others and is run again.
        self.exclusive = request.exclusive
        self.unprepared = False
        self.gave_up: GaveUp | None = None
        self.timer: Any = None
        # QUEUED: ends the wait for a node. Given up: ends the wait for proof of the outcome.
        self.expiry: Any = None
        # QUEUED: the line. SENT: the lane and its slot.
        self.place: Any = None
        # Its age: the lower, the older. An operation that is run again keeps it.
        self.number = 0
        # What it asks of its node at present: the request's need, or that of one node for a while.
        self.need = request.need
        # Its end was asked for; the act that ends it may still be in line.
        self.unwanted = False
        # System identifier of the only servers that the operation may be sent to: an attempt ended in doubt
        # there, and the ledger can decide.
        self.lineage: int | None = None
        # There is no ledger for an automatic key.
        self.unkeyed = False
        # Attempts that the ledger's guard rejected.
        self.refusals = 0
        # No attempt may begin after this time.
        self.guarded_until = now
        # The same by the server's clock, in seconds since 1970.
        self.guard = 0.0
        # Servers of several lineages may have applied the operation (idempotent writes only).
        self.spread_over_lineages = False
        # Evidence of the last attempt that ended in doubt.
        self.evidence: Evidence | None = None
        # The operation failed without proof, and its outcome may still become known.
        self.doubt: InDoubtOutcome | None = None
        # A user's operation; False for a part of another operation, and for pgha's own.
        self.counted = True
        self.parent: Operation[Any] | None = None
        self.legs: list[Operation[Any]] | None = None

    def __repr__(self) -> str:
        return f"<Operation {self.stage.name.lower()} after {len(self.attempts)} attempts>"

    @property
    def runner(self) -> OperationCallbacks:
        """Internal: the dispatcher that runs the operation."""
        return self._runner

    @property
    def exactly_once(self) -> bool:
        """Internal: whether a second application would do harm, and the ledger can prevent it."""
        return self.lineage is not None and not self.request.idempotent

    @property
    def key(self) -> UUID | None:
        """Internal: the operation's key, if a server received it."""
        keyed = self.request.keyed
        return keyed.key if keyed is not None and any(one.keyed for one in self.attempts) else None

    @property
    def done(self) -> bool:
        """Whether the operation has a result or an error."""
        return self.stage is DONE

    @property
    def record(self) -> Record:
        """The operation's history until now, with its times and nodes.

        The record says when the operation was queued, sent and answered. It is available at any time; each
        access makes a new `Record`. For the losers of `fastest`, only the sending is known.
        """
        attempts = self.attempts
        if self.legs is not None:
            attempts = [*attempts, *(attempt for leg in self.legs for attempt in leg.attempts)]
        return Record(self.started_at, self.queued_at, self.ended_at, tuple(one.shown() for one in attempts))

    def cancel(self) -> None:
        """Request the operation's cancellation, locally and on the server, and return at once.

        Awaiting the operation then returns its result (it finished first), or raises `OperationCancelled`
        (certainly not applied) or `CommitInDoubt`. Does nothing if the operation is done.
        """
        if self.stage is not DONE:
            self._runner.give_up(self, "cancelled")

    async def wait(self) -> None:
        """Wait until the operation is done, without retrieving its outcome.

        Cancelling the wait does not cancel the operation.
        """
        if self.stage is DONE:
            await checkpoint()
            return
        waiter = self._park()
        try:
            if self.done:
                self._leave(waiter)  # see `__await__`
                await checkpoint()
            else:
                await waiter
        except BaseException:
            self._leave(waiter)
            raise

    def _park(self) -> Waiter:
        waiter = self._runner.loop.waiter()
        if self._first is None:
            self._first = waiter
        elif self._more is None:
            self._more = {waiter: None}
        else:
            self._more[waiter] = None
        return waiter

    def _leave(self, waiter: Waiter) -> None:
        if self._first is waiter:
            self._first = None
        elif self._more is not None:
            self._more.pop(waiter, None)

    @uninterrupted
    def __await__(self) -> Generator[Any, Any, T]:
        if self.stage is DONE:
            yield from checkpoint().__await__()
        else:
            self._waiters += 1
            waiter = self._park()
            try:
                if self.done:
                    # By what ran in the middle of this: a finalizer, or a handler of a signal.
                    self._leave(waiter)
                    yield from checkpoint().__await__()
                else:
                    yield from waiter.__await__()
            except BaseException:
                self._leave(waiter)
                # Cancelled, by a scope or natively. The last waiting task to leave cancels the operation. If
                # the operation failed at the same moment, its failure does not count as unretrieved.
                if self._waiters == 1:
                    if self.done:
                        self._runner.left(self)
                    else:
                        self._runner.give_up(self, "cancelled")
                    self.retrieve()
                raise
            finally:
                self._waiters -= 1
        error = self._error
        if error is not None:
            self.retrieve()
            try:
                raise error.with_traceback(None)
            finally:
                # The traceback refers to this frame: without this, the error would keep itself alive.
                del self, error
        return self._result  # type: ignore[return-value]

    def finish(self, result: T | None, error: BaseException | None) -> None:
        """Internal: set the outcome, and wake the waiting tasks."""
        self.stage = DONE
        self._result = result
        if error is not None:
            self._error = error
            if not self._retrieved and self.gave_up != "cancelled":
                self._unretrieved = Unretrieved(self._runner, error)
        self.place = None
        self.legs = None
        first, more = self._first, self._more
        self._first = self._more = None
        if first is not None:
            self._runner.loop.wake(first)
        for waiter in more or ():
            self._runner.loop.wake(waiter)
        if self._callbacks is not None:
            callbacks, self._callbacks = self._callbacks, None
            for callback in callbacks:
                callback(self)

    def when_done(self, callback: Callable[[Operation[T]], None]) -> None:
        """Internal: call ``callback`` once, synchronously, when the operation is done; at once if it is."""
        if self.stage is DONE:
            callback(self)
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)

    @property
    def failure(self) -> BaseException | None:
        """The operation's error; None if there is none, or not yet."""
        return self._error

    @property
    def retrieved(self) -> bool:
        """Whether the outcome was retrieved by a caller."""
        return self._retrieved

    def retrieve(self) -> None:
        """Internal: mark the outcome as retrieved, because it was passed on in another way."""
        self._retrieved = True
        if self._unretrieved is not None:
            self._unretrieved.error = None

    @property
    def value(self) -> T | None:
        """Internal: the operation's result, once it is done."""
        return self._result
