"""The state of one lane: how deep it is, what may be sent, and how an operation is cancelled.

======== ==================================================== ==========================================
state    meaning                                              exits
======== ==================================================== ==========================================
OPEN     operations may be sent while there is capacity       cancel sent -> GATED;
                                                              stop_sending -> DRAINING
GATED    a cancel is in flight: nothing is sent, since the    cancel done and its target answered ->
         cancel could hit whatever the server runs when the   OPEN; no effect within the deadline ->
         cancel arrives                                       action DISCARD
DRAINING segments in flight may end, then the lane is closed  empty -> the shell closes the lane
======== ==================================================== ==========================================

Only the head (the oldest segment in flight) is ever cancelled: only the head is known to be running, or about
to run. All segments in flight when the cancel is sent are marked ``overlapped``: a 57014 for one of them was
caused by pgha, and the operation is run again. An abandoned operation behind the head is not cancelled until
it is the head and a grace period has passed, since most operations finish sooner than a cancel takes.

PostgreSQL ignores a cancel that meets an idle backend. So a cancel that was delivered and shows no effect is
sent again, until the deadline.

If the head is older than a bound, the server is asked first what the lane's backend is doing. The same
holds for each cancel on a lane for writes, because a cancel that meets a commit which waits for a synchronous
standby ends that wait, and makes the acknowledgement worthless (measured: acknowledged writes were lost).

=========== ==========================================================================================
answer      consequence
=========== ==========================================================================================
RUNNING     the abandoned head is cancelled. An old head is cancelled and run again exclusively if other
            segments are behind it, since it may wait for a lock that only one of them releases; but not
            if its deadline leaves no time to run again. Without others behind it nothing is done
SYNCHRONOUS as RUNNING, but commits on this server wait for a standby, and a cancel that comes a moment
            late would end the wait of the next commit. So the abandoned head is left alone while others
            are behind it, until it is old; meanwhile nothing more is sent behind it
REPLICATING the head has committed and waits for a synchronous standby: nothing is done
IDLE        twice in a row, with no bytes moved in between and after the request had time to arrive: the
            request or its answer was lost on a connection that both ends believe alive: action DISCARD
UNKNOWN     the server does not say (another role's backend, a pooler): as SYNCHRONOUS
=========== ==========================================================================================
"""

from __future__ import annotations

import enum
import itertools
from collections import deque
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from pgha._core.outcome import Handed

T = TypeVar("T")
S = TypeVar("S")
_MOST_DOUBLINGS = 5


class Gate(enum.Enum):
    """The states of a lane; see the head of this file."""

    OPEN = enum.auto()
    GATED = enum.auto()
    DRAINING = enum.auto()


OPEN: Final = Gate.OPEN
_DRAINING: Final = Gate.DRAINING  # see `pgha._operation.operation.DONE`
_WHOLE: Final = Handed.WHOLE


class Act(enum.Enum):
    """An action that the shell performs."""

    NOTHING = enum.auto()
    CANCEL = enum.auto()
    """Send a cancel request for this connection, then call `Pipeline.cancel_done`."""
    DISCARD = enum.auto()
    """Close the connection: its state cannot be learned in time."""
    INSPECT = enum.auto()
    """Ask the server what this connection's backend is doing, then call `Pipeline.inspected`."""


class Doing(enum.Enum):
    """A backend's activity as reported by the server; see the head of this file."""

    RUNNING = enum.auto()
    SYNCHRONOUS = enum.auto()
    REPLICATING = enum.auto()
    IDLE = enum.auto()
    UNKNOWN = enum.auto()


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of a lane; all are seconds except the depth."""

    depth: int
    """The largest number of segments in flight."""
    behind: float
    """The time that the segments in flight may need by their pace, so that one more is sent behind them."""
    hold_behind: float
    """The age of a head from which on nothing is sent behind it."""
    head_of_line: float
    """The age of a head at which the server is asked about it."""
    ask_again: float
    """Time until the server is asked again; doubles with each further question."""
    cancel_grace: float
    """Time for which an abandoned head may go on before it is cancelled."""
    cancel_again: float
    """Time after which a cancel without effect is sent again."""
    cancel_deadline: float
    """Time after which a cancel without effect leads to DISCARD."""


class Slot(Generic[T, S]):
    """A segment in flight; ``item`` is its owner, ``segment`` the segment as sent."""

    __slots__ = (
        "abandoned_at",
        "asked",
        "asked_at",
        "asked_to_cancel",
        "exclusive",
        "expected",
        "handed",
        "head_at",
        "idle_at_mark",
        "item",
        "overlapped",
        "rerun_exclusive",
        "segment",
        "sent_at",
    )

    def __init__(self, item: T, segment: S, exclusive: bool, now: float, expected: float) -> None:
        self.item = item
        self.segment = segment
        self.exclusive = exclusive
        self.expected = expected
        """The seconds for which the segment will keep the lane busy, by its pace."""
        self.handed: Handed = _WHOLE
        """The part of the segment that libpq has taken."""
        self.sent_at = now
        self.head_at: float | None = None
        self.abandoned_at: float | None = None
        self.overlapped = False
        self.rerun_exclusive = False
        self.asked = 0
        self.asked_to_cancel = 0
        self.asked_at = 0.0
        self.idle_at_mark: int | None = None
        """The bytes that had moved when the server last said that the backend was idle; None otherwise."""


class Pipeline(Generic[T, S]):
    """The segments in flight on one connection, oldest first."""

    __slots__ = (
        "_ask_first",
        "_bounds",
        "_cancel_again_at",
        "_cancel_at",
        "_delivering",
        "_target",
        "backlog",
        "behind",
        "gate",
        "patient",
        "slots",
    )

    def __init__(self, bounds: Bounds, *, ask_first: bool = False) -> None:
        self._bounds = bounds
        self._ask_first = ask_first
        self.slots: deque[Slot[T, S]] = deque()
        self.gate: Gate = OPEN
        self.backlog = 0.0
        """The seconds for which the segments in flight will keep the lane busy, by their pace."""
        self.behind = bounds.behind
        """The backlog up to which one more segment is sent behind those in flight. Waiting for the connection
        instead costs a round trip, so the owner raises the bound to that."""
        self.patient = False
        """A slow head is not cancelled for those behind it: it could not be run again."""
        self._target: Slot[T, S] | None = None
        self._delivering = False
        self._cancel_at = 0.0
        self._cancel_again_at = 0.0

    def has_capacity(self, now: float) -> bool:
        """Return whether one more segment may be sent behind those in flight."""
        if self.gate is not OPEN:
            return False
        slots = self.slots
        if not slots:
            return True
        if len(slots) >= self._bounds.depth or self.backlog > self.behind:
            return False
        head = slots[0]
        if head.exclusive or head.head_at is None or (self._ask_first and head.abandoned_at is not None):
            return False
        return now - head.head_at < self._bounds.hold_behind

    @property
    def quiet(self) -> bool:
        """Whether an exclusive segment may be sent: the lane is open and nothing is in flight."""
        return self.gate is OPEN and not self.slots

    def stuck(self, now: float) -> bool:
        """Return whether the lane is blocked for a while: by slow or exclusive segments, or by a cancel."""
        if self.gate is not OPEN:
            return True
        if not self.slots:
            return False
        head = self.slots[0]
        if head.exclusive or self.backlog > self.behind:
            return True
        return head.head_at is not None and now - head.head_at >= self._bounds.hold_behind

    def sent(
        self, item: T, segment: S, now: float, exclusive: bool = False, expected: float = 0.0
    ) -> Slot[T, S]:
        """Record a segment that is about to be handed to libpq."""
        slot = Slot(item, segment, exclusive, now, expected)
        if self.slots:
            self.backlog += expected
        else:
            slot.head_at = now
            self.backlog = expected
        self.slots.append(slot)
        return slot

    def answered(self, now: float) -> Slot[T, S]:
        """Remove and return the head, whose Sync has arrived; the next segment becomes the head."""
        slot = self.slots.popleft()
        if self.slots:
            self.slots[0].head_at = now
            self.backlog -= slot.expected
        if slot is self._target:
            self._target = None
            self._maybe_open()
        return slot

    def take(self, count: int, now: float) -> None:
        """Remove the ``count`` oldest segments, whose Syncs have arrived together."""
        for _ in range(count):
            self.answered(now)

    def abandon(self, slot: Slot[T, S], now: float, *, urgent: bool) -> Act:
        """Record that no caller waits for this segment any more.

        With ``urgent``, the segment is cancelled at once if it is the head; on a lane for writes the server
        is asked at once.
        """
        if slot.abandoned_at is None:
            slot.abandoned_at = now
        if urgent and not self.cancelling and self.slots and self.slots[0] is slot:
            return self._get_rid_of(slot, now)
        return Act.NOTHING

    def _get_rid_of(self, head: Slot[T, S], now: float) -> Act:
        if not self._ask_first:
            return self._cancel(now)
        head.asked_to_cancel += 1
        head.asked_at = now
        return Act.INSPECT

    def _cancel(self, now: float) -> Act:
        self._target = self.slots[0]
        self._cancel_at = now
        self._delivering = True
        if self.gate is OPEN:
            self.gate = Gate.GATED
        for slot in self.slots:
            slot.overlapped = True
        return Act.CANCEL

    def cancel_done(self, now: float) -> None:
        """Record that the cancel request was delivered, refused or lost: it cannot arrive later than now."""
        self._delivering = False
        self._cancel_again_at = now + self._bounds.cancel_again
        self._maybe_open()

    @property
    def cancelling(self) -> bool:
        """Whether a cancel request is on its way, or its effect has not been seen."""
        return self._delivering or self._target is not None

    def _maybe_open(self) -> None:
        if self.gate is Gate.GATED and not self._delivering and self._target is None:
            self.gate = OPEN

    def tick(self, now: float) -> Act:
        """Return the action that is due by now: a grace is over, the head is old, a cancel had no effect."""
        if self._target is not None:
            return self._tick_cancelling(now)
        if self._delivering or not self.slots:
            return Act.NOTHING
        head = self.slots[0]
        if head.head_at is None:
            return Act.NOTHING
        if head.abandoned_at is not None:
            due = max(head.head_at, head.abandoned_at) + self._bounds.cancel_grace
            if head.asked_to_cancel:
                doublings = min(head.asked_to_cancel - 1, _MOST_DOUBLINGS)
                due = head.asked_at + self._bounds.cancel_again * 2.0**doublings
            return self._get_rid_of(head, now) if now >= due else Act.NOTHING
        if now >= self._ask_due(head, head.head_at):
            head.asked += 1
            head.asked_at = now
            return Act.INSPECT
        return Act.NOTHING

    def _ask_due(self, head: Slot[T, S], head_at: float) -> float:
        if not head.asked:
            return head_at + self._bounds.head_of_line
        return head.asked_at + self._bounds.ask_again * 2.0 ** min(head.asked - 1, _MOST_DOUBLINGS)

    def inspected(
        self, slot: Slot[T, S], doing: Doing, moved: int, now: float, *, travelling: bool = False,
        time_to_rerun: bool = True,
    ) -> Act:  # fmt: skip
        """Record what the server said about the backend, and return the action that follows.

        ``moved`` is the number of bytes that the connection has carried so far, both ways. ``travelling``
        says that the request is large and may still be on its way, in some buffer. ``time_to_rerun`` says
        that the head's deadline leaves time to run it again.
        """
        if self.cancelling or not self.slots or self.slots[0] is not slot:
            return Act.NOTHING
        idle = doing is Doing.IDLE
        before, slot.idle_at_mark = slot.idle_at_mark, moved if idle and not travelling else None
        if idle:
            # A single observation proves nothing: the answer may be on its way.
            return Act.DISCARD if before == moved and not travelling else Act.NOTHING
        if doing is Doing.REPLICATING:
            return Act.NOTHING
        if slot.abandoned_at is not None and self._ask_first:
            return self._cancel(now) if self._harmless(slot, doing, now) else Act.NOTHING
        # A read that nobody waits for hurts nobody. A write's caller may wait for proof of its outcome.
        behind = itertools.islice(self.slots, 1, None)
        others = any(other.abandoned_at is None or self._ask_first for other in behind)
        if not others or self.patient or not time_to_rerun:
            return Act.NOTHING
        slot.rerun_exclusive = True
        return self._cancel(now)

    def _harmless(self, head: Slot[T, S], doing: Doing, now: float) -> bool:
        """Return whether a cancel of the running head cannot end the wait of the commit behind it."""
        old = head.head_at is not None and now - head.head_at >= self._bounds.head_of_line
        return doing is Doing.RUNNING or len(self.slots) == 1 or old

    def _tick_cancelling(self, now: float) -> Act:
        if now - self._cancel_at >= self._bounds.cancel_deadline:
            return Act.DISCARD
        if not self._delivering and now >= self._cancel_again_at:
            self._delivering = True
            return Act.CANCEL
        return Act.NOTHING

    def stop_sending(self) -> None:
        """Send nothing more; the lane is closed once nothing is in flight."""
        self.gate = _DRAINING

    @property
    def draining(self) -> bool:
        """Whether nothing more is sent on the lane."""
        return self.gate is _DRAINING
