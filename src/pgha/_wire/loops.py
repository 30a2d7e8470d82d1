"""The two waits that every operation passes, made for each loop; everything else waits through anyio.

anyio's Event and wait_readable serve both loops and cost an operation several microseconds: on asyncio
`wait_readable` registers with the selector anew each time (two system calls and a task switch), and an Event
is two objects and a coroutine around one future.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import Protocol

import anyio
import trio
from anyio.lowlevel import checkpoint
from sniffio import current_async_library_cvar

uninterrupted = trio.lowlevel.enable_ki_protection
"""Decorator: trio raises KeyboardInterrupt in whatever code runs, and between handing a segment to libpq and
recording it, it would make an answer reach the wrong caller. Inside, it waits for the main task's next
checkpoint. asyncio (3.11 and later) cancels the main task instead, and the decorator does nothing there."""


class Waiter(Protocol):
    """Something that one task waits for, once."""

    def set(self) -> None: ...
    def wait(self) -> Awaitable[object]: ...


class Loop(Protocol):
    """The event loop that a cluster lives in."""

    def waiter(self) -> Waiter:
        """For one task only."""
        ...

    async def serve(self, fd: int, on_readable: Callable[[], bool]) -> None:
        """Call ``on_readable`` whenever ``fd`` is readable, until cancelled; again at once when it says True.

        The socket must stay open until this has returned. What ``on_readable`` raises comes out here.
        """
        ...

    def soon(self, callback: Callable[[], object]) -> None:
        """From any thread: have the loop call ``callback``, which must not raise, in its own thread.

        Does nothing once the loop has ended, and never waits.
        """
        ...

    def here(self) -> bool:
        """Whether the caller runs in this loop."""
        ...


def current_loop() -> Loop:
    """For the loop of the calling task."""
    return TrioLoop() if trio.lowlevel.in_trio_run() else AsyncioLoop()


async def serve_by_anyio(fd: int, on_readable: Callable[[], bool]) -> None:
    """`Loop.serve` for any loop."""
    while True:
        await anyio.wait_readable(fd)
        while on_readable():
            await checkpoint()


class TrioLoop:
    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()

    def waiter(self) -> Waiter:
        return TrioWaiter()

    async def serve(self, fd: int, on_readable: Callable[[], bool]) -> None:
        while True:
            await trio.lowlevel.wait_readable(fd)
            while on_readable():
                await checkpoint()

    def soon(self, callback: Callable[[], object]) -> None:
        try:
            self._token.run_sync_soon(callback)
        except trio.RunFinishedError:
            pass

    def here(self) -> bool:
        return trio.lowlevel.in_trio_run() and trio.lowlevel.current_trio_token() is self._token


class TrioWaiter:
    """What `trio.Event` does, for one task; to be waited for before it can be set."""

    __slots__ = ("_task",)

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None

    def set(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    @uninterrupted
    async def wait(self) -> None:
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


class AsyncioLoop:
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        # For what runs in the loop's callbacks. Without it, what they start would inherit the context of
        # whichever thread called; and in a callback of a loop that anyio did not start (asyncio.run) there is
        # no task by which anyio knows what loop it is in, so that none could be started there.
        self._context = copy_context()
        self._context.run(current_async_library_cvar.set, "asyncio")

    def waiter(self) -> Waiter:
        return AsyncioWaiter(self._loop)

    async def serve(self, fd: int, on_readable: Callable[[], bool]) -> None:
        serving = _Serving(self._loop, on_readable)
        try:
            # A handle takes the context that it is made in.
            self._context.copy().run(self._loop.add_reader, fd, serving.ready)
        except NotImplementedError:
            # Windows' proactor loop has no readers; anyio helps itself with a thread.
            await serve_by_anyio(fd, on_readable)
            return
        try:
            await serving.end
        finally:
            self._loop.remove_reader(fd)

    def soon(self, callback: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, context=self._context)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def here(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False


class _Serving:
    """Reads in the selector's callback: the operations' tasks are woken one step sooner."""

    __slots__ = ("_loop", "_take_in", "end")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_readable: Callable[[], bool]) -> None:
        self._loop = loop
        self._take_in = on_readable
        self.end: asyncio.Future[None] = loop.create_future()

    def ready(self) -> None:
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


class AsyncioWaiter:
    """A future of one waiter's own: cancelling a task cancels the future that it waits for."""

    __slots__ = ("_future",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._future: asyncio.Future[None] = loop.create_future()

    def set(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    def wait(self) -> Awaitable[object]:
        return self._future
