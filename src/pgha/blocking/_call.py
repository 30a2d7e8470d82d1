"""`Call`: one operation, as requested by a thread."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from pgha._operation.operation import Operation, Request


class Call:
    """One operation, as the requesting thread sees it.

    The operation itself is made, driven and dropped in the loop's thread only. So no interrupt or garbage
    collection of another thread can meet it in an intermediate state.
    """

    __slots__ = ("context", "error", "given_up", "operation", "request", "started_at", "tell", "value")

    def __init__(self, request: Request, tell: Callable[[], object], now: float) -> None:
        self.request = request
        self.started_at = now
        self.context = copy_context()
        """The context variables of the thread that made the call."""
        self.tell = tell
        """Called once, when the outcome is stored here."""
        self.operation: Operation[Any] | None = None
        """The operation while it runs; for the loop's thread."""
        self.value: Any = None
        self.error: BaseException | None = None
        self.given_up = False
        """Whether the call was cancelled: its failure is then not reported as unretrieved."""

    def finish(self, operation: Operation[Any]) -> None:
        """Take over the outcome of the finished operation."""
        self.value = operation.value
        self.error = operation.failure
        self.given_up = operation.gave_up == "cancelled"
        # From now on the maker of this call reports an unretrieved failure.
        operation.retrieve()
        self._done()

    def fail(self, error: BaseException) -> None:
        """Fail a call whose operation was never started."""
        self.error = error
        self._done()

    def _done(self) -> None:
        # Drop the callback, which may refer to this call: a cycle would keep an unretrieved failure alive.
        tell, self.tell = self.tell, _nothing
        self.operation = None
        tell()


def _nothing() -> None:
    pass
