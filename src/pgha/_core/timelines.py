"""Which primary of a lineage is the newest; pure, with the highest timeline of each lineage as its state.

Every promotion begins a timeline with a higher number. If two servers of one lineage both say that they are
the primary, the one of the lower timeline was left behind by a promotion: whatever is written to that server
is lost as soon as it joins the newer one. So that server takes no writes, not even after the newer one is
lost: nothing ever goes back to an older timeline.
"""

from __future__ import annotations

from pgha._core.server_status import ServerStatus


class Timelines:
    """The highest timeline of each lineage that was seen."""

    def __init__(self) -> None:
        self._newest: dict[int, int] = {}

    def newest(self, system: int | None) -> int | None:
        """Return the highest timeline seen of the lineage with this system identifier; None if none was."""
        return None if system is None else self._newest.get(system)

    def seen(self, status: ServerStatus) -> bool:
        """Record a server's timeline, a standby's too; return whether it is the highest of its lineage yet.

        A standby follows a timeline only if a primary has begun it.
        """
        system, timeline = status.system, status.timeline
        if system is None or timeline is None or timeline <= self._newest.get(system, 0):
            return False
        self._newest[system] = timeline
        return True

    def superseded(self, status: ServerStatus) -> bool:
        """Return whether the server is a primary of a lower timeline than the highest one of its lineage.

        A server that does not tell its system identifier or timeline is not superseded.
        """
        newest = self.newest(status.system)
        old = newest is not None and status.timeline is not None and status.timeline < newest
        return old and not status.in_recovery
