"""Tests of the digest: the line of each fact, no lost fact, and few lines for many facts."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pgha
from pgha._telemetry import digest as rules
from pgha._telemetry.digest import AT_ONCE, CHANGES, LONGEST, WINDOW, Counted, Digest, Line, brief
from pgha._telemetry.log import ClusterLog, described

INFINITY = float("inf")


def texts(lines: list[Line]) -> list[tuple[str, str, str]]:
    return [(line.topic, line.level, line.text) for line in lines]


# Each fact


def test_a_node_goes_down_and_comes_up_again() -> None:
    digest = Digest()
    digest.state_changed(0.0, "n1", "connecting", "up", "", "primary")
    assert digest.due == 0.0
    assert texts(digest.lines(0.0)) == [("node", "info", "node n1 is up (primary)")]
    assert digest.due == INFINITY
    digest.state_changed(5.0, "n1", "up", "suspect", "a line broke", "primary")
    digest.state_changed(5.1, "n1", "suspect", "down", "no answer", "primary")
    assert texts(digest.lines(5.1)) == [("node", "warning", "node n1 is down after 5.1 s up: no answer")]
    assert texts(digest.lines(6.0)) == [("node", "debug", "node n1 was suspected 1 time (a line broke)")]
    digest.state_changed(8.1, "n1", "down", "rejected", "no such database", "primary")
    digest.state_changed(9.1, "n1", "rejected", "up", "", "standby")
    assert texts(digest.lines(9.1)) == [
        ("node", "warning", "node n1 rejects the connection: no such database"),
        ("node", "info", "node n1 is up again after 4.0 s (standby)"),
    ]


def test_a_suspicion_that_was_wrong_is_one_line() -> None:
    digest = Digest()
    for turn in range(3):
        digest.state_changed(turn / 10, "n1", "up", "suspect", "slow", "primary")
        digest.state_changed(turn / 10 + 0.05, "n1", "suspect", "up", "", "primary")
    assert digest.lines(0.9) == []
    assert texts(digest.lines(1.0)) == [("node", "debug", "node n1 was suspected 3 times (slow)")]


def test_roles() -> None:
    digest = Digest()
    digest.role_changed(0.0, "n1", "unknown", "primary")
    digest.role_changed(1.0, "n1", "primary", "standby")
    digest.role_changed(2.0, "n1", "standby", "primary")
    assert texts(digest.lines(2.0)) == [
        ("node", "warning", "node n1 was demoted: it takes no writes"),
        ("node", "info", "node n1 was promoted: it takes writes"),
    ]


def test_servers_that_become_read_only() -> None:
    digest = Digest()
    digest.role_changed(0.0, "n1", "unknown", "primary", read_only=True)
    digest.role_changed(1.0, "n1", "primary", "primary", read_only=False)
    digest.role_changed(2.0, "n1", "primary", "primary", read_only=True)
    digest.role_changed(3.0, "n1", "primary", "standby", read_only=True)
    digest.role_changed(4.0, "n1", "standby", "standby", read_only=False)
    assert texts(digest.lines(4.0)) == [
        ("node", "info", "node n1 is not read-only any more (primary)"),
        ("node", "warning", "node n1 is read-only: it takes no writes"),
        ("node", "warning", "node n1 was demoted: it takes no writes"),
        ("node", "info", "node n1 is not read-only any more (standby)"),
    ]


def test_a_superseded_primary_is_a_warning() -> None:
    digest = Digest()
    digest.superseded(0.0, "n1", 1, 2)
    assert texts(digest.lines(0.0)) == [
        (
            "node",
            "warning",
            "node n1 is a primary of timeline 1, but timeline 2 was seen: it takes no writes; fence it",
        )
    ]


def test_clocks() -> None:
    digest = Digest()
    digest.clock_skewed(0.0, "n1", -2.5, skewed=True)
    digest.clock_skewed(1.0, "n1", 0.01, skewed=False)
    assert [(line.level, line.text) for line in digest.lines(1.0)] == [
        ("warning", "node n1: its clock is -2.5 s off this machine's"),
        ("info", "node n1: its clock is right again (+0.0 s)"),
    ]


def test_a_storm_is_a_line_of_each_kind() -> None:
    digest = Digest()
    for _ in range(50):
        digest.count(0.5, "n1", Counted.LOST, "gone", 20)
    for _ in range(999):
        digest.count(0.6, "n1", Counted.RETRIED, "gone")
    digest.count(0.7, "n1", Counted.RETRIED, "57P01")
    digest.count(0.7, "n1", Counted.IN_DOUBT, "gone")
    assert digest.due == 1.5
    assert digest.lines(1.4) == []
    assert texts(digest.lines(1.5)) == [
        ("connection", "info", "node n1: 50 connections lost, with 1000 operations in flight (gone)"),
        ("operation", "info", "node n1: 1,000 attempts failed and will be run again (999 x gone; 1 x 57P01)"),
        ("operation", "warning", "node n1: 1 write ended in doubt (gone)"),
    ]
    assert digest.due == INFINITY


def test_what_came_of_writes_in_doubt() -> None:
    digest = Digest()
    for outcome in ("applied", "not applied", "applied"):
        digest.resolved(0.0, "n1", outcome)
    (line,) = digest.lines(WINDOW)
    assert line.text == "node n1: 3 writes resolved after ending in doubt (2 x applied; 1 x not applied)"


def test_many_different_reasons_take_little_room() -> None:
    digest = Digest()
    for number in range(1000):
        digest.count(0.0, "n1", Counted.RETRIED, f"reason {number}")
    (line,) = digest.lines(WINDOW)
    assert line.text.startswith(
        "node n1: 1,000 attempts failed and will be run again (900 x other reasons; 1 x "
    )
    assert len(line.text) < 200


def test_a_storm_that_goes_on_is_told_less_and_less_often() -> None:
    digest, told = Digest(), []
    for tenth in range(3000):
        now = tenth / 10
        digest.count(now, "n1", Counted.RETRIED, "40001")
        if now >= digest.due:
            told += [now for _ in digest.lines(now)]
    gaps = [after - before for before, after in itertools.pairwise(told)]
    assert len(told) < 11
    assert gaps == sorted(gaps)
    assert max(gaps) <= LONGEST + 0.2
    # After a quiet time, the first window is short again.
    digest.lines(1000.0, everything=True)
    digest.count(2000.0, "n1", Counted.RETRIED, "40001")
    assert digest.due == 2000.0 + WINDOW


def test_a_node_that_flaps() -> None:
    digest = Digest()
    for turn in range(20):
        digest.state_changed(turn / 10, "n1", "up", "down", "gone", "primary")
        digest.state_changed(turn / 10 + 0.05, "n1", "down", "up", "", "primary")
    assert len(digest.lines(2.0)) == AT_ONCE
    assert digest.due == CHANGES
    (line,) = digest.lines(CHANGES)
    assert (line.level, line.text) == (
        "warning",
        "36 more in the last seconds, the last of them: node n1 is up again after 0.1 s (primary)",
    )


def test_failures_that_were_never_retrieved() -> None:
    digest = Digest()
    for _ in range(1000):
        digest.unretrieved(0.0, "ZeroDivisionError")
    lines = [*digest.lines(0.0), *digest.lines(CHANGES)]
    assert [line.level for line in lines] == ["error"] * (AT_ONCE + 1)
    assert lines[0].text == "an operation failed, and its failure was not retrieved: ZeroDivisionError"
    assert lines[-1].text.startswith("996 more in the last seconds, the last of them: an operation failed")


def test_a_removed_node_is_new_when_it_is_added_again() -> None:
    digest = Digest()
    digest.state_changed(0.0, "n1", "connecting", "up", "", "primary")
    digest.forget("n1")
    digest.state_changed(50.0, "n1", "connecting", "down", "gone", "unknown")
    assert digest.lines(50.0)[-1].text == "node n1 is down: gone"


def test_nothing_is_kept_of_nodes_that_are_gone() -> None:
    digest = Digest()
    for number in range(100):
        digest.count(float(number), f"n{number}", Counted.LOST, "gone")
        digest.role_changed(float(number), f"n{number}", "primary", "standby")
    digest.lines(200.0)
    digest.lines(1000.0)
    assert not digest._windows
    assert not digest._changes


# No fact is lost, and the lines are few

NODES = ("n1", "n2")
FACTS = st.lists(
    st.tuples(
        st.floats(0, 3, allow_nan=False),
        st.sampled_from(NODES),
        st.sampled_from(["change", *Counted]),
        st.sampled_from(["x", "y", "z"]),
        st.booleans(),
    ),
    max_size=80,
)


@given(FACTS)
def test_no_fact_is_lost_and_the_lines_are_few(
    facts: list[tuple[float, str, str | Counted, str, bool]],
) -> None:
    digest, now = Digest(), 0.0
    given_: Counter[tuple[str, object]] = Counter()
    told: Counter[tuple[str, object]] = Counter()
    times: dict[tuple[str, object], list[float]] = defaultdict(list)

    def take(at: float, lines: list[Line]) -> None:
        for line in lines:
            node = next(name for name in NODES if f"node {name}" in line.text)
            kind = next((kind for kind in Counted if kind.template == line.template), "change")
            count = re.search(r"([\d,]+) (?:time|connection|attempt|write|more)", line.text)
            told[node, kind] += int(count[1].replace(",", "")) if count else 1
            times[node, kind].append(at)

    for pause, node, kind, reason, promoted in facts:
        # A timer may be late only because its loop was busy.
        while digest.due <= now + pause:
            now, pause = max(now, digest.due), pause - max(0.0, digest.due - now)
            take(now, digest.lines(now))
        now += max(0.0, pause)
        given_[node, kind] += 1
        if isinstance(kind, Counted):
            digest.count(now, node, kind, reason)
            assert digest.due <= now + LONGEST
        else:
            before, after = ("standby", "primary") if promoted else ("primary", "standby")
            digest.role_changed(now, node, before, after)  # type: ignore[arg-type]
            assert digest.due <= now + CHANGES
    while digest.due < INFINITY:
        now = max(now, digest.due)
        take(now, digest.lines(now))
    assert digest.lines(now, everything=True) == []
    assert told == given_
    for (_, what), at in times.items():
        if what == "change":
            assert all(late - early >= CHANGES - 1e-9 for early, late in zip(at, at[AT_ONCE:], strict=False))
        else:
            assert all(late - early >= WINDOW - 1e-9 for early, late in itertools.pairwise(at))


@given(FACTS)
def test_at_the_end_everything_is_told_at_once(
    facts: list[tuple[float, str, str | Counted, str, bool]],
) -> None:
    digest, now = Digest(), 0.0
    for pause, node, kind, reason, _ in facts:
        now += pause
        if isinstance(kind, Counted):
            digest.count(now, node, kind, reason)
        else:
            digest.role_changed(now, node, "primary", "standby")
    kinds = {(node, kind) for _, node, kind, _, _ in facts if isinstance(kind, Counted)}
    lines = digest.lines(now, everything=True)
    assert len(lines) <= len(kinds) + len(NODES) * (AT_ONCE + 1)
    assert digest.lines(now, everything=True) == []
    assert digest.due == INFINITY


# Reasons and failures


def test_a_reason_is_short() -> None:
    lost = (
        "consuming input failed: server closed the connection unexpectedly This probably means the server"
        " terminated abnormally before or while processing the request. connection not open"
    )
    assert brief(lost) == "server closed the connection unexpectedly"
    assert len(brief("x" * 1000)) == rules._LONGEST_REASON


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (psycopg.errors.DivisionByZero("division by zero"), "DivisionByZero (22012): division by zero"),
        (
            psycopg.errors.UniqueViolation(
                'duplicate key value violates unique constraint "c"\nDETAIL:  Key (a)=(secret) exists.'
            ),
            'UniqueViolation (23505): duplicate key value violates unique constraint "..."',
        ),
        (
            psycopg.errors.InvalidTextRepresentation('invalid input syntax for type integer: "secret"'),
            'InvalidTextRepresentation (22P02): invalid input syntax for type integer: "..."',
        ),
        (
            # A value with a line break, and a value with a quote.
            psycopg.errors.InvalidTextRepresentation(
                'invalid input syntax for type integer: "secret\nsecret"'
            ),
            'InvalidTextRepresentation (22P02): invalid input syntax for type integer: "..."',
        ),
        (
            psycopg.errors.InvalidTextRepresentation('invalid input syntax for type integer: "1"secret"2"'),
            'InvalidTextRepresentation (22P02): invalid input syntax for type integer: "..."',
        ),
        *(
            (psycopg.errors.InvalidTextRepresentation(words), 'InvalidTextRepresentation (22P02): "..."')
            for words in ("„secret“", "«secret»", "“secret”", "»secret«", "”secret”")
        ),
        (psycopg.DataError("date too large (after year 10K): 'secret'"), "DataError"),
        (pgha.QueueFull("3 operations\nwait"), "QueueFull: 3 operations"),
        (ValueError("secret"), "ValueError"),
    ],
)
def test_a_failure_shows_no_value(error: BaseException, text: str) -> None:
    assert described(error) == text


class Hand:
    """A clock and timers that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[float, Callable[[], None]]] = []

    def clock(self) -> float:
        return self.now

    def at(self, when: float, call: Callable[[], None]) -> tuple[float, Callable[[], None]]:
        self.calls.append((when, call))
        return self.calls[-1]

    def cancel(self, moment: tuple[float, Callable[[], None]]) -> None:
        self.calls.remove(moment)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for moment in [one for one in self.calls if one[0] <= self.now]:
            self.calls.remove(moment)
            moment[1]()


def test_a_storm_costs_one_timer_and_no_line(caplog: pytest.LogCaptureFixture) -> None:
    hand = Hand()
    log = ClusterLog(hand, hand.clock)
    with caplog.at_level("DEBUG", "pgha"):
        for _ in range(1000):
            log.retried("n1", "gone")
        assert len(hand.calls) == 1
        assert caplog.records == []
        log.close()
    assert [record.getMessage() for record in caplog.records] == [
        "node n1: 1,000 attempts failed and will be run again (gone)"
    ]


@pytest.mark.parametrize("told", ["unretrieved", "changes"])
def test_lines_between_do_not_add_timers(told: str) -> None:
    """Keep one timer: every extra timer would be set again when due, as long as facts keep coming."""
    hand = Hand()
    log = ClusterLog(hand, hand.clock)
    for _ in range(200):
        for number in range(10):
            log.retried("n1", "gone")
            if told == "unretrieved":
                log.unretrieved(ValueError())
            else:
                log.role_changed(f"n{number}", "primary", "standby")
                hand.pass_time(0.0)
        assert len(hand.calls) <= 1
        hand.pass_time(0.3)


def test_a_password_in_a_servers_words_is_hidden(caplog: pytest.LogCaptureFixture) -> None:
    hand = Hand()
    log = ClusterLog(hand, hand.clock)
    log.keep_secret("s3cr3t")
    log.keep_secret(None)
    with caplog.at_level("DEBUG", "pgha"):
        # A password that the limit of a reason's length would cut in two must be hidden as well.
        log.state_changed("n1", "up", "down", "x" * (rules._LONGEST_REASON - 4) + "s3cr3t", "primary")
        for tell in (log.retried, log.in_doubt):
            tell("n1", "no s3cr3t here")
        log.connection_lost("n1", "no s3cr3t here", 1, by_choice=False)
        log.unretrieved(pgha.ConfigError("no s3cr3t here"))
        log.close()
        log.unretrieved(pgha.ConfigError("no s3cr3t here"))
    assert len(caplog.records) == 6
    assert "s3c" not in caplog.text
    assert "***" in caplog.text


def test_a_handler_that_raises_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise LookupError("mine")

    handler, logger, hand = Broken(), logging.getLogger("pgha.node"), Hand()
    logger.addHandler(handler)
    try:
        log = ClusterLog(hand, hand.clock)
        log.role_changed("n1", "primary", "standby")
        log.close()
    finally:
        logger.removeHandler(handler)
