"""What the nodes are to be like: the marker, the command line, the configuration."""

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
    """The failure of a test that is told in these words alone, without a traceback. Raise it `from None`."""
    return pytest.fail.Exception(f"pgha: {why}", pytrace=False)


def kind_of(config: pytest.Config) -> str:
    """What nodes run in where a test does not say it; `UsageError` for a word that means nothing."""
    found: str = config.getoption("pgha_nodes") or config.getini("pgha_nodes")
    if found not in KINDS:
        raise pytest.UsageError(f"pgha_nodes is {' or '.join(KINDS)}, not {found!r}")
    return found


def asked(item: pytest.Item) -> dict[str, Any]:
    """The keywords of the test's markers, on top of the configuration."""
    options: dict[str, Any] = {"kind": kind_of(item.config)}
    for marker in reversed(list(item.iter_markers("pgha"))):  # the nearest comes first
        if marker.args:
            raise unusable(f"the marker takes keywords only, not {marker.args!r}")
        options |= marker.kwargs
    return options


def topology(options: Mapping[str, Any]) -> AbstractAsyncContextManager[Nodes]:
    """The nodes that are asked for, not started yet. The test fails when that makes no sense."""
    from pgha import chaos

    keywords = dict(options)
    name = keywords.pop("topology", "standalone")
    if name not in _COUNTS:
        raise unusable(f"topology is one of {', '.join(_COUNTS)}, not {name!r}")
    make: Callable[..., AbstractAsyncContextManager[Nodes]] = getattr(chaos, name)
    count = keywords.pop("nodes", _COUNTS[name])
    try:
        inspect.signature(make).bind(count, **keywords)
    except TypeError as error:
        raise unusable(f"{name}: {error}") from None
    return make(count - 1 if name == "replicas" else count, **keywords)
