"""The ledger's decisions: until when an attempt may begin, what a row means, what may be pruned.

A keyed write inserts its key into the ledger in the transaction of its own statements, so the row is there
exactly when the write is. What may be concluded, always within one *lineage* (one system identifier: a
primary, and whoever takes over from it):

============================== ===============================================================================
seen                           meaning
============================== ===============================================================================
the insert passed              no attempt with this key was applied before: this one is, with the transaction
23505 at the ledger            one was; whose it is tells the row's fingerprint (`row_meaning`)
23502 at the ledger            the guard: the attempt began too late by the server's clock, and did nothing
own fingerprint in the row     applied
no fingerprint in the row      a tombstone: resolved as not applied, and the key is used up
another one's                  the key was used for another body: an error
============================== ===============================================================================

Why a row can be trusted to be there, and may go at last:

* An attempt inserts its row no later than its guard's deadline, begun before it. The deadlines of all
  attempts of an operation lie within `LIFE` of the operation's start.
* So a row whose own deadline is `LIFE` and the difference of the servers' clocks ago is met by no attempt
  any more, but one that passed its guard and has been frozen since. That one holds a lock on the table, which
  pruning looks for (the lock is taken before the clock is read: measured on 16 and 18).
"""

from __future__ import annotations

import enum

LIFE = 3600.0
"""Seconds after its start in which an operation's attempts may begin; a part of the ledger's layout."""
TOMBSTONE = b""
EXISTS, LATE = "23505", "23502"
UNUSABLE = frozenset({"42P01", "3F000", "42501", "42703", "42P10", "42804"})
"""What the ledger's own statement is told where there is none, of another layout, or without a right."""
_STEADY = 0.05
"""Seconds that two measurements of a clock may differ beyond their own errors."""
_CALM = 0.95
"""What is left of a clock's unrest at the next measurement."""
_WIDER = 4.0


class RowMeaning(enum.Enum):
    """What the row of a key says of a write."""

    APPLIED = enum.auto()
    NOT_APPLIED = enum.auto()
    OTHER_BODY = enum.auto()


def row_meaning(found: bytes, own: bytes) -> RowMeaning:
    """``found``: the fingerprint in the row; ``own``: of the write that is asked about."""
    if found == own:
        return RowMeaning.APPLIED
    return RowMeaning.NOT_APPLIED if found == TOMBSTONE else RowMeaning.OTHER_BODY


class ServerClock:
    """A server's clock in terms of our monotonic one, as pings measure it. All in seconds."""

    __slots__ = ("_limit", "_margin", "_offset", "_uncertain", "_unrest", "_window", "skew", "skewed")

    def __init__(self, *, window: float, margin: float, limit: float) -> None:
        self._window = window
        """How long an attempt without a deadline of its own may take until it begins."""
        self._margin = margin
        self._limit = limit
        self._offset: float | None = None
        self._uncertain = 0.0
        self._unrest = 0.0
        self.skew: float | None = None
        """The server's clock minus this machine's."""
        self.skewed = False
        """It is more than the limit."""

    def measured(self, sent: float, received: float, server: float, wall: float) -> bool:
        """A ping went out and came back (monotonic); the server's clock said ``server``, ours now says
        ``wall`` (since 1970). Whether ``skewed`` changed."""
        uncertain = (received - sent) / 2
        offset = server - (sent + received) / 2
        if self._offset is not None:
            moved = abs(offset - self._offset) - uncertain - self._uncertain
            self._unrest = max(self._unrest * _CALM, moved if moved > _STEADY else 0.0)
        self._offset, self._uncertain = offset, uncertain
        self.skew = server - (wall - uncertain)
        before, size = self.skewed, abs(self.skew)
        self.skewed = size - uncertain > (self._limit / 2 if before else self._limit)
        return self.skewed != before

    @property
    def margin(self) -> float:
        """What is added to a deadline: a guard that is too narrow refuses what was in time."""
        off = abs(self.skew or 0.0) if self.skewed else 0.0
        return self._margin + self._uncertain + self._unrest + off

    def guard(self, now: float, started: float, ends: float | None, refusals: int) -> tuple[float, float]:
        """Until when an attempt that is sent now may begin: by our clock, and by the server's (since 1970).

        ``started``, ``ends``: of its operation, the latter None without a deadline; ``refusals``: earlier
        attempts that the guard refused although it was in time. Each makes it wider.
        """
        until = (now + self._window if ends is None else max(ends, now)) + self.margin
        until = min(now + (until - now) * _WIDER**refusals, started + LIFE)
        return until, until + (self._offset or 0.0)


def horizon(older_than: float, skews: list[float]) -> float:
    """Seconds after its deadline that a row is kept: what is asked, at least an operation's life, and the
    difference between the servers' clocks (``skews``, of each against ours)."""
    return max(older_than, LIFE) + (max(skews) - min(skews) if skews else 0.0)
