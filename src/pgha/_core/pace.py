"""The time for which a statement keeps its lane busy, learned from its answers; used to choose a lane.

Many quick statements are best packed onto one lane: their answers arrive together, and one wake-up handles
them all (measured with 10 tasks: 10 to 15 % more throughput than spread over two lanes). A slow statement
holds up everything behind it, so it is sent on the lane with the fewest operations in flight. A statement
without a measurement counts as slow.
"""

from __future__ import annotations

QUICK = 0.0002
"""Seconds of a lane's time below which a statement is packed."""
WEIGHT = 0.2
"""Weight of the newest sample in the smoothed time."""
UNKNOWN = 0.00025
"""Seconds that are expected of a statement without a measurement."""
WINDOW = 8
"""Number of samples after which the least time is that of these samples."""


class Pace:
    """The time for which one statement's text keeps a lane busy."""

    __slots__ = ("_count", "_last", "_least", "expected", "seconds")

    def __init__(self) -> None:
        self.seconds = float("inf")
        """The smoothed time, by which statements are packed."""
        self.expected = UNKNOWN
        """The seconds that the statement certainly needs: the least time of the last samples. Each sample
        holds the delays of the client's own event loop, too, and so is too high."""
        self._least = float("inf")
        self._last = -1.0
        self._count = 0

    @property
    def quick(self) -> bool:
        """Whether the statement is quick enough to be packed."""
        return self.seconds < QUICK

    def took(self, sample: float) -> None:
        """Record that the statement was answered after ``sample`` seconds at the head of its lane."""
        if self.seconds == float("inf"):
            self.seconds = self.expected = sample
            return
        self.seconds += WEIGHT * (sample - self.seconds)
        if sample == self._last:
            return  # answers that came together share their time: that is one measurement
        self._last = sample
        if sample < self._least:
            self._least = sample
            if sample < self.expected:
                self.expected = sample
        self._count += 1
        if self._count >= WINDOW:
            self._count = 0
            self.expected, self._least = self._least, float("inf")


class Paces:
    """The paces by statement text; at most ``limit``, after which all are forgotten and learned again."""

    __slots__ = ("_limit", "_paces")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._paces: dict[bytes, Pace] = {}

    def of(self, text: bytes) -> Pace:
        """Return the pace of ``text``, a new one if there is none."""
        pace = self._paces.get(text)
        if pace is None:
            if len(self._paces) >= self._limit:
                self._paces.clear()
            pace = self._paces[text] = Pace()
        return pace
