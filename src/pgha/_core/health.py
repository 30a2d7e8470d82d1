"""The health of one node: a state machine fed by the node's monitor and lanes.

========== =========================================== ====================================================
state      meaning                                     exits
========== =========================================== ====================================================
connecting no answer yet since the node was added      answered -> up; failed -> down or rejected
up         the node answered the last ping             suspected -> suspect; failed -> down
suspect    something went wrong on a lane, and a ping  answered -> up; failed -> down
           decides; nothing is sent until its answer
down       the monitor lost the node, and reconnects   answered -> up; rejected -> rejected
rejected   the node rejects the connection (wrong      answered -> up; failed -> down
           password, no such database); tried rarely
========== =========================================== ====================================================

Only the monitor's own connection moves a node to *up* or *down*; a lane can only make a node *suspect*.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from pgha._types import Role, State


@dataclass(frozen=True, slots=True)
class Transition:
    """A node's state and role, before and after an observation."""

    before: State
    after: State
    role_before: Role
    role: Role

    @property
    def state_changed(self) -> bool:
        """Whether the state is another one than before."""
        return self.before != self.after

    @property
    def role_changed(self) -> bool:
        """Whether the role is another one than before."""
        return self.role_before != self.role

    @property
    def fell(self) -> bool:
        """Whether the node was in use and no longer is, so that its lanes must be closed."""
        return self.before in ("up", "suspect") and self.after in ("down", "rejected")

    @property
    def rose(self) -> bool:
        """Whether the node came into use."""
        return self.after == "up" and self.before not in ("up", "suspect")


class Health:
    """The state, role and latency of one node.

    Every method that changes the state takes the time as ``now``, and records that time.
    """

    WINDOW = 64
    """Number of round trips from which the p99 is computed."""
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
        """Whether the node's connections are kept: the node has answered, and nothing proves its loss."""
        return self.state == "up" or self.state == "suspect"

    @property
    def sendable(self) -> bool:
        """Whether operations may be sent to the node.

        Nothing is sent while a ping is to decide: after one lane broke, the others may be about to break,
        and an operation that is lost twice is not run again.
        """
        return self.state == "up"

    def answered(self, now: float, role: Role, trip: float) -> Transition:
        """Record the answer to a ping, which took ``trip`` seconds."""
        self._trips.append(trip)
        self.latency = trip if self.latency is None else self.latency + self.SMOOTHING * (trip - self.latency)
        ordered = sorted(self._trips)
        self.p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        return self._move(now, "up", "", role)

    def suspected(self, now: float, reason: str) -> Transition:
        """Record that something went wrong on a lane; the next ping decides whether the node is lost."""
        if self.state != "up":
            return self._move(now, self.state, self.reason, self.role)
        return self._move(now, "suspect", reason, self.role)

    def failed(self, now: float, reason: str, *, rejected: bool = False) -> Transition:
        """Record that the monitor's connection was lost, or could not be opened."""
        return self._move(now, "rejected" if rejected else "down", reason, self.role)

    def _move(self, now: float, state: State, reason: str, role: Role) -> Transition:
        moved = Transition(self.state, state, self.role, role)
        if moved.state_changed:
            self.since = now
            self.state = state
        self.reason = reason
        self.role = role
        return moved


def suspicious_age(p99: float, floor: float, ceiling: float, pings: int) -> float:
    """Return the age in seconds at which the head of a lane causes a ping.

    The age is max(floor, 4 x p99), but at most ``ceiling``, and doubles with each of the ``pings`` that the
    same head has caused. Doubling keeps a long query from causing a ping every few milliseconds.
    """
    return min(max(floor, 4 * p99), ceiling) * 2.0 ** min(pings, 30)


def role_of(in_recovery: bool, read_only: bool) -> Role:
    """Return the role of a server; one that is read-only by default takes no writes, in recovery or not."""
    return "standby" if in_recovery or read_only else "primary"
