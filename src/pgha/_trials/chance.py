"""Trials with a schedule of faults, which is either made from a seed or replayed."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from pgha import chaos
from pgha._trials.field import Field
from pgha._trials.play import play
from pgha._trials.trial import Setup, Topology, Trial, Watch, unwatched
from pgha.chaos import FaultKind, NodeKind, Schedule, Workload

_AROUND = 90.0
"""Seconds, in addition to the schedule's own, until a trial is given up as stuck."""


def drawn(seed: int, *, seconds: float, nodes: int, kinds: Sequence[FaultKind] | None = None) -> Schedule:
    """Return the schedule of a seed. At least one node has no fault at any moment."""
    return Schedule.random(
        Random(seed), nodes=nodes, seconds=seconds, kinds=tuple(kinds or chaos.ALL_FAULTS), pace=1.0, hold=1.5
    )


async def random_trial(
    *,
    seed: int,
    seconds: float,
    kind: NodeKind = "local",
    nodes: int = 3,
    kinds: Sequence[FaultKind] | None = None,
    watch: Watch = unwatched,
) -> Trial:
    """Run masters under load, with random faults from `seed` for `seconds`.

    Use only these `kinds` if given.
    """
    schedule = drawn(seed, seconds=seconds, nodes=nodes, kinds=kinds)
    return await replay(schedule, kind=kind, nodes=nodes, seed=seed, watch=watch)


async def replay(
    schedule: Schedule,
    *,
    kind: NodeKind = "local",
    nodes: int = 3,
    seed: int = 0,
    workload: Workload | None = None,
    topology: Topology = "masters",
    version: int | None = None,
    watch: Watch = unwatched,
) -> Trial:
    """Run servers under load, with the faults of `schedule`. A primary has one synchronous standby."""
    setup = Setup(
        topology=topology,
        nodes=max(nodes, schedule.nodes, 1 if topology == "standalone" else 2),
        version=version,
        synchronous=1 if topology == "replicas" else 0,
        kind=kind,
        proxied=any(step.kind in chaos.WIRE_FAULTS for step in schedule.steps),
        workload=workload or Workload(keyed=0.5),
    )

    async def act(field: Field) -> None:
        await field.more(20)
        field.waiting_for = "the end of the schedule"
        await field.injector.run(schedule)
        await field.more(20)

    bound = schedule.seconds + _AROUND
    return await play("schedule", setup, act, seed=seed, watch=watch, bound=bound, schedule=schedule)
