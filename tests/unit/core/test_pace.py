"""Tests of the pace that is learned for each statement."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pgha._core.pace import QUICK, UNKNOWN, WINDOW, Pace, Paces

samples = st.floats(min_value=0.0, max_value=10.0)


def test_the_unknown_is_not_quick() -> None:
    assert not Pace().quick


@given(st.lists(samples, min_size=1))
def test_it_lies_within_what_was_seen(seen: list[float]) -> None:
    pace = Pace()
    for sample in seen:
        pace.took(sample)
    assert min(seen) - 1e-9 <= pace.seconds <= max(seen) + 1e-9


@given(st.lists(st.floats(min_value=0.0, max_value=QUICK / 2), min_size=1))
def test_one_slow_answer_ends_it_and_quick_ones_bring_it_back(quick: list[float]) -> None:
    pace = Pace()
    for sample in quick:
        pace.took(sample)
    seen = [pace.quick]
    pace.took(0.1)
    seen.append(pace.quick)
    for _ in range(60):
        pace.took(0.0)
    assert [*seen, pace.quick] == [True, False, True]


@given(st.lists(samples, min_size=1))
def test_what_is_expected_was_seen_lately(seen: list[float]) -> None:
    pace = Pace()
    assert pace.expected == UNKNOWN
    for sample in seen:
        pace.took(sample)
    assert pace.expected in seen
    if len(seen) <= WINDOW:
        assert pace.expected == min(seen)


def test_one_measurement_of_many_answers_counts_once() -> None:
    pace = Pace()
    pace.took(0.001)
    for _ in range(3 * WINDOW):
        pace.took(0.5)  # the client stood still, and then read all of these answers at once
    assert pace.expected == 0.001


def test_a_statement_that_became_slow_is_expected_to_be_slow() -> None:
    pace = Pace()
    pace.took(0.001)
    for number in range(2 * WINDOW + 1):
        pace.took(0.5 + number / 1000)
    assert pace.expected >= 0.5


@given(st.lists(st.binary(max_size=3)), st.integers(1, 5))
def test_a_text_has_one_pace_and_there_are_not_too_many(texts: list[bytes], limit: int) -> None:
    paces = Paces(limit)
    for text in texts:
        pace = paces.of(text)
        assert paces.of(text) is pace
        assert len(paces._paces) <= limit
