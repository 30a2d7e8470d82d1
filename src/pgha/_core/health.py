"""One node's health: what its monitor and its lanes saw, turned into a state and into actions.

========== =========================================== ====================================================
state      meaning                                     exits
========== =========================================== ====================================================
connecting no answer yet since the node was added      answered -> up; failed -> down or rejected
up         it answered the last ping                   doubted -> suspect; failed -> down
suspect    something went wrong, the answer to a ping  answered -> up; failed -> down
           is outstanding; nothing is sent until then
down       the monitor lost it, and reconnects         answered -> up; rejected -> rejected
rejected    it answers that it will not have us (bad    answered -> up; failed -> down
           password, no such database); asked rarely
========== =========================================== ====================================================

Only the monitor's own connection moves a node to *up* or *down*; a lane can but doubt.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from pgha._types import Role, State


@dataclass(frozen=True, slots=True)
class Transition:
    """A node's state or role before and after."""

    before: State
    after: State
    role_before: Role
    role: Role

    @property
    def state_changed(self) -> bool:
        return self.before != self.after

    @property
    def role_changed(self) -> bool:
        return self.role_before != self.role

    @property
    def fell(self) -> bool:
        """The node was in use and is not any more: its lanes are to be given up."""
        return self.before in ("up", "suspect") and self.after in ("down", "rejected")

    @property
    def rose(self) -> bool:
        """The node may be used from now on."""
        return self.after == "up" and self.before not in ("up", "suspect")


class Health:
    """State, role and latency of one node. Every method takes ``now`` and records it when deciding."""

    WINDOW = 64
    """Round trips that the p99 is taken from."""
    SMOOTHING = 0.2
    """Weight of the newest round trip in the smoothed latency."""

    def __init__(self, now: float) -> None:
        self.state: State = "connecting"
        self.role: Role = "unknown"
        self.since = now
        self.reason = ""
        self.latency: float | None = None
        self.p99 = 0.0
        self._trips: deque[float] = deque(maxlen=self.WINDOW)

    @property
    def usable(self) -> bool:
        """Its connections are kept: it answered, and nothing proves that it is gone."""
        return self.state == "up" or self.state == "suspect"

    @property
    def sendable(self) -> bool:
        """Something new may be sent. Not while a ping is to decide: where one lane broke, the
        others may be about to, and an operation that is lost twice is not run again."""
        return self.state == "up"

    def answered(self, now: float, role: Role, trip: float) -> Transition:
        """A ping came back after ``trip`` seconds."""
        self._trips.append(trip)
        self.latency = trip if self.latency is None else self.latency + self.SMOOTHING * (trip - self.latency)
        ordered = sorted(self._trips)
        self.p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        return self._move(now, "up", "", role)

    def doubted(self, now: float, reason: str) -> Transition:
        """A lane broke, or its head is old: a ping will tell."""
        if self.state != "up":
            return self._move(now, self.state, self.reason, self.role)
        return self._move(now, "suspect", reason, self.role)

    def failed(self, now: float, reason: str, *, rejected: bool = False) -> Transition:
        """The monitor's connection was lost, or could not be made."""
        return self._move(now, "rejected" if rejected else "down", reason, self.role)

    def _move(self, now: float, state: State, reason: str, role: Role) -> Transition:
        moved = Transition(self.state, state, self.role, role)
        if moved.state_changed:
            self.since = now
            self.state = state
        self.reason = reason
        self.role = role
        return moved


def suspicious_age(p99: float, floor: float, ceiling: float, asked: int) -> float:
    """How old a head may be before the monitor asks: max(floor, 4 x p99), twice that after each answer.

    Doubling keeps a long query from being watched by a ping every few milliseconds.
    """
    return min(max(floor, 4 * p99), ceiling) * 2.0 ** min(asked, 30)


def role_of(in_recovery: bool, read_only: bool) -> Role:
    """A server that is read-only by default takes no writes either, recovery or not."""
    return "standby" if in_recovery or read_only else "primary"
