"""Strategies for faults and loads. They shrink to few, early, short and simple faults, and to small loads."""

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
"""A multiple of the numbers of amounts that kinds have."""
_TICK = 0.01
"""Seconds: times are whole multiples, which are short to read and quick to shrink."""


def faults(kinds: Sequence[FaultKind] = ALL_FAULTS) -> SearchStrategy[FaultKind]:
    """Kinds of faults; the simplest are first in `ALL_FAULTS`, whatever the order given."""
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
    """One fault on one of so many nodes, begun within `seconds` and held for at most `hold` seconds."""
    # Four draws, for all kinds. Those that need fewer would count as the simpler ones; and of a list,
    # Hypothesis deletes up to five draws at once, one of which says that the list goes on.
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
    """Valid schedules for so many nodes: at any moment at least `spare` of them are left alone.

    Kinds that need a proxy (`WIRE_FAULTS`) are among them unless `kinds` says otherwise. `ChaosError` where
    nothing could be done.
    """
    if not 0 <= spare < nodes or not kinds:
        raise ChaosError(f"nothing can be done with {nodes} nodes, {spare} spared, and the kinds {kinds!r}")
    step = steps(nodes=nodes, seconds=seconds, kinds=kinds, hold=hold)
    return st.lists(step, max_size=max_steps).map(
        lambda found: Schedule(tuple(found)).normalised(nodes=nodes, spare=spare)
    )


def workloads(
    *, max_readers: int = 8, max_writers: int = 8, max_batchers: int = 2, max_cancellers: int = 2
) -> SearchStrategy[Workload]:
    """Loads with at least one writer."""
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


# Where plugins of Hypothesis are switched off, nothing else does this.
st.register_type_strategy(Step, steps())
st.register_type_strategy(Schedule, schedules())
st.register_type_strategy(Workload, workloads())
