"""Answers for a waiting thread that are not outcomes of operations."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio
from anyio.abc import TaskGroup

from pgha._errors import ClusterClosed
from pgha.blocking._gate import Gate
from pgha.blocking._starter import CLOSED

T = TypeVar("T")


class Reply(Generic[T]):
    """A value that any thread sets once, and one thread waits for."""

    def __init__(self) -> None:
        self.filled = Gate()
        self._value: T
        self._error: BaseException | None = None

    def fill(self, job: Callable[[], T]) -> None:
        """Set the value that ``job`` returns, or the error that it raises."""
        try:
            self._value = job()
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
            self._error = error
        self.filled.open()

    def wait(self) -> T:
        self.filled.wait()
        error, self._error = self._error, None
        if error is None:
            return self._value
        try:
            raise error
        finally:
            # The traceback refers to this frame.
            del error


class Task(Reply[T]):
    """A reply that is set by a coroutine function."""

    def __init__(self, function: Callable[[], Awaitable[T]]) -> None:
        super().__init__()
        self._function = function
        self._scope: anyio.CancelScope | None = None
        self._cancelled = False

    def begin(self, tasks: TaskGroup) -> None:
        tasks.start_soon(self._run)

    def refuse(self) -> None:
        """Set `ClusterClosed`: the loop has ended."""
        self._error = ClusterClosed(CLOSED)
        self.filled.open()

    def cancel(self) -> None:
        self._cancelled = True
        if self._scope is not None:
            self._scope.cancel()

    async def _run(self) -> None:
        # The error if the task is cancelled by the end of the cluster. (After an interrupt no thread waits.)
        self._error = ClusterClosed(CLOSED)
        try:
            with anyio.CancelScope() as self._scope:
                if self._cancelled:
                    self._scope.cancel()
                self._value = await self._function()
                self._error = None
        except Exception as error:  # noqa: BLE001 - raised by the thread that waits
            self._error = error
        finally:
            self.filled.open()
