"""The streams of events. Every subscriber has a bounded buffer; the cluster never waits for a subscriber."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from pgha._types import Event

if TYPE_CHECKING:
    # Few programs listen: anyio imports its streams when the first of them is made.
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream


class EventHub:
    """Passes events on to all subscribers; counts the events that a full buffer did not take."""

    def __init__(self) -> None:
        self._streams: set[MemoryObjectSendStream[Event]] = set()
        self.dropped = 0

    @property
    def has_subscribers(self) -> bool:
        """Whether there is a subscriber; without one, events need not be made."""
        return bool(self._streams)

    def emit(self, event: Event) -> None:
        """Pass an event on, without waiting."""
        for stream in tuple(self._streams):
            try:
                stream.send_nowait(event)
            except anyio.WouldBlock:
                self.dropped += 1
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                self._streams.discard(stream)

    @asynccontextmanager
    async def subscribe(self, buffer: float) -> AsyncGenerator[MemoryObjectReceiveStream[Event], None]:
        """Give a stream of the events from now on, of which ``buffer`` are kept; all, if it is negative."""
        send, receive = anyio.create_memory_object_stream[Event](math.inf if buffer < 0 else buffer)
        self._streams.add(send)
        try:
            with receive:
                yield receive
        finally:
            self._streams.discard(send)
            send.close()

    def close(self) -> None:
        """End every stream; its reader sees the end of the stream."""
        for stream in tuple(self._streams):
            stream.close()
        self._streams.clear()
