"""One heap of timers per cluster: a cancel scope per operation would halve the throughput (measured)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeAlias

import anyio

from pgha._core.queues import Timer, TimerHeap
from pgha._wire.interrupts import uninterrupted

logger = logging.getLogger("pgha.operation")

Moment: TypeAlias = Timer[Callable[[], None]]
"""A timer that was set; needed for cancelling it."""


def _perform(call: Callable[[], None]) -> None:
    call()


class Timers:
    """Calls functions at given times, all in one task; each call is an act of its own (`pgha._core.door`)."""

    def __init__(
        self, clock: Callable[[], float], enter: Callable[[Callable[[Any], object], Any], None]
    ) -> None:
        self._clock = clock
        self._enter = enter
        self._timers: TimerHeap[Callable[[], None]] = TimerHeap()
        self._sleep: anyio.CancelScope | None = None
        self._wakes_at = float("inf")

    def at(self, when: float, call: Callable[[], None]) -> Moment:
        """Call ``call`` at ``when``, unless the returned timer is cancelled before."""
        timer = self._timers.add(when, call)
        if when < self._wakes_at and self._sleep is not None:
            self._sleep.cancel()
        return timer

    def cancel(self, moment: Moment) -> None:
        """Cancel a timer; do nothing if it is no longer pending."""
        self._timers.cancel(moment)

    @uninterrupted
    async def run(self) -> None:
        """Call what is due, until cancelled."""
        while True:
            for call in self._timers.due(self._clock()):
                try:
                    self._enter(_perform, call)
                except Exception:
                    # A defect in the timer of one operation must not stop the timers of all others.
                    logger.exception("a timer failed by a defect")
            when = self._timers.next()
            with anyio.CancelScope() as self._sleep:
                if when is None:
                    self._wakes_at = float("inf")
                    await anyio.sleep_forever()
                else:
                    self._wakes_at = when
                    await anyio.sleep(max(0.0, when - self._clock()))
            self._sleep = None
