"""Tests of schedules as values: valid, random by seed, written as text and as programs."""

from __future__ import annotations

import ast
import subprocess
import sys
from random import Random
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgha.chaos._errors import ChaosError
from pgha.chaos._faults.acts import NODE_ACTS, WIRE_ACTS
from pgha.chaos._faults.kinds import ALL_FAULTS, NODE_FAULTS, TRAITS, WIRE_FAULTS, FaultKind
from pgha.chaos._faults.schedule import Schedule, Step
from pgha.chaos._workload import Workload

any_steps = st.builds(
    Step,
    at=st.integers(0, 3000).map(lambda ms: ms / 1000),
    kind=st.sampled_from(ALL_FAULTS),
    node=st.integers(0, 3),
    hold=st.floats(0, 2),
    amount=st.floats(0, 1e6),
)
any_schedules = st.lists(any_steps, max_size=12).map(lambda steps: Schedule(tuple(steps)))


def harmed_at(schedule: Schedule, at: float) -> list[Step]:
    return [step for step in schedule.steps if step.at <= at < step.over]


def assert_valid(schedule: Schedule, nodes: int, spare: int) -> None:
    """Check the rules a second way: at every moment at which a fault begins."""
    for now in {step.at for step in schedule.steps}:
        harmed = harmed_at(schedule, now)
        assert len({step.node for step in harmed}) <= nodes - spare
        slots = [(step.node, TRAITS[step.kind].layer) for step in harmed]
        assert len(set(slots)) == len(slots)


def test_every_kind_is_in_every_table() -> None:
    assert set(ALL_FAULTS) == set(TRAITS) == set(NODE_ACTS) | set(WIRE_ACTS) == set(get_args(FaultKind))
    assert set(NODE_FAULTS) == set(NODE_ACTS) == {kind for kind in TRAITS if TRAITS[kind].layer == "node"}
    assert set(WIRE_FAULTS) == set(WIRE_ACTS)


@given(any_schedules, st.integers(0, 2))
def test_normalised_is_valid_and_keeps_what_was_valid(schedule: Schedule, spare: int) -> None:
    good = schedule.normalised(nodes=4, spare=spare)
    assert good.conflicts(nodes=4, spare=spare) == []
    assert_valid(good, 4, spare)
    assert good.normalised(nodes=4, spare=spare) == good
    assert len(good.steps) + len(schedule.conflicts(nodes=4, spare=spare)) == len(schedule.steps)


def test_conflicts_say_what_is_wrong() -> None:
    schedule = Schedule(
        (
            Step(0.1, "freeze", 0, 0.3),
            Step(0.0, "kill", 0, 0.5),
            Step(0.2, "latency", 0, 1.0, 0.5),
            Step(0.3, "freeze", 1),
            Step(2.0, "reset", 7),
        )
    )
    assert schedule.conflicts(nodes=2, spare=1) == [
        "freeze of node 0 at 0.1 s for 0.3 s: too early, kill of node 0 at 0 s for 0.5 s is not over",
        "freeze of node 1 at 0.3 s for 0.5 s: 1 of 2 nodes are spared",
        "reset of node 7 at 2 s: there are 2 nodes",
    ]
    assert [step.kind for step in schedule.normalised(nodes=2, spare=1).steps] == ["kill", "latency"]


@given(any_schedules)
def test_text_gives_the_same_schedule(schedule: Schedule) -> None:
    assert eval(repr(schedule), {"Schedule": Schedule, "Step": Step}) == schedule
    assert Schedule.from_json(schedule.to_json()) == schedule


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"steps": 1}',
        '{"steps": [1]}',
        '{"steps": [{"at": 1}]}',
        '{"steps": [{"at": 0, "kind": "?", "node": 0}]}',
        '{"steps": [{"at": 0, "kind": ["kill"], "node": 0}]}',
        '{"steps": [{"at": "0", "kind": "kill", "node": 0}]}',
        '{"steps": [{"at": NaN, "kind": "kill", "node": 0}]}',
    ],
)
def test_bad_json(text: str) -> None:
    with pytest.raises(ChaosError):
        Schedule.from_json(text)


@pytest.mark.parametrize(
    ("at", "kind", "node", "hold"),
    [(-1, "kill", 0, 0), (0, "crush", 0, 0), (0, "kill", -1, 0), (0, "kill", 0, float("inf"))],
)
def test_bad_steps(at: float, kind: FaultKind, node: int, hold: float) -> None:
    with pytest.raises(ChaosError):
        Step(at, kind, node, hold)


@given(st.integers(), st.integers(0, 2), st.sampled_from([NODE_FAULTS, ALL_FAULTS, ("kill",)]))
def test_random_schedules_are_valid(seed: int, spare: int, kinds: tuple[FaultKind, ...]) -> None:
    def draw() -> Schedule:
        return Schedule.random(Random(seed), nodes=3, seconds=4, kinds=kinds, pace=5, spare=spare, hold=0.7)

    schedule = draw()
    assert schedule == draw()
    assert schedule.conflicts(nodes=3, spare=spare) == []
    assert_valid(schedule, 3, spare)
    assert all(step.kind in kinds and step.at <= 4 and step.hold <= 0.7 for step in schedule.steps)


def test_random_schedules_use_everything() -> None:
    random = Random(0)
    steps = [s for _ in range(100) for s in Schedule.random(random, kinds=ALL_FAULTS, pace=10).steps]
    assert {step.kind for step in steps} == set(ALL_FAULTS)
    assert {step.node for step in steps} == {0, 1, 2}


@pytest.mark.parametrize(("nodes", "spare", "kinds"), [(2, 2, NODE_FAULTS), (1, 1, NODE_FAULTS), (2, 0, ())])
def test_random_schedules_that_cannot_be(nodes: int, spare: int, kinds: tuple[FaultKind, ...]) -> None:
    with pytest.raises(ChaosError):
        Schedule.random(Random(0), nodes=nodes, spare=spare, kinds=kinds)


def test_times() -> None:
    schedule = Schedule((Step(1.0, "kill", 2, 0.5), Step(1.2, "terminate", 0, 9.0)))
    assert (schedule.seconds, schedule.nodes) == (1.5, 3)
    assert schedule.normalised().steps[1].hold == 0.0
    assert (Schedule().seconds, Schedule().nodes) == (0.0, 0)
    assert (
        str(Step(1.5, "latency", 1, 0.25, 0.1))
        == "latency (0.1 seconds each way) of node 1 at 1.5 s for 0.25 s"
    )


@pytest.mark.parametrize("steps", [(), (Step(0.0, "kill", 1),), (Step(0.0, "kill", 1), Step(0.1, "mute", 0))])
@pytest.mark.parametrize("program", [None, "a.b:c"])
def test_the_scripts_are_python(steps: tuple[Step, ...], program: str | None) -> None:
    text = Schedule(steps).script(program=program, backend="trio")
    imported = {
        alias.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert ("proxied" in imported) == any(step.kind == "mute" for step in steps)
    assert ("c" in imported) == (program is not None)
    assert "anyio.run(main, backend='trio')" in text


@pytest.mark.parametrize("program", ["", "a.b", "a b:c", ":c", "a:c.d"])
def test_a_bad_name_of_a_program(program: str) -> None:
    with pytest.raises(ChaosError):
        Schedule().script(program=program)


def test_a_script_with_another_body_runs() -> None:
    schedule = Schedule((Step(0.25, "freeze", 1, 0.125),))
    text = schedule.script(
        """
        import sys

        sys.stdout.write(repr(schedule))
        """
    )
    found = subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, text=True)
    assert found.stdout == repr(schedule)


@pytest.mark.parametrize(
    "values",
    [
        {"readers": -1},
        {"pace": float("nan")},
        {"timeout": float("inf")},
        {"idempotent": 1.5},
        {"readers": 0, "writers": 0, "batchers": 0, "cancellers": 0},
    ],
)
def test_bad_workloads(values: dict[str, float]) -> None:
    with pytest.raises(ChaosError):
        Workload(**values)  # type: ignore[arg-type]


def test_a_workload_is_python() -> None:
    load = Workload(readers=20, timeout=1.5)
    assert eval(repr(load), {"Workload": Workload}) == load
