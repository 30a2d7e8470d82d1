"""`Host`: the thread of a cluster, its start and end, and how other threads reach it.

The thread runs `_live`: it opens the cluster, reports that, and waits for the request to leave. A clean leave
drains; any other leave cancels the one scope around everything. In every case the thread closes the mailbox
as its last act, and afterwards no thread waits for it: see `Mailbox.post`. anyio's blocking portal is not
used: it needs one task per call, and never answers a call that reaches its loop while the loop ends.
"""

from __future__ import annotations

import logging
import os
import threading
from _thread import allocate_lock, get_ident
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from functools import partial
from typing import Any, TypeVar

import anyio

from pgha._cluster.cluster import Cluster
from pgha._errors import ClusterClosed, CommitInDoubt, ConfigError
from pgha._operation.operation import Request
from pgha._telemetry.log import say
from pgha._wire.loops import current_loop
from pgha.blocking._call import Call
from pgha.blocking._errors import WouldDeadlock
from pgha.blocking._gate import Gate, wait_for
from pgha.blocking._mailbox import Job, Letter, Mailbox
from pgha.blocking._replies import Reply, Task
from pgha.blocking._starter import CLOSED, Starter

T = TypeVar("T")
logger = logging.getLogger("pgha.blocking")
FAILED = "the cluster has failed: leaving its with block raises the reason"
FORKED = "this cluster was opened in another process, before a fork: open one in the child"
_BACKENDS = ("asyncio", "trio")
_BEGINS_WITHIN = 5.0
"""Seconds from the creation of a thread to its first step; generous."""

_hosts: set[Host] = set()
"""Hosts whose thread runs."""


def _after_fork() -> None:
    for host in tuple(_hosts):
        host.abandon()
    _hosts.clear()


os.register_at_fork(after_in_child=_after_fork)


def _nothing() -> None:
    pass


class Host:
    """See the module's docstring."""

    cluster: Cluster[Any]
    _starter: Starter

    def __init__(
        self,
        opening: Callable[[], AbstractAsyncContextManager[Cluster[Any]]],
        backend: str,
        backend_options: dict[str, Any] | None,
    ) -> None:
        if backend not in _BACKENDS:
            raise ConfigError(f"backend must be {' or '.join(map(repr, _BACKENDS))}, not {backend!r}")
        self.forked = False
        self._opening = opening
        self._mailbox = Mailbox(self._open_letters)
        self.post = self._mailbox.post
        self._failure: BaseException | None = None
        self._ident: int | None = None
        self._started = False
        self._begun = Gate()
        self._ready = Gate()
        self._ended = Gate()
        run = partial(anyio.run, self._live, backend=backend, backend_options=backend_options)
        # A context of its own: loops use context variables to detect another running loop.
        self._thread = threading.Thread(
            target=Context().run, args=(self._work, run), name=f"pgha {backend}", daemon=True
        )

    # The life of the thread

    def open(self) -> Cluster[Any]:
        """Start the thread, and wait until the cluster is open."""
        _hosts.add(self)
        self._started = True
        try:
            self._thread.start()
        except RuntimeError:
            self._started = False  # the system refused another thread
            raise
        self._ready.wait()
        self._raise_failure()
        return self.cluster

    def close(self, error: BaseException | None) -> None:
        """Close the cluster, and wait until its thread has ended; does nothing in a child after a fork.

        ``error`` is the body's exception: it cancels the running operations. An interrupt cancels the
        draining, and is raised after the thread has ended, in bounded time.
        """
        if self.forked:
            return
        try:
            self._tell_to_leave(cancel=error is not None)
            self._join()
        except BaseException:
            self._tell_to_leave(cancel=True)
            self._join()
            raise
        finally:
            _hosts.discard(self)
        if error is None:
            self._raise_failure()
        elif self._failure is not None:
            error.add_note(f"the cluster had failed: {self._failure!r}")

    def _tell_to_leave(self, *, cancel: bool) -> None:
        self.post(Job(partial(self._leave, cancel), _nothing))
        # Wake again: an interrupt may have prevented an earlier wake-up.
        self._mailbox.wake()

    def _leave(self, cancel: bool) -> None:
        self._left.set()
        if cancel:
            self._scope.cancel()

    def _join(self) -> None:
        # An abandoned ``with`` block may be garbage-collected in any thread, also in the cluster's own.
        if not self._started or self.here:
            return
        # Bounded: an interrupt of `threading.Thread.start` may have prevented the thread.
        if self._begun.wait(_BEGINS_WITHIN):
            self._ended.wait()
            self._thread.join()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                # The traceback refers to this frame.
                del failure

    def _work(self, run: Callable[[], object]) -> None:
        self._ident = get_ident()
        self._begun.open()
        try:
            say(logger, logging.DEBUG, "the thread %r of a cluster has started", self._thread.name)
            run()
        except BaseException as error:  # noqa: BLE001 - raised by the thread that opens or leaves the cluster
            self._failure = error
        finally:
            self._mailbox.close(FAILED)
            self._ready.open()
            self._ended.open()
            say(logger, logging.DEBUG, "the thread %r of a cluster has ended", self._thread.name)

    async def _live(self) -> None:
        async with anyio.create_task_group() as self._tasks:
            try:
                self._left = anyio.Event()
                with anyio.CancelScope() as self._scope:
                    self._mailbox.open(current_loop().soon)
                    await self._inside()
            except Exception as error:  # noqa: BLE001 - as in `_work`, and not wrapped in a group
                self._failure = error
            finally:
                # Letters that the loop has not taken are refused, here or by the posting thread.
                self._mailbox.close(CLOSED if self._left.is_set() else FAILED)
                self._tasks.cancel_scope.cancel()

    async def _inside(self) -> None:
        async with self._opening() as self.cluster:
            self._starter = Starter(self.cluster._dispatcher)
            try:
                self._ready.open()
                await self._left.wait()
            finally:
                self._starter.close(CLOSED if self._left.is_set() else FAILED)

    def abandon(self) -> None:
        """Mark the host as inherited, in a child after a fork: the thread does not exist there."""
        self.forked = True
        self._mailbox.abandon(FORKED)

    # From other threads

    @property
    def here(self) -> bool:
        """Whether the calling thread is the cluster's own."""
        return get_ident() == self._ident

    def waiting(self, request: Request) -> int:
        """Return the number of operations of the same need that were not sent to any node.

        What the loop's thread has not looked at yet counts as such.
        """
        return len(self._mailbox) + self.cluster._dispatcher.waiting(request)

    def now(self) -> float:
        """Return the time by the cluster's clock."""
        return self.cluster._options.sources.clock()

    def check_waitable(self) -> None:
        """Raise if a wait could never end."""
        if self.here:
            raise WouldDeadlock(
                "this call would wait for the cluster's own thread, in which it was made: use submit()"
            )
        if self.forked:
            raise ClusterClosed(FORKED)

    def call(self, request: Request) -> Any:
        """Start an operation and wait for its outcome; an interrupt cancels it, on the server too."""
        if self._ident == get_ident():
            self.check_waitable()
        lock = allocate_lock()
        lock.acquire()
        call = Call(request, lock.release, self.now())
        try:
            self.post(call)
            wait_for(lock)
        except BaseException:
            self.give_up(call)
            raise
        error = call.error
        if error is None:
            return call.value
        try:
            raise error.with_traceback(None)
        finally:
            # The traceback refers to this frame: without this, the error would keep itself alive.
            del error, call

    def give_up(self, call: Call) -> None:
        """Cancel the call; returns at once."""
        self.post(Job(lambda: self._starter.give_up(call), _nothing))
        # The interrupt that led here may have prevented the call's own wake-up.
        self._mailbox.wake()

    def ask(self, job: Callable[[], T]) -> T:
        """Run ``job`` in the cluster's thread and return its value; after that thread's end, run it here."""
        if self.forked:
            raise ClusterClosed(FORKED)
        if self.here:
            return job()
        reply: Reply[T] = Reply()
        fill = partial(reply.fill, job)
        self.post(Job(fill, fill))
        return reply.wait()

    def run(self, function: Callable[[], Awaitable[T]]) -> T:
        """Run the coroutine function as a task and return its value; an interrupt cancels the task."""
        self.check_waitable()
        task = Task(function)
        try:
            self.begin(task)
            return task.wait()
        except BaseException:
            self.cancel(task)
            raise

    def begin(self, task: Task[Any]) -> None:
        """Start a task; the caller waits for it or cancels it, also if an interrupt leaves this call."""
        self.post(Job(lambda: task.begin(self._tasks), task.refuse))

    def cancel(self, task: Task[Any]) -> None:
        """Cancel the task; returns at once."""
        self.post(Job(task.cancel, _nothing))
        # As in `give_up`.
        self._mailbox.wake()

    def unretrieved(self, error: BaseException) -> None:
        """Report an unretrieved failure; callable from any thread at any moment."""
        if not self.forked:
            tell = partial(self.cluster._dispatcher.tracker.unretrieved, error)
            self.post(Job(tell, tell))

    # In the cluster's thread

    def doubted_here(self, error: CommitInDoubt) -> bool:
        """Return whether an operation of this cluster ended with this error."""
        return error in self._starter.doubts

    def _open_letters(self, letters: list[Letter]) -> None:
        for letter in letters:
            if isinstance(letter, Job):
                letter.run()
            else:
                self._starter.start(letter)
