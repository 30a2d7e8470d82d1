"""One direction of a proxied connection: which bytes may leave, and when. Pure: no clock, no socket.

All bytes that come in leave again, in order and unchanged. A fault only decides when, in which pieces, and
where the bytes stop:

| setting                | what leaves                                                                |
|------------------------|----------------------------------------------------------------------------|
| latency, jitter        | each piece, so long after it came in, never before an earlier one          |
| bandwidth              | a piece, once its bytes had the time to be sent                            |
| drop                   | nothing, until it is healed: like lost packets, which TCP sends again      |
| chunk                  | at most so many bytes at a time                                            |
| coalesce               | several pieces together, once they are enough or have waited long enough   |
| close_delay            | the end of file, so long after it came in                                  |
| a cut after N bytes    | exactly N bytes of this direction, then the cut                            |

A changed setting also affects bytes that are on their way: after healing, nothing waits.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from pgha.chaos._errors import ChaosError

Direction: TypeAlias = Literal["up", "down"]
"""A direction of a connection: `up` is from client to server, `down` from server to client."""
CutHow: TypeAlias = Literal["eof", "reset", "stall"]
"""The effect of a cut: `eof` closes the connection in an orderly way, `reset` resets it, `stall` stops one
direction.
"""
Ending: TypeAlias = Literal["eof", "reset"]
"""The end of one direction."""
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)

_TICK = 0.01
"""Seconds. With a bandwidth, at least as many bytes as fit in this time leave together: otherwise each byte
would cost a timer.
"""


def _seconds(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ChaosError(f"{name} must be a finite number of seconds, at least 0, not {value!r}")


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ChaosError(f"{name} must be a whole number, at least {least}, not {value!r}")


@dataclass(frozen=True, slots=True)
class Wire:
    """The settings of one direction of every connection; `Wire()` is a clean one.

    Invalid values are a `ChaosError`.

    Example::

        proxy.set(down=Wire(latency=0.2, jitter=0.1), up=Wire(chunk=1))
    """

    latency: float = 0.0
    """Seconds that every piece is delayed. Delayed pieces overlap, so latency costs no throughput."""
    jitter: float = 0.0
    """The largest additional delay in seconds, drawn uniformly for each piece; the order is kept."""
    bandwidth: float | None = None
    """Bytes per second, per connection; None: no limit."""
    drop: bool = False
    """Whether nothing passes, not even ends of file and resets; connections stay open. After healing,
    everything passes.
    """
    chunk: int | None = None
    """Bytes per packet at most; 1 gives one-byte packets. A slow receiver may read several packets at once.
    None: no limit.
    """
    coalesce: tuple[int, float] | None = None
    """(bytes, seconds): hold bytes back until there are so many, or until the oldest has waited so long, then
    write all at once. None: nothing is held back.
    """
    close_delay: float = 0.0
    """Seconds that an end of file is delayed; a reset is not."""

    def __post_init__(self) -> None:
        for name in ("latency", "jitter", "close_delay"):
            _seconds(name, getattr(self, name))
        if self.bandwidth is not None and not 0 < self.bandwidth < math.inf:
            raise ChaosError(
                f"bandwidth must be a finite number of bytes per second, above 0, not {self.bandwidth!r}"
            )
        if self.chunk is not None:
            _whole("chunk", self.chunk, 1)
        if self.coalesce is not None:
            size, wait = self.coalesce
            _whole("coalesce's size", size, 1)
            _seconds("coalesce's wait", wait)


CLEAN = Wire()
"""The settings without any fault."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A cut: exactly `after` bytes of one direction of a connection pass, then the connection ends or stalls.

    A connection that has passed the offset already is cut at once. With `eof` and `reset`, bytes of the other
    direction that are on their way are lost. Invalid values are a `ChaosError`.

    Example::

        proxy.cut(Cut(100, "reset", "down"))
    """

    after: int
    """The number of bytes that pass."""
    how: CutHow
    """``eof``: both sides of the connection are closed at once, in an orderly way. ``reset``: both sides get
    a reset (RST), after the receiver has all the bytes. ``stall``: nothing more passes in this direction, the
    connection stays open, and the other direction goes on; after healing, the direction goes on too.
    """
    direction: Direction
    """The direction whose bytes are counted."""
    connection: int | None = None
    """The number of the connection to cut, counted from 0; None: every connection."""

    def __post_init__(self) -> None:
        _whole("a cut's offset", self.after, 0)
        if self.how not in get_args(CutHow):
            raise ChaosError(f"a cut's how must be one of {', '.join(get_args(CutHow))}, not {self.how!r}")
        known(self.direction)
        if self.connection is not None:
            _whole("a connection's number", self.connection, 0)

    def concerns(self, direction: Direction, connection: int) -> bool:
        """Return whether the cut applies to a connection.

        Args:
            direction: The direction of the connection.
            connection: The number of the connection.

        Returns:
            Whether the cut applies.
        """
        return direction == self.direction and self.connection in (None, connection)


def known(direction: str) -> None:
    """Raise `ChaosError` for an unknown direction."""
    if direction not in DIRECTIONS:
        raise ChaosError(f"a direction must be one of {', '.join(DIRECTIONS)}, not {direction!r}")


class _Piece:
    """Bytes that came in together and have not left yet."""

    __slots__ = ("data", "draw", "since")

    def __init__(self, data: memoryview, since: float, draw: float) -> None:
        self.data, self.since, self.draw = data, since, draw


class ByteStream:
    """The bytes of one direction of one connection.

    The driver passes bytes that came in to `feed`, and calls `end`. `ready` returns what may leave now, and
    `due` when to ask again. The driver reports with `sent` how many bytes left. Times are seconds of any
    clock that does not go back.
    """

    __slots__ = (
        "_draw", "_end", "_end_draw", "_end_since", "_free", "_held", "_held_since", "_held_size",
        "_plain", "_queue", "cut", "passed", "queued", "wire",
    )  # fmt: skip

    def __init__(self, wire: Wire, cut: Cut | None, draw: Callable[[], float]) -> None:
        """Make the stream; `draw` returns a random number from 0 to 1, for the jitter."""
        self.passed = 0
        """The number of bytes that left."""
        self.queued = 0
        """The number of bytes that came in and have not left yet."""
        self._draw = draw
        self._queue: deque[_Piece] = deque()
        self._held: list[bytes | memoryview] = []
        self._held_since, self._held_size = 0.0, 0
        self._end: Ending | None = None
        self._end_since, self._end_draw = 0.0, 0.0
        self._free = -math.inf  # the time until which the bytes that left occupy the bandwidth
        self.configure(-math.inf, wire, cut)

    @property
    def clear(self) -> bool:
        """Whether bytes that come in now may leave at once, without entering the queue."""
        return self._plain and not self._queue

    def configure(self, now: float, wire: Wire, cut: Cut | None) -> None:
        """Change the settings, from now on."""
        self.wire, self.cut = wire, cut
        self._plain = wire == CLEAN and cut is None
        # A bandwidth counts from its setting on, without credit for earlier time.
        self._free = max(self._free, now)
        if wire.coalesce is None or self._held_size >= wire.coalesce[0]:
            self._release(now)

    def feed(self, now: float, data: bytes | memoryview) -> None:
        """Take in bytes."""
        self.queued += len(data)
        if self.wire.coalesce is None:
            self._queue.append(_Piece(memoryview(data), now, self._draw()))
            return
        self._settle(now)
        if not self._held:
            self._held_since = now
        self._held.append(data)
        self._held_size += len(data)
        if self._held_size >= self.wire.coalesce[0]:
            self._release(now)

    def end(self, now: float, how: Ending) -> None:
        """Take in the end of the direction. A reset may still follow an end of file that has not left yet."""
        self._settle(now)
        self._release(now)
        if self._end is None:
            self._end_since, self._end_draw = now, self._draw()
        if self._end != "reset":
            self._end = how

    def due(self) -> float:
        """Return the time when something may leave, or gets closer to leaving.

        inf means: never, with these settings.
        """
        if (cut := self._reached) is not None:
            return math.inf if cut.how == "stall" else -math.inf
        if self.wire.drop:
            return math.inf
        if self._queue:
            size = self._least(self._queue[0])
            return self._start(self._queue[0]) + (size / self.wire.bandwidth if self.wire.bandwidth else 0.0)
        if self._held and self.wire.coalesce is not None:
            return self._held_since + self.wire.coalesce[1]
        if self._end is None:
            return math.inf
        delay = self.wire.close_delay if self._end == "eof" else 0.0
        return self._late(self._end_since, self._end_draw) + delay

    def ready(self, now: float) -> memoryview | Ending | Cut | None:
        """Return what may leave now: bytes, the end, or the cut that is reached. None: `due` says when."""
        self._settle(now)
        if self.due() > now:
            return None
        if (cut := self._reached) is not None:
            return cut
        if not self._queue:
            return self._end
        piece = self._queue[0]
        size = self._least(piece)
        if self.wire.bandwidth is not None:
            # The driver may be woken late: all bytes that had the time to be sent by now may leave.
            size = max(size, min(self._most(piece), int((now - self._start(piece)) * self.wire.bandwidth)))
        else:
            size = self._most(piece)
        return piece.data[:size]

    def sent(self, size: int) -> None:
        """Record that the first `size` bytes of what was ready have left."""
        piece = self._queue[0]
        if self.wire.bandwidth is not None:
            self._free = self._start(piece) + size / self.wire.bandwidth
        self.passed += size
        self.queued -= size
        if size == len(piece.data):
            self._queue.popleft()
        else:
            piece.data = piece.data[size:]

    def went_past(self, size: int) -> None:
        """Record that `size` bytes came in and left at once, while the stream was `clear`."""
        self.passed += size

    @property
    def _reached(self) -> Cut | None:
        return self.cut if self.cut is not None and self.passed >= self.cut.after else None

    def _settle(self, now: float) -> None:
        """Release bytes that were held back long enough, as of the moment when that was so."""
        if self._held and self.wire.coalesce is not None:
            until = self._held_since + self.wire.coalesce[1]
            if until <= now:
                self._release(until)

    def _release(self, since: float) -> None:
        if self._held:
            self._queue.append(_Piece(memoryview(b"".join(self._held)), since, self._draw()))
            self._held, self._held_size = [], 0

    def _late(self, since: float, draw: float) -> float:
        return since + self.wire.latency + draw * self.wire.jitter

    def _start(self, piece: _Piece) -> float:
        """Return the time when the first byte of a piece begins to be sent."""
        late = self._late(piece.since, piece.draw)
        return late if self.wire.bandwidth is None else max(late, self._free)

    def _most(self, piece: _Piece) -> int:
        """Return how many bytes of a piece one packet can carry."""
        size = len(piece.data)
        if self.wire.chunk is not None:
            size = min(size, self.wire.chunk)
        return size if self.cut is None else min(size, self.cut.after - self.passed)

    def _least(self, piece: _Piece) -> int:
        """Return how many bytes of a piece must be ready before any leaves."""
        if self.wire.bandwidth is None:
            return self._most(piece)
        return min(self._most(piece), max(1, int(self.wire.bandwidth * _TICK)))
