"""Tests of the ledger's decisions: the guard, the meaning of rows, and a model that applies no key twice."""

from __future__ import annotations

import math
from dataclasses import dataclass
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgha._core.ledger_rules import (
    LIFE,
    TOMBSTONE,
    RowMeaning,
    ServerClock,
    horizon,
    proven_skew,
    row_meaning,
)
from pgha._operation.key import fingerprint, keyed, new_idempotency_key
from pgha._wire.compiler import Compiler, own_adapters

moments = st.floats(0, 10_000, allow_nan=False)
quick = settings(deadline=None, max_examples=200)


def clock(*, offset: float = 1e9, trip: float = 0.002, skew: float = 0.0) -> ServerClock:
    """Return a clock that was measured once, at local time 1."""
    made = ServerClock(window=60.0, margin=1.0, limit=1.0)
    server = offset + 1.0 + trip / 2
    made.measured(1.0, 1.0 + trip, server, server + trip / 2 - skew)
    return made


# The guard


@quick
@given(moments, moments, st.none() | moments, st.integers(0, 4))
def test_the_guard_is_the_deadline_by_the_servers_clock(
    started: float, waited: float, ends: float | None, refusals: int
) -> None:
    now = started + waited
    until, deadline = clock().guard(now, started, ends, refusals)
    assert until <= started + LIFE, "pruning counts on it"
    assert math.isclose(deadline - until, 1e9, abs_tol=1e-3)
    if ends is not None and now <= ends <= started + LIFE - 1000:
        assert ends + 1.0 <= until <= ends + 1.0 + (ends - now + 2.0) * 4.0**refusals


@quick
@given(st.integers(0, 3))
def test_a_guard_that_refused_what_was_in_time_gets_wider(refusals: int) -> None:
    steady = clock()
    narrow, wide = (steady.guard(10.0, 9.0, 12.0, n)[0] for n in (refusals, refusals + 1))
    assert wide - 10.0 == pytest.approx(4 * (narrow - 10.0))


def test_a_clock_that_was_set_makes_the_guard_wider_for_a_while() -> None:
    steady = clock()
    calm = steady.margin
    steady.measured(2.0, 2.002, 1e9 + 2.001 + 30.0, 1e9 + 2.002)
    assert steady.margin > calm + 30.0
    for second in range(3, 200):
        steady.measured(float(second), second + 0.002, 1e9 + second + 0.001 + 30.0, 1e9 + second + 30.002)
    assert steady.margin == pytest.approx(calm, abs=0.1)


def test_skew_is_told_once_and_once_more_when_it_is_over() -> None:
    one, told = ServerClock(window=60.0, margin=1.0, limit=1.0), []
    for number, skew in enumerate([0.0, 0.9, 1.1, 1.1, 0.7, -0.6, 0.4, 0.0, -1.5]):
        told.append(one.measured(number, number + 0.01, 100.0 + number + skew, 100.005 + number))
        assert one.skew == pytest.approx(skew, abs=1e-6)
    assert told == [False, False, True, False, False, False, True, False, True]
    assert one.margin > 2.4, "the guard is wider by it"


def test_a_slow_ping_proves_no_skew() -> None:
    one = ServerClock(window=60.0, margin=1.0, limit=1.0)
    assert not one.measured(0.0, 10.0, 100.0, 104.0)
    assert not one.skewed


# Rows


def test_what_a_row_says() -> None:
    assert row_meaning(b"own", b"own") is RowMeaning.APPLIED
    assert row_meaning(TOMBSTONE, b"own") is RowMeaning.NOT_APPLIED
    assert row_meaning(b"another", b"own") is RowMeaning.OTHER_BODY


@quick
@given(st.floats(0, 1e7), st.lists(st.floats(-100, 100)))
def test_rows_are_kept_for_an_operations_life_and_the_clocks_difference(
    older: float, skews: list[float]
) -> None:
    kept = horizon(older, skews)
    clocks = [*skews, 0.0]
    assert kept >= max(older, LIFE) + max(clocks) - min(clocks) - 1e-6


def test_this_machines_clock_is_one_of_the_clocks() -> None:
    """A single server whose clock is days ahead must not lose the rows of its last minute."""
    assert horizon(0.0, [8 * 86400.0]) == LIFE + 8 * 86400.0
    assert horizon(0.0, [-8 * 86400.0]) == LIFE + 8 * 86400.0


@pytest.mark.parametrize(
    ("server", "skew"), [(5.0, -5.0), (10.0, 0.0), (11.0, 0.0), (12.0, 0.0), (700_000.0, 699_988.0)]
)
def test_a_clock_differs_by_what_the_way_of_the_answer_does_not_explain(server: float, skew: float) -> None:
    assert proven_skew(server, 10.0, 12.0) == skew


@dataclass(frozen=True)
class AttemptState:
    """One attempt of the only operation; times are of the server's clock."""

    sent: float
    begins: float
    """The time at which the attempt passes or fails its guard. The attempt holds the lock from then on."""
    inserts: float
    """The time of the insert. The attempt may have been frozen since `begins`."""


spans = st.floats(0, 2.5 * LIFE, allow_nan=False)


@st.composite
def attempts_of_one(draw: st.DrawFn) -> AttemptState:
    sent = draw(st.floats(0, 1.2 * LIFE))
    begins = sent + draw(spans | st.just(0.0))
    return AttemptState(sent, begins, begins + draw(spans | st.just(0.0)))


@settings(deadline=None, max_examples=1000)
@given(
    st.lists(attempts_of_one(), min_size=1, max_size=4),
    st.lists(st.floats(0, 8 * LIFE), max_size=6),
    st.none() | st.floats(0, 2 * LIFE),
    st.sampled_from([0.0, LIFE, 1.5 * LIFE]),
)
def test_a_key_is_never_applied_twice(
    attempts: list[AttemptState], prunings: list[float], ends: float | None, older_than: float
) -> None:
    """Apply a key at most once, though backends thaw at any time, before or after the guard or a pruning."""
    ours = clock(offset=0.0, trip=0.0)
    keep = horizon(older_than, [])
    row: float | None = None  # the row's deadline
    applied = 0
    begun = [one.begins < ours.guard(one.sent, 0.0, ends, 0)[1] for one in attempts]
    events = sorted([(one.inserts, 0, index) for index, one in enumerate(attempts) if begun[index]])
    for at, kind, index in sorted([*events, *((at, 1, 0) for at in prunings)]):
        if kind == 0 and row is None:
            row = ours.guard(attempts[index].sent, 0.0, ends, 0)[1]
            applied += 1
        elif kind == 1 and row is not None and row < at - keep:
            # `Ledger.prune` does not delete while an attempt that began before the cut-off holds the lock.
            held = (
                one.begins <= at < one.inserts and one.begins < at - (keep - LIFE)
                for index, one in enumerate(attempts)
                if begun[index]
            )
            if not any(held):
                row = None
    assert applied <= 1


# Keys


def test_new_keys_are_of_version_7_and_in_order_of_time() -> None:
    keys = [new_idempotency_key() for _ in range(1000)]
    assert len(set(keys)) == 1000
    assert {(key.version, key.variant) for key in keys} == {(7, UUID(int=1 << 63).variant)}
    stamps = [key.int >> 80 for key in keys]
    assert stamps == sorted(stamps)


def _print(*statements: tuple[str, object]) -> bytes:
    compiler = Compiler(own_adapters())
    return fingerprint([compiler.compile(query, params) for query, params in statements])  # type: ignore[arg-type]


def test_a_fingerprint_is_of_texts_and_parameters() -> None:
    base = _print(("INSERT INTO t VALUES (%s, %s)", ["a", 1]))
    assert base == _print(("INSERT INTO t VALUES (%s, %s)", ["a", 1]))
    others = [
        _print(("INSERT INTO t VALUES (%s, %s)", ["a", 2])),
        _print(("INSERT INTO t VALUES (%s, %s)", ["a", None])),
        _print(("INSERT INTO t VALUES (%s, %s)", ["", "a1"])),
        _print(("INSERT INTO u VALUES (%s, %s)", ["a", 1])),
        _print(("INSERT INTO t VALUES (%s, %s)", ["a", 1]), ("SELECT 1", None)),
        _print(("SELECT 1", None), ("INSERT INTO t VALUES (%s, %s)", ["a", 1])),
    ]
    assert len({base, *others}) == 7
    assert len(base) == 16


@quick
@given(st.lists(st.lists(st.none() | st.text(alphabet="a;0-.", max_size=4), max_size=3), max_size=3))
def test_no_two_bodies_are_written_alike(bodies: list[list[str | None]]) -> None:
    """The fingerprint depends on the boundaries between values."""
    texts = [("SELECT " + ",".join(["%s"] * len(body)), body) for body in bodies]
    moved = [(text, [*body[:-1], (body[-1] or "") + ";"]) if body else (text, body) for text, body in texts]
    assert (_print(*texts) == _print(*moved)) == (texts == moved)


def test_the_key_stands_behind_what_must_be_first_in_a_transaction() -> None:
    compiler = Compiler(own_adapters())
    statements = [
        compiler.compile(query, None)
        for query in (
            "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "SET TRANSACTION DEFERRABLE",
            "SELECT 1",
        )
    ]
    assert keyed(new_idempotency_key(), statements, auto=False).behind == 2
    assert keyed(new_idempotency_key(), statements[2:], auto=False).behind == 0
