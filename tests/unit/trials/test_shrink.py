"""Tests of shortening schedules until no step can be left out, and of the rules of pgha's own trials."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given

from pgha._trials.rules import betrayed, shown, torn
from pgha._trials.shrink import shrink, simpler
from pgha.chaos import Schedule, Step
from pgha.chaos.history import Attempt, Entry, History
from pgha.chaos.properties import schedules

SCHEDULE = Schedule(
    (
        Step(1.0, "kill", 0, 2.0),
        Step(1.5, "freeze", 1, 1.0),
        Step(2.0, "reset", 2, 0.0),
        Step(2.5, "freeze", 2, 1.0),
        Step(4.0, "kill", 1, 0.3),
    )
)


@given(schedules())
def test_simpler_ones_are_shorter_or_earlier(schedule: Schedule) -> None:
    def weight(one: Schedule) -> tuple[int, float, float]:
        return len(one.steps), sum(step.hold for step in one.steps), sum(step.at for step in one.steps)

    for one in simpler(schedule):
        assert one.steps
        assert weight(one) < weight(schedule)


@pytest.mark.anyio
async def test_only_what_is_needed_is_left() -> None:
    tried: list[Schedule] = []

    async def broken(schedule: Schedule) -> bool:
        tried.append(schedule)
        return {"freeze", "reset"} <= {step.kind for step in schedule.steps}

    found = await shrink(SCHEDULE, broken, seconds=30)
    assert sorted(step.kind for step in found.steps) == ["freeze", "reset"]
    assert found.steps[0].at == pytest.approx(0.125)
    assert all(step.hold in (0.0, 0.25) for step in found.steps)
    assert len(tried) < 60


@pytest.mark.anyio
async def test_what_cannot_be_shrunk_stays_as_it_is() -> None:
    async def broken(schedule: Schedule) -> bool:
        return schedule == SCHEDULE

    assert await shrink(SCHEDULE, broken, seconds=30) == SCHEDULE


@pytest.mark.anyio
async def test_the_time_for_it_is_bounded() -> None:
    import anyio

    async def broken(schedule: Schedule) -> bool:
        await anyio.sleep(3600)
        return True

    assert await shrink(SCHEDULE, broken, seconds=0.05) == SCHEDULE


def entry(key: str, **fields: object) -> Entry:
    return Entry(key, "read", 0.0, 1.0, **fields)  # type: ignore[arg-type]


def test_an_error_that_reached_a_caller() -> None:
    history = History(
        (
            entry("good", ending="acknowledged"),
            entry("bad", ending="refused", error="OperationalError: the connection was lost"),
            entry("worse", ending="lost", error="KeyError: 1"),
            entry("late", ending="refused", error="OperationTimeout: no answer within 1 s", timeout=1.0),
            entry("timely", ending="refused", error="OperationTimeout: no answer within 1 s"),
            entry("doubt", ending="in doubt", error="OperationalError: the connection was lost"),
            replace(entry("a write", ending="in doubt", error="CommitInDoubt: nobody knows"), kind="write"),
            entry("provoked", ending="refused", error="DivisionByZero: 1/0"),
        )
    )
    assert [one.key for one in shown(history, {"provoked"})] == ["bad", "worse", "timely", "doubt"]


def test_what_was_first_in_line_on_two_broken_connections_may_fail() -> None:
    lost = Attempt("n1", 0.1, 0.1, None, "in doubt")
    error = "OperationalError: the connection was lost"
    twice = entry("twice", ending="refused", error=error, attempts=(lost, lost))
    once = entry("once", ending="refused", error=error, attempts=(lost, Attempt("n2", 0.2, None, None, None)))
    answered = entry(
        "answered",
        ending="refused",
        error=error,
        attempts=(lost, Attempt("n2", 0.2, 0.2, 0.3, "not applied")),
    )
    assert [one.key for one in shown(History((twice, once, answered)))] == ["once", "answered"]


def test_a_torn_batch() -> None:
    keys = ("b1.0", "b1.1", "b2.0", "b2.1", "b3.0", "b3.1", "w1")
    history = History(tuple(entry(key) for key in keys))
    rows = {
        "n1": [("b1.0", "n1"), ("b1.1", "n1"), ("b2.1", "n1"), ("w1", "n1")],
        "n2": [("b1.0", "n1"), ("b1.1", "n1"), ("w1", "n1")],
    }
    assert [(one.key, one.rule) for one in torn(history, rows)] == [("b2", "torn")]


def test_a_password_that_is_shown() -> None:
    (found,) = betrayed("s3cret", ["all is well", "password=s3cret host=x"])
    assert found.rule == "betrayed"
    assert "s3cret" not in found.text
    assert betrayed(None, ["s3cret"]) == []
