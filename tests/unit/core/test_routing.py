"""Tests of routing: operations go only to eligible nodes, and do not move back and forth."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgha._core.routing import Candidate, among, choose, eligible, elsewhere
from pgha._types import Role, State

quick = settings(deadline=None, max_examples=150)

STATES: tuple[State, ...] = ("connecting", "up", "suspect", "down", "rejected")
ROLES: tuple[Role, ...] = ("primary", "standby", "unknown")
UNKNOWN = float("inf")


def node(
    name: str, latency: float = 0.001, state: State = "up", role: Role = "primary", *, serving: bool = True
) -> Candidate:
    return Candidate(name, state, role, latency, serving)


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("state", STATES)
def test_eligible(state: State, role: Role, write: bool) -> None:
    expected = state in ("up", "suspect") and (role == "primary" or not write)
    one = node("a", state=state, role=role)
    assert eligible(one, write=write) == expected
    assert choose([one], None, write=write) == ("a" if expected else None)
    assert choose([one], "a", write=write) == ("a" if expected else None)


def test_without_nodes() -> None:
    assert choose([], None, write=False) is None
    assert choose([], "gone", write=True) is None
    assert elsewhere([], "a", write=False) is None


def test_the_nearest_is_chosen() -> None:
    assert choose([node("a", 0.003), node("b", 0.001), node("c", 0.002)], None, write=False) == "b"


def test_equals_are_chosen_by_name_on_every_client() -> None:
    assert choose([node("b"), node("a")], None, write=False) == "a"


@pytest.mark.parametrize(
    ("kept", "other", "stays"),
    [
        (0.010, 0.009, True),
        (0.010, 0.0051, True),  # the latency is not halved
        (0.010, 0.0049, False),
        (0.0030, 0.0011, True),  # less than half, but the gain is below 2 ms
        (0.0031, 0.0010, False),
        (UNKNOWN, 0.5, False),
        (UNKNOWN, UNKNOWN, True),
        (0.5, UNKNOWN, True),
    ],
)
def test_it_stays_unless_another_is_much_nearer(kept: float, other: float, stays: bool) -> None:
    for write in (True, False):
        chosen = choose([node("other", other), node("kept", kept)], "kept", write=write)
        assert chosen == ("kept" if stays else "other")


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        (node("x", state="suspect"), node("y", 0.9)),
        (node("x", serving=False), node("y", 0.9)),
        (node("x", state="suspect"), node("y", 0.9, serving=False)),
        (node("x", state="suspect", serving=False), node("y", 0.9, state="suspect")),
        (node("x", role="standby"), node("y", 0.9)),
    ],
    ids=["suspect", "not serving", "suspect or not serving", "neither", "a standby"],
)
def test_worse_is_left_however_near(worse: Candidate, better: Candidate) -> None:
    for current in (None, "x", "y", "gone"):
        assert choose([worse, better], current, write=True) == "y"
    assert elsewhere([worse, better], "y", write=True) == (None if worse.role == "standby" else "x")


def test_a_suspect_is_better_than_none() -> None:
    assert choose([node("a", state="suspect", serving=False)], None, write=True) == "a"


def test_elsewhere_does_not_stay() -> None:
    assert elsewhere([node("a", 0.001), node("b", 0.010), node("c", 0.006)], "a", write=False) == "c"


# Any cluster

latencies = st.sampled_from([0.0, 0.0005, 0.001, 0.004, 0.02, UNKNOWN]) | st.floats(0.0, 0.05)


@st.composite
def clusters(draw: st.DrawFn) -> list[Candidate]:
    names = draw(st.lists(st.sampled_from("abcdef"), unique=True, max_size=5))
    states = st.sampled_from([*STATES, "up", "up"])
    roles = st.sampled_from([*ROLES, "primary"])
    return [Candidate(one, draw(states), draw(roles), draw(latencies), draw(st.booleans())) for one in names]


currents = st.none() | st.sampled_from("abcdef")


def quality(one: Candidate) -> tuple[bool, bool]:
    return one.state == "up", one.serving


@quick
@given(clusters(), currents, st.booleans())
def test_only_where_it_may_go(nodes: list[Candidate], current: str | None, write: bool) -> None:
    known = {one.name: one for one in nodes}
    usable = [one for one in nodes if one.state in ("up", "suspect") and (not write or one.role == "primary")]
    name = choose(nodes, current, write=write)
    assert (name is None) == (not usable)
    if name is not None:
        chosen = known[name]
        assert chosen in usable
        assert quality(chosen) == max(quality(one) for one in usable)
        if name != current:
            peers = [one.latency for one in usable if quality(one) == quality(chosen)]
            assert chosen.latency == min(peers)


@quick
@given(clusters(), st.booleans())
def test_a_choice_stands(nodes: list[Candidate], write: bool) -> None:
    name = choose(nodes, None, write=write)
    assert choose(nodes, name, write=write) == name
    assert choose(list(reversed(nodes)), None, write=write) == name


@quick
@given(latencies, latencies, st.sampled_from(["up", "suspect"]), st.booleans())
def test_a_change_among_equals_is_worth_it(kept: float, other: float, state: State, serving: bool) -> None:
    nodes = [node("kept", kept, state, serving=serving), node("other", other, state, serving=serving)]
    worth_it = other * 2 < kept and other < kept - 0.002
    assert choose(nodes, "kept", write=True) == ("other" if worth_it else "kept")


@quick
@given(clusters(), st.floats(-0.0009, 0.0009))
def test_noise_does_not_move_it(nodes: list[Candidate], noise: float) -> None:
    name = choose(nodes, None, write=True)
    noisy = [replace(one, latency=max(0.0, one.latency + noise)) for one in nodes if one.name == name]
    others = [one for one in nodes if one.name != name]
    assert choose(noisy + others, name, write=True) == name


@quick
@given(clusters(), st.sampled_from("abcdef"), st.booleans())
def test_elsewhere_is_elsewhere(nodes: list[Candidate], avoid: str, write: bool) -> None:
    name = elsewhere(nodes, avoid, write=write)
    assert name != avoid
    others = [one for one in nodes if one.name != avoid]
    assert name == choose(others, None, write=write)
    assert (name is None) == (not any(eligible(one, write=write) for one in others))


@quick
@given(clusters(), st.none() | st.sampled_from("abcd"), st.none() | st.sampled_from("abcdx"))
def test_among_the_few_that_know(nodes: list[Candidate], current: str | None, last: str | None) -> None:
    """Choose a member that takes writes, the current one if possible; while none does, keep the last."""
    found = among(nodes, current, last)
    able = {one.name for one in nodes if eligible(one, write=True)}
    if able:
        assert found in able
        assert current not in able or found == current
    elif nodes:
        assert found in {one.name for one in nodes}
        assert found == last or last not in {one.name for one in nodes}
    else:
        assert found == last
