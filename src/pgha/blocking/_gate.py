"""`Gate`: an event that happens once, and that any thread can wait for; and `wait_for` a lock."""

from __future__ import annotations

from _thread import LockType, allocate_lock
from collections import deque
from collections.abc import Callable

_LONGEST_WAIT = 1.0
"""Seconds after which a waiting thread looks whether a signal has arrived."""


def wait_for(lock: LockType, timeout: float | None = None) -> bool:
    """Acquire a lock that another thread will release; return whether that was within ``timeout`` seconds.

    A signal usually interrupts the wait. But if it arrives right before the wait, after the interpreter has
    last looked, or in another thread, then CPython runs its handler only when the wait ends. So no wait is
    long.
    """
    left = float("inf") if timeout is None else timeout
    while left > 0:
        if lock.acquire(True, min(left, _LONGEST_WAIT)):
            return True
        left -= _LONGEST_WAIT
    return False


class Gate:
    """A gate that the cluster's thread opens once.

    Not a `threading.Event` or `threading.Condition`: an interrupt (a signal's exception in the main thread)
    at the wrong moment inside those leaves a lock locked, and the thread that serves all others would then
    wait for it. An interrupted `threading.Thread.join` takes the thread for ended (CPython 3.11). Here no
    lock is held while Python code runs.
    """

    __slots__ = ("_then", "is_open")

    def __init__(self) -> None:
        self.is_open = False
        self._then: deque[Callable[[], object]] = deque()

    def open(self) -> None:
        # First set the flag, then run the calls. Other threads append first and then read the flag: either
        # they see it set, or their call is already in the queue.
        self.is_open = True
        while self._then:
            try:
                call = self._then.popleft()
            except IndexError:
                return
            call()

    def then(self, call: Callable[[], object]) -> None:
        """Call ``call`` once the gate is open, in the thread that opens it; at once if it is open."""
        self._then.append(call)
        if self.is_open and self._take_back(call):
            call()

    def _take_back(self, call: Callable[[], object]) -> bool:
        try:
            self._then.remove(call)
        except ValueError:
            return False
        return True

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the gate is open, at most ``timeout`` seconds; return whether it is open."""
        if self.is_open:
            return True
        lock = allocate_lock()
        lock.acquire()
        self.then(lock.release)
        try:
            if not wait_for(lock, timeout):
                self._take_back(lock.release)
        except BaseException:
            # An interrupt: each interrupted wait would otherwise leave a call behind.
            self._take_back(lock.release)
            raise
        return self.is_open
