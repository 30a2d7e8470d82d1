"""The one door to the dispatcher and its lanes: what happened waits in one queue, drained in one place.

======== ============================================ ====================================================
state    meaning                                      exits
======== ============================================ ====================================================
free     nobody is inside                             enter -> draining
draining the acts run one after another, the settling somebody enters: the act only joins the queue;
         runs when none is left, and so on            no act and nothing to settle -> free
======== ============================================ ====================================================

Whatever may call pgha does so at any moment: a row factory, ``on_send``, a handler of the log or of a signal,
a finalizer that a garbage collection runs between two bytecodes. Such a call puts its act in line, and the
act runs when the one that runs now is done. So no act ever sees another one half done, and nothing is sent
in the middle of a send.

The owner of the loop's thread is the only user of the door. No lock is needed: a call that interrupts another
one ends before the other one goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Door:
    """A queue of acts that is drained in one place; see the head of this file."""

    __slots__ = ("_acts", "_draining", "_mend", "_settle")

    def __init__(
        self, settle: Callable[[], bool], mend: Callable[[BaseException], None] | None = None
    ) -> None:
        self._acts: deque[tuple[Callable[[Any], object], Any]] = deque()
        self._settle = settle
        """Does what the acts left to be done, and returns whether there may be more to do."""
        self._mend = mend
        """An act for after one that failed, and may have left something half done."""
        self._draining = False

    def enter(self, act: Callable[[T], object], what: T) -> None:
        """Have ``act(what)`` run: at once and to its end, or, if somebody is inside, before that one leaves.

        Raises:
            BaseException: What the first failing act raised. The acts behind it were run nevertheless.
        """
        if self._draining or self._acts:
            self._acts.append((act, what))
            if not self._draining:
                self._drain()
            return
        # The usual case, without the queue.
        self._draining = True
        more: object = True
        try:
            act(what)
            more = self._acts or self._settle()
        except BaseException as error:
            self._failed(error)
            raise
        finally:
            self._draining = False
            # Looked at once the door is free: somebody may have entered just before.
            if more or self._acts:
                self._drain()

    def _failed(self, error: BaseException) -> None:
        if self._mend is not None:
            self._acts.append((self._mend, error))

    def _drain(self) -> None:
        acts = self._acts
        failure: BaseException | None = None
        # The queue is looked at again once the door is free: between the last look and that moment somebody
        # may have entered, and have left the act to this drain.
        again = True
        while (acts or again) and not self._draining:
            self._draining = True
            again = False
            try:
                while acts or self._settle():
                    while acts:
                        act, what = acts.popleft()
                        act(what)
            except BaseException as error:  # noqa: BLE001 - raised below, once the others have had their turn
                failure = failure or error
                self._failed(error)
            finally:
                self._draining = False
        if failure is not None:
            try:
                raise failure
            finally:
                del failure
