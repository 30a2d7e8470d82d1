"""The life of a machine: setup, background tasks and teardown, all in one task of one loop."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol, final

import anyio
import anyio.abc


async def finished(result: object) -> Any:
    """Return the result, awaited if it is awaitable."""
    return await result if inspect.isawaitable(result) else result


class Living(Protocol):
    """The parts of a machine that its life needs."""

    tasks: Tasks

    def setup(self) -> object:
        """Prepare the machine; may be `async def`."""
        ...


@final
class Tasks:
    """The background tasks of a machine, which live until its teardown is over and are then cancelled.

    An exception of a task interrupts the running rule and becomes the failure of that rule. Between rules, it
    becomes the failure of the next rule or of the teardown. The machine makes this object, its attribute
    `tasks`.

    Args:
        group: The task group of the tasks.
        fail: A function that gets the exception of a failed task.

    Example::

        @initialize()
        async def begin(self):
            self.tasks.start_soon(self.client)
    """

    def __init__(self, group: anyio.abc.TaskGroup, fail: Callable[[BaseException], None]) -> None:
        self._group, self._fail = group, fail

    def start_soon(self, function: Callable[..., Awaitable[Any]], *args: object, name: object = None) -> None:
        """Start a function in a task of its own, as a task group does.

        Args:
            function: The async function.
            *args: Its arguments.
            name: The name of the task; None: the function's.
        """
        self._group.start_soon(self._guarded, function, args, name=name or function)

    async def start(self, function: Callable[..., Awaitable[Any]], *args: object, name: object = None) -> Any:
        """Start a function in a task of its own and wait until it calls `task_status.started(value)`.

        Cancellation of the call, before that, cancels the task too.

        Args:
            function: The async function, which takes the keyword `task_status`.
            *args: Its arguments.
            name: The name of the task; None: the function's.

        Returns:
            The value given to `task_status.started`.

        Raises:
            RuntimeError: If the function returns without calling `task_status.started`. Its own exceptions
                before that call are raised unchanged.
        """
        return await self._group.start(self._starting, function, args, name=name or function)

    async def _guarded(self, function: Callable[..., Awaitable[Any]], args: tuple[object, ...]) -> None:
        try:
            await function(*args)
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001 - raised in the task that runs the rules
            self._fail(error)

    async def _starting(
        self,
        function: Callable[..., Awaitable[Any]],
        args: tuple[object, ...],
        *,
        task_status: anyio.abc.TaskStatus[Any],
    ) -> None:
        status = _Status(task_status)
        try:
            await function(*args, task_status=status)
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:
            if not status.called:
                raise
            self._fail(error)


class _Status(anyio.abc.TaskStatus[Any]):
    """A task status that records whether it was called."""

    def __init__(self, status: anyio.abc.TaskStatus[Any]) -> None:
        self._status, self.called = status, False

    def started(self, value: Any = None) -> None:
        """Pass the value on, and record the call."""
        self._status.started(value)
        self.called = True


@asynccontextmanager
async def alive(machine: Living, teardown: Callable[[], object]) -> AsyncGenerator[anyio.CancelScope]:
    """Set up the machine, let the body run, and tear down, all in the caller's task.

    Gives the scope of all this, which is cancelled when a background task fails: the teardown is then
    cancelled too, as any `finally` would be. Raises the first failure unwrapped, without a group, with notes
    about the later ones. After a failed setup there is no teardown.
    """
    failures: list[BaseException] = []
    try:
        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as scope:

                def fail(error: BaseException) -> None:
                    failures.append(error)
                    scope.cancel()

                machine.tasks = Tasks(group, fail)
                # No cancel scope is opened in here: scopes that setup and rules enter are left in the
                # teardown, and a scope in between would be left in the wrong order.
                async with _noting(failures):
                    await finished(machine.setup())
                    try:
                        async with _noting(failures):
                            yield scope
                    finally:
                        await finished(teardown())
            group.cancel_scope.cancel()
    finally:
        if failures:
            for later in failures[1:]:
                failures[0].add_note(f"and then: {later!r}")
            raise failures[0]


@asynccontextmanager
async def _noting(failures: list[BaseException]) -> AsyncGenerator[None]:
    """Record the exceptions of the body; only cancellations are raised."""
    try:
        yield
    except anyio.get_cancelled_exc_class():
        raise
    except BaseException as error:  # noqa: BLE001 - `alive` raises it, outside of the group
        failures.append(error)
