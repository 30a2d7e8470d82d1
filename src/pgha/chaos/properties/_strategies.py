"""Strategies for faults and loads. They shrink to few, early, short, simple faults, and to small loads."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from pgha.chaos._errors import ChaosError
from pgha.chaos._faults.kinds import ALL_FAULTS, TRAITS, FaultKind
from pgha.chaos._faults.schedule import Schedule, Step
from pgha.chaos._workload import Workload

_SHORTEST_HOLD = 0.05
_AMOUNTS = 12
"""A multiple of the number of amounts of every kind."""
_TICK = 0.01
"""Seconds: times are multiples of this, which are short to read and quick to shrink."""


def faults(kinds: Sequence[FaultKind] = ALL_FAULTS) -> SearchStrategy[FaultKind]:
    """Return a strategy for kinds of faults, which shrinks to the simplest.

    Args:
        kinds: The kinds to choose from, in any order: the order of `ALL_FAULTS` decides which is simpler.

    Returns:
        The strategy.
    """
    return st.sampled_from([kind for kind in ALL_FAULTS if kind in set(kinds)])


@st.composite
def steps(
    draw: st.DrawFn,
    *,
    nodes: int = 3,
    seconds: float = 3.0,
    kinds: Sequence[FaultKind] = ALL_FAULTS,
    hold: float = 1.0,
) -> Step:
    """Return a strategy for steps: one fault on one node.

    Args:
        draw: Passed by Hypothesis, not by the caller.
        nodes: The number of nodes.
        seconds: Seconds within which the fault begins.
        kinds: The kinds of faults to choose from.
        hold: The longest time that the fault lasts, in seconds.

    Returns:
        The strategy.
    """
    # Four draws, for all kinds: with fewer draws, a kind would count as simpler. And from a list, Hypothesis
    # deletes up to five draws at once, one of which says that the list goes on.
    kind = draw(faults(kinds))
    at = draw(_times(0.0, seconds))
    which, node = divmod(draw(st.integers(0, nodes * _AMOUNTS - 1)), nodes)
    held = draw(_times(_SHORTEST_HOLD, max(hold, _SHORTEST_HOLD)))
    trait = TRAITS[kind]
    amount = float(trait.amounts[which % len(trait.amounts)]) if trait.amounts else 0.0
    return Step(at, kind, node, held if trait.lasting else 0.0, amount)


def schedules(
    *,
    nodes: int = 3,
    seconds: float = 3.0,
    kinds: Sequence[FaultKind] = ALL_FAULTS,
    spare: int = 1,
    max_steps: int = 8,
    hold: float = 1.0,
) -> SearchStrategy[Schedule]:
    """Return a strategy for valid schedules.

    Kinds that need a proxy (`WIRE_FAULTS`) are included, unless `kinds` says otherwise.

    Args:
        nodes: The number of nodes.
        seconds: Seconds within which all faults begin.
        kinds: The kinds of faults to choose from.
        spare: The number of nodes that have no fault at any moment.
        max_steps: The largest number of steps.
        hold: The longest time that a fault lasts, in seconds.

    Returns:
        The strategy.

    Raises:
        ChaosError: If no fault is possible, because `kinds` is empty or all nodes are spared.
    """
    if not 0 <= spare < nodes or not kinds:
        raise ChaosError(
            f"no fault is possible with nodes={nodes}, spare={spare}, kinds={kinds!r}:"
            " spare fewer nodes than there are, and name at least one kind"
        )
    step = steps(nodes=nodes, seconds=seconds, kinds=kinds, hold=hold)
    return st.lists(step, max_size=max_steps).map(
        lambda found: Schedule(tuple(found)).normalised(nodes=nodes, spare=spare)
    )


def workloads(
    *, max_readers: int = 8, max_writers: int = 8, max_batchers: int = 2, max_cancellers: int = 2
) -> SearchStrategy[Workload]:
    """Return a strategy for loads with at least one writer.

    Args:
        max_readers: The largest number of readers.
        max_writers: The largest number of writers.
        max_batchers: The largest number of batchers.
        max_cancellers: The largest number of cancellers.

    Returns:
        The strategy.
    """
    return st.builds(
        Workload,
        readers=st.integers(0, max_readers),
        writers=st.integers(1, max_writers),
        batchers=st.integers(0, max_batchers),
        cancellers=st.integers(0, max_cancellers),
        batch=st.integers(1, 5),
        pace=st.sampled_from([0.002, 0.0, 0.02]),
        idempotent=st.sampled_from([0.0, 1.0, 0.5]),
        keyed=st.sampled_from([0.0, 1.0, 0.5]),
        timeout=st.sampled_from([None, 5.0, 0.5]),
    )


def _times(least: float, most: float) -> SearchStrategy[float]:
    return st.integers(round(least / _TICK), round(most / _TICK)).map(lambda ticks: round(ticks * _TICK, 2))


# If plugins of Hypothesis are switched off, nothing else registers the strategies.
st.register_type_strategy(Step, steps())
st.register_type_strategy(Schedule, schedules())
st.register_type_strategy(Workload, workloads())
