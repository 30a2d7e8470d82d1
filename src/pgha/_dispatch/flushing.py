"""Writing: what lanes were handed is written once the acts are done, with one system call for each lane.

A lane whose server has enough to do may be written a moment later, together with what the tasks send that are
about to run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pgha._node.lane import Lane
from pgha._wire.interrupts import uninterrupted
from pgha._wire.loops import Loop


class Flushing:
    """Flushes the lanes that were handed something; see the head of this file."""

    def __init__(self, loop: Loop, enter: Callable[[Callable[[Any], object], Any], None]) -> None:
        self._loop = loop
        self._enter = enter
        self.lanes: list[Lane] = []
        """The lanes that have something to be written."""
        self._later: list[Lane] = []
        """The lanes that are written at the next `rest`."""
        self._rests = False
        """Whether `rest` is about to be called."""

    def flush(self, *, later: bool = True) -> None:
        """Write what the lanes were handed, now or with ``later`` perhaps once other tasks have run."""
        lanes = self.lanes
        lanes += self._later
        self._later.clear()
        while lanes:
            # One by one: an interrupt in one of them must keep none from being written.
            lane = lanes[-1]
            if later and lane.may_flush_later() and (self._rests or self._loop.rest()):
                self._rests = True
                self._later.append(lane)
            else:
                lane.flush()
            lanes.remove(lane)

    def overdue(self) -> None:
        """Write what was to be written later; for a tick, long after it was due.

        Something interrupted the `rest`, before it began or in the middle of it.
        """
        self._rests = False
        if self._later:
            self.flush(later=False)

    @uninterrupted
    def rest(self) -> None:
        """Write what was to be written later; called by the loop."""
        self._rests = False
        self._enter(self._rest, None)

    def _rest(self, _: None) -> None:
        self.flush(later=False)
