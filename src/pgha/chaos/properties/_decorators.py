"""Hypothesis's decorators of rules, with types that allow `async def`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from hypothesis import stateful
from hypothesis.strategies import SearchStrategy

F = TypeVar("F", bound=Callable[..., Any])


def rule(
    *,
    targets: Sequence[stateful.Bundle[Any]] = (),
    target: stateful.Bundle[Any] | None = None,
    **arguments: SearchStrategy[Any],
) -> Callable[[F], F]:
    """`hypothesis.stateful.rule`, for async functions too."""
    return cast("Callable[[F], F]", cast(Any, stateful.rule)(targets=targets, target=target, **arguments))


def initialize(
    *,
    targets: Sequence[stateful.Bundle[Any]] = (),
    target: stateful.Bundle[Any] | None = None,
    **arguments: SearchStrategy[Any],
) -> Callable[[F], F]:
    """`hypothesis.stateful.initialize`, for async functions too."""
    decorate = cast(Any, stateful.initialize)(targets=targets, target=target, **arguments)
    return cast("Callable[[F], F]", decorate)


def invariant(*, check_during_init: bool = False) -> Callable[[F], F]:
    """`hypothesis.stateful.invariant`, for async functions too."""
    return stateful.invariant(check_during_init=check_during_init)


def precondition(condition: Callable[[Any], bool]) -> Callable[[F], F]:
    """`hypothesis.stateful.precondition`. The condition itself is not async."""
    return stateful.precondition(condition)
