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

If the head is older than a bound, the server is asked first what the lane's backend is doing.

=========== ==========================================================================================
answer      consequence
=========== ==========================================================================================
RUNNING     if other segments are behind the head, the head is cancelled and run again exclusively: it
            may wait for a lock that only one of them releases; without others behind it nothing is done
REPLICATING the head has committed and waits for a synchronous standby. A cancel would end that wait, and
            make the acknowledgement worthless (measured: acknowledged writes were lost): nothing is done
IDLE        twice in a row, with no bytes moved in between and after the request had time to arrive: the
            request or its answer was lost on a connection that both ends believe alive: action DISCARD
UNKNOWN     the server does not say (another role's backend, a pooler): as RUNNING
=========== ==========================================================================================
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
S = TypeVar("S")
_MOST_DOUBLINGS = 5


class Gate(enum.Enum):
    """The states of a lane; see the head of this file."""

    OPEN = enum.auto()
    GATED = enum.auto()
    DRAINING = enum.auto()


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
    REPLICATING = enum.auto()
    IDLE = enum.auto()
    UNKNOWN = enum.auto()


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of a lane; all are seconds except the depth."""

    depth: int
    """The largest number of segments in flight."""
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
        "exclusive",
        "head_at",
        "idle_at_mark",
        "item",
        "overlapped",
        "rerun_exclusive",
        "segment",
        "sent_at",
    )

    def __init__(self, item: T, segment: S, exclusive: bool, now: float) -> None:
        self.item = item
        self.segment = segment
        self.exclusive = exclusive
        self.sent_at = now
        self.head_at: float | None = None
        self.abandoned_at: float | None = None
        self.overlapped = False
        self.rerun_exclusive = False
        self.asked = 0
        self.asked_at = 0.0
        self.idle_at_mark: int | None = None
        """The bytes that had moved when the server last said that the backend was idle; None otherwise."""


class Pipeline(Generic[T, S]):
    """The segments in flight on one connection, oldest first."""

    __slots__ = (
        "_bounds",
        "_cancel_again_at",
        "_cancel_at",
        "_delivering",
        "_target",
        "gate",
        "patient",
        "slots",
    )

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self.slots: deque[Slot[T, S]] = deque()
        self.gate = Gate.OPEN
        self.patient = False
        """A slow head is not cancelled for those behind it: it could not be run again."""
        self._target: Slot[T, S] | None = None
        self._delivering = False
        self._cancel_at = 0.0
        self._cancel_again_at = 0.0

    def has_capacity(self, now: float) -> bool:
        """Return whether one more segment may be sent behind those in flight."""
        if self.gate is not Gate.OPEN:
            return False
        slots = self.slots
        if not slots:
            return True
        head = slots[0]
        if len(slots) >= self._bounds.depth or head.exclusive or head.head_at is None:
            return False
        return now - head.head_at < self._bounds.hold_behind

    @property
    def quiet(self) -> bool:
        """Whether an exclusive segment may be sent: the lane is open and nothing is in flight."""
        return self.gate is Gate.OPEN and not self.slots

    def stuck(self, now: float) -> bool:
        """Return whether the lane is blocked for a while: by a slow or exclusive head, or by a cancel."""
        if self.gate is not Gate.OPEN:
            return True
        if not self.slots:
            return False
        head = self.slots[0]
        return head.exclusive or (head.head_at is not None and now - head.head_at >= self._bounds.hold_behind)

    def sent(self, item: T, segment: S, now: float, exclusive: bool = False) -> Slot[T, S]:
        """Record that a segment was handed to libpq."""
        slot = Slot(item, segment, exclusive, now)
        if not self.slots:
            slot.head_at = now
        self.slots.append(slot)
        return slot

    def answered(self, now: float) -> Slot[T, S]:
        """Remove and return the head, whose Sync has arrived; the next segment becomes the head."""
        slot = self.slots.popleft()
        if self.slots:
            self.slots[0].head_at = now
        if slot is self._target:
            self._target = None
            self._maybe_open()
        return slot

    def abandon(self, slot: Slot[T, S], now: float, *, urgent: bool) -> Act:
        """Record that no caller waits for this segment any more.

        With ``urgent``, the segment is cancelled at once if it is the head.
        """
        if slot.abandoned_at is None:
            slot.abandoned_at = now
        cancelling = self._delivering or self._target is not None
        if urgent and not cancelling and self.slots and self.slots[0] is slot:
            return self._cancel(now)
        return Act.NOTHING

    def _cancel(self, now: float) -> Act:
        self._target = self.slots[0]
        self._cancel_at = now
        self._delivering = True
        if self.gate is Gate.OPEN:
            self.gate = Gate.GATED
        for slot in self.slots:
            slot.overlapped = True
        return Act.CANCEL

    def cancel_done(self, now: float) -> None:
        """Record that the cancel request was delivered, refused or lost: it cannot arrive later than now."""
        self._delivering = False
        self._cancel_again_at = now + self._bounds.cancel_again
        self._maybe_open()

    def _maybe_open(self) -> None:
        if self.gate is Gate.GATED and not self._delivering and self._target is None:
            self.gate = Gate.OPEN

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
            return self._cancel(now) if now >= due else Act.NOTHING
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
        self, slot: Slot[T, S], doing: Doing, moved: int, now: float, *, travelling: bool = False
    ) -> Act:
        """Record what the server said about the backend, and return the action that follows.

        ``moved`` is the number of bytes that the connection has carried so far, both ways. ``travelling``
        says that the request is large and may still be on its way, in some buffer.
        """
        cancelling = self._delivering or self._target is not None
        if cancelling or not self.slots or self.slots[0] is not slot:
            return Act.NOTHING
        idle = doing is Doing.IDLE
        before, slot.idle_at_mark = slot.idle_at_mark, moved if idle and not travelling else None
        if idle:
            # A single observation proves nothing: the answer may be on its way.
            return Act.DISCARD if before == moved and not travelling else Act.NOTHING
        if doing is Doing.REPLICATING or len(self.slots) == 1 or self.patient:
            return Act.NOTHING
        slot.rerun_exclusive = True
        return self._cancel(now)

    def _tick_cancelling(self, now: float) -> Act:
        if now - self._cancel_at >= self._bounds.cancel_deadline:
            return Act.DISCARD
        if not self._delivering and now >= self._cancel_again_at:
            self._delivering = True
            return Act.CANCEL
        return Act.NOTHING

    def stop_sending(self) -> None:
        """Send nothing more; the lane is closed once nothing is in flight."""
        self.gate = Gate.DRAINING

    @property
    def draining(self) -> bool:
        """Whether nothing more is sent on the lane."""
        return self.gate is Gate.DRAINING
