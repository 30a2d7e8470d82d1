"""Random schedules of faults: Hypothesis looks for one that breaks a promise, and shrinks it.

CI always tries the same schedules, so that a new failure comes from a change of pgha. Runs by hand and `just
chaos-long` try new ones each time. PGHA_SCHEDULES multiplies their number; PGHA_LONG=1 tries new ones in CI,
too.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import partial
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, Phase, example, given, note, settings
from support.common import demand_engine
from support.tally import TALLY

from pgha._trials.chance import replay
from pgha._trials.trial import Topology
from pgha.chaos import ALL_FAULTS, NODE_FAULTS, Schedule, Step, Workload
from pgha.chaos.properties import schedules, workloads

TIMES = float(os.environ.get("PGHA_SCHEDULES", "1"))
SECONDS = 2.5
ROUGH = tuple(kind for kind in ALL_FAULTS if kind not in ("latency", "bandwidth", "slow_close"))
"""All faults but those that merely slow the network down: they take long, and have a separate scenario."""
PROGRAM = """
import anyio

from pgha._trials.chance import replay

trial = anyio.run(lambda: replay(schedule, workload={workload!r}, **{options!r}), backend={loop!r})
print(trial.complaint() or "every promise was kept")
"""


def tried(examples: int) -> settings:
    """Return settings for slow examples that start servers: fewer than usual, and no deadline."""
    return settings(
        max_examples=max(1, round(examples * TIMES)),
        deadline=None,
        derandomize=bool(os.environ.get("CI")) and os.environ.get("PGHA_LONG") != "1",
        print_blob=True,
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


def keeps_every_promise(schedule: Schedule, workload: Workload, loop: str, **options: Any) -> None:
    began = time.monotonic()
    trial = anyio.run(partial(replay, schedule, workload=workload, **options), backend=loop)
    TALLY.trial("schedule", trial, time.monotonic() - began)
    # If the trial fails, this prints a program that repeats it.
    note(schedule.script(PROGRAM.format(workload=workload, loop=loop, options=options)))
    assert trial.kept, trial.complaint()


LOOPS = pytest.mark.parametrize("loop", ["asyncio", "trio"])


@LOOPS
@tried(32)
@given(schedule=schedules(seconds=SECONDS, kinds=ROUGH), workload=workloads())
@example(schedule=Schedule((Step(0.1, "kill", 0, 1.0), Step(0.3, "drop_down", 1, 0.5))), workload=Workload())
# Found by Hypothesis: a read was not run again after it had been first in line on a connection that a
# shutdown ended, and then on one that broke.
@example(
    schedule=Schedule(
        (
            Step(0.36, "restart", 1, 0.9),
            Step(0.37, "close", 2),
            Step(1.4, "drop_down", 2, 0.28),
            Step(1.96, "restart", 1, 0.38),
        )
    ),
    workload=Workload(readers=2, writers=5, batchers=0, cancellers=2, batch=2, pace=0.0, idempotent=1.0),
)
def test_any_faults(loop: str, schedule: Schedule, workload: Workload) -> None:
    keeps_every_promise(schedule, workload, loop)


@LOOPS
@tried(12)
@given(schedule=schedules(seconds=SECONDS, kinds=NODE_FAULTS), workload=workloads())
def test_faults_of_processes(loop: str, schedule: Schedule, workload: Workload) -> None:
    """Every promise is kept without proxies between pgha and its servers."""
    keeps_every_promise(schedule, workload, loop)


@LOOPS
@tried(12)
@given(schedule=schedules(seconds=SECONDS, kinds=ROUGH), workload=workloads())
def test_faults_of_containers(loop: str, schedule: Schedule, workload: Workload) -> None:
    demand_engine()
    keeps_every_promise(schedule, workload, loop, kind="container")


@LOOPS
@pytest.mark.parametrize("version", [16, 18])
@pytest.mark.parametrize(("topology", "nodes"), [("masters", 3), ("replicas", 2), ("standalone", 1)])
def test_any_faults_of_keyed_writes(topology: Topology, nodes: int, version: int, loop: str) -> None:
    """Every promise is kept on each topology; if no other node can take the writes, no node is spared."""
    spare = 1 if topology == "masters" else 0

    @tried(2)
    @given(
        schedule=schedules(nodes=nodes, seconds=SECONDS, kinds=ROUGH, spare=spare),
        workload=workloads().map(lambda drawn: replace(drawn, keyed=0.5)),
    )
    def play(schedule: Schedule, workload: Workload) -> None:
        keeps_every_promise(schedule, workload, loop, topology=topology, nodes=nodes, version=version)

    play()
