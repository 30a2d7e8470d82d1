"""The two waits of `pgha._wire.loops` on trio; imported when trio runs."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import trio
from anyio.lowlevel import checkpoint

from pgha._wire.interrupts import protect_uninterrupted

protect_uninterrupted(trio.lowlevel.enable_ki_protection)


class TrioLoop:
    """The `Loop` for trio."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._resting: trio.lowlevel.Task | None = None
        self.waiter = TrioWaiter

    def wake(self, waiter: TrioWaiter) -> None:
        """Wake the task that awaits ``waiter``; see `Loop.wake`."""
        waits = waiter.waits
        if waits and getattr(waits[0].coro, "cr_running", False):
            # A finalizer, or a handler of a signal, wakes the task that it runs in, just before that waits.
            self._token.run_sync_soon(self.wake, waiter)
            return
        try:
            task = waits.pop()
        except IndexError:
            waiter.woken = True
        else:
            trio.lowlevel.reschedule(task)

    async def serve(self, fd: int, on_readable: Callable[[], bool]) -> None:
        """Call ``on_readable`` whenever ``fd`` is readable; see `Loop.serve`."""
        while True:
            await trio.lowlevel.wait_readable(fd)
            while on_readable():
                await checkpoint()

    async def serve_rests(self, on_rest: Callable[[], object]) -> None:
        """Call ``on_rest`` after each `rest`; see `Loop.serve_rests`."""
        while True:
            self._resting = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort_rest)
            on_rest()

    def _abort_rest(self, raise_cancel: object) -> trio.lowlevel.Abort:
        self._resting = None
        return trio.lowlevel.Abort.SUCCEEDED

    def rest(self) -> bool:
        """Have ``on_rest`` called soon; see `Loop.rest`.

        trio runs the tasks that can run now as one batch. The task that is woken here runs in the next one.
        """
        task, self._resting = self._resting, None
        if task is None:
            return False
        trio.lowlevel.reschedule(task)
        return True

    def soon(self, callback: Callable[[], object]) -> None:
        """Have the loop call ``callback``; see `Loop.soon`."""
        try:
            self._token.run_sync_soon(callback)
        except trio.RunFinishedError:
            pass

    def here(self) -> bool:
        """Return whether the caller runs in this loop."""
        return trio.lowlevel.in_trio_run() and trio.lowlevel.current_trio_token() is self._token


class TrioWaiter:
    """A `trio.Event` for one task.

    Whoever removes the task from the list, in one step, is the one that wakes it: a cancellation may come in
    the middle of the waking, and the other way round.
    """

    __slots__ = ("waits", "woken")

    def __init__(self) -> None:
        self.waits: list[trio.lowlevel.Task] = []
        """The task that waits, or is just about to."""
        self.woken = False
        """Whether it was woken before it waited."""

    @trio.lowlevel.enable_ki_protection
    def __await__(self) -> Generator[Any, Any, object]:
        self.waits.append(trio.lowlevel.current_task())
        if self.woken:
            self.waits.clear()
            return checkpoint().__await__()
        return trio.lowlevel.wait_task_rescheduled(self._abort).__await__()  # noqa: ASYNC105 - awaited by the caller

    def _abort(self, raise_cancel: object) -> trio.lowlevel.Abort:
        try:
            self.waits.pop()
        except IndexError:
            return trio.lowlevel.Abort.FAILED
        return trio.lowlevel.Abort.SUCCEEDED
