"""The two waits of `pgha._wire.loops` on asyncio; imported when asyncio runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import copy_context

import anyio
from anyio.lowlevel import checkpoint
from sniffio import current_async_library_cvar


async def serve_by_anyio(fd: int, on_readable: Callable[[], bool]) -> None:
    """Do what `Loop.serve` does, on any loop."""
    while True:
        await anyio.wait_readable(fd)
        while on_readable():
            await checkpoint()


class AsyncioLoop:
    """The `Loop` for asyncio."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        # The context for the loop's callbacks. Without this context, tasks started by a callback would
        # inherit the context of whichever thread called. And in a callback of a loop that anyio did not start
        # (asyncio.run), anyio has no task from which to learn the kind of loop, so no task could be started.
        self._context = copy_context()
        self._context.run(current_async_library_cvar.set, "asyncio")
        self._on_rest: Callable[[], object] | None = None
        # A future for one task only, because cancelling a task cancels the future that the task awaits.
        self.waiter = self._loop.create_future

    def wake(self, waiter: asyncio.Future[None]) -> None:
        """Wake the task that awaits ``waiter``; see `Loop.wake`."""
        if not waiter.done():
            waiter.set_result(None)

    async def serve(self, fd: int, on_readable: Callable[[], bool]) -> None:
        """Call ``on_readable`` whenever ``fd`` is readable; see `Loop.serve`."""
        serving = _Serving(self._loop, on_readable)
        try:
            # A handle runs in the context in which it was made.
            self._context.copy().run(self._loop.add_reader, fd, serving.ready)
        except NotImplementedError:
            # The proactor loop of Windows has no readers; there anyio uses a thread.
            await serve_by_anyio(fd, on_readable)
            return
        try:
            await serving.end
        finally:
            self._loop.remove_reader(fd)

    async def serve_rests(self, on_rest: Callable[[], object]) -> None:
        """Call ``on_rest`` after each `rest`; see `Loop.serve_rests`."""
        self._on_rest = on_rest
        try:
            await anyio.sleep_forever()
        finally:
            self._on_rest = None

    def rest(self) -> bool:
        """Have ``on_rest`` called soon; see `Loop.rest`."""
        if self._on_rest is None:
            return False
        self._loop.call_soon(self._on_rest, context=self._context)
        return True

    def soon(self, callback: Callable[[], object]) -> None:
        """Have the loop call ``callback``; see `Loop.soon`."""
        try:
            self._loop.call_soon_threadsafe(callback, context=self._context)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def here(self) -> bool:
        """Return whether the caller runs in this loop."""
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False


class _Serving:
    """Reads in the selector's callback, so that the operations' tasks are woken one step sooner."""

    __slots__ = ("_loop", "_take_in", "end")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_readable: Callable[[], bool]) -> None:
        self._loop = loop
        self._take_in = on_readable
        self.end: asyncio.Future[None] = loop.create_future()

    def ready(self) -> None:
        """Handle that the descriptor is readable."""
        if self.end.done():
            return
        try:
            if self._take_in():
                self._loop.call_soon(self.ready)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - passed on to the task that serves
            if not self.end.done():
                self.end.set_exception(error)
