"""The one place where the rest of pgha learns what happens to operations.

The dispatcher, the lines and the lanes tell each step where it happens. Statistics, events and the log are
observers; telemetry can be another. An observer gets the operation itself: its ``number`` identifies it
within its cluster, its ``context`` holds the context variables of its caller, and its ``attempts`` hold the
times.

An observer runs in the middle of an act (`pgha._core.door`): it must be quick, and must not raise. What it
starts or cancels is done when the act is over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from pgha._operation.operation import AttemptState, Operation

_Step: TypeAlias = Callable[[Operation[Any]], None]
_AttemptStep: TypeAlias = Callable[[Operation[Any], AttemptState], None]


class Observer:
    """The steps of an operation's life, in the order in which they happen. Override those of interest.

    Parts of an operation (the legs of a race) and pgha's own queries have ``counted`` false.
    """

    def began(self, operation: Operation[Any]) -> None:
        """The operation was started."""

    def queued(self, operation: Operation[Any]) -> None:
        """The operation waits in a line; not told if a lane takes it at once."""

    def sent(self, operation: Operation[Any], attempt: AttemptState) -> None:
        """The operation is about to be handed to a node."""

    def became_head(self, operation: Operation[Any], attempt: AttemptState) -> None:
        """The operation is the oldest in flight on its connection: the server works on it."""

    def answered(self, operation: Operation[Any], attempt: AttemptState) -> None:
        """The whole answer has arrived."""

    def retried(self, operation: Operation[Any], reason: str) -> None:
        """The last attempt failed for this reason, and the operation is run again."""

    def ended(self, operation: Operation[Any], error: BaseException | None) -> None:
        """The operation has its outcome: a result, or ``error``."""

    def failed(self, operation: Operation[Any], error: BaseException) -> None:
        """The operation has ended with ``error``; told right after `ended`."""


class Observers:
    """The observers of one cluster, by step: a step that nobody wants costs next to nothing."""

    __slots__ = ("answered", "became_head", "began", "ended", "failed", "queued", "retried", "sent")

    def __init__(self, *observers: Observer) -> None:
        self.began: tuple[_Step, ...] = ()
        self.queued: tuple[_Step, ...] = ()
        self.sent: tuple[_AttemptStep, ...] = ()
        self.became_head: tuple[_AttemptStep, ...] = ()
        self.answered: tuple[_AttemptStep, ...] = ()
        self.retried: tuple[Callable[[Operation[Any], str], None], ...] = ()
        self.ended: tuple[Callable[[Operation[Any], BaseException | None], None], ...] = ()
        self.failed: tuple[Callable[[Operation[Any], BaseException], None], ...] = ()
        for one in observers:
            self.add(one)

    def add(self, observer: Observer) -> None:
        """Have one more observer told, after the others."""
        for step in self.__slots__:
            if getattr(type(observer), step) is not getattr(Observer, step):
                setattr(self, step, (*getattr(self, step), getattr(observer, step)))
