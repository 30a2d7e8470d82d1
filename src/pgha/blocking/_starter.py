"""`Starter`: start the threads' calls in the loop's thread."""

from __future__ import annotations

from functools import partial
from typing import Any
from weakref import WeakSet

from pgha._core.outcome import Outcome
from pgha._dispatch.dispatcher import Dispatcher
from pgha._errors import ClusterClosed, CommitInDoubt
from pgha._operation.operation import Operation, Stage
from pgha.blocking._call import Call

CLOSED = "the cluster is closed"


class Starter:
    """See the module's docstring."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._closed = ""
        self.doubts: WeakSet[CommitInDoubt] = WeakSet()
        """Errors of operations started here: they can be resolved in this loop only."""

    def start(self, call: Call) -> None:
        """Start the call, or fail it; never raises."""
        if self._closed:
            call.fail(ClusterClosed(self._closed))
        else:
            self._start(call)

    def _start(self, call: Call) -> None:
        operation: Operation[Any] = Operation(self._dispatcher, call.request, call.started_at, call.context)
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

    def give_up(self, call: Call) -> None:
        """Cancel the call's operation."""
        if call.operation is not None:
            self._dispatcher.give_up(call.operation, "cancelled")

    def close(self, reason: str) -> None:
        """Accept nothing more; started operations may end."""
        self._closed = reason
