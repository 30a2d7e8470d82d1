"""Tests of `pgha.chaos.history`: each caller's result is recorded once and completely, and can be saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pgha
from pgha.chaos.history import Attempt, Entry, History, Open, Recorder


class Clock:
    now = 100.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def recorded(act: Callable[[Open], object], **begun: Any) -> Entry:
    recorder = Recorder(Clock())
    act(recorder.begin("write", "k", **begun))
    (entry,) = recorder.history()
    return entry


FIRST = pgha.Attempt("n1", 101.1, 101.2, None, "not applied")
SECOND = pgha.Attempt("n2", 101.3, 101.3, 101.4, "applied")
RECORD = pgha.Record(101.0, 101.0, 101.5, (FIRST, SECOND))


def test_an_acknowledged_operation() -> None:
    entry = recorded(
        lambda one: one.acknowledged(node="n3", record=RECORD, answer="k", number=7),
        timeout=2.0,
        repeatable=True,
        writer=4,
    )
    attempts = (
        Attempt("n1", 101.1, 101.2, None, "not applied"),
        Attempt("n2", 101.3, 101.3, 101.4, "applied"),
    )
    assert entry == Entry(
        "k", "write", 101.0, 102.0, "acknowledged", "n3", "k", None, 2.0, True, attempts, 4, 7
    )  # fmt: skip


def test_one_in_doubt_is_resolved_later() -> None:
    recorder = Recorder()
    one = recorder.begin("write", "k", keyed=True)
    with pytest.raises(RuntimeError, match="not in doubt"):
        one.resolved("applied")
    one.doubt("perhaps")
    one.resolved("applied")
    (entry,) = recorder.history()
    assert (entry.keyed, entry.ending, entry.resolved) == (True, "in doubt", "applied")


@pytest.mark.parametrize(
    ("act", "ending", "error"),
    [
        (lambda one: one.acknowledged(), "acknowledged", None),
        (lambda one: one.refused("not so"), "refused", "not so"),
        (lambda one: one.doubt(ValueError("line\none")), "in doubt", "ValueError: line one"),
        (lambda one: one.lost(KeyError(1)), "lost", "KeyError: 1"),
        (lambda one: one.failed("x", "not applied"), "refused", "x"),
        (lambda one: one.failed("x", "in doubt"), "in doubt", "x"),
        (lambda one: one.failed("x", "applied"), "acknowledged", "x"),
        (lambda one: one.failed("x"), "lost", "x"),
    ],
)
def test_what_the_caller_was_told(act: Callable[[Open], object], ending: str, error: str | None) -> None:
    entry = recorded(act, number=3)
    assert (entry.ending, entry.error, entry.ended) == (ending, error, 102.0)
    assert (entry.node, entry.attempts, entry.number) == (None, (), 3)


def test_without_a_name_it_is_the_last_node_that_answered() -> None:
    assert recorded(lambda one: one.acknowledged(record=RECORD)).node == "n2"
    one_lost = pgha.Record(101.0, 101.0, 101.5, (SECOND, FIRST))
    assert recorded(lambda one: one.doubt("perhaps", record=one_lost)).node == "n2"
    none = pgha.Record(101.0, 101.0, 101.5, (FIRST,))
    assert recorded(lambda one: one.lost("gone", record=none)).node is None


def test_any_client_can_be_recorded() -> None:
    @dataclass
    class ToldAttempt:
        node: str
        sent_at: float
        head_at: None = None
        answered_at: None = None
        outcome: None = None

    @dataclass
    class Told:
        attempts: list[ToldAttempt]

    entry = recorded(lambda one: one.lost("gone", record=Told([ToldAttempt("a", 1.0)])))
    assert entry.attempts == (Attempt("a", 1.0),)


def test_what_has_not_ended_stands_there_in_the_order_of_beginning() -> None:
    recorder = Recorder(Clock())
    first, second = recorder.begin("read", "a", timeout=1.0), recorder.begin("write", "b")
    second.acknowledged()
    early = recorder.history()
    first.lost("gone")
    late = recorder.history()
    assert early[0] == Entry("a", "read", 101.0, timeout=1.0)
    assert [entry.key for entry in early] == [entry.key for entry in late] == ["a", "b"]
    assert [entry.ending for entry in late] == ["lost", "acknowledged"]


def test_keys_are_made_and_never_the_same() -> None:
    recorder = Recorder()
    keys = {recorder.begin("read").key for _ in range(100)}
    assert {entry.key for entry in recorder.history()} == keys
    assert len(keys) == 100
    recorder.begin("write", "mine")
    with pytest.raises(ValueError, match="'mine' was begun before"):
        recorder.begin("read", "mine")
    assert recorder.history()[-1].kind == "write"


def test_an_operation_ends_once() -> None:
    recorder = Recorder()
    one = recorder.begin("write", "k")
    one.acknowledged()
    with pytest.raises(
        RuntimeError, match="k has already ended as 'acknowledged', it cannot end as 'refused'"
    ):
        one.refused("no")
    assert recorder.history()[0].ending == "acknowledged"


def test_threads_lose_nothing() -> None:
    recorder = Recorder()

    def work(thread: int) -> int:
        for turn in range(500):
            one = recorder.begin("write", f"{thread}-{turn}")
            assert len(recorder.history()) <= 4000
            one.acknowledged() if turn % 2 else one.doubt("perhaps")
        return thread

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == list(range(8))
    history = recorder.history()
    assert len({entry.key for entry in history}) == 4000
    assert all(entry.ending is not None for entry in history)


# The history


def test_a_history_is_a_sequence_that_does_not_change() -> None:
    entries = (Entry("a", "read", 0.0, 1.0, "acknowledged"), Entry("b", "write", 0.5))
    history = History(entries)
    assert (len(history), history[1], list(history), tuple(reversed(history))) == (
        2,
        entries[1],
        list(entries),
        entries[::-1],
    )
    assert history[:1] == History(entries[:1])
    assert hash(history) == hash(History(entries))
    assert repr(history) == "<History of 2 operations: 1 acknowledged, 1 running>"
    assert repr(History()) == "<History of 0 operations>"
    with pytest.raises(FrozenInstanceError):
        history.entries = ()  # type: ignore[misc]


def test_two_entries_of_one_key_are_no_history() -> None:
    with pytest.raises(ValueError, match="2 entries have the key 'a'"):
        History((Entry("a", "read", 0.0), Entry("b", "read", 0.0), Entry("a", "write", 1.0)))


seconds = st.floats(allow_nan=False, allow_infinity=False)
maybe = st.none() | seconds
words = st.none() | st.text()
attempts = st.builds(
    Attempt, st.text(), seconds, maybe, maybe, st.sampled_from(["applied", "not applied", "in doubt", None])
)
entries = st.builds(
    Entry,
    st.text(),
    st.sampled_from(["read", "write"]),
    seconds,
    maybe,
    st.sampled_from(["acknowledged", "refused", "in doubt", "lost", None]),
    words,
    words,
    words,
    maybe,
    st.booleans(),
    st.lists(attempts, max_size=3).map(tuple),
    st.none() | st.integers(),
    st.none() | st.integers(),
    st.booleans(),
    st.sampled_from([None, "applied", "not applied", "in doubt"]),
)


@settings(max_examples=50)
@given(st.lists(entries, max_size=5, unique_by=lambda entry: entry.key))
def test_it_is_kept_and_read_again(found: list[Entry]) -> None:
    history = History(tuple(found))
    text = history.to_json()
    assert History.from_json(text) == history == History.from_json(text.encode())


def test_what_is_kept_is_short() -> None:
    text = History((Entry("a", "read", 0.5, attempts=(Attempt("n1", 1.0),)),)).to_json()
    (kept,) = json.loads(text)["entries"]
    assert kept.keys() == {"key", "kind", "begun", "attempts"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"history": 2, "entries": []}',
        '{"history": 1}',
        '{"history": 1, "entries": [1]}',
        '{"history": 1, "entries": [{"key": "a"}]}',
        '{"history": 1, "entries": [{"key": "a", "kind": "read", "begun": 0, "more": 1}]}',
        '{"history": 1, "entries": [{"key": "a", "kind": "read", "begun": 0, "attempts": [{}]}]}',
    ],
)
def test_what_is_no_history_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        History.from_json(text)
