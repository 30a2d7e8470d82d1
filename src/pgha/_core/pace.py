"""How long a statement keeps its lane busy, learned from its answers; decides which lane it is put on.

Many quick statements are best packed onto one lane: their answers arrive together, and one wake-up handles
them all (measured with 10 tasks: 10 to 15 % more throughput than spread over two lanes). A slow one holds up
whatever is behind it, so it goes where the least is in flight. What is not known yet counts as slow.
"""

from __future__ import annotations

QUICK = 0.0002
"""Seconds of a lane's time below which a statement is packed."""
WEIGHT = 0.2
"""Of the newest sample."""


class Pace:
    """Of one statement's text."""

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds = float("inf")

    @property
    def quick(self) -> bool:
        return self.seconds < QUICK

    def took(self, sample: float) -> None:
        """It was answered after ``sample`` seconds at the head of its lane."""
        if self.seconds == float("inf"):
            self.seconds = sample
        else:
            self.seconds += WEIGHT * (sample - self.seconds)


class Paces:
    """By text, bounded: when full, all begin to learn anew."""

    __slots__ = ("_limit", "_paces")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._paces: dict[bytes, Pace] = {}

    def of(self, text: bytes) -> Pace:
        pace = self._paces.get(text)
        if pace is None:
            if len(self._paces) >= self._limit:
                self._paces.clear()
            pace = self._paces[text] = Pace()
        return pace
