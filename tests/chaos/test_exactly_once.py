"""More than 2000 keyed writes through more than 200 faults, on PostgreSQL 16 and 18: each applied once.

Plain writes run beside them: an acknowledged one is there once, a rejected one is not there, one in doubt is
there at most once. PGHA_SCHEDULES multiplies the number of faults; PGHA_LONG=1 draws a new seed each time.
"""

from __future__ import annotations

import os
import time
from functools import partial
from random import Random
from typing import get_args

import anyio
import pytest
from support.tally import TALLY

from pgha._trials.exactly import exactly_once, figures
from pgha._trials.trial import Topology, Trial

TIMES = float(os.environ.get("PGHA_SCHEDULES", "1"))
FAULTS = max(40, round(40 * TIMES))
"""Faults per trial."""
LOOPS = ("asyncio", "trio")


def _seed(number: int) -> int:
    return Random().randrange(1 << 30) if os.environ.get("PGHA_LONG") == "1" else number


@pytest.mark.parametrize("topology", get_args(Topology))
@pytest.mark.parametrize("version", [16, 18])
def test_each_write_once_through_many_faults(version: int, topology: Topology) -> None:
    """Each keyed write is applied once, on each event loop, by the findings of the trial's checkers."""
    trials: list[Trial] = []
    for loop in LOOPS:
        began, seed = time.monotonic(), _seed(get_args(Topology).index(topology))
        play = partial(exactly_once, topology, version, faults=FAULTS, seed=seed)
        trial = anyio.run(play, backend=loop)
        TALLY.trial("exactly once", trial, time.monotonic() - began)
        assert trial.kept, f"{topology} on {loop}, seed {seed}:\n{trial.complaint()}"
        trials.append(trial)
    found = figures(trials)
    TALLY.exact.setdefault(version, []).append(found)
    # Together, the three topologies see more than 200 faults and 2000 keyed writes on each version.
    assert found.faults >= 67
    assert found.keyed >= 667
    assert found.acknowledged + found.left == found.keyed, "all but those whose callers left"
    assert found.doubted > 16, "answers were lost, or nothing was proven"
    assert found.replayed > 3, "writes had been applied whose answers were lost"
    assert found.plain_in_doubt > 6, "and without a key their callers were told so"
    assert found.in_doubt == 0
    assert found.violations == 0
