"""`Events`: the cluster's events, for a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Self, TypeAlias, final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from pgha._errors import ClusterClosed
from pgha._types import Event
from pgha.blocking._gate import Gate
from pgha.blocking._host import Host
from pgha.blocking._replies import Task

Stream: TypeAlias = MemoryObjectReceiveStream[Event]


@final
class Events(Iterator[Event]):
    """An iterator over the cluster's events that waits for the next one; made by `Cluster.events`.

    The iterator ends when its ``with`` block is left. When the cluster is closed, the iterator ends after the
    events until then. An interrupt (KeyboardInterrupt) of a wait may lose the event that arrives at that
    moment.

    Example::

        with cluster.events() as events:
            for event in events:
                print(event)
    """

    def __init__(self, host: Host, subscribe: Callable[[], AbstractAsyncContextManager[Stream]]) -> None:
        self._host = host
        self._subscribe = subscribe
        self._subscribed = Gate()
        self._task: Task[None] = Task(self._hold)
        self._stream: Stream | None = None
        self._closed = False

    def opened(self) -> Self:
        """Internal: subscribe, for `Cluster.events`; an interrupt ends the subscription."""
        self._host.check_waitable()
        self._host.begin(self._task)
        self._task.filled.then(self._subscribed.open)
        self._subscribed.wait()
        if self._stream is None:
            self._task.wait()
        return self

    async def _hold(self) -> None:
        """Hold the subscription in a task of its own: another thread may close it."""
        async with self._subscribe() as stream:
            # A clone: the end of the subscription closes the original stream, and would drop its events.
            self._stream = stream.clone()
            self._subscribed.open()
            try:
                await anyio.sleep_forever()
            finally:
                if self._closed:
                    # The closing thread may have looked for the stream before it existed.
                    self._stream.close()

    def close(self) -> None:
        """Internal: unsubscribe, for `Cluster.events`.

        May be called in any thread, because an abandoned ``with`` block may be garbage-collected in any
        thread.
        """
        self._closed = True
        try:
            self._cancel()
        except BaseException:
            # An interrupt may have come before the request to end was posted: post it again.
            self._host.cancel(self._task)
            raise
        stream = self._stream
        if stream is not None:
            if self._host.forked:
                stream.close()
            else:
                self._host.ask(stream.close)

    def _cancel(self) -> None:
        self._host.cancel(self._task)
        if self._stream is not None and not self._host.here and not self._host.forked:
            self._task.filled.wait()

    def __next__(self) -> Event:
        stream = self._stream
        if stream is None:
            raise StopIteration
        try:
            return self._host.run(stream.receive)
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            raise StopIteration from None
        except ClusterClosed:
            if self._host.forked:
                raise
        try:
            # The loop has ended, so this thread is the only reader of the remaining events.
            return stream.receive_nowait()
        except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.WouldBlock):
            raise StopIteration from None
