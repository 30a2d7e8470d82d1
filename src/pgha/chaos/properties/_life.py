"""The life of a machine: its setup, its background tasks, its teardown, all in one task of one loop."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol, final

import anyio
import anyio.abc


async def finished(result: object) -> Any:
    """The result itself, or what it gives when it is awaited."""
    return await result if inspect.isawaitable(result) else result


class Living(Protocol):
    """What a life needs of a machine."""

    tasks: Tasks

    def setup(self) -> object: ...


@final
class Tasks:
    """Background tasks of a machine: they live until its teardown is over, and are cancelled then.

    What one raises interrupts the rule that is running, whose failure it becomes; between rules, that of the
    next one or of the teardown.
    """

    def __init__(self, group: anyio.abc.TaskGroup, fail: Callable[[BaseException], None]) -> None:
        self._group, self._fail = group, fail

    def start_soon(self, function: Callable[..., Awaitable[Any]], *args: object, name: object = None) -> None:
        """Run it in a task of its own, as a task group does."""
        self._group.start_soon(self._guarded, function, args, name=name or function)

    async def start(self, function: Callable[..., Awaitable[Any]], *args: object, name: object = None) -> Any:
        """Run it in a task of its own and wait for its `task_status.started(value)`; gives the value.

        What it raises before is raised here.
        """
        return await self._group.start(self._starting, function, args, name=name or function)

    async def _guarded(self, function: Callable[..., Awaitable[Any]], args: tuple[object, ...]) -> None:
        try:
            await function(*args)
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001 - it is raised where the rules run
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
    """Knows whether it was called."""

    def __init__(self, status: anyio.abc.TaskStatus[Any]) -> None:
        self._status, self.called = status, False

    def started(self, value: Any = None) -> None:
        self._status.started(value)
        self.called = True


@asynccontextmanager
async def alive(machine: Living, teardown: Callable[[], object]) -> AsyncGenerator[anyio.CancelScope]:
    """Set up, let the body run, tear down: in the caller's task. Gives the scope of all this, which is
    cancelled when a background task fails: the teardown is then cancelled too, as any `finally` would be.

    Raises the first failure as it is, not in a group, with notes of the later ones. After a setup that failed
    there is no teardown.
    """
    failures: list[BaseException] = []
    try:
        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as scope:

                def fail(error: BaseException) -> None:
                    failures.append(error)
                    scope.cancel()

                machine.tasks = Tasks(group, fail)
                # No scope of ours in here: what setup and rules enter is left in the teardown, and a scope in
                # between would be left in the wrong order.
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
    """Only cancellations leave the body; the rest is noted."""
    try:
        yield
    except anyio.get_cancelled_exc_class():
        raise
    except BaseException as error:  # noqa: BLE001 - `alive` raises it, outside of the group
        failures.append(error)
