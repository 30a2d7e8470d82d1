"""`Operation`: an operation as a future of `concurrent.futures`."""

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
FINISHED = "FINISHED"
"""The base class's state of a future with an outcome."""

logger = logging.getLogger("pgha.blocking")


@final
class Operation(concurrent.futures.Future[T]):
    """A started operation, made by `Cluster.submit` and `Group.submit`: a `concurrent.futures.Future`.

    `concurrent.futures.wait`, `concurrent.futures.as_completed` and `asyncio.wrap_future` accept it. Any
    thread may wait for it. Dropping the object cancels nothing. A wait that is interrupted
    (KeyboardInterrupt) or times out leaves the operation running.

    Done callbacks run in the cluster's own thread, or at once in the caller's thread if the operation is
    done. They must be quick, and may submit, but must not wait.

    A failure that is never retrieved, by `result` or `exception`, is logged, counted and emitted as an event.

    Example::

        operation = cluster.submit("SELECT count(*) FROM item", read=True)
        print(operation.result(timeout=10).value())
    """

    def __init__(self, host: Host, request: Request) -> None:
        super().__init__()
        self._host = host
        self._call = Call(request, self._finish, host.now())
        # Internal. The outcome is stored in this object. The base class has it too, for `concurrent.futures`,
        # but behind a lock that an interrupt may leave locked.
        self.finished = Gate()
        self._error: BaseException | None = None
        self._retrieved = False

    def start(self) -> None:
        """Internal: post the call, once."""
        self._host.post(self._call)

    def _finish(self) -> None:
        error = self._call.error
        if isinstance(error, errors.OperationCancelled):
            error = OperationCancelled.of(error)
        self._error = error
        # First the base class's state, then the gate: callbacks of the gate may read that state, without its
        # methods. `concurrent.futures.wait` holds the lock for a moment, or for ever if it is interrupted.
        # This thread serves all others, and must not wait for the lock.
        published = self._condition.acquire(blocking=False)
        if published:
            try:
                self._publish()
            finally:
                self._condition.release()
        self.finished.open()
        if not published:
            Thread(target=self._publish, name="pgha outcome", daemon=True).start()

    def _publish(self) -> None:
        """Set the base class's state, for `concurrent.futures.wait` and `concurrent.futures.as_completed`."""
        if self._error is None:
            self.set_result(self._call.value)
        else:
            self.set_exception(self._error)

    def _get_snapshot(self) -> tuple[bool, bool, T | None, BaseException | None]:
        """Return the outcome as `asyncio.wrap_future` reads it in newer versions of CPython.

        The base class's method reads the state that `_publish` sets, perhaps later, and waits for its lock.
        """
        if not self.done():
            return False, False, None, None
        cancelled = self.cancelled()
        return True, cancelled, None if cancelled else self._call.value, None if cancelled else self._error

    def add_done_callback(self, fn: Callable[[Operation[T]], object]) -> None:
        """Call ``fn`` with this operation once the operation is done.

        Args:
            fn: The callback. It runs in the cluster's own thread, or at once in the caller's thread if the
                operation is done. Exceptions that it raises are logged.
        """
        self.finished.then(partial(self._call_back, fn))

    def _call_back(self, fn: Callable[[Operation[T]], object]) -> None:
        try:
            fn(self)
        except BaseException as raised:  # noqa: BLE001 - this thread serves all others
            _callback_raised(self, raised)

    def cancel(self) -> bool:
        """Request the operation's cancellation, locally and on the server, and return at once.

        `result` then returns the result (the operation finished first), or raises `OperationCancelled`
        (certainly not applied) or `pgha.CommitInDoubt`.

        Returns:
            False if the operation is done already, otherwise True.
        """
        if self.done():
            return False
        self._host.give_up(self._call)
        return True

    def cancelled(self) -> bool:
        """Return whether the operation ended with `OperationCancelled`.

        Returns:
            False as long as that is not certain.
        """
        return self.done() and isinstance(self._error, OperationCancelled)

    def running(self) -> bool:
        """Return whether the operation has no outcome yet.

        Returns:
            The opposite of `done`.
        """
        return not self.done()

    def done(self) -> bool:
        """Return whether the operation has an outcome.

        Returns:
            True once there is a result or an error.
        """
        # Between the two, threads that `concurrent.futures.wait` woke already ask.
        return self.finished.is_open or self._state == FINISHED

    def result(self, timeout: float | None = None) -> T:
        """Wait for the result.

        An interrupt (KeyboardInterrupt) of the wait leaves the operation running.

        Args:
            timeout: Seconds to wait; None is no limit.

        Returns:
            The result.

        Raises:
            TimeoutError: ``timeout`` passed; the operation continues.
            OperationCancelled: The operation was cancelled, and was not applied.
            WouldDeadlock: The call was made in the cluster's own thread.
            psycopg.Error: The operation failed, with the errors of `Cluster.fetch` or `Cluster.execute`.
        """
        error = self.exception(timeout)
        if error is not None:
            try:
                raise error.with_traceback(None)
            finally:
                # The traceback refers to this frame: without this, the error would keep itself alive.
                del self, error
        return self._call.value  # type: ignore[no-any-return]

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait like `result`, and return the exception instead of raising it.

        An interrupt (KeyboardInterrupt) of the wait leaves the operation running.

        Args:
            timeout: Seconds to wait; None is no limit.

        Returns:
            The exception, also that of a cancelled operation; None if there is a result.

        Raises:
            TimeoutError: ``timeout`` passed; the operation continues.
            WouldDeadlock: The call was made in the cluster's own thread.
        """
        if not self.done():
            self._host.check_waitable()
            if not self.finished.wait(timeout):
                raise TimeoutError(f"the operation has no outcome after {timeout:g} s, and continues")
        self._retrieved = True
        return self._error

    @property
    def failed(self) -> bool:
        """Internal: whether the operation is done, with an error."""
        return self._error is not None

    def unseen(self) -> BaseException | None:
        """Internal: return the unretrieved failure, and mark it as retrieved."""
        error = None if self._retrieved else self._error
        self._retrieved = True
        return error

    def __del__(self) -> None:
        # The attribute is missing if __init__ was interrupted.
        error: BaseException | None = getattr(self, "_error", None)
        if error is not None and not self._retrieved and not self._call.given_up:
            self._host.unretrieved(error)


def _callback_raised(operation: Operation[T], error: BaseException) -> None:
    logger.error("a done callback of %r raised", operation, exc_info=error)
