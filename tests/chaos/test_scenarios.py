"""Every named scenario, on both event loops, on every kind of node that can play it."""

from __future__ import annotations

import os
import time

import pytest
from support.common import demand_engine
from support.tally import TALLY

from pgha._trials.scenarios import SCENARIOS, find
from pgha._trials.servers import missing
from pgha._trials.trial import Setup
from pgha.chaos import ChaosError, NodeKind

pytestmark = pytest.mark.anyio

FAULTS = 25
"""The number of faults in the list that a suite should try."""
PLAYED = [
    pytest.param(name, kind, id=f"{name}-{kind}") for name, one in SCENARIOS.items() for kind in one.kinds
]


@pytest.mark.parametrize(("name", "kind"), PLAYED)
async def test_it_keeps_every_promise(name: str, kind: NodeKind) -> None:
    scenario = find(name)
    if kind == "container":
        demand_engine()
    if lack := missing(scenario.setup):
        # As for the engine: if PGHA_REQUIRE_ENGINE demands it, every setup is required.
        (pytest.fail if os.environ.get("PGHA_REQUIRE_ENGINE") == "1" else pytest.skip)(lack)
    began = time.monotonic()
    trial = await scenario.run(kind)
    TALLY.trial("scenario", trial, time.monotonic() - began)
    assert trial.kept, trial.complaint()
    assert sum(entry.ending == "acknowledged" for entry in trial.history) > 50


def test_every_fault_of_the_list_has_a_scenario() -> None:
    assert {one.number for one in SCENARIOS.values()} == set(range(FAULTS + 1))


def test_containers_are_killed_restarted_paused_and_cut_off() -> None:
    on_containers = {name for name, one in SCENARIOS.items() if "container" in one.kinds}
    assert {"kill-the-node", "stop-fast", "stop-immediate", "freeze-the-node", "cut-off"} <= on_containers


def test_a_scenario_that_does_not_exist() -> None:
    with pytest.raises(ChaosError, match=r"no scenario 'kill-the-nod': did you mean kill-the-node"):
        find("kill-the-nod")
    with pytest.raises(ChaosError, match=r"no scenario 'xyzzy': see pgha chaos --list"):
        find("xyzzy")


def test_what_a_scenario_lacks_is_told() -> None:
    assert "no PostgreSQL 9 found" in missing(Setup(version=9))
    assert "localedef -i xx_XX -f UTF-8" in missing(Setup(settings={"lc_messages": "xx_XX.UTF-8"}))
    assert missing(Setup()) == ""


async def test_a_scenario_on_nodes_that_it_is_not_for() -> None:
    with pytest.raises(ChaosError, match="only on local"):
        await find("freeze-all").run("container")
