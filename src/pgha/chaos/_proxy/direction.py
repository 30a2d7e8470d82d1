"""One direction of a proxied connection: what came in, and what may leave when. Pure: no clock, no socket.

Everything that comes in leaves again, in order, byte for byte. A fault only says when, in which pieces, and
where it stops:

| setting                | what leaves                                                                |
|------------------------|----------------------------------------------------------------------------|
| latency, jitter        | each piece so much after it came in, never before an earlier one           |
| bandwidth              | a piece once so many bytes had the time to be sent                         |
| drop                   | nothing, until it is healed: as lost packets, which TCP sends again        |
| chunk                  | at most so many bytes a time                                               |
| coalesce               | what came in together, once it is enough or has waited long enough         |
| close_delay            | the end of file, so much after it came in                                  |
| a cut after N bytes    | exactly N bytes of this direction, then the cut                            |

A changed setting counts for what is on its way, too: after healing nothing waits.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from pgha.chaos._errors import ChaosError

Direction: TypeAlias = Literal["up", "down"]
"""`up`: from client to server, `down`: from server to client."""
CutHow: TypeAlias = Literal["eof", "reset", "stall"]
Ending: TypeAlias = Literal["eof", "reset"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)

_TICK = 0.01
"""Seconds. With a bandwidth, at least as many bytes as fit in here leave together: else each would cost a
timer.
"""


def _seconds(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ChaosError(f"{name} is a number of seconds from 0 on, not {value!r}")


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ChaosError(f"{name} is a whole number from {least} on, not {value!r}")


@dataclass(frozen=True, slots=True)
class Wire:
    """What one direction of every connection is like; `Wire()` is a clean one. `ChaosError` for a value that
    makes no sense.
    """

    latency: float = 0.0
    """Seconds that every piece is late. Those on their way overlap: it costs no throughput."""
    jitter: float = 0.0
    """Up to so many seconds more, drawn evenly for each piece; order is kept."""
    bandwidth: float | None = None
    """Bytes a second, for each connection."""
    drop: bool = False
    """Nothing moves, ends of file and resets neither; connections stay open. When healed, all flows on."""
    chunk: int | None = None
    """At most so many bytes a packet. 1: one-byte packets. (A slow receiver may find several at once.)"""
    coalesce: tuple[int, float] | None = None
    """(bytes, seconds): hold what comes until there is so much or the oldest has waited so long, then write
    all at once.
    """
    close_delay: float = 0.0
    """Seconds that an end of file is held back; a reset is not."""

    def __post_init__(self) -> None:
        for name in ("latency", "jitter", "close_delay"):
            _seconds(name, getattr(self, name))
        if self.bandwidth is not None and not 0 < self.bandwidth < math.inf:
            raise ChaosError(f"bandwidth is a number of bytes a second above 0, not {self.bandwidth!r}")
        if self.chunk is not None:
            _whole("chunk", self.chunk, 1)
        if self.coalesce is not None:
            size, wait = self.coalesce
            _whole("coalesce's size", size, 1)
            _seconds("coalesce's wait", wait)


CLEAN = Wire()


@dataclass(frozen=True, slots=True)
class Cut:
    """Let exactly `after` bytes of a direction of a connection through, then end it.

    `how`: "eof": the connection is closed in an orderly way, to both sides at once. "reset": both sides get a
    reset (RST); the receiver has all the bytes first. "stall": the direction stands still, the connection
    stays open, the other direction goes on; healed, it flows on.

    `connection`: the number of the one that is cut, counted from 0; None: each. One that is past the offset
    already is cut at once. What the other direction has on its way at an "eof" or a "reset" is lost.
    """

    after: int
    how: CutHow
    direction: Direction
    connection: int | None = None

    def __post_init__(self) -> None:
        _whole("a cut's offset", self.after, 0)
        if self.how not in get_args(CutHow):
            raise ChaosError(f"a cut's how is one of {', '.join(get_args(CutHow))}, not {self.how!r}")
        known(self.direction)
        if self.connection is not None:
            _whole("a connection's number", self.connection, 0)

    def concerns(self, direction: Direction, connection: int) -> bool:
        return direction == self.direction and self.connection in (None, connection)


def known(direction: str) -> None:
    """`ChaosError` if there is no such direction."""
    if direction not in DIRECTIONS:
        raise ChaosError(f"a direction is one of {', '.join(DIRECTIONS)}, not {direction!r}")


class _Piece:
    """Bytes that came in together and have not left yet."""

    __slots__ = ("data", "draw", "since")

    def __init__(self, data: memoryview, since: float, draw: float) -> None:
        self.data, self.since, self.draw = data, since, draw


class ByteStream:
    """The bytes of one direction of one connection.

    Whoever drives it gives what came in to `feed`, and `end`; asks `ready` what may leave now, and `due` when
    to ask again; and says with `sent` how much left. Times are seconds of any clock that does not go back.
    """

    __slots__ = (
        "_draw", "_end", "_end_draw", "_end_since", "_free", "_held", "_held_since", "_held_size",
        "_plain", "_queue", "cut", "passed", "queued", "wire",
    )  # fmt: skip

    def __init__(self, wire: Wire, cut: Cut | None, draw: Callable[[], float]) -> None:
        """`draw`: a random number from 0 to 1, for the jitter."""
        self.passed = 0
        """Bytes that left."""
        self.queued = 0
        """Bytes that came in and did not leave yet."""
        self._draw = draw
        self._queue: deque[_Piece] = deque()
        self._held: list[bytes | memoryview] = []
        self._held_since, self._held_size = 0.0, 0
        self._end: Ending | None = None
        self._end_since, self._end_draw = 0.0, 0.0
        self._free = -math.inf  # until then, what left occupied the bandwidth
        self.configure(-math.inf, wire, cut)

    @property
    def clear(self) -> bool:
        """Whether what comes in now may leave at once, past this queue."""
        return self._plain and not self._queue

    def configure(self, now: float, wire: Wire, cut: Cut | None) -> None:
        """Other settings, from now on."""
        self.wire, self.cut = wire, cut
        self._plain = wire == CLEAN and cut is None
        self._free = max(self._free, now)  # a bandwidth counts from when it is set: no credit for before
        if wire.coalesce is None or self._held_size >= wire.coalesce[0]:
            self._release(now)

    def feed(self, now: float, data: bytes | memoryview) -> None:
        """So much came in."""
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
        """Nothing comes after it. A reset may still follow an end of file that did not leave yet."""
        self._settle(now)
        self._release(now)
        if self._end is None:
            self._end_since, self._end_draw = now, self._draw()
        if self._end != "reset":
            self._end = how

    def due(self) -> float:
        """When something may leave, or at the earliest get nearer to it; inf: never, as things are."""
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
        """What may leave now: bytes, the end that came in, or the cut that is reached. None: see `due`."""
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
            # Woken late, it makes up for that: what had the time to be sent by now.
            size = max(size, min(self._most(piece), int((now - self._start(piece)) * self.wire.bandwidth)))
        else:
            size = self._most(piece)
        return piece.data[:size]

    def sent(self, size: int) -> None:
        """The first `size` bytes of what was ready have left."""
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
        """So many bytes came in and left at once, while the line was `clear`."""
        self.passed += size

    @property
    def _reached(self) -> Cut | None:
        return self.cut if self.cut is not None and self.passed >= self.cut.after else None

    def _settle(self, now: float) -> None:
        """What was held long enough is held no more, from the moment that this was so."""
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
        """When its first byte begins to be sent."""
        late = self._late(piece.since, piece.draw)
        return late if self.wire.bandwidth is None else max(late, self._free)

    def _most(self, piece: _Piece) -> int:
        """Bytes of it that one packet can have."""
        size = len(piece.data)
        if self.wire.chunk is not None:
            size = min(size, self.wire.chunk)
        return size if self.cut is None else min(size, self.cut.after - self.passed)

    def _least(self, piece: _Piece) -> int:
        """Bytes of it that are waited for."""
        if self.wire.bandwidth is None:
            return self._most(piece)
        return min(self._most(piece), max(1, int(self.wire.bandwidth * _TICK)))
