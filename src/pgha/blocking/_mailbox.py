"""`Mailbox`: a queue of calls and small jobs, from any thread to the loop's thread, in the order of posting.

Lock-free, so that a garbage collection or a signal handler may post at any moment. The loop is woken once per
batch: a wake-up is a system call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from pgha._errors import ClusterClosed
from pgha.blocking._call import Call


@dataclass(slots=True, eq=False)
class Job:
    """A pair of functions: exactly one of them is called, once. Neither raises."""

    run: Callable[[], object]
    """Called in the loop's thread."""
    refused: Callable[[], object]
    """Called instead, in any thread, if the loop has ended or belongs to another process."""


Letter: TypeAlias = Call | Job


class Mailbox:
    """See the module's docstring."""

    def __init__(self, start: Callable[[list[Letter]], object]) -> None:
        self._letters: deque[Letter] = deque()
        self._start = start
        self._soon: Callable[[Callable[[], object]], None] | None = None
        self._woken = False
        """Whether a wake-up is under way."""
        self.refusal: str = ""
        """Why nothing is accepted any more; empty while the mailbox is open."""

    def __len__(self) -> int:
        return len(self._letters)

    def post(self, letter: Letter) -> None:
        """Append a call or a job, without waiting; only an interrupt raises.

        A refused call fails with `ClusterClosed`.
        """
        self._letters.append(letter)
        if self.refusal:
            # Checked after appending, because the loop's thread empties the box after it begins to refuse:
            # one of the two finds the letter. A check before appending would miss a loop that ends meanwhile.
            self._refuse_own(letter)
        elif not self._woken:
            try:
                self._woken = True
                self.wake()
            except BaseException:
                # An interrupt may have come before the loop was woken, and no other thread would wake it. (If
                # another interrupt comes here, the next post wakes it.)
                self._woken = False
                self.wake()
                raise

    def wake(self) -> None:
        """Wake the loop, even if a wake-up is under way."""
        if self._soon is not None:
            self._soon(self._look)

    def open(self, soon: Callable[[Callable[[], object]], None]) -> None:
        """Start delivery, in the loop's thread, including what was posted before."""
        self._soon = soon
        self._woken = True
        self.wake()

    def _look(self) -> None:
        # First clear the flag, then take the letters. A thread appends first and then reads the flag: either
        # it sees the flag cleared, and wakes the loop again, or its letter is already here.
        self._woken = False
        letters = self._letters
        # Bounded: threads that continue to post wake the loop again, after the loop's other work.
        batch: list[Letter] = []
        try:
            for _ in range(len(letters)):
                batch.append(letters.popleft())
        except IndexError:
            pass  # the mailbox was closed, and the posting thread took its letter back
        if batch:
            self._start(batch)

    def close(self, refusal: str) -> None:
        """Refuse everything from now on, in the loop's thread. The first reason stays."""
        if not self.refusal:
            self.refusal = refusal
        while self._letters:
            try:
                letter = self._letters.popleft()
            except IndexError:
                return  # the posting thread took its letter back
            self._refuse(letter)

    def abandon(self, refusal: str) -> None:
        """Drop everything, in a child after a fork: what other threads had posted is the parent's."""
        self._letters = deque()
        # Never wake the loop: a wake-up is a byte on a socket that the parent's loop reads.
        self._soon = None
        self.refusal = refusal

    def _refuse_own(self, letter: Letter) -> None:
        try:
            self._letters.remove(letter)
        except ValueError:
            return
        self._refuse(letter)

    def _refuse(self, letter: Letter) -> None:
        if isinstance(letter, Job):
            letter.refused()
        else:
            letter.fail(ClusterClosed(self.refusal))
