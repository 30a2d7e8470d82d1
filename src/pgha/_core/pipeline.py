"""One lane: how deep it is, what may be sent, and the ladder by which an operation is cancelled.

======== ==================================================== =========================================
state    meaning                                              exits
======== ==================================================== =========================================
OPEN     operations may be sent while there is room           cancel sent -> GATED; stop_sending -> DRAINING
GATED    a cancel is in flight: nothing is sent, since the    cancel done and its target answered ->
         cancel could hit whatever the server runs when it    OPEN; no effect within the deadline ->
         arrives                                              action DISCARD
DRAINING what is in flight may end, then the lane is closed   empty -> the shell closes it
======== ==================================================== =========================================

Only the head is ever cancelled: it alone is known to be running, or about to. What is in flight with it
when the cancel leaves is marked ``overlapped``: a 57014 there is our doing, and is run again. An abandoned
operation behind the head is left alone until it becomes the head and a grace has passed, since most
finish sooner than a cancel takes.

A cancel that meets an idle backend is ignored by PostgreSQL, so a cancel that was delivered and shows no
effect is sent again, until the deadline.

A head older than a bound is not acted upon blindly: the server is asked first what its backend is doing.

=========== ==========================================================================================
answer      what follows
=========== ==========================================================================================
RUNNING     with others behind it, it is cancelled and run again alone: it may wait for a lock that is
            let go of only by one of them; on its own it is left alone
REPLICATING it has committed and waits for a synchronous standby. A cancel would end that wait, and with
            it what the acknowledgement is worth (measured: acknowledged writes were lost): left alone
IDLE        twice, nothing moved meanwhile, and the request has had time to arrive: it is lost on the way, or
            its answer is, on a connection that both ends believe to be alive: action DISCARD
UNKNOWN     the server does not tell (another role's backend, a pooler's): as RUNNING
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
    OPEN = enum.auto()
    GATED = enum.auto()
    DRAINING = enum.auto()


class Act(enum.Enum):
    """What the shell is to do."""

    NOTHING = enum.auto()
    CANCEL = enum.auto()
    """Send a cancel request for this connection, then call `Pipeline.cancel_done`."""
    DISCARD = enum.auto()
    """Give the connection up: its state can no longer be known in time."""
    INSPECT = enum.auto()
    """Ask the server what this connection's backend does, then call `Pipeline.inspected`."""


class Doing(enum.Enum):
    """What a backend does, as the server says; see the head of this file."""

    RUNNING = enum.auto()
    REPLICATING = enum.auto()
    IDLE = enum.auto()
    UNKNOWN = enum.auto()


@dataclass(frozen=True, slots=True)
class Bounds:
    """All in seconds, but for the depth."""

    depth: int
    hold_behind: float
    head_of_line: float
    """The server is asked about a head of this age."""
    ask_again: float
    """The first time after so long, then after twice that, and so on."""
    cancel_grace: float
    cancel_again: float
    cancel_deadline: float


class Slot(Generic[T, S]):
    """One segment in flight: ``item`` is whose it is, ``segment`` what was sent."""

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
        """Its backend was idle when the server was asked last, and so many bytes had moved."""


class Pipeline(Generic[T, S]):
    """The segments in flight on one connection, oldest first."""

    __slots__ = ("_bounds", "_cancel_again_at", "_cancel_at", "_delivering", "_target", "gate", "slots")

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self.slots: deque[Slot[T, S]] = deque()
        self.gate = Gate.OPEN
        self._target: Slot[T, S] | None = None
        self._delivering = False
        self._cancel_at = 0.0
        self._cancel_again_at = 0.0

    def has_capacity(self, now: float) -> bool:
        """Whether one more may be sent behind what is in flight."""
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
        """Whether something may be sent that must be alone."""
        return self.gate is Gate.OPEN and not self.slots

    def stuck(self, now: float) -> bool:
        """In use, and nothing can be sent for a while: the head is slow or alone, or a cancel is out."""
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
        """The head's Sync is in: take it out; the next one is the head now."""
        slot = self.slots.popleft()
        if self.slots:
            self.slots[0].head_at = now
        if slot is self._target:
            self._target = None
            self._maybe_open()
        return slot

    def abandon(self, slot: Slot[T, S], now: float, *, urgent: bool) -> Act:
        """Nobody waits for this segment any more; ``urgent``: cancel it at once if it is the head."""
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
        """The cancel request was delivered, refused or lost: it cannot arrive any later than now."""
        self._delivering = False
        self._cancel_again_at = now + self._bounds.cancel_again
        self._maybe_open()

    def _maybe_open(self) -> None:
        if self.gate is Gate.GATED and not self._delivering and self._target is None:
            self.gate = Gate.OPEN

    def tick(self, now: float) -> Act:
        """What time alone brings: a grace over, a head too old, a cancel without effect."""
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
        """The server says what the backend does.

        ``moved``: bytes that the connection has carried so far, both ways; ``travelling``: the request is
        large, and may still be under way, in somebody's buffer.
        """
        cancelling = self._delivering or self._target is not None
        if cancelling or not self.slots or self.slots[0] is not slot:
            return Act.NOTHING
        idle = doing is Doing.IDLE
        before, slot.idle_at_mark = slot.idle_at_mark, moved if idle and not travelling else None
        if idle:
            # Once is no proof: the answer may be on its way.
            return Act.DISCARD if before == moved and not travelling else Act.NOTHING
        if doing is Doing.REPLICATING or len(self.slots) == 1:
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
        """Send nothing more; close when empty."""
        self.gate = Gate.DRAINING

    @property
    def draining(self) -> bool:
        return self.gate is Gate.DRAINING
