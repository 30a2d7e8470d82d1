"""Whether the program itself is what makes its operations wait."""

from __future__ import annotations

from pgha._core.sources import Sources

_INTERVAL = 0.01
"""Seconds over which the program's processor time is compared with the clock."""
_STALE = 0.1
"""Seconds after which an interval says nothing about the present."""
_BUSY = 0.7
"""The part of one processor from which on the program counts as busy."""


class ProgramLoad:
    """The processor time that the program uses, asked only when somebody wants to know.

    If the program is busy, answers wait for the event loop, and statements look slower than they are. More
    connections would only make it busier.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._at = float("-inf")
        self._cpu_at = 0.0
        self._busy = True

    def busy(self, now: float) -> bool:
        """Return whether the program used most of a processor lately; True until that is known."""
        passed = now - self._at
        if passed >= _INTERVAL:
            cpu = self._sources.cpu()
            self._busy = passed > _STALE or cpu - self._cpu_at > _BUSY * passed
            self._at, self._cpu_at = now, cpu
        return self._busy
