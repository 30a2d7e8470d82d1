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

from pgha._core.server_status import ServerStatus
from pgha._types import Role, State


@dataclass(frozen=True, slots=True)
class Transition:
    """A node's state and role, before and after an observation."""

    before: State
    after: State
    role_before: Role
    role: Role
    read_only_before: bool = False
    read_only: bool = False

    @property
    def state_changed(self) -> bool:
        """Whether the state is another one than before."""
        return self.before != self.after

    @property
    def role_changed(self) -> bool:
        """Whether the role is another one than before, or the server became read-only or writable."""
        return self.role_before != self.role or self.read_only_before != self.read_only

    @property
    def fell(self) -> bool:
        """Whether the node was in use and no longer is, so that its lanes must be closed."""
        return self.before in ("up", "suspect") and self.after in ("down", "rejected")

    @property
    def rose(self) -> bool:
        """Whether the node came into use."""
        return self.after == "up" and self.before not in ("up", "suspect")


class Health:
    """The state, last status and latency of one node.

    Every method that changes the state takes the time as ``now``, and records that time.
    """

    WINDOW = 64
    """Number of round trips from which the p99 is computed."""
    RECENT = 10
    """Number of round trips of which the least is the latency. A round trip contains every stall of this
    process and of the server; the least one contains none, and follows a longer way within a few pings."""

    def __init__(self, now: float) -> None:
        self.state: State = "connecting"
        self.role: Role = "unknown"
        self.status = ServerStatus()
        """What the last answered ping told of the server."""
        self.superseded = False
        """Whether the server is a primary, and a newer timeline of its lineage was seen."""
        self.writable = False
        """Whether the server takes writes: a primary that is neither read-only nor superseded."""
        self.since = now
        self.reason = ""
        self.latency: float | None = None
        self.p99 = 0.0
        self._trips: deque[float] = deque(maxlen=self.WINDOW)

    @property
    def usable(self) -> bool:
        """Whether the node's connections are kept: the node has answered, and nothing proves its loss."""
        return self.state == "up" or self.state == "suspect"

    def answered(self, now: float, status: ServerStatus, trip: float) -> Transition:
        """Record the answer to a ping, which took ``trip`` seconds."""
        self._trips.append(trip)
        self.latency = min(tuple(self._trips)[-self.RECENT :])
        ordered = sorted(self._trips)
        self.p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        read_only_before, self.status = self.status.read_only, status
        moved = self._move(now, "up", "", status.role, read_only_before)
        self._decide_writable()
        return moved

    def supersede(self, superseded: bool) -> bool:
        """Record whether a newer timeline of the server's lineage was seen; return whether that is new."""
        changed, self.superseded = superseded != self.superseded, superseded
        self._decide_writable()
        return changed

    def _decide_writable(self) -> None:
        self.writable = self.role == "primary" and not self.status.read_only and not self.superseded

    def suspected(self, now: float, reason: str) -> Transition:
        """Record that something went wrong on a lane; the next ping decides whether the node is lost."""
        if self.state != "up":
            return self._move(now, self.state, self.reason, self.role)
        return self._move(now, "suspect", reason, self.role)

    def failed(self, now: float, reason: str, *, rejected: bool = False) -> Transition:
        """Record that the monitor's connection was lost, or could not be opened."""
        return self._move(now, "rejected" if rejected else "down", reason, self.role)

    def _move(
        self, now: float, state: State, reason: str, role: Role, read_only_before: bool | None = None
    ) -> Transition:
        read_only = self.status.read_only
        before = read_only if read_only_before is None else read_only_before
        moved = Transition(self.state, state, self.role, role, before, read_only)
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
