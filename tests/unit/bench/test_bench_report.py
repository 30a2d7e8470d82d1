"""Tests of the benchmark's report: medians, ratios within rounds, targets, and the text of the table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[3]))  # the benchmark is not installed

from bench.report import Figure, Metric, Ratio, Report, Spread

OPS = Metric("select", "operations per second", targets={"peer": 4.0})
GAP = Metric("gap", "milliseconds", better="less")


def ratio(figure: Figure, ours: str = "pgha asyncio", peer: str = "peer") -> Ratio:
    found = figure.ratio(ours, peer)
    assert found is not None
    return found


def figure(metric: Metric = OPS, **samples: list[float]) -> Figure:
    return Figure(metric, {name.replace("_", " "): values for name, values in samples.items()})


def test_a_spread_is_the_median_and_the_extremes() -> None:
    assert Spread.of([5.0, 1.0, 9.0, 2.0, 3.0]) == Spread(3.0, 1.0, 9.0)
    assert Spread.of([1.0, 2.0]) == Spread(1.5, 1.0, 2.0)


def test_a_ratio_is_taken_within_its_round() -> None:
    # The machine was ten times as fast in the second round, but for both, so the ratio does not change.
    found = ratio(figure(pgha_asyncio=[200.0, 4000.0, 300.0], peer=[100.0, 1000.0, 100.0]))
    assert found == Ratio("pgha asyncio", "peer", Spread(3.0, 2.0, 4.0), 4.0)


def test_of_what_is_better_when_less_the_ratio_is_turned_round() -> None:
    found = ratio(figure(GAP, pgha_asyncio=[10.0, 20.0, 50.0], peer=[100.0, 100.0, 100.0]))
    assert found.spread == Spread(5.0, 2.0, 10.0)
    assert found.target is None
    assert not found.missed


@pytest.mark.parametrize("metric", [OPS, GAP])
@pytest.mark.parametrize(("mine", "other"), [([0.0, 1.0], [1.0, 1.0]), ([1.0, 1.0], [0.0, 1.0])])
def test_there_is_no_ratio_to_nothing(metric: Metric, mine: list[float], other: list[float]) -> None:
    one = figure(metric, pgha=mine, peer=other)
    assert one.ratio("pgha", "peer") is None
    assert one.ratios() == []
    assert "x (" not in Report([one]).table()


def test_rounds_that_do_not_match_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        figure(pgha=[1.0, 2.0], peer=[1.0]).ratio("pgha", "peer")


@given(st.lists(st.tuples(st.floats(0.1, 1e6), st.floats(0.1, 1e6)), min_size=1))
def test_both_directions_agree(pairs: list[tuple[float, float]]) -> None:
    mine, other = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    more = ratio(figure(OPS, pgha=mine, peer=other), "pgha").spread
    less = ratio(figure(GAP, pgha=other, peer=mine), "pgha").spread
    assert more == less
    assert more.low <= more.median <= more.high


def test_a_target_is_missed_by_the_median_unrounded_and_by_either_loop() -> None:
    reached = figure(pgha_asyncio=[400.0], pgha_trio=[401.0], peer=[100.0])
    assert not reached.missed
    below = figure(pgha_asyncio=[400.0], pgha_trio=[399.9], peer=[100.0])
    assert below.missed
    assert [one.missed for one in below.ratios()] == [False, True]
    # One bad round of three counts as noise.
    assert not figure(pgha=[100.0, 400.0, 400.0], peer=[100.0, 100.0, 100.0]).missed


def test_a_target_is_for_its_peer_alone() -> None:
    one = figure(pgha=[100.0], peer=[10.0], other=[1000.0])
    assert [(found.peer, found.target) for found in one.ratios()] == [("peer", 4.0), ("other", None)]
    assert not one.missed


@pytest.mark.parametrize(("errors", "missed"), [([0.0, 0.0, 0.0], False), ([0.0, 1.0, 1.0], True)])
def test_what_is_bounded_is_missed_above_it_and_by_ours_alone(errors: list[float], missed: bool) -> None:
    bounded = Metric("errors", "errors", better="less", at_most=0)
    one = figure(bounded, pgha=errors, peer=[9.0, 9.0, 9.0])
    assert one.missed is missed
    assert one.excess() == (["pgha"] if missed else [])
    assert ("missed" in Report([one]).table().splitlines()[2]) is missed


def report() -> Report:
    return Report(
        [
            figure(pgha_asyncio=[500.0, 480.0], pgha_trio=[390.0, 390.0], peer=[100.0, 100.0]),
            figure(GAP, pgha_asyncio=[20.0], peer=[3000.0]),
        ],
        notes=["fsync is off"],
        facts={"Python": "3.11.7"},
    )


def test_the_table_shows_medians_spreads_ratios_targets_and_misses() -> None:
    lines = report().table().splitlines()
    assert lines[0] == "select"
    assert lines[1].split() == [
        *("operations", "per", "second"),
        *("pgha", "asyncio", "/", "peer", "pgha", "trio", "/", "peer", "target"),
    ]
    assert lines[2].split() == ["pgha", "asyncio", "490", "(480-500)"]
    assert lines[3].split() == ["pgha", "trio", "390"]
    ratios = ["4.90x", "(4.80-5.00)", "3.90x", "(3.90-3.90)"]
    assert lines[4].split() == ["peer", "100", *ratios, "4.0x", "missed"]
    assert "0 of 1 figures with a target reached their target." in lines
    assert {"Python 3.11.7", "* fsync is off"} < set(lines)
    assert max(map(len, lines)) <= 110


def test_the_json_holds_all_of_it() -> None:
    data: dict[str, Any] = json.loads(report().json())
    assert data["missed"] == 1
    assert data["notes"] == ["fsync is off"]
    assert data["facts"] == {"Python": "3.11.7"}
    first = data["figures"][0]
    assert (first["title"], first["unit"], first["better"], first["missed"]) == (
        *("select", "operations per second", "more"),
        True,
    )
    assert first["contestants"]["pgha asyncio"] == {
        "median": 490.0,
        "low": 480.0,
        "high": 500.0,
        "samples": [500.0, 480.0],
    }
    assert first["ratios"][1] == {
        "ours": "pgha trio",
        "peer": "peer",
        "median": 3.9,
        "low": 3.9,
        "high": 3.9,
        "target": 4.0,
        "missed": True,
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.0, "0"), (1.234, "1.23"), (12.0, "12"), (23.456, "23.5"), (1234.6, "1235")),
        *((12_345.0, "12.3k"), (1_234_567.0, "1.23M")),
    ],
)
def test_three_figures_are_shown(value: float, text: str) -> None:
    line = Report([figure(GAP, pgha=[value])]).table().splitlines()[2]
    assert line.split() == ["pgha", text]
