"""Tests of backoff: delays stay in their bounds; retry budgets never go below zero, and recover."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgha._core.backoff import Budget, RetryBudget, RetryBudgets, delay

quick = settings(deadline=None, max_examples=150)
draws = st.floats(0.0, 1.0, exclude_max=True)


@pytest.mark.parametrize(
    ("attempt", "draw", "expected"),
    [
        (0, 0.0, 0.05),
        (0, 0.5, 0.075),
        (1, 0.0, 0.1),
        (3, 0.0, 0.4),
        (4, 0.0, 0.5),  # the most, not 0.8
        (4, 0.5, 0.75),
        (1_000_000, 0.0, 0.5),  # a node that is down for months
    ],
)
def test_delay(attempt: int, draw: float, expected: float) -> None:
    assert delay(attempt, draw, 0.1, 1.0) == pytest.approx(expected)


@quick
@given(st.integers(0, 10_000), draws, st.floats(0.001, 1.0), st.floats(0.001, 60.0))
def test_a_delay_lies_in_the_upper_half_of_its_bound(
    attempt: int, draw: float, first: float, most: float
) -> None:
    bound = min(most, first * 2.0 ** min(attempt, 1000))
    wait = delay(attempt, draw, first, most)
    assert 0 < wait <= most
    assert bound / 2 <= wait <= bound


@quick
@given(st.integers(0, 100), draws, draws)
def test_a_delay_grows_with_the_attempts_and_the_draw(attempt: int, draw: float, other: float) -> None:
    assert delay(attempt, draw, 0.05, 2.0) <= delay(attempt + 1, draw, 0.05, 2.0)
    low, high = sorted([draw, other])
    assert delay(attempt, low, 0.05, 2.0) <= delay(attempt, high, 0.05, 2.0)


def spend(budget: RetryBudget, now: float, most: int = 10_000) -> int:
    """Take all tokens that are available now, and return how many there were."""
    taken = 0
    while taken < most and budget.available(now):
        budget.take()
        taken += 1
    return taken


def test_a_new_budget_is_full() -> None:
    assert spend(RetryBudget(5.0, most=20.0), 5.0) == 20


def test_time_gives_some_back() -> None:
    budget = RetryBudget(0.0, most=20.0, per_second=4.0)
    assert spend(budget, 0.0) == 20
    assert spend(budget, 0.125) == 0
    assert spend(budget, 0.25) == 1
    assert spend(budget, 2.25) == 8
    assert spend(budget, 999.0) == 20


def test_success_gives_some_back() -> None:
    budget = RetryBudget(0.0, most=3.0, per_success=0.5)
    assert spend(budget, 0.0) == 3
    budget.success()
    assert spend(budget, 0.0) == 0
    budget.success()
    assert spend(budget, 0.0) == 1
    for _ in range(100):
        budget.success()
    assert spend(budget, 0.0) == 3


def test_the_usual_budget_outlasts_the_loss_of_a_busy_node() -> None:
    # Ten lanes of each kind with sixteen operations each are lost at once, twice.
    assert spend(RetryBudget(0.0), 0.0) >= 2 * 2 * 10 * 16


steps = st.lists(
    st.tuples(st.sampled_from(["try", "try", "success"]), st.sampled_from([0.0, 0.0, 0.25, 1.0, 8.0])),
    max_size=60,
)


@quick
@given(steps, st.sampled_from([1.0, 2.5, 8.0]))
def test_the_budget_keeps_its_books(history: list[tuple[str, float]], most: float) -> None:
    # All numbers are binary fractions, so that the sums agree to the last bit.
    now, tokens = 0.0, most
    budget = RetryBudget(now, most=most, per_second=0.5, per_success=0.25)
    for step, pause in history:
        now += pause
        tokens = min(most, tokens + pause * 0.5)
        if step == "success":
            tokens = min(most, tokens + 0.25)
            budget.success()
            assert budget.available(now) == (tokens >= 1)
        else:
            assert budget.available(now) == (tokens >= 1)
            assert budget.available(now) == (tokens >= 1)  # asking costs nothing
            if tokens >= 1:
                budget.take()
                tokens -= 1
        assert 0 <= tokens <= most
    assert spend(budget, now) == int(tokens)


# One budget per cause


def use_up(budgets: RetryBudgets, budget: Budget, now: float) -> int:
    """Take all tokens of one budget, and return how many there were."""
    taken = 0
    while budget not in budgets.exhausted(now):
        budgets.take(budget)
        taken += 1
    return taken


@pytest.mark.parametrize("budget", Budget)
def test_a_budget_that_is_used_up_leaves_the_others_full(budget: Budget) -> None:
    budgets = RetryBudgets(0.0)
    full = spend(RetryBudget(0.0), 0.0)
    assert use_up(budgets, budget, 0.0) == full
    assert budgets.exhausted(0.0) == {budget}
    for other in set(Budget) - {budget}:
        assert use_up(budgets, other, 0.0) == full
    assert budgets.exhausted(0.0) == set(Budget)


def test_a_success_fills_all_budgets() -> None:
    budgets = RetryBudgets(0.0)
    for budget in Budget:
        use_up(budgets, budget, 0.0)
    for _ in range(4):
        budgets.successes += 1
    assert budgets.exhausted(0.0) == set(Budget)
    budgets.successes += 1
    assert budgets.exhausted(0.0) == frozenset()
    assert [use_up(budgets, budget, 0.0) for budget in Budget] == [1] * len(Budget)


def test_time_fills_all_budgets() -> None:
    budgets = RetryBudgets(0.0)
    for budget in Budget:
        use_up(budgets, budget, 0.0)
    assert budgets.exhausted(1.0) == frozenset()
