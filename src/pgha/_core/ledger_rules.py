"""The ledger's decisions: how late an attempt may begin, what a row means, what may be pruned.

A keyed write inserts its key into the ledger in the transaction of its own statements. So the row exists
exactly if the write was applied. The conclusions hold within one *lineage* (one system identifier: a primary
and every server that takes over from that primary):

============================== ===============================================================================
observation                    meaning
============================== ===============================================================================
the insert passed              no attempt with this key was applied before; this one is, with its transaction
23505 at the ledger            a row with the key exists; its fingerprint says for which write (`row_meaning`)
23502 at the ledger            the guard: the attempt began too late by the server's clock, and did nothing
row with our fingerprint       applied
row without a fingerprint      a tombstone: resolved as not applied, and the key is used up
row with another fingerprint   the key was used for another body: an error
============================== ===============================================================================

Two facts show when a row must exist, and when it may be deleted:

* An attempt must begin before its guard's deadline, or its insert fails. The deadlines of all attempts of an
  operation lie within `LIFE` of the operation's start.
* So, `LIFE` plus the difference of the servers' clocks after a row's own deadline, no attempt can meet the
  row any more, except one that passed its guard and has been frozen since. Such an attempt holds a lock on
  the table, and pruning looks for that lock (the lock is taken before the clock is read: measured on 16
  and 18).
"""

from __future__ import annotations

import enum

LIFE = 3600.0
"""Seconds after an operation's start within which its attempts may begin; a part of the ledger's layout."""
TOMBSTONE = b""
EXISTS, LATE = "23505", "23502"
UNUSABLE = frozenset({"42P01", "3F000", "42501", "42703", "42P10", "42804"})
"""Errors of the ledger's own statement if the table is missing, has another layout, or may not be used."""
MOST_SKEW = 1.0
"""Seconds that a server's clock may differ from the local one when rows are deleted by their age."""
_STEADY = 0.05
"""Seconds that two measurements of a clock may differ beyond their own errors."""
_CALM = 0.95
"""The share of a clock's unrest that remains at the next measurement."""
_WIDER = 4.0
"""The factor by which each refusal widens the next attempt's guard."""


class RowMeaning(enum.Enum):
    """The meaning of a key's row for a write."""

    APPLIED = enum.auto()
    NOT_APPLIED = enum.auto()
    OTHER_BODY = enum.auto()


def row_meaning(found: bytes, own: bytes) -> RowMeaning:
    """Return the meaning of a row with the fingerprint ``found`` for a write with the fingerprint ``own``."""
    if found == own:
        return RowMeaning.APPLIED
    return RowMeaning.NOT_APPLIED if found == TOMBSTONE else RowMeaning.OTHER_BODY


class ServerClock:
    """A server's clock relative to the local monotonic clock, as measured by pings. All times are seconds."""

    __slots__ = ("_limit", "_margin", "_offset", "_uncertain", "_unrest", "_window", "skew", "skewed")

    def __init__(self, *, window: float, margin: float, limit: float) -> None:
        self._window = window
        """Seconds until an attempt without a deadline of its own must have begun."""
        self._margin = margin
        self._limit = limit
        self._offset: float | None = None
        self._uncertain = 0.0
        self._unrest = 0.0
        self.skew: float | None = None
        """The server's clock minus the local clock."""
        self.skewed = False
        """Whether the skew is larger than the limit."""

    def measured(self, sent: float, received: float, server: float, wall: float) -> bool:
        """Record one measurement of the server's clock, and return whether ``skewed`` changed.

        ``sent`` and ``received`` are the monotonic times of a ping and its answer. ``server`` is the server's
        clock in that answer, ``wall`` the local clock now, both in seconds since 1970.
        """
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
        """Seconds added to a deadline: a guard that is too narrow refuses an attempt that was in time."""
        off = abs(self.skew or 0.0) if self.skewed else 0.0
        return self._margin + self._uncertain + self._unrest + off

    def guard(self, now: float, started: float, ends: float | None, refusals: int) -> tuple[float, float]:
        """Return the latest time at which an attempt sent now may begin.

        The first number is monotonic, the second is by the server's clock in seconds since 1970. ``started``
        is the start of the operation, ``ends`` its deadline, None without one. ``refusals`` counts earlier
        attempts that the guard refused although they were in time; each one widens the guard.
        """
        until = (now + self._window if ends is None else max(ends, now)) + self.margin
        until = min(now + (until - now) * _WIDER**refusals, started + LIFE)
        return until, until + (self._offset or 0.0)


def horizon(older_than: float, skews: list[float]) -> float:
    """Return the seconds after its deadline for which a row is kept.

    The horizon is ``older_than``, but at least an operation's `LIFE`, plus the largest difference between any
    two clocks. ``skews`` holds the skew of each server's clock against the local one, which counts, too.
    """
    clocks = [*skews, 0.0]
    return max(older_than, LIFE) + max(clocks) - min(clocks)


def proven_skew(server: float, before: float, after: float) -> float:
    """Return the seconds by which a server's clock certainly differs from the local one; 0 if it may not.

    The server read its clock between the local times ``before`` and ``after``; all are seconds since 1970.
    """
    return server - min(max(server, before), after)
