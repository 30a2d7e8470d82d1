"""Objects that live in the portal's event loop, for use from other threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

T = TypeVar("T")


class _Hop:
    """An object whose attributes are read, and whose methods run, in the portal's event loop.

    The caller is blocked meanwhile, even if it is an event loop itself: either the call is short, or the
    caller is synchronous.
    """

    def __init__(self, inside: Any, portal: BlockingPortal) -> None:
        self._inside, self._portal = inside, portal
        self._thread = portal.call(threading.get_ident)

    def __repr__(self) -> str:
        return repr(self._inside)

    def __getattr__(self, name: str) -> Any:
        value = self._there(getattr, self._inside, name)
        return partial(self._there, value) if callable(value) else value

    def _there(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if threading.get_ident() == self._thread:  # for example, an injector that runs in the portal
            return function(*args, **options)
        return self._portal.call(partial(function, *args, **options))


class _Blocking(_Hop):
    """Nodes, or one of them, whose methods block; nodes that they return are wrapped in the same way."""

    def __getattr__(self, name: str) -> Any:
        value = self._there(getattr, self._inside, name)
        return partial(self._waited, value) if callable(value) else self._wrapped(value)

    def __getitem__(self, key: Any) -> Any:
        return self._wrapped(self._inside[key])

    def __len__(self) -> int:
        return len(self._inside)

    def __iter__(self) -> Iterator[Any]:
        return map(self._wrapped, self._inside)

    def _waited(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        bare = [one._inside if isinstance(one, _Blocking) else one for one in args]
        return self._there(function, *bare, **options)

    def _wrapped(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self._wrapped, value))
        return _Blocking(value, self._portal) if hasattr(value, "wait_ready") else value


def in_portal(thing: T, portal: BlockingPortal) -> T:
    """Wrap an object so that its methods may be called from any thread. None of them may be async."""
    return cast(T, _Hop(thing, portal))


def blocking(thing: object, portal: BlockingPortal) -> Any:
    """Wrap an object for threads without an event loop: async methods block until they are done."""
    return _Blocking(thing, portal)
