"""Tests of the numbers of `pgha chaos`: outcomes of operations, states of nodes, and places of labels."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.made_trials import answers, done, entry, lively, sighting, trial, violations

from pgha.chaos import Schedule, Step
from pgha.chaos.history import Attempt
from pgha.cli._chaos.report import (
    SORTS,
    bins,
    dots,
    faults_by_kind,
    in_words,
    longest_gap,
    numbers,
    percentile,
    series,
    span,
    totals,
)
from pgha.cli._chaos.timelines import (
    Band,
    Bar,
    Promotion,
    bands,
    lanes,
    place,
    promotions,
    topology,
    union,
)

# Totals


def test_every_operation_is_counted_once() -> None:
    history = [
        entry("a", 0.0, 0.5),
        entry("b", 0.0, 1.0, kind="write"),
        entry("c", 0.0, 1.0, "refused", error="NoNodeAvailable: none"),
        entry("d", 0.0, 1.0, "lost", error="ValueError: bad"),
        entry("e", 0.0, 1.0, "in doubt", kind="write", error="CommitInDoubt: perhaps"),
        entry("f", 0.0, 1.0, "in doubt", kind="write", error="left by its caller"),
        entry("g", 0.0, None, None),
    ]
    found = totals(trial(10.0, history, retried=4))
    assert (found.operations, found.reads, found.writes) == (7, 4, 3)
    assert (found.answered, found.errors, found.in_doubt, found.left, found.unfinished) == (2, 2, 1, 1, 1)
    assert found.retried == 4
    assert (found.p50, found.p99, found.p999) == (0.5, 1.0, 1.0)
    assert (found.gap_at, found.longest_gap) == (1.0, 9.0)


def test_of_nothing_there_are_totals_too() -> None:
    found = totals(trial(5.0))
    assert (found.operations, found.p50, found.p99, found.p999) == (0, None, None, None)
    assert (found.gap_at, found.longest_gap) == (0.0, 5.0)


@pytest.mark.parametrize(
    ("times", "gap"),
    [
        ([], (0.0, 10.0)),
        ([4.0], (4.0, 6.0)),
        ([9.0], (0.0, 9.0)),
        ([1.0, 2.0, 8.5, 9.0], (2.0, 6.5)),
        ([9.0, 1.0, 5.0], (1.0, 4.0)),
        ([3.0, 6.0, 9.0, 30.0], (0.0, 3.0)),  # no operation began after the end
    ],
)
def test_the_longest_gap_is_between_answers_or_at_an_end(
    times: list[float], gap: tuple[float, float]
) -> None:
    assert longest_gap(times, 10.0) == gap


@given(st.lists(st.floats(0, 1e3), min_size=1), st.floats(0.001, 1.0))
def test_a_percentile_is_one_of_the_values_and_exceeded_by_no_more_than_the_rest(
    values: list[float], part: float
) -> None:
    ordered = sorted(values)
    found = percentile(ordered, part)
    assert found in ordered
    assert sum(value <= found for value in ordered) >= part * len(ordered) * 0.9999
    assert sum(value < found for value in ordered) < part * len(ordered) * 1.0001


# Bins


@given(st.floats(0.001, 1e5))
def test_bins_fill_the_time_and_are_neither_too_short_nor_too_long(seconds: float) -> None:
    count, width = bins(seconds)
    assert count * width == pytest.approx(seconds)
    assert width <= 1.5
    assert width >= 0.066 or count == 1


@pytest.mark.parametrize(("seconds", "width"), [(5.0, 0.1), (30.0, 0.1), (150.0, 0.5), (1800.0, 1.0)])
def test_the_length_of_a_bin_grows_with_the_run(seconds: float, width: float) -> None:
    assert bins(seconds)[1] == pytest.approx(width)


def test_what_ended_is_in_its_bin() -> None:
    history = [
        *answers([0.05, 0.06, 0.95, 1.0]),
        entry("bad", 0.0, 0.15, "refused"),
        entry("doubt", 0.0, 0.25, "in doubt", kind="write"),
        entry("left", 0.0, 0.25, "in doubt", error="left by its caller"),
        entry("never", 0.0, None, None),
    ]
    found = series(trial(1.0, history))
    assert found.width == pytest.approx(0.1)
    assert found.answered == (2, 0, 0, 0, 0, 0, 0, 0, 0, 2)
    assert found.errors == (0, 1, 0, 0, 0, 0, 0, 0, 0, 0)
    assert found.in_doubt == (0, 0, 1, 0, 0, 0, 0, 0, 0, 0)


def test_an_answer_past_the_end_makes_the_time_longer() -> None:
    late = trial(1.0, answers([0.5, 1.5]))
    assert span(late) == pytest.approx(1.5)
    assert sum(series(late).answered) == 2


@pytest.mark.parametrize("seconds", [0.0, 0.0001, 3.0])
def test_no_run_is_too_short(seconds: float) -> None:
    found = series(trial(seconds))
    assert sum(found.answered) == 0
    assert found.width * len(found.answered) == pytest.approx(seconds)


# Dots


def test_few_dots_are_all_there() -> None:
    history = [
        entry("w", 1.0, 1.5, kind="write"),
        entry("r", 0.0, 2.0),
        entry("e", 0.0, 3.0, "refused"),
        entry("f", 0.0, 3.5, "in doubt", error="OperationalError: the connection was lost"),
        entry("d", 0.0, 4.0, "in doubt", kind="write"),
        entry("l", 0.0, 5.0, "in doubt", error="OperationCancelled: by its caller"),
        entry("n", 0.0, None, None),
    ]
    found = dots(trial(10.0, history))
    assert list(found) == list(SORTS)
    assert {sort: (some.at, some.latency) for sort, some in found.items()} == {
        "read": ((2.0,), (2.0,)),
        "write": ((1.5,), (0.5,)),
        "error": ((3.0, 3.5), (3.0, 3.5)),  # a read changes nothing, so a read in doubt counts as an error
        "in doubt": ((4.0,), (4.0,)),
        "left": ((5.0,), (5.0,)),
    }


def test_of_many_dots_the_slowest_and_the_rare_stay() -> None:
    many = lively(20.0, 500.0, 5, errors=0.0002)
    found = dots(many, most=500)
    every = dots(many)
    assert sum(len(some.at) for some in every.values()) == len(many.history)
    assert sum(len(some.at) for some in found.values()) <= 500
    for sort in SORTS:
        assert set(zip(found[sort].at, found[sort].latency, strict=True)) <= set(
            zip(every[sort].at, every[sort].latency, strict=True)
        )
        assert max(found[sort].latency, default=0.0) == max(every[sort].latency, default=0.0)
    assert len(found["error"].at) == len(every["error"].at) > 0
    # The remaining dots still cover the whole time.
    assert max(after - before for before, after in pairwise(found["read"].at)) < 2.0


# Nodes


def bars(node: list[Bar]) -> list[tuple[float, float, str]]:
    return [(bar.begin, bar.end, bar.condition) for bar in node]


def test_a_lane_follows_what_was_seen() -> None:
    seen = [
        sighting(-1.0, "n1", "connecting"),
        sighting(-0.5, "n1"),
        sighting(2.0, "n1", "suspect"),
        sighting(3.0, "n1", "down"),
        sighting(4.0, "n1", "rejected"),
        sighting(5.0, "n1", "connecting"),
        sighting(6.0, "n1"),
        sighting(7.0, "n1", role="standby"),
        sighting(1.0, "n2"),
    ]
    found = lanes(trial(10.0, sightings=seen), 10.0)
    assert bars(found["n1"]) == [
        (0.0, 2.0, "up"),
        (2.0, 3.0, "slow"),
        (3.0, 5.0, "down"),
        (5.0, 6.0, "connecting"),
        (6.0, 10.0, "up"),
    ]
    assert bars(found["n2"]) == [(0.0, 1.0, "connecting"), (1.0, 10.0, "up")]
    assert bars(found["n3"]) == [(0.0, 10.0, "connecting")]


def test_what_is_seen_past_the_end_is_no_part_of_it() -> None:
    seen = [sighting(0.0, "n1"), sighting(9.0, "n1", "down"), sighting(12.0, "n1")]
    found = lanes(trial(10.0, sightings=seen), 10.0)
    assert bars(found["n1"]) == [(0.0, 9.0, "up"), (9.0, 10.0, "down")]


def test_a_node_whose_answers_take_ten_times_as_long_is_slow() -> None:
    usual = [0.01 * number for number in range(1, 1000)]
    late = [5.1, 5.2]
    history = [
        *answers(usual, 0.005, node="n1"),
        *answers(late, 0.1, node="n1"),
        *answers(late, 0.1, node="n2"),
    ]
    found = lanes(trial(10.0, history), 10.0)
    assert bars(found["n1"]) == [(0.0, 5.0, "up"), (5.0, 5.25, "slow"), (5.25, 10.0, "up")]
    assert bars(found["n2"]) == [(0.0, 10.0, "up")]  # n2 always takes this long
    assert bars(found["n3"]) == [(0.0, 10.0, "up")]  # n3 received no operation


def test_what_nobody_would_notice_is_not_slow() -> None:
    usual = [0.01 * number for number in range(1, 1000)]
    found = lanes(trial(10.0, [*answers(usual, 0.0005), *answers([5.005], 0.015)]), 10.0)
    assert bars(found["n1"]) == [(0.0, 10.0, "up")]


def test_slow_is_the_node_that_was_waited_for() -> None:
    """A node that answers at once is not slow, even if the operation had waited for another node before."""
    usual = [0.01 * number for number in range(1, 1000)]
    attempts = [Attempt("n1", 1003.0, answered_at=None), Attempt("n2", 1005.1, answered_at=1005.101)]
    history = [*answers(usual, node="n2"), entry("moved", 3.0, 5.101, node="n2", attempts=attempts)]
    assert bars(lanes(trial(10.0, history), 10.0)["n2"]) == [(0.0, 10.0, "up")]


@given(
    st.lists(
        st.tuples(st.floats(-5, 15), st.sampled_from(["up", "suspect", "down", "rejected", "connecting"]))
    ),
    st.lists(st.tuples(st.floats(0.2, 10), st.floats(0.0001, 0.2)), max_size=20, unique=True),
)
def test_a_lane_is_whole(seen: list[tuple[float, str]], answered: list[tuple[float, float]]) -> None:
    history = [entry(str(n), at - took, at) for n, (at, took) in enumerate(answered)]
    one = trial(10.0, history, sightings=[sighting(at, "n1", state) for at, state in seen])
    found = lanes(one, 10.0)["n1"]
    assert (found[0].begin, found[-1].end) == (0.0, 10.0)
    for before, after in pairwise(found):
        assert before.end == after.begin
        assert before.condition != after.condition
    assert all(bar.begin < bar.end for bar in found)


def test_a_standby_that_becomes_primary_is_promoted() -> None:
    seen = [
        sighting(-1.0, "n1"),
        sighting(-1.0, "n2", role="unknown"),
        sighting(0.0, "n2", role="standby"),
        sighting(3.0, "n1", "down", "unknown"),
        sighting(4.0, "n2", role="unknown"),
        sighting(5.0, "n2"),
        sighting(6.0, "n1"),
        sighting(7.0, "n2"),
    ]
    one = trial(10.0, sightings=seen)
    assert promotions(one) == [Promotion(5.0, "n2")]
    assert topology(one) == "1 primary and 1 standby and 1 of unknown role"


@pytest.mark.parametrize(
    ("roles", "text"),
    [
        (["primary"] * 3, "3 primaries"),
        (["primary", "standby", "standby"], "1 primary and 2 standbys"),
        (["unknown"] * 3, "3 nodes"),
    ],
)
def test_the_topology_in_words(roles: list[str], text: str) -> None:
    seen = [sighting(0.0, f"n{n}", role=role) for n, role in enumerate(roles, 1)]
    assert topology(trial(sightings=seen)) == text


# Faults


def test_faults_are_in_order_and_end_with_the_run_at_last() -> None:
    struck = [
        done("kill_backend", "n2", 5.0, 5.0),
        done("freeze", "n1", 1.0, math.inf),
        done("kill", "n3", 2.0, 2.0, skipped="n3 is down"),
    ]
    one = trial(10.0, faults=struck)
    assert bands(one) == [Band(1.0, 10.0, "freeze", "n1"), Band(5.0, 5.0, "kill_backend", "n2")]
    assert [band.label for band in bands(one)] == ["freeze n1", "kill backend n2"]
    assert faults_by_kind(one) == {"freeze": 1, "kill_backend": 1}


spans = st.tuples(st.floats(0, 90), st.floats(0, 20))
some_bands = st.lists(spans, max_size=40).map(
    lambda found: [Band(at, at + length, "kill", "n1") for at, length in sorted(found)]
)


@given(some_bands)
def test_the_union_is_disjoint_and_covers_all(found: list[Band]) -> None:
    merged = union(found)
    assert all(before[1] < after[0] for before, after in pairwise(merged))
    assert all(any(begin <= band.begin and band.end <= end for begin, end in merged) for band in found)


@given(some_bands, st.integers(1, 4), st.floats(0.5, 30))
def test_no_label_covers_anything(found: list[Band], rows: int, width: float) -> None:
    placed, unlabelled = place(found, 100.0, rows, lambda _: width)
    assert unlabelled == len(found) - sum(one.at is not None for one in placed)
    for row in range(rows):
        # Each band takes the space of its own time and of its label.
        taken = sorted(
            (
                one.band.begin if one.at is None else min(one.at, one.band.begin),
                one.band.end if one.at is None else max(one.band.end, one.at + width),
            )
            for one in placed
            if one.row == row
        )
        assert all(before[1] <= after[0] for before, after in pairwise(taken))
    assert all(0.0 <= one.at <= 100.0 - width + 1e-9 for one in placed if one.at is not None)


def test_a_label_stands_at_its_fault_or_ends_with_the_time() -> None:
    found = [Band(1.0, 2.0, "kill", "n1"), Band(3.0, 3.0, "reset", "n1"), Band(99.0, 100.0, "kill", "n2")]
    placed, unlabelled = place(found, 100.0, 2, lambda _: 5.0)
    assert [(one.row, one.at) for one in placed] == [(0, 1.0), (1, 3.0), (0, 95.0)]
    assert unlabelled == 0


# JSON


def test_the_json_has_all_that_the_page_shows() -> None:
    schedule = Schedule((Step(1.0, "freeze", 0, 2.0),))
    struck = [done("freeze", "n1", 1.0, 3.0), done("kill", "n1", 2.0, 2.0, skipped="n1 is frozen")]
    one = trial(
        10.0,
        answers([0.5, 0.6, 9.0], 0.002),
        struck,
        violations=violations(2),
        schedule=schedule,
        retried=1,
    )
    found = json.loads(json.dumps(numbers(one, {"versions": {"pgha": "1"}}), allow_nan=False))
    assert (found["title"], found["seed"], found["loop"], found["kind"]) == ("made up", 7, "trio", "local")
    assert (found["operations"], found["answered"], found["retried"], found["kept"]) == (3, 3, 1, False)
    assert (found["p50_ms"], found["longest_gap"], found["gap_at"]) == (2.0, 8.4, 0.6)
    assert sum(found["series"]["answered"]) == 3
    assert found["faults"] == [{"begin": 1.0, "end": 3.0, "kind": "freeze", "node": "n1"}]
    assert found["skipped"] == ["kill n1: n1 is frozen"]
    assert [one["rule"] for one in found["violations"]] == ["doubled", "doubled"]
    assert found["lanes"]["n2"] == [{"begin": 0.0, "end": 10.0, "condition": "up"}]
    assert Schedule.from_json(json.dumps(found["schedule"])) == schedule
    assert found["versions"] == {"pgha": "1"}


def test_the_json_of_nothing() -> None:
    found = json.loads(json.dumps(numbers(trial(0.0), {}), allow_nan=False))
    assert (found["operations"], found["p50_ms"], found["kept"], found["schedule"]) == (0, None, True, None)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.00045, "0.45 ms"),
        (0.0099, "9.90 ms"),
        (0.0456, "46 ms"),
        (0.9996, "1.00 s"),
        (3.14159, "3.14 s"),
        (61.04, "61.0 s"),
    ],
)
def test_a_time_to_read(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
