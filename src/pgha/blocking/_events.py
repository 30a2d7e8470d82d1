"""The stream of events, for a thread."""

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
    """What ``with cluster.events() as events`` gives: an iterator that waits for the next event.

    It ends when the cluster is left, after what had happened until then, or when its ``with`` block is. A
    wait that is interrupted (Ctrl-C) may lose the event that comes at that moment.
    """

    def __init__(self, host: Host, subscribe: Callable[[], AbstractAsyncContextManager[Stream]]) -> None:
        self._host = host
        self._subscribe = subscribe
        self._subscribed = Gate()
        self._task: Task[None] = Task(self._hold)
        self._stream: Stream | None = None
        self._closed = False

    def opened(self) -> Self:
        """For `Cluster.events`."""
        self._host.check_waitable()
        self._host.begin(self._task)
        self._task.filled.then(self._subscribed.open)
        self._subscribed.wait()
        if self._stream is None:
            self._task.wait()
        return self

    async def _hold(self) -> None:
        """The subscription lives in a task of its own: whoever closes it may be another thread."""
        async with self._subscribe() as stream:
            # A clone: the end of the subscription closes the stream with what is still in it.
            self._stream = stream.clone()
            self._subscribed.open()
            try:
                await anyio.sleep_forever()
            finally:
                if self._closed:
                    # By a thread that may have looked for the stream before it was there.
                    self._stream.close()

    def close(self) -> None:
        """For `Cluster.events`. In any thread: an abandoned ``with`` block may be collected in any."""
        self._closed = True
        try:
            self._cancel()
        except BaseException:
            # An interrupt, maybe before it was asked to end: nobody else would ask it any more.
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
            # What was left when the loop ended, with nobody else to read it.
            return stream.receive_nowait()
        except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.WouldBlock):
            raise StopIteration from None
