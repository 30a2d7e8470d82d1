"""The stream of events: every subscriber has its own bounded buffer, and the cluster never waits for one."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from pgha._types import Event


class EventHub:
    """Passes events on to whoever listens; what a full buffer does not take is counted."""

    def __init__(self) -> None:
        self._streams: set[MemoryObjectSendStream[Event]] = set()
        self.dropped = 0

    @property
    def wanted(self) -> bool:
        """Whether anybody listens: spares making events for nobody."""
        return bool(self._streams)

    def emit(self, event: Event) -> None:
        for stream in tuple(self._streams):
            try:
                stream.send_nowait(event)
            except anyio.WouldBlock:
                self.dropped += 1
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                self._streams.discard(stream)

    @asynccontextmanager
    async def subscribe(self, buffer: float) -> AsyncGenerator[MemoryObjectReceiveStream[Event], None]:
        send, receive = anyio.create_memory_object_stream[Event](math.inf if buffer < 0 else buffer)
        self._streams.add(send)
        try:
            with receive:
                yield receive
        finally:
            self._streams.discard(send)
            send.close()

    def close(self) -> None:
        """End every stream: its reader sees the end."""
        for stream in tuple(self._streams):
            stream.close()
        self._streams.clear()
