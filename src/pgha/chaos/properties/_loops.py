"""Event loops that run only while a caller waits for them, in the caller's thread.

A loop runs from `resume` until `pause`. anyio's `TestRunner` does much the same, but is not used: on asyncio
its task ends with any exception that is not an `Exception` (Hypothesis ends examples with one), it imports
pytest, and it is not public.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Coroutine
from typing import Any, Literal, Protocol, TypeAlias, final

import outcome
import trio

Main: TypeAlias = Callable[[], Coroutine[Any, Any, None]]
Backend: TypeAlias = Literal["asyncio", "trio"]
"""The event loop that a machine runs on."""


class LoopDriver(Protocol):
    """A loop with one main task."""

    @property
    def ended(self) -> bool:
        """Whether the main task has ended."""
        ...

    def start(self, main: Main) -> None:
        """Create the main task; it runs when the loop is resumed."""

    def resume(self) -> None:
        """Run until the loop is paused or its main task ends.

        An exception raised here comes from Ctrl-C, or is a failure of the loop itself.
        """

    def pause(self) -> None:
        """Stop the loop soon after this call, which a task makes."""

    def soon(self, function: Callable[[], object]) -> None:
        """Call a function in the loop when it runs again."""

    def close(self) -> None:
        """End the loop, after its main task has ended."""


@final
class AsyncioLoop:
    """A loop of asyncio. Exceptions that asyncio would only log go to `stray`."""

    def __init__(
        self,
        stray: Callable[[BaseException], None],
        *,
        debug: bool | None = None,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
    ) -> None:
        self._runner = asyncio.Runner(debug=debug, loop_factory=loop_factory)
        self._stray = stray
        self._main: asyncio.Task[None] | None = None

    @property
    def ended(self) -> bool:
        return self._main is not None and self._main.done()

    def start(self, main: Main) -> None:
        loop = self._runner.get_loop()
        loop.set_exception_handler(self._unheard)
        self._main = loop.create_task(main())
        self._main.add_done_callback(lambda _: loop.stop())

    def _unheard(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(error := context.get("exception"), Exception):
            self._stray(error)
        else:
            loop.default_exception_handler(context)

    def resume(self) -> None:
        self._runner.get_loop().run_forever()

    def pause(self) -> None:
        self._runner.get_loop().stop()

    def soon(self, function: Callable[[], object]) -> None:
        self._runner.get_loop().call_soon(function)

    def close(self) -> None:
        self._runner.close()


@final
class TrioLoop:
    """A trio loop in guest mode, whose host loop is only a queue of trio's own calls."""

    def __init__(self, **options: Any) -> None:
        """Make the loop; `options` are those of `trio.run`."""
        self._options = options
        self._calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._result: outcome.Outcome[None] | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._paused = False

    @property
    def ended(self) -> bool:
        return self._result is not None

    def start(self, main: Main) -> None:
        async def first() -> None:
            self._token = trio.lowlevel.current_trio_token()
            await main()

        trio.lowlevel.start_guest_run(
            first,
            run_sync_soon_threadsafe=self._calls.put,
            done_callback=self._finished,
            **self._options,
        )

    def _finished(self, result: outcome.Outcome[None]) -> None:
        self._result = result

    def resume(self) -> None:
        self._paused = False
        while not (self._paused or self._result):
            self._calls.get()()
        if self._result is not None:
            self._result.unwrap()

    def pause(self) -> None:
        self._paused = True

    def soon(self, function: Callable[[], object]) -> None:
        if self._token is None:
            self._calls.put(function)  # the loop has not begun
        else:
            self._token.run_sync_soon(function)

    def close(self) -> None:
        """Do nothing: the loop has ended with its main task."""


def new_loop(backend: str, stray: Callable[[BaseException], None], options: dict[str, Any]) -> LoopDriver:
    """Return a loop of this backend; `ValueError` for an unknown backend."""
    if backend == "asyncio":
        return AsyncioLoop(stray, **options)
    if backend == "trio":
        return TrioLoop(**options)
    raise ValueError(f"backend must be 'asyncio' or 'trio', not {backend!r}")
