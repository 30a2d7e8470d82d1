"""Shortens a schedule of faults that breaks a promise, as far as possible in the given time.

Hypothesis shrinks the failures that it finds itself. This module is for `pgha chaos`, whose schedule came
from a seed. Each attempt starts servers and plays the faults anew, so an attempt takes seconds, and a
schedule need not fail every time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

import anyio

from pgha.chaos import Schedule, Step

_SHORT = 0.25
"""Seconds. A fault that lasts no longer than this is not made shorter."""


def simpler(schedule: Schedule) -> Iterator[Schedule]:
    """Yield schedules that are simpler than `schedule`, those with the greatest changes first."""
    steps = schedule.steps
    size = len(steps) // 2
    while size >= 1:
        for start in range(0, len(steps), size):
            if kept := steps[:start] + steps[start + size :]:
                yield Schedule(kept)
        size //= 2
    first = min((step.at for step in steps), default=0.0)
    if first > _SHORT:
        early = first - _SHORT / 2
        yield Schedule(tuple(replace(step, at=step.at - early) for step in steps))
    for index, step in enumerate(steps):
        if step.hold > _SHORT:
            yield Schedule((*steps[:index], _shorter(step), *steps[index + 1 :]))


def _shorter(step: Step) -> Step:
    return replace(step, hold=round(max(_SHORT, step.hold / 2), 3))


async def shrink(
    schedule: Schedule, broken: Callable[[Schedule], Awaitable[bool]], *, seconds: float
) -> Schedule:
    """Return the simplest schedule found within `seconds` that is still `broken`; at worst the given one."""
    with anyio.move_on_after(seconds):
        candidates = simpler(schedule)
        while (candidate := next(candidates, None)) is not None:
            if await broken(candidate):
                schedule = candidate
                candidates = simpler(schedule)
    return schedule
