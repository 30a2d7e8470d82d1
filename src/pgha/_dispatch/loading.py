"""Loading of large results in parts, so that the event loop gets a turn between two of them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from pgha._node.lane import Lane
from pgha._operation.operation import Operation, Stage
from pgha._rows.result import Result
from pgha._wire.loops import Loop

Parts = Generator[None, None, Result[Any]]


class LoadingCallbacks(Protocol):
    """The dispatcher, which ends operations."""

    def loaded(self, operation: Operation[Any], result: Any) -> None:
        """Take the result of an operation."""
        ...

    def not_loaded(self, operation: Operation[Any], error: BaseException) -> None:
        """Take what a loader or the row factory raised."""
        ...


@dataclass(slots=True, eq=False)
class _Load:
    operation: Operation[Any]
    parts: Parts


class Loading:
    """Loads large results; see the head of this file."""

    def __init__(
        self, loop: Loop, enter: Callable[[Callable[[Any], object], Any], None], owner: LoadingCallbacks
    ) -> None:
        self._loop = loop
        self._enter = enter
        self._owner = owner
        self._running: dict[Lane, list[_Load]] = {}

    def begin(self, lane: Lane, operation: Operation[Any], parts: Parts) -> None:
        """Load the first part of a result now, and the others later."""
        load = _Load(operation, parts)
        self._running.setdefault(lane, []).append(load)
        self._next((lane, load))

    def _next(self, what: tuple[Lane, _Load]) -> None:
        lane, load = what
        if load not in self._running.get(lane, ()):
            return  # done, because the connection ended
        if self._advance(load):
            self._loop.soon(partial(self._enter, self._next, what))
            return
        loads = self._running[lane]
        loads.remove(load)
        if not loads:
            del self._running[lane]

    def _advance(self, load: _Load) -> bool:
        """Load one part; return whether there is another."""
        operation = load.operation
        if operation.stage is Stage.DONE:
            load.parts.close()
            return False
        try:
            next(load.parts)
        except StopIteration as stop:
            self._owner.loaded(operation, stop.value)
            return False
        except BaseException as error:  # noqa: BLE001 - the user's code: its error goes to its operation
            self._owner.not_loaded(operation, error)
            return False
        return True

    def finish(self, lane: Lane) -> None:
        """Load the rest now: the connection's settings, which say how to read values, end with it."""
        for load in self._running.pop(lane, []):
            while self._advance(load):
                pass
