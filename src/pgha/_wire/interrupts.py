"""Functions that a KeyboardInterrupt must not stop half-way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])

_uninterrupted: list[Callable[..., Any]] = []
_protections: list[Callable[[Callable[..., Any]], object]] = []


def uninterrupted(function: _Function) -> _Function:
    """Defer KeyboardInterrupt on trio to the main task's next checkpoint; a decorator.

    trio raises KeyboardInterrupt in whatever code runs. Between handing a segment to libpq and recording that
    segment, the exception would make an answer reach the wrong caller. asyncio (3.11 and later) cancels the
    main task instead, and the decorator does nothing there.
    """
    _uninterrupted.append(function)
    for protect in _protections:
        protect(function)
    return function


def protect_uninterrupted(protect: Callable[[Callable[..., Any]], object]) -> None:
    """Call ``protect`` with every uninterrupted function, including those that are defined later.

    A loop's module calls this. It is imported when that loop runs, after most of the functions were defined.
    """
    _protections.append(protect)
    for function in _uninterrupted:
        protect(function)
