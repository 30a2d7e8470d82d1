"""What one thread asks of the loop's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pgha._operation.operation import Operation, Request


class Call:
    """One operation, as seen by the thread that wants it.

    The operation itself is made, driven and dropped in the loop's thread alone: neither an interrupt nor a
    garbage collection of another thread ever meets it half-way.
    """

    __slots__ = ("error", "given_up", "operation", "request", "started_at", "tell", "timer", "value")

    def __init__(self, request: Request, tell: Callable[[], object]) -> None:
        self.request = request
        self.started_at = time.monotonic()
        self.tell = tell
        """Called once, when the outcome stands here."""
        self.operation: Operation[Any] | None = None
        """While it runs; for the loop's thread."""
        self.timer: Any = None
        self.value: Any = None
        self.error: BaseException | None = None
        self.given_up = False
        """It was cancelled: its failure is no news."""

    def finish(self, operation: Operation[Any]) -> None:
        """It ended."""
        self.value = operation.value
        self.error = operation.failure
        self.given_up = operation.gave_up == "cancelled"
        # From here on whoever made this call reports it.
        operation.retrieve()
        self._done()

    def fail(self, error: BaseException) -> None:
        """It was never started."""
        self.error = error
        self._done()

    def _done(self) -> None:
        # Without what it told, which may hold this call: no cycle keeps a failure that nobody retrieves.
        tell, self.tell = self.tell, _nobody
        self.operation = None
        tell()


def _nobody() -> None:
    pass
