"""An operation as a future of `concurrent.futures`."""

from __future__ import annotations

import concurrent.futures
import logging
from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import TypeVar, final

import pgha._errors as errors
from pgha._operation.operation import Request
from pgha.blocking._call import Call
from pgha.blocking._errors import OperationCancelled
from pgha.blocking._gate import Gate
from pgha.blocking._host import Host

T = TypeVar("T")

logger = logging.getLogger("pgha")


@final
class Operation(concurrent.futures.Future[T]):
    """An operation that was started; made by `Cluster.submit` and `Group.submit`.

    A `concurrent.futures.Future`: `concurrent.futures.wait`, `concurrent.futures.as_completed` and
    `asyncio.wrap_future` take it, any thread may wait, and dropping it cancels nothing. Done callbacks run in
    the cluster's own thread, or at once in the caller's when it is done already: they must be quick, and may
    submit, but not wait. A wait that is interrupted or times out leaves the operation running.

    A failure that nobody retrieves, by `result` or `exception`, is logged, counted and emitted as an event.
    """

    def __init__(self, host: Host, request: Request) -> None:
        super().__init__()
        self._host = host
        self._call = Call(request, self._finish)
        self.finished = Gate()
        """For pgha. The outcome stands in this object; the base class has it for `concurrent.futures`, behind
        a lock that an interrupt may leave locked."""
        self._error: BaseException | None = None
        self._retrieved = False

    def start(self) -> None:
        """For pgha, once."""
        self._host.post(self._call)

    def _finish(self) -> None:
        error = self._call.error
        if isinstance(error, errors.OperationCancelled):
            error = OperationCancelled.of(error)
        self._error = error
        self.finished.open()
        # `concurrent.futures.wait` holds this lock for a moment, or for ever when an interrupt meets it: this
        # thread serves everybody, and does not wait.
        if self._condition.acquire(blocking=False):
            try:
                self._publish()
            finally:
                self._condition.release()
        else:
            Thread(target=self._publish, name="pgha outcome", daemon=True).start()

    def _publish(self) -> None:
        """Tell the base class, for `concurrent.futures.wait` and `concurrent.futures.as_completed`."""
        if self._error is None:
            self.set_result(self._call.value)
        else:
            self.set_exception(self._error)

    def add_done_callback(self, fn: Callable[[Operation[T]], object]) -> None:
        """Call ``fn`` with this operation once it is done; what it raises is logged.

        In the cluster's own thread, or at once in the caller's when it is done already.
        """
        self.finished.then(partial(self._call_back, fn))

    def _call_back(self, fn: Callable[[Operation[T]], object]) -> None:
        try:
            fn(self)
        except BaseException as raised:  # noqa: BLE001 - this thread serves everybody
            _callback_raised(self, raised)

    def cancel(self) -> bool:
        """Ask for it to be cancelled, here and on the server; returns at once. False if it is done already.

        `result` then gives its result (it was done first), or raises `OperationCancelled` (certainly not
        applied) or `pgha.CommitInDoubt`.
        """
        if self.finished.is_open:
            return False
        self._host.give_up(self._call)
        return True

    def cancelled(self) -> bool:
        """Whether it ended as `OperationCancelled`; False as long as that is not certain."""
        return self.finished.is_open and isinstance(self._error, OperationCancelled)

    def running(self) -> bool:
        """Whether it has no outcome yet."""
        return not self.done()

    def done(self) -> bool:
        """Whether it has an outcome."""
        return self.finished.is_open

    def result(self, timeout: float | None = None) -> T:
        """Wait for the result, at most ``timeout`` seconds: then `TimeoutError`, and it goes on running."""
        error = self.exception(timeout)
        if error is not None:
            try:
                raise error.with_traceback(None)
            finally:
                # The traceback holds this frame: without this the error would keep itself alive.
                del self, error
        return self._call.value  # type: ignore[no-any-return]

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As `result`, and give the exception, also when it was cancelled; None when there is a result."""
        if not self.finished.is_open:
            self._host.check_waitable()
            if not self.finished.wait(timeout):
                raise TimeoutError
        self._retrieved = True
        return self._error

    @property
    def failed(self) -> bool:
        """For pgha: it is done, by a failure."""
        return self._error is not None

    def unseen(self) -> BaseException | None:
        """For pgha: the failure that nobody retrieved, which counts as retrieved by this."""
        error = None if self._retrieved else self._error
        self._retrieved = True
        return error

    def __del__(self) -> None:
        # Without the attribute, __init__ was interrupted.
        error: BaseException | None = getattr(self, "_error", None)
        if error is not None and not self._retrieved and not self._call.given_up:
            self._host.unretrieved(error)


def _callback_raised(operation: Operation[T], error: BaseException) -> None:
    logger.error("a done callback of %r raised", operation, exc_info=error)
