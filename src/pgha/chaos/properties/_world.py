"""The world of one example: a loop of its own that stops between the rules."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar, final

import anyio
import sniffio

from pgha.chaos.properties._life import Living, alive, finished
from pgha.chaos.properties._loops import LoopDriver, new_loop

T = TypeVar("T")


class _Job(Generic[T]):
    """Work for the world's task, and its result."""

    def __init__(self, work: Callable[[], T]) -> None:
        self.work = work
        self.done = False
        self.value: Any = None
        self.error: BaseException | None = None

    def result(self) -> Any:
        """Return the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value


@final
class World:
    """A runner of a machine's setup, rules and teardown, in order, in one task, in the caller's thread.

    The loop begins with the first `run` and ends with `close`. In between it stops: timers that are due by
    then fire when the loop is resumed.
    """

    def __init__(
        self, machine: Living, teardown: Callable[[], object], backend: str, options: dict[str, Any]
    ) -> None:
        self._machine, self._teardown = machine, teardown
        self._backend, self._options = backend, options
        self._loop: LoopDriver | None = None
        self._jobs: deque[_Job[Any]] = deque()
        self._strays: list[BaseException] = []
        self._closing = False

    def run(self, work: Callable[[], object]) -> Any:
        """Call `work` in the world and return its result, awaited if it is awaitable.

        Exceptions of `work` are raised here. So are exceptions of background tasks: the world has then ended,
        with the teardown.
        """
        loop = self._loop or self._start()
        job = _Job(work)
        self._jobs.append(job)
        if not loop.ended:
            self._wake()
        try:
            while not job.done and not loop.ended:
                loop.resume()
        except BaseException:
            # Ctrl-C while no task ran: the rule is over, and the teardown follows.
            loop.soon(self._interrupt)
            raise
        self._raise_strays()
        if not job.done:
            self._raise_end()
        return job.result()

    def close(self) -> None:
        """Tear down, end all tasks and the loop, and raise failures of that.

        Does nothing if `run` was never called.
        """
        loop, self._loop = self._loop, None
        if loop is None:
            return
        had_ended = loop.ended
        self._closing = True
        self._wake()
        try:
            _run_out(loop)
        finally:
            loop.close()
        self._raise_strays()
        if not had_ended:
            self._raise_end()

    def _start(self) -> LoopDriver:
        if (running := sniffio.current_async_library_cvar.get() or sniffio.thread_local.name) is not None:
            raise RuntimeError(f"a state machine has a loop of its own: do not run it in a loop of {running}")
        loop = new_loop(self._backend, self._strays.append, self._options)
        self._news: anyio.Event | None = None
        self._scope: anyio.CancelScope | None = None
        self._end: BaseException | None = None
        loop.start(self._main)
        self._loop = loop
        return loop

    async def _main(self) -> None:
        try:
            async with alive(self._machine, self._teardown) as self._scope:
                await self._serve()
        except BaseException as error:  # noqa: BLE001 - `run` and `close` raise it
            self._end = error
            if isinstance(error, BaseExceptionGroup) and error.subgroup(KeyboardInterrupt):
                # Trio raises it wherever Python code runs, also in a task that is just about to start.
                self._end = KeyboardInterrupt()
                self._end.__cause__ = error

    async def _serve(self) -> None:
        while (job := await self._next()) is not None:
            try:
                job.value = await finished(job.work())
            except anyio.get_cancelled_exc_class() as error:
                if self._is_cancelled:
                    raise
                job.error = RuntimeError("the rule was cancelled by a scope that it did not open")
                job.error.__cause__ = error
            except BaseException as error:  # noqa: BLE001 - `run` raises it
                job.error = error
            job.done = True
            if self._loop is not None:
                self._loop.pause()

    async def _next(self) -> _Job[Any] | None:
        """Wait for the next job; None: there are no more."""
        while not self._jobs:
            if self._closing:
                return None
            self._news = anyio.Event()
            try:
                await self._news.wait()
            except anyio.get_cancelled_exc_class():
                if self._is_cancelled:
                    raise
                # A scope of the machine itself was cancelled: the teardown may leave that scope.
        return self._jobs.popleft()

    @property
    def _is_cancelled(self) -> bool:
        """Whether the world itself ends; False: a scope that a rule has left open is cancelled."""
        return self._closing or self._scope is None or self._scope.cancel_called

    def _wake(self) -> None:
        # Not from inside the loop: a clock that jumps when all tasks are idle would jump before the call.
        if self._news is not None:
            self._news.set()

    def _interrupt(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    def _raise_strays(self) -> None:
        """Raise an exception that asyncio would only have logged."""
        if self._strays:
            error = self._strays[0]
            self._strays.clear()
            raise error

    def _raise_end(self) -> None:
        error, self._end = self._end, None
        if error is not None:
            raise error
        if not self._closing:
            raise RuntimeError("the world ended before the rule did")


def _run_out(loop: LoopDriver) -> None:
    """Let the main task end; a single Ctrl-C must not prevent that, three do."""
    interrupts: list[KeyboardInterrupt] = []
    while not loop.ended:
        try:
            loop.resume()
        except KeyboardInterrupt as interrupt:
            interrupts.append(interrupt)
            if len(interrupts) == 3:
                raise
    if interrupts:
        raise interrupts[0]
