"""The options of the nodes: the marker, the command line, the configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import pytest

if TYPE_CHECKING:
    from pgha.chaos import Nodes

Scope: TypeAlias = Literal["function", "module", "session"]
KINDS = ("local", "container")
SCOPES: tuple[Scope, ...] = ("function", "module", "session")
_COUNTS = {"standalone": 1, "masters": 3, "replicas": 2}


def unusable(why: object) -> BaseException:
    """Return the failure of a test that is reported by this message alone, without a traceback.

    Raise it `from None`.
    """
    return pytest.fail.Exception(f"pgha: {why}", pytrace=False)


def kind_of(config: pytest.Config) -> str:
    """Return the kind of the nodes of tests that do not name one.

    `UsageError` for an unknown kind.
    """
    found: str = config.getoption("pgha_nodes") or config.getini("pgha_nodes")
    if found not in KINDS:
        raise pytest.UsageError(f"pgha_nodes must be {' or '.join(KINDS)}, not {found!r}")
    return found


def asked(item: pytest.Item) -> dict[str, Any]:
    """Return the keywords of the test's markers, in addition to the configuration."""
    options: dict[str, Any] = {"kind": kind_of(item.config)}
    for marker in reversed(list(item.iter_markers("pgha"))):  # the nearest comes first
        if marker.args:
            raise unusable(f"the marker pgha takes keywords only, not {marker.args!r}")
        options |= marker.kwargs
    return options


def topology(options: Mapping[str, Any]) -> AbstractAsyncContextManager[Nodes]:
    """Return the requested nodes, not started yet. The test fails if the request is invalid."""
    from pgha import chaos

    keywords = dict(options)
    name = keywords.pop("topology", "standalone")
    if name not in _COUNTS:
        raise unusable(f"topology must be one of {', '.join(_COUNTS)}, not {name!r}")
    make: Callable[..., AbstractAsyncContextManager[Nodes]] = getattr(chaos, name)
    count = keywords.pop("nodes", _COUNTS[name])
    try:
        inspect.signature(make).bind(count, **keywords)
    except TypeError as error:
        raise unusable(f"{name}: {error}") from None
    return make(count - 1 if name == "replicas" else count, **keywords)
