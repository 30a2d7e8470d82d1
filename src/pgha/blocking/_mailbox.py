"""From any thread to the loop's: calls to start, and small jobs, in the order of their posting.

Lock-free, so that a garbage collection or a signal handler may post in the middle of anything. The loop is
woken once for all that is posted until it looks: a wake-up is a system call.
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
    """Exactly one of the two is called, once; neither raises."""

    run: Callable[[], object]
    """In the loop's thread."""
    refused: Callable[[], object]
    """Instead, in any thread: the loop has ended, or belongs to another process."""


Letter: TypeAlias = Call | Job


class Mailbox:
    """See the head of this file."""

    def __init__(self, start: Callable[[list[Letter]], object]) -> None:
        self._letters: deque[Letter] = deque()
        self._start = start
        self._soon: Callable[[Callable[[], object]], None] | None = None
        self._woken = False
        """A wake-up is under way."""
        self.refusal: str = ""
        """Why nothing is taken any more."""

    def __len__(self) -> int:
        return len(self._letters)

    def post(self, letter: Letter) -> None:
        """Never waits, and never raises but by an interrupt.

        A call that is refused fails with `ClusterClosed`.
        """
        self._letters.append(letter)
        if self.refusal:
            # Looked at after appending, as the loop's thread empties the box after refusing: one of the two
            # finds the letter. Looking before would not do: the loop may end in between.
            self._refuse_own(letter)
        elif not self._woken:
            try:
                self._woken = True
                self.wake()
            except BaseException:
                # An interrupt, maybe before the loop was told, and nobody else would tell it. (If another one
                # comes here, the next to post does.)
                self._woken = False
                self.wake()
                raise

    def wake(self) -> None:
        """Have the loop look, whether or not it is about to."""
        if self._soon is not None:
            self._soon(self._look)

    def open(self, soon: Callable[[Callable[[], object]], None]) -> None:
        """In the loop's thread: it takes letters from now on, those posted before included."""
        self._soon = soon
        self._woken = True
        self.wake()

    def _look(self) -> None:
        # First the flag, then the letters. A thread appends first and then looks at the flag: either it
        # sees it cleared, and wakes the loop again, or its letter is here already.
        self._woken = False
        letters = self._letters
        # Bounded: threads that go on posting wake the loop again, and its other work has its turn.
        batch: list[Letter] = []
        try:
            for _ in range(len(letters)):
                batch.append(letters.popleft())
        except IndexError:
            pass  # closed meanwhile: taken back by the thread that posted it
        if batch:
            self._start(batch)

    def close(self, refusal: str) -> None:
        """In the loop's thread: refuse what is there and whatever comes. The first reason stays."""
        if not self.refusal:
            self.refusal = refusal
        while self._letters:
            try:
                letter = self._letters.popleft()
            except IndexError:
                return  # taken back by the thread that posted it
            self._refuse(letter)

    def abandon(self, refusal: str) -> None:
        """In a child after a fork: what other threads had posted is the parent's."""
        self._letters = deque()
        # A wake-up is a byte on a socket that the parent's loop reads.
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
