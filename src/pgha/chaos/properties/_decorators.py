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
    """Mark a method, sync or async, as a rule of the machine: `hypothesis.stateful.rule`.

    Args:
        targets: The bundles that the results go to.
        target: The one bundle that the results go to; None: none.
        **arguments: A strategy for each argument of the function.

    Returns:
        The decorator.

    Example::

        @rule(number=st.integers())
        async def put(self, number): ...
    """
    return cast("Callable[[F], F]", cast(Any, stateful.rule)(targets=targets, target=target, **arguments))


def initialize(
    *,
    targets: Sequence[stateful.Bundle[Any]] = (),
    target: stateful.Bundle[Any] | None = None,
    **arguments: SearchStrategy[Any],
) -> Callable[[F], F]:
    """Mark a method, sync or async, that runs once before the rules: `hypothesis.stateful.initialize`.

    Args:
        targets: The bundles that the results go to.
        target: The one bundle that the results go to; None: none.
        **arguments: A strategy for each argument of the function.

    Returns:
        The decorator.
    """
    decorate = cast(Any, stateful.initialize)(targets=targets, target=target, **arguments)
    return cast("Callable[[F], F]", decorate)


def invariant(*, check_during_init: bool = False) -> Callable[[F], F]:
    """Mark a method, sync or async, as a check after every rule: `hypothesis.stateful.invariant`.

    Args:
        check_during_init: Whether the check also runs before and between initializers.

    Returns:
        The decorator.

    Example::

        @invariant()
        async def every_node_runs(self): ...
    """
    return stateful.invariant(check_during_init=check_during_init)


def precondition(condition: Callable[[Any], bool]) -> Callable[[F], F]:
    """Restrict a rule or an invariant to states that satisfy a condition: `hypothesis.stateful.precondition`.

    Args:
        condition: A function of the machine, which cannot be async.

    Returns:
        The decorator.

    Example::

        @precondition(lambda self: self.node.running)
        @rule()
        async def kill(self): ...
    """
    return stateful.precondition(condition)
