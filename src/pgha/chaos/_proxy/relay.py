"""A proxied connection: a `ByteStream` in each direction, driven over raw sockets.

Each direction has a reader, which takes bytes in, and a writer, which waits until the stream lets bytes out.
While no fault is set, the reader writes by itself: one system call in, one out, no queue, no timer.
"""

from __future__ import annotations

import math
import random
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import anyio
import anyio.lowlevel

from pgha.chaos._errors import ChaosError
from pgha.chaos._proxy import sockets as sockets
from pgha.chaos._proxy.direction import CLEAN, ByteStream, Cut, Direction, Ending, Wire

_PIECE = 1 << 16
_LIMIT = 1 << 20
"""Bytes of one direction that are held at most. Then the sender waits, as with any slow receiver."""
_TURNS = 16


@dataclass(slots=True)
class Terms:
    """The settings of all connections of a proxy."""

    up: Wire = CLEAN
    down: Wire = CLEAN
    cut: Cut | None = None
    mute: bool = False
    first: int = 0
    """The number of connections accepted before counting began."""

    def wire(self, direction: Direction) -> Wire:
        """Return the settings of a direction."""
        return self.up if direction == "up" else self.down

    @property
    def reachable(self) -> bool:
        """Whether a new connection reaches the server: that takes packets in both directions."""
        return not (self.mute or self.up.drop or self.down.drop)


class Pause:
    """A wait of one task that other tasks can end."""

    __slots__ = ("_scope", "until")

    def __init__(self) -> None:
        self._scope: anyio.CancelScope | None = None
        self.until = -math.inf
        """The time when the wait ends by itself; in the past while no task waits."""

    def end(self) -> None:
        """End the wait, if a task is waiting."""
        # A task that does not wait right now is running, or about to run, and looks at everything again.
        if self._scope is not None:
            self._scope.cancel()

    async def wait(self, until: float = math.inf) -> None:
        """Wait until another task calls `end`, or until this time of the loop's clock."""
        self.until = until
        with self._within(until):
            await anyio.sleep_forever()

    async def writable(self, sock: socket.socket) -> None:
        """Wait until the socket can be written to, or until another task calls `end`."""
        with self._within(math.inf):
            await sockets.writable(sock)

    @contextmanager
    def _within(self, until: float) -> Iterator[None]:
        try:
            with anyio.CancelScope(deadline=until) as self._scope:
                yield
        finally:
            self._scope, self.until = None, -math.inf


class Flow:
    """One direction of a connection: from `source` to `sink`, through `line`."""

    def __init__(self, link: Link, source: socket.socket, sink: socket.socket, line: ByteStream) -> None:
        self.line = line
        self.done = False  # True once the end has left, or the sink is gone
        self._link, self._source, self._sink = link, source, sink
        self._room, self._turn = Pause(), Pause()

    def wake(self) -> None:
        """Wake the writer: something has changed."""
        self._turn.end()

    def end(self, how: Ending) -> None:
        """Record that the source sends nothing more."""
        self.line.end(anyio.current_time(), how)
        self.wake()

    async def read(self) -> None:
        """Take in what the source sends until it ends, while there is room."""
        turns = 0
        while not self.done:
            if self.line.queued >= _LIMIT:
                await self._room.wait()
                continue
            try:
                data = self._source.recv(_PIECE)
            except BlockingIOError:
                await sockets.readable(self._source)
                continue
            except OSError:
                return self.end("reset")
            if not data:
                return self.end("eof")
            self._take(data)
            turns += 1
            if len(data) < _PIECE:  # nothing more has arrived: another recv would only fail
                await sockets.readable(self._source)
            elif turns % _TURNS == 0:
                await anyio.lowlevel.checkpoint()
        return None

    def _take(self, data: bytes) -> None:
        rest: bytes | memoryview = data
        if self.line.clear:
            try:
                size = self._sink.send(data)
            except BlockingIOError:
                size = 0
            except OSError:
                return self._lost()
            self.line.went_past(size)
            if size == len(data):
                return None
            rest = memoryview(data)[size:]
        self.line.feed(anyio.current_time(), rest)
        if self.line.due() < self._turn.until:
            self.wake()
        return None

    async def write(self) -> None:
        """Write what the stream lets out, until the end."""
        while not self.done:
            ready = self.line.ready(anyio.current_time())
            match ready:
                case memoryview():
                    await self._send(ready)
                case None:
                    await self._turn.wait(self.line.due())
                case "eof":
                    sockets.finish(self._sink)
                    self.done = True
                case "reset" | Cut(how="reset"):
                    await sockets.delivered(self._sink)
                    return self._link.reset()
                case _:
                    return self._link.finish()
        return None

    async def _send(self, data: memoryview) -> None:
        try:
            size = self._sink.send(data)
        except BlockingIOError:
            return await self._turn.writable(self._sink)
        except OSError:
            return self._lost()
        self.line.sent(size)
        if self.line.queued < _LIMIT:
            self._room.end()
        return await anyio.lowlevel.checkpoint()  # so that a receiver in this loop sees each packet alone

    def _lost(self) -> None:
        """Report that the sink was reset: the reset is passed on in the other direction."""
        self.done = True
        self._room.end()
        self._turn.end()
        self._link.lost(self)


class Link:
    """One connection, from the moment when it was accepted."""

    def __init__(
        self,
        number: int,
        client: socket.socket,
        terms: Terms,
        connect: Callable[[], Awaitable[socket.socket]],
        seed: int,
    ) -> None:
        self._number, self._terms, self._connect = number, terms, connect
        self._sockets = [client]
        self._state: Literal["open", "closing", "gone"] = "open"
        self._pause = Pause()
        self._scope = anyio.CancelScope()
        self._flows: list[Flow] = []
        self._lines: dict[Direction, ByteStream] = {}
        for direction in ("up", "down"):
            draw = random.Random(f"{seed} {number} {direction}").random
            self._lines[direction] = ByteStream(*self._settings(direction), draw)

    def _settings(self, direction: Direction) -> tuple[Wire, Cut | None]:
        cut = self._terms.cut
        concerned = cut is not None and cut.concerns(direction, self.number)
        return self._terms.wire(direction), cut if concerned else None

    @property
    def number(self) -> int:
        """The number, counted from 0; negative if the connection was accepted before counting began."""
        return self._number - self._terms.first

    @property
    def living(self) -> bool:
        return self._state == "open"

    def passed(self, direction: Direction) -> int:
        """Return how many bytes of a direction were relayed."""
        return self._lines[direction].passed

    def apply(self) -> None:
        """Apply changed terms."""
        now = anyio.current_time()
        for direction, line in self._lines.items():
            line.configure(now, *self._settings(direction))
        self._pause.end()
        for flow in self._flows:
            flow.wake()

    async def run(self) -> None:
        """Relay until the connection ends: by itself, by `finish` or `reset`, or by cancellation."""
        try:
            with self._scope:
                await self._relay()
            if self._state == "closing":
                async with anyio.create_task_group() as group:
                    for sock in self._sockets:
                        sockets.finish(sock)  # again: the server's socket may not have been there yet
                        group.start_soon(sockets.drained, sock)
        finally:
            self.close()

    async def _relay(self) -> None:
        while not self._terms.reachable:
            await self._pause.wait()
        try:
            self._sockets.append(await self._connect())
        except (OSError, ChaosError):
            return self.reset()  # for an accepted connection, the closest thing to "connection refused"
        client, server = self._sockets
        up, down = self._lines["up"], self._lines["down"]
        self._flows = [Flow(self, client, server, up), Flow(self, server, client, down)]
        async with anyio.create_task_group() as group:
            for flow in self._flows:
                group.start_soon(flow.read)
                group.start_soon(flow.write)
        return None

    def lost(self, flow: Flow) -> None:
        """Handle the reset of the socket that `flow` writes to."""
        (other,) = (one for one in self._flows if one is not flow)
        if other.done:
            self.reset()
        else:
            other.end("reset")

    def finish(self) -> None:
        """Send an end of file to both sides, now; bytes that are still on their way are lost.

        Bytes that the sides still send are read and discarded, until they have closed their ends too.
        """
        if self._state == "open":
            self._state = "closing"
            for sock in self._sockets:
                sockets.finish(sock)
            self._scope.cancel()

    def reset(self) -> None:
        """Send a reset to both sides, now."""
        self._end(sockets.reset)

    def close(self) -> None:
        """Close both sockets; nothing is left of the connection."""
        self._end(sockets.close)

    def _end(self, how: Callable[[socket.socket], None]) -> None:
        self._state = "gone"
        for sock in self._sockets:
            how(sock)
        self._scope.cancel()
