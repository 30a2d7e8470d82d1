"""Tests of routing: operations go only to eligible nodes, and do not move back and forth."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgha._core.need import READ, WRITE, Need
from pgha._core.routing import Candidate, among, choose, eligible, elsewhere
from pgha._types import Role, State

quick = settings(deadline=None, max_examples=150)

STATES: tuple[State, ...] = ("connecting", "up", "suspect", "down", "rejected")
ROLES: tuple[Role, ...] = ("primary", "standby", "unknown")
UNKNOWN = float("inf")
PRIMARY_READ = Need("read", "primary")
NEEDS = (READ, WRITE, PRIMARY_READ)


def node(
    name: str, latency: float = 0.001, state: State = "up", role: Role = "primary", *, serving: bool = True
) -> Candidate:
    return Candidate(name, state, role, latency, serving)


# What is eligible


@pytest.mark.parametrize("need", NEEDS)
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("state", STATES)
def test_eligible(state: State, role: Role, need: Need) -> None:
    expected = state in ("up", "suspect") and (role == "primary" or need == READ)
    one = node("a", state=state, role=role)
    assert eligible(one, need) == expected
    assert choose([one], None, need) == ("a" if expected else None)
    assert choose([one], "a", need) == ("a" if expected else None)


def test_a_read_only_primary_takes_reads_only() -> None:
    one = replace(node("a"), read_only=True)
    assert [eligible(one, need) for need in NEEDS] == [True, False, True]


def test_a_superseded_primary_is_no_primary() -> None:
    one = replace(node("a"), superseded=True)
    assert [eligible(one, need) for need in NEEDS] == [True, False, False]


@pytest.mark.parametrize("need", NEEDS)
def test_a_need_of_one_node(need: Need) -> None:
    assert eligible(node("a"), need._replace(node="a"))
    assert not eligible(node("a"), need._replace(node="b"))


@pytest.mark.parametrize("need", NEEDS)
def test_a_need_of_one_lineage(need: Need) -> None:
    for lineage, expected in ((7, True), (8, False), (None, False)):
        assert eligible(replace(node("a"), lineage=lineage), need._replace(lineage=7)) == expected


def test_a_write_needs_a_primary() -> None:
    assert (Need("read"), Need("write", "primary")) == (READ, WRITE)


# The choice


def test_without_nodes() -> None:
    assert choose([], None, READ) is None
    assert choose([], "gone", WRITE) is None
    assert elsewhere([], "a", READ) is None


def test_the_nearest_is_chosen() -> None:
    assert choose([node("a", 0.003), node("b", 0.001), node("c", 0.002)], None, READ) == "b"


def test_equals_are_chosen_by_name_on_every_client() -> None:
    assert choose([node("b"), node("a")], None, READ) == "a"


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
    for need in NEEDS:
        chosen = choose([node("other", other), node("kept", kept)], "kept", need)
        assert chosen == ("kept" if stays else "other")


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        (node("x", state="suspect"), node("y", 0.9)),
        (node("x", serving=False), node("y", 0.9)),
        (node("x", state="suspect"), node("y", 0.9, serving=False)),
        (node("x", state="suspect", serving=False), node("y", 0.9, state="suspect")),
        (node("x", role="standby"), node("y", 0.9)),
        (replace(node("x"), read_only=True), node("y", 0.9)),
        (replace(node("x"), superseded=True), node("y", 0.9)),
    ],
    ids=["suspect", "not serving", "suspect or not serving", "neither", "a standby", "read-only", "old"],
)
def test_a_fresh_choice_avoids_the_worse_however_near(worse: Candidate, better: Candidate) -> None:
    for current in (None, "gone"):
        assert choose([worse, better], current, WRITE) == "y"
    assert elsewhere([worse, better], "y", WRITE) == ("x" if eligible(worse, WRITE) else None)


def test_suspicion_moves_nothing() -> None:
    kept = node("kept", 0.5, state="suspect")
    for need in NEEDS:
        assert choose([kept, node("other", 0.4)], "kept", need) == "kept"
        assert choose([replace(kept, state="down"), node("other", 0.4)], "kept", need) == "other"


@pytest.mark.parametrize("state", ["up", "suspect"])
def test_a_node_that_opens_no_connections_is_left_for_one_that_does(state: State) -> None:
    kept = node("kept", state=state, serving=False)
    assert choose([kept, node("other", 0.9)], "kept", WRITE) == "other"
    assert choose([kept, node("other", serving=False)], "kept", WRITE) == "kept"
    assert choose([kept, node("other", state="suspect")], "kept", WRITE) == "kept"


@pytest.mark.parametrize("serving", [True, False])
def test_a_primary_is_not_left_for_another_of_its_lineage(serving: bool) -> None:
    kept = replace(node("kept", 0.9, serving=serving), lineage=7)
    other = replace(node("other", 0.001), lineage=7)
    master = replace(other, lineage=8)
    for need in (WRITE, PRIMARY_READ):
        assert choose([kept, other], "kept", need) == "kept"
        assert choose([kept, master], "kept", need) == "other", "another lineage"
        assert choose([replace(kept, superseded=True), other], "kept", need) == "other", "a newer timeline"
        assert choose([replace(kept, state="down"), other], "kept", need) == "other", "down"
    assert choose([kept, other], "kept", READ) == "other"
    unknown = [replace(one, lineage=None) for one in (kept, other)]
    assert choose(unknown, "kept", WRITE) == "other", "lineages that nothing tells of"


def test_a_suspect_is_better_than_none() -> None:
    assert choose([node("a", state="suspect", serving=False)], None, WRITE) == "a"


def test_elsewhere_does_not_stay() -> None:
    assert elsewhere([node("a", 0.001), node("b", 0.010), node("c", 0.006)], "a", READ) == "c"


# Any cluster

latencies = st.sampled_from([0.0, 0.0005, 0.001, 0.004, 0.02, UNKNOWN]) | st.floats(0.0, 0.05)
needs = st.sampled_from(NEEDS)


@st.composite
def clusters(draw: st.DrawFn) -> list[Candidate]:
    names = draw(st.lists(st.sampled_from("abcdef"), unique=True, max_size=5))
    states = st.sampled_from([*STATES, "up", "up"])
    roles = st.sampled_from([*ROLES, "primary"])
    seldom = st.sampled_from([False, False, False, True])
    lineages = st.sampled_from([None, 1, 2])
    return [
        Candidate(
            one, draw(states), draw(roles), draw(latencies), draw(st.booleans()),
            draw(lineages), draw(seldom), draw(seldom),
        )
        for one in names
    ]  # fmt: skip


currents = st.none() | st.sampled_from("abcdef")


def quality(one: Candidate) -> tuple[bool, bool]:
    return one.state == "up", one.serving


@quick
@given(clusters(), currents, needs)
def test_only_where_it_may_go(nodes: list[Candidate], current: str | None, need: Need) -> None:
    known = {one.name: one for one in nodes}
    usable = [one for one in nodes if eligible(one, need)]
    name = choose(nodes, current, need)
    assert (name is None) == (not usable)
    if name is None:
        return
    chosen = known[name]
    assert chosen in usable
    if current not in {one.name for one in usable}:
        assert quality(chosen) == max(quality(one) for one in usable)
    elif name != current:
        assert quality(chosen) == (True, True)
    if name != current and current not in known:
        peers = [one.latency for one in usable if quality(one) == quality(chosen)]
        assert chosen.latency == min(peers)


@quick
@given(clusters(), needs)
def test_a_choice_stands(nodes: list[Candidate], need: Need) -> None:
    name = choose(nodes, None, need)
    assert choose(nodes, name, need) == name
    assert choose(list(reversed(nodes)), None, need) == name


@quick
@given(clusters(), currents, needs)
def test_no_choice_depends_on_whether_the_current_node_is_suspect(
    nodes: list[Candidate], current: str | None, need: Need
) -> None:
    def seen(state: State) -> list[Candidate]:
        return [replace(one, state=state) if one.name == current else one for one in nodes]

    assert choose(seen("up"), current, need) == choose(seen("suspect"), current, need)


@quick
@given(clusters(), currents)
def test_writes_stay_with_a_primary_that_is_up(nodes: list[Candidate], current: str | None) -> None:
    known = {one.name: one for one in nodes}
    name = choose(nodes, current, WRITE)
    if name is not None and current in known and name != current and eligible(known[current], WRITE):
        assert known[current].lineage is None or known[name].lineage != known[current].lineage


@quick
@given(latencies, latencies, st.booleans())
def test_a_change_among_equals_is_worth_it(kept: float, other: float, suspect: bool) -> None:
    state: State = "suspect" if suspect else "up"
    nodes = [node("kept", kept, state), node("other", other)]
    worth_it = other * 2 < kept and other < kept - 0.002
    assert choose(nodes, "kept", WRITE) == ("other" if worth_it else "kept")


@quick
@given(clusters(), st.floats(-0.0009, 0.0009))
def test_noise_does_not_move_it(nodes: list[Candidate], noise: float) -> None:
    name = choose(nodes, None, WRITE)
    noisy = [replace(one, latency=max(0.0, one.latency + noise)) for one in nodes if one.name == name]
    others = [one for one in nodes if one.name != name]
    assert choose(noisy + others, name, WRITE) == name


@quick
@given(clusters(), st.sampled_from("abcdef"), needs)
def test_elsewhere_is_elsewhere(nodes: list[Candidate], avoid: str, need: Need) -> None:
    name = elsewhere(nodes, avoid, need)
    assert name != avoid
    others = [one for one in nodes if one.name != avoid]
    assert name == choose(others, None, need)
    assert (name is None) == (not any(eligible(one, need) for one in others))


@quick
@given(clusters(), st.none() | st.sampled_from("abcd"), st.none() | st.sampled_from("abcdx"))
def test_among_the_few_that_know(nodes: list[Candidate], current: str | None, last: str | None) -> None:
    """Choose a member that takes writes, the current one if possible; while none does, keep the last."""
    found = among(nodes, current, last)
    able = {one.name for one in nodes if eligible(one, WRITE)}
    if able:
        assert found in able
        assert current not in able or found == current
    elif nodes:
        assert found in {one.name for one in nodes}
        assert found == last or last not in {one.name for one in nodes}
    else:
        assert found == last
