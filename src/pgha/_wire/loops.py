"""The two waits of every operation, written for each event loop; everything else waits through anyio.

anyio's Event and wait_readable serve both loops, but cost several microseconds per operation: on asyncio
`wait_readable` registers with the selector anew each time (two system calls and a task switch), and an Event
is two objects and a coroutine around one future.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from sniffio import current_async_library


class Waiter(Awaitable[object], Protocol):
    """Something that one task awaits, once, until `Loop.wake` is called."""


class Loop(Protocol):
    """The event loop in which a cluster runs."""

    @property
    def waiter(self) -> Callable[[], Waiter]:
        """Makes a new waiter, for one task only."""
        ...

    def wake(self, waiter: Any) -> None:
        """Wake the task that awaits ``waiter``; does nothing if that task has left."""
        ...

    async def serve(self, fd: int, on_readable: Callable[[], bool]) -> None:
        """Call ``on_readable`` whenever ``fd`` is readable, until cancelled.

        If ``on_readable`` returns True, it is called again at once. An exception of ``on_readable`` is raised
        from here. The socket must stay open until this method has returned.
        """
        ...

    async def serve_rests(self, on_rest: Callable[[], object]) -> None:
        """Call ``on_rest`` after each `rest`, until cancelled."""
        ...

    def rest(self) -> bool:
        """Have ``on_rest`` called once the tasks that can run now have run.

        Return False if nobody serves rests.
        """
        ...

    def soon(self, callback: Callable[[], object]) -> None:
        """Have the loop call ``callback`` in the loop's own thread; may be called from any thread.

        ``callback`` must not raise. This method never waits, and does nothing once the loop has ended.
        """
        ...

    def here(self) -> bool:
        """Return whether the caller runs in this loop."""
        ...


def current_loop() -> Loop:
    """Return the loop of the calling task; only that loop's package is imported."""
    if current_async_library() == "trio":
        from pgha._wire.trio_loop import TrioLoop

        return TrioLoop()
    from pgha._wire.asyncio_loop import AsyncioLoop

    return AsyncioLoop()
