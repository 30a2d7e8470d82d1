"""`Starter`: start the threads' calls in the loop's thread; calls wait here while the queue is full."""

from __future__ import annotations

from functools import partial
from typing import Any
from weakref import WeakSet

from anyio.abc import TaskGroup

from pgha._core.outcome import Outcome
from pgha._dispatch.dispatcher import Dispatcher
from pgha._dispatch.failure import cancelled
from pgha._errors import ClusterClosed, CommitInDoubt, QueueFull
from pgha._operation.operation import Operation, Stage
from pgha.blocking._call import Call

CLOSED = "the cluster is closed"


class Starter:
    """See the module's docstring."""

    def __init__(self, dispatcher: Dispatcher, tasks: TaskGroup) -> None:
        self._dispatcher = dispatcher
        self._tasks = tasks
        self._roomless: dict[Call, None] = {}
        """Calls that wait for space in the queue, in order."""
        self._admitting = False
        self._closed = ""
        self.doubts: WeakSet[CommitInDoubt] = WeakSet()
        """Errors of operations started here: they can be resolved in this loop only."""

    @property
    def waiting(self) -> int:
        """Number of operations that were not sent to any node."""
        return self._dispatcher.queued + len(self._roomless)

    def start(self, call: Call) -> None:
        """Start the call, or fail it; never raises."""
        if self._closed:
            call.fail(ClusterClosed(self._closed))
        elif self._roomless or self._dispatcher.full:
            self._wait_for_room(call)
        else:
            self._start(call)

    def _start(self, call: Call) -> None:
        operation: Operation[Any] = Operation(self._dispatcher, call.request, call.started_at)
        call.operation = operation
        operation.when_done(partial(self._done, call))
        try:
            self._dispatcher.start(operation)
        except ClusterClosed as error:
            call.fail(error)
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits for it
            if operation.stage is not Stage.DONE:
                self._dispatcher.tracker.fail(operation, error, Outcome.IN_DOUBT)

    def _done(self, call: Call, operation: Operation[Any]) -> None:
        if isinstance(operation.failure, CommitInDoubt):
            self.doubts.add(operation.failure)
        call.finish(operation)

    def _wait_for_room(self, call: Call) -> None:
        timeout = call.request.timeout
        if timeout is not None:
            call.timer = self._dispatcher.times.at(call.started_at + timeout, partial(self._no_room, call))
        self._roomless[call] = None
        if not self._admitting:
            self._admitting = True
            self._tasks.start_soon(self._admit)

    def _no_room(self, call: Call) -> None:
        call.timer = None
        self._forget(call)
        timeout = call.request.timeout
        call.fail(
            QueueFull(f"the queue stayed full for {timeout:g} s (max_queued); the operation was not sent")
        )

    async def _admit(self) -> None:
        waiting = self._roomless
        while waiting:
            await self._dispatcher.wait_for_capacity()
            while waiting and (self._dispatcher.closed or not self._dispatcher.full):
                call = next(iter(waiting))
                self._forget(call)
                self._start(call)
        self._admitting = False

    def _forget(self, call: Call) -> None:
        """Remove a call that no longer waits for space."""
        del self._roomless[call]
        if call.timer is not None:
            self._dispatcher.times.cancel(call.timer)
            call.timer = None

    def give_up(self, call: Call) -> None:
        """Cancel the call's operation."""
        if call in self._roomless:
            self._forget(call)
            call.given_up = True
            call.fail(cancelled())
        elif call.operation is not None:
            self._dispatcher.give_up(call.operation, "cancelled")

    def close(self, reason: str) -> None:
        """Accept nothing more; started operations may end."""
        self._closed = reason
        for call in tuple(self._roomless):
            self._forget(call)
            call.fail(ClusterClosed(reason))
