"""Tests of `pgha.chaos.checkers`: each rule reports its own violation, none reports correct behaviour."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgha.chaos.checkers import (
    RULES,
    Observations,
    Promise,
    Row,
    Violation,
    check,
    lost,
    times_applied,
)
from pgha.chaos.history import Attempt, Entry, History

NODES = ("n1", "n2", "n3")
Rows = dict[str, list[Row]]


def everywhere(*rows: Row) -> Rows:
    return {name: list(rows) for name in NODES}


def one_attempt(node: str = "n1", outcome: str | None = "applied", at: float = 0.1) -> Attempt:
    return Attempt(node, at, at, at + 0.1 if outcome else None, outcome)


def write(key: str = "w", **changes: Any) -> Entry:
    """Return a write that n1 acknowledged."""
    plain = Entry(key, "write", 0.0, 0.5, "acknowledged", "n1", timeout=2.0, attempts=(one_attempt(),))
    return replace(plain, **changes)


def read(key: str = "r", **changes: Any) -> Entry:
    plain = Entry(key, "read", 1.0, 1.5, "acknowledged", "n1", answer=key, attempts=(one_attempt(at=1.1),))
    return replace(plain, **changes)


def rules_of(violations: Iterable[Violation]) -> set[str]:
    return {violation.rule for violation in violations}


HERE = everywhere(("w", "n1"))
REFUSED: dict[str, Any] = {
    "ending": "refused",
    "error": "no",
    "attempts": (one_attempt(outcome="not applied"),),
}
DOUBT: dict[str, Any] = {
    "ending": "in doubt",
    "error": "perhaps",
    "attempts": (one_attempt(outcome="in doubt"),),
}
LOST: dict[str, Any] = {"ending": "lost", "error": "gone", "attempts": ()}
AGAIN: dict[str, Any] = {
    "attempts": (one_attempt(outcome="not applied"), one_attempt("n2", at=0.3)),
    "node": "n2",
}
REPEATED: dict[str, Any] = {
    "repeatable": True,
    "attempts": (one_attempt(outcome="in doubt"), one_attempt("n2", at=0.3)),
    "node": "n2",
}
KEYED: dict[str, Any] = {
    "keyed": True,
    "attempts": (one_attempt(outcome="in doubt"), one_attempt("n2", at=0.3)),
    "node": "n2",
}
SEEN: dict[str, Any] = {"writer": 1, "answer": None, "attempts": ()}


@dataclass(frozen=True)
class Case:
    name: str
    entries: tuple[Entry, ...]
    rows: Rows | None = field(default_factory=everywhere)
    promise: Promise = Promise()  # noqa: RUF009 - frozen
    says: str = ""
    """A part of the text that explains the violation."""


RIGHT = [
    Case("nothing at all", ()),
    Case(
        "acknowledged by the reader's node, applied by another",
        (write(writer=1, number=3), read(**SEEN, number=2)),
        everywhere(("w", "n2")),
    ),
    Case("acknowledged and everywhere", (write(),), HERE),
    Case("acknowledged and nobody looked", (write(),), None),
    Case("refused and nowhere", (write(**REFUSED),)),
    Case("refused before it was sent", (write(**REFUSED | {"attempts": ()}),)),
    Case("in doubt and nowhere", (write(**DOUBT),)),
    Case("in doubt and once", (write(**DOUBT),), HERE),
    Case("lost and once", (write(**LOST),), HERE),
    Case("in doubt and not everywhere", (write(**DOUBT),), {"n1": [("w", "n1")], "n2": []}),
    Case("in doubt, resolved as not applied, and nowhere", (write(**DOUBT, resolved="not applied"),)),
    Case("in doubt, resolved as applied, and once", (write(**DOUBT, resolved="applied"),), HERE),
    Case("in doubt for ever", (write(**DOUBT, resolved="in doubt"),), HERE),
    Case("keyed: sent again without proof", (write(**KEYED),), everywhere(("w", "n2"))),
    Case(
        "keyed: refused although a try was in doubt, since the key tells",
        (write(**REFUSED | {"attempts": (one_attempt(outcome="in doubt"),), "keyed": True}),),
    ),
    Case("sent again on proof", (write(**AGAIN),), everywhere(("w", "n2"))),
    Case("repeatable, applied by both attempts", (write(**REPEATED),), everywhere(("w", "n1"), ("w", "n2"))),
    Case("repeatable, twice by one node", (write(**REPEATED),), everywhere(("w", "n2"), ("w", "n2"))),
    Case(
        "repeatable, in doubt, twice",
        (write(**REPEATED | {"ending": "in doubt"}),),
        everywhere(("w", "n1"), ("w", "n2")),
    ),
    Case("repeatable, attempts unknown", (write(repeatable=True, attempts=()),), HERE),
    Case("lost with its node", (write(),), everywhere(), Promise(may_lose={"n1"})),
    Case("on its node", (write(),), {"n1": [("w", "n1")], "n2": []}, Promise(everywhere=False)),
    Case("on another, its own not looked at", (write(),), {"n2": [("w", "n1")]}, Promise(everywhere=False)),
    Case("by an unknown node", (write(node=None),), {"n1": [], "n2": HERE["n1"]}, Promise(everywhere=False)),
    Case("the answer that was asked for", (read(),)),
    Case("the answer of a write", (write(answer="w"),), HERE),
    Case("as late as it may be", (read(timeout=0.25, ended=1.5),), promise=Promise(grace=0.25)),
    Case("no timeout, and long", (read(ended=1000.0),)),
    Case("a write that was seen", (write(writer=1, number=3), read(**SEEN, number=3)), HERE),
    Case("a later one was seen", (write(writer=1, number=3), read(**SEEN, number=4)), HERE),
    Case("another node's is not promised", (write(writer=1, number=3), read(**SEEN, node="n2")), HERE),
    Case("another writer's neither", (write(writer=2, number=3), read(**SEEN)), HERE),
    Case("nor what ends when the read begins", (write(writer=1, number=3, ended=1.0), read(**SEEN)), HERE),
    Case("nor what is in doubt", (write(**DOUBT, writer=1, number=3), read(**SEEN)), HERE),
    Case("nor to a read that failed", (write(writer=1, number=3), read(**SEEN | REFUSED)), HERE),
    Case(
        "nor of lost data",
        (write(writer=1, number=3), read(**SEEN)),
        HERE,
        Promise(may_lose={"n1"}),
    ),
    Case("a race overlaps", (read(attempts=(one_attempt(at=1.3), one_attempt("n2", None, 1.1))),)),
    Case(
        "a read is free to be sent again",
        (read(attempts=(one_attempt(outcome="in doubt"), one_attempt("n2"))),),
    ),
    Case(
        "as many attempts as there may be",
        (write(**AGAIN),),
        everywhere(("w", "n2")),
        Promise(max_attempts=2),
    ),
]


@pytest.mark.parametrize("case", RIGHT, ids=lambda case: case.name)
def test_no_rule_fires_on_what_is_right(case: Case) -> None:
    assert check(History(case.entries), case.rows, case.promise) == []


def backwards(**times: Any) -> tuple[Attempt, ...]:
    return (replace(one_attempt(), **times),)


WRONG: dict[str, list[Case]] = {
    "lost": [
        Case("nowhere", (write(),), says="acknowledged by n1, is on no node"),
        Case("no rows taken", (write(),), {}, says="on no node"),
        Case("not on one", (write(),), HERE | {"n2": []}, says="not on n2"),
        Case("not on two", (write(),), {**everywhere(), "n1": HERE["n1"]}, says="not on n2, n3"),
        Case("nowhere, by nobody known", (write(node=None),), says="acknowledged, is on no node"),
        Case("nowhere", (write(),), everywhere(), Promise(everywhere=False), says="on no node"),
        Case("not on its own", (write(),), HERE | {"n1": []}, Promise(everywhere=False), says="elsewhere"),
        Case("another node's data was lost", (write(),), everywhere(), Promise(may_lose={"n2"})),
        Case("repeatable", (write(**REPEATED),)),
        Case("applied, the error says", (write(error="unusable"),)),
    ],
    "doubled": [
        Case("twice by one", (write(),), everywhere(("w", "n1"), ("w", "n1")), says="twice: twice by n1"),
        Case("by two", (write(),), everywhere(("w", "n1"), ("w", "n2")), says="once by n1, once by n2"),
        Case("seen by one node", (write(),), HERE | {"n3": [("w", "n1"), ("w", "n1")]}),
        Case("by halves", (write(),), HERE | {"n3": [("w", "n2")]}, says="once by n2"),
        Case(
            "repeatable, more often than tried",
            (write(**REPEATED),),
            everywhere(("w", "n1"), ("w", "n2"), ("w", "n2")),
            says="attempted twice, was applied 3 times",
        ),
        Case(
            "repeatable in doubt, more often than tried",
            (write(**DOUBT | {"repeatable": True}),),
            everywhere(("w", "n1"), ("w", "n2")),
            says="attempted once",
        ),
    ],
    "in_doubt_twice": [
        Case("in doubt", (write(**DOUBT),), everywhere(("w", "n1"), ("w", "n2")), says="in doubt (perhaps)"),
        Case("lost", (write(**LOST),), everywhere(("w", "n1"), ("w", "n1")), says="lost (gone)"),
    ],
    "refused_present": [
        Case("everywhere", (write(**REFUSED),), HERE, says="not applied (no), was applied: once by n1"),
        Case("somewhere", (write(**REFUSED),), {"n1": [], "n2": [("w", "n2")]}),
        Case("twice", (write(**REFUSED),), everywhere(("w", "n1"), ("w", "n1"))),
        Case("repeatable", (write(**REFUSED | {"repeatable": True}),), HERE),
        Case("never sent", (write(**REFUSED | {"attempts": ()}),), HERE),
    ],
    "wrongly_resolved": [
        Case("not there", (write(**DOUBT, resolved="applied"),), says="resolved as applied, is on no node"),
        Case("there", (write(**DOUBT, resolved="not applied"),), HERE, says="not applied, was applied: once"),
    ],
    "unasked": [
        Case("by nobody", (), HERE, says="row w, which no recorded write asked for"),
        Case("by a read", (read("w"),), HERE),
        Case("twice", (), everywhere(("w", "n1"), ("w", "n2"))),
    ],
    "crossed": [
        Case("another's answer", (read(answer="s"),), says="read r was given the answer s by n1"),
        Case("two of them", (read(answer="s"), read("s", answer="r"))),
        Case("of a write", (write(answer="v"),), HERE),
        Case("nothing in it", (read(answer=""),)),
    ],
    "late": [
        Case("too late", (read(timeout=0.2, ended=2.5),), says="took 1.500 s, with a timeout of 0.2 s"),
        Case("refused too late", (write(**REFUSED | {"ended": 3.5}),)),
        Case("no grace", (read(timeout=0.2),), promise=Promise(grace=0.0)),
    ],
    "unended": [
        Case("with a timeout", (write(ended=None, ending=None, node=None),), says="timeout 2 s"),
        Case("without", (read(ended=None, ending=None, node=None, answer=None),), says="without a timeout"),
    ],
    "stale": [
        Case(
            "too low",
            (write(writer=1, number=3), read(**SEEN, number=2)),
            HERE,
            says="saw writer 1 up to 2, after 3 of n1 had been acknowledged",
        ),
        Case("nothing seen", (write(writer=1, number=3), read(**SEEN)), HERE, says="up to 0"),
        Case(
            "the highest counts, not the last",
            (write(writer=1, number=3), write("v", writer=1, number=2, ended=0.6), read(**SEEN, number=2)),
            everywhere(("w", "n1"), ("v", "n1")),
        ),
        Case(
            "applied by this node, acknowledged by another",
            (write(writer=1, number=3, node="n2"), read(**SEEN, number=2)),
            HERE,
            says="after 3 of n1 had been acknowledged",
        ),
    ],
    "unproven_retry": [
        Case(
            "in doubt",
            (write(**AGAIN | {"attempts": (one_attempt(outcome="in doubt"), one_attempt("n2", at=0.3))}),),
            everywhere(("w", "n2")),
            says="sent again, to n2, after attempt 1 on n1 had ended in doubt",
        ),
        Case(
            "unknown",
            (write(**AGAIN | {"attempts": (one_attempt(outcome=None), one_attempt("n2", at=0.3))}),),
            everywhere(("w", "n2")),
            says="without any proof",
        ),
        Case(
            "applied",
            (write(**AGAIN | {"attempts": (one_attempt(), one_attempt("n2", at=0.3))}),),
            everywhere(("w", "n2")),
            says="had ended applied",
        ),
        Case(
            "though it ended in doubt",
            (
                write(
                    **DOUBT
                    | {"attempts": (one_attempt(outcome="in doubt"), one_attempt("n2", "in doubt", 0.3))}
                ),
            ),
        ),
    ],
    "unproven_refusal": [
        Case(
            "in doubt",
            (write(**REFUSED | {"attempts": (one_attempt(outcome="in doubt"),)}),),
            says="in doubt",
        ),
        Case("applied", (write(**REFUSED | {"attempts": (one_attempt(),)}),), says="applied"),
        Case(
            "unknown",
            (write(**REFUSED | {"attempts": (one_attempt(outcome=None),)}),),
            says="without any proof",
        ),
        Case(
            "repeatable",
            (write(**REFUSED | {"repeatable": True, "attempts": (one_attempt(outcome="in doubt"),)}),),
        ),
    ],
    "disordered": [
        Case("sent, head", (write(attempts=backwards(head_at=0.05)),), HERE, says="head 0.050000 s before"),
        Case("head, answered", (write(attempts=backwards(answered_at=0.05)),), HERE),
        Case("sent, answered", (write(attempts=(Attempt("n1", 0.1, None, 0.05, "applied"),)),), HERE),
        Case(
            "answered, sent again",
            (
                write(
                    **AGAIN | {"attempts": (one_attempt(outcome="not applied"), one_attempt("n2", at=0.15))}
                ),
            ),
            everywhere(("w", "n2")),
            says="attempt 2 was sent 0.050000 s before attempt 1 was answered",
        ),
        Case("a read's", (read(attempts=(one_attempt(), *backwards(answered_at=0.05))),)),
    ],
    "too_many_attempts": [
        Case(
            "a write's",
            (write(**AGAIN),),
            everywhere(("w", "n2")),
            Promise(max_attempts=1),
            says="had 2 attempts, at most 1",
        ),
        Case(
            "a read's", (read(attempts=(one_attempt(), one_attempt("n2"))),), promise=Promise(max_attempts=1)
        ),
    ],
}


def test_every_rule_has_its_cases() -> None:
    assert WRONG.keys() == RULES.keys()


@pytest.mark.parametrize(
    ("rule", "case"),
    [pytest.param(rule, case, id=f"{rule}: {case.name}") for rule, cases in WRONG.items() for case in cases],
)
def test_each_rule_catches_its_own_violation_and_no_other_fires(rule: str, case: Case) -> None:
    found = check(History(case.entries), case.rows, case.promise)
    assert rules_of(found) == {rule}
    assert found == list(RULES[rule](Observations(History(case.entries), case.rows, case.promise)))
    assert len({violation.key for violation in found}) == len(found), "one for each entry"
    assert any(case.says in violation.text for violation in found)
    for violation in found:
        assert violation.key is not None
        assert violation.key in violation.text
        assert str(violation) == f"{rule}: {violation.text}"


def test_violations_are_sorted_whatever_the_order() -> None:
    entries = [write(f"w{i}") for i in range(5)] + [read(f"r{i}", answer="x") for i in range(5)]
    found = check(History(tuple(entries)), everywhere())
    assert [violation.rule for violation in found] == ["crossed"] * 5 + ["lost"] * 5
    assert [violation.key for violation in found][5:] == [f"w{i}" for i in range(5)]
    random.Random(1).shuffle(entries)
    assert check(History(tuple(entries)), everywhere()) == found
    assert sorted([Violation("b", None, ""), Violation("a", "k", "")])[0].rule == "a"


def test_rows_may_be_read_only_once() -> None:
    rows = {name: iter([("w", "n1")]) for name in NODES}
    assert check(History((write(),)), rows) == []
    rows = {name: iter([("w", "n1")]) for name in NODES}
    assert list(lost(Observations(History((write(),)), rows))) == []


def test_how_often_keys_were_applied_is_the_most_that_any_node_saw() -> None:
    rows = {
        "n1": [("a", "n1"), ("a", "n1"), ("b", "n1")],
        "n2": [("a", "n1"), ("b", "n1"), ("b", "n2")],
        "n3": [],
    }
    assert times_applied(rows) == {"a": 2, "b": 2}


# A tiny store, and a client that keeps all promises; then one promise is broken


@dataclass
class Model:
    """The history and the rows that correct nodes and a correct client produce."""

    entries: list[Entry] = field(default_factory=list)
    applied: list[Row] = field(default_factory=list)
    numbers: dict[tuple[int, str], int] = field(default_factory=dict)

    @property
    def history(self) -> History:
        return History(tuple(self.entries))

    @property
    def rows(self) -> Rows:
        return everywhere(*self.applied)


def clock(start: float, draw: Callable[[Any], Any]) -> Callable[[], float]:
    now = start

    def later() -> float:
        nonlocal now
        now += float(draw(st.integers(0, 3))) / 64
        return now

    return later


@st.composite
def models(draw: Callable[[Any], Any]) -> Model:
    """Draw operations that take effect one after the other, but overlap in the view of their callers.

    The operations include at least one of each kind, in any order.
    """
    model = Model()
    kinds = [*KINDS, *draw(st.lists(st.sampled_from(KINDS), max_size=4))]
    for number, (last, repeatable) in enumerate(draw(st.permutations(kinds))):
        at = 10.0 + number * 4.0
        if last is None:
            _add_read(model, draw, number, at)
        else:
            _add_write(model, draw, number, at, last, repeatable)
    return model


KINDS = [(None, False)] * 2 + [
    (last, repeatable) for last in ("applied", "not applied", "in doubt") for repeatable in (False, True)
]
"""The outcome of a write's last attempt, or None for a read; and whether the write is repeatable."""


def _add_write(
    model: Model, draw: Callable[[Any], Any], number: int, at: float, last: str, repeatable: bool
) -> None:
    writer, key = draw(st.integers(0, 2)), f"w{number}"
    begun = at - draw(st.integers(0, 64)) / 16
    now = clock(at, draw)
    attempts: list[Attempt] = []
    doubt = ["not applied", "in doubt"] if repeatable else ["not applied"]
    outcomes = draw(st.lists(st.sampled_from(doubt), max_size=3))
    outcomes.append(last)
    for outcome in outcomes:
        node = draw(st.sampled_from(NODES))
        answered = None if outcome == "in doubt" else now
        attempts.append(Attempt(node, now(), now(), answered and answered(), outcome))
        if outcome == "applied" or (outcome == "in doubt" and draw(st.booleans())):
            model.applied.append((key, node))
            model.numbers[writer, node] = number + 1
    ending: Any = {"applied": "acknowledged", "not applied": "refused"}.get(outcomes[-1], "in doubt")
    if ending == "refused" and "in doubt" in outcomes:
        ending = "in doubt"
    entry = Entry(
        key,
        "write",
        begun,
        now() + draw(st.integers(0, 64)) / 16,
        ending,
        attempts[-1].node,
        error=None if ending == "acknowledged" else ending,
        timeout=9.0,
        repeatable=repeatable,
        attempts=tuple(attempts),
        writer=writer,
        number=number + 1,
    )
    model.entries.append(entry)


def _add_read(model: Model, draw: Callable[[Any], Any], number: int, at: float) -> None:
    writer, node, key = draw(st.integers(0, 2)), draw(st.sampled_from(NODES)), f"r{number}"
    now = clock(at, draw)
    one = Attempt(node, now(), now(), now(), "applied")
    others = [
        Attempt(other, at, None, None, None) for other in NODES if other != node and draw(st.booleans())
    ]
    seen = model.numbers.get((writer, node), 0)
    begun = at - draw(st.integers(0, 64)) / 16
    ended = now() + draw(st.integers(0, 64)) / 16
    attempts = (*others, one)
    entry = Entry(key, "read", begun, ended, "acknowledged", node, key, timeout=9.0, attempts=attempts)
    model.entries.append(replace(entry, writer=writer, number=seen))


@given(models())
def test_a_correct_client_breaks_no_rule(model: Model) -> None:
    promise = Promise(max_attempts=4)
    assert check(model.history, model.rows, promise) == []
    kept = History.from_json(model.history.to_json())
    assert kept == model.history
    assert check(kept, model.rows, promise) == []


Pick = Callable[[Any], Any]


def some(pick: Pick, found: list[Any]) -> Any:
    return pick(st.sampled_from(found))


def change(model: Model, entry: Entry, **changes: Any) -> str:
    model.entries[model.entries.index(entry)] = replace(entry, **changes)
    return entry.key


def writes(model: Model, *endings: str, repeatable: bool | None = None) -> list[Entry]:
    return [
        entry
        for entry in model.entries
        if entry.kind == "write" and entry.ending in endings and repeatable in (None, entry.repeatable)
    ]


def drop_a_write(model: Model, pick: Pick) -> str:
    key: str = some(pick, writes(model, "acknowledged")).key
    model.applied = [row for row in model.applied if row[0] != key]
    return key


def double_a_row(model: Model, pick: Pick) -> str:
    key: str = some(pick, writes(model, "acknowledged", repeatable=False)).key
    model.applied.append((key, pick(st.sampled_from(NODES))))
    return key


def apply_once_more_than_tried(model: Model, pick: Pick) -> str:
    entry: Entry = some(pick, writes(model, "acknowledged", "in doubt", repeatable=True))
    times = sum(key == entry.key for key, _ in model.applied)
    model.applied += [(entry.key, "n2")] * (len(entry.attempts) + 1 - times)
    return entry.key


def double_what_is_in_doubt(model: Model, pick: Pick) -> str:
    entry: Entry = some(pick, writes(model, "in doubt", repeatable=False))
    model.applied = [row for row in model.applied if row[0] != entry.key]
    model.applied += [(entry.key, "n1"), (entry.key, pick(st.sampled_from(NODES)))]
    return entry.key


def apply_what_was_refused(model: Model, pick: Pick) -> str:
    key: str = some(pick, writes(model, "refused")).key
    model.applied.append((key, pick(st.sampled_from(NODES))))
    return key


def resolve_by_guessing(model: Model, pick: Pick) -> str:
    entry: Entry = some(pick, writes(model, "in doubt"))
    there = any(key == entry.key for key, _ in model.applied)
    return change(model, entry, resolved="not applied" if there else "applied")


def make_up_a_row(model: Model, pick: Pick) -> str:
    model.applied.append(("made up", "n1"))
    return "made up"


def swap_two_answers(model: Model, pick: Pick) -> str:
    reads = [entry for entry in model.entries if entry.kind == "read"]
    one, other = pick(st.lists(st.sampled_from(reads), min_size=2, max_size=2, unique=True))
    change(model, other, answer=one.key)
    return change(model, one, answer=other.key)


def keep_a_caller_waiting(model: Model, pick: Pick) -> str:
    entry = some(pick, model.entries)
    return change(model, entry, ended=entry.begun + 10.5)


def never_end(model: Model, pick: Pick) -> str:
    return change(model, some(pick, model.entries), ended=None, ending=None)


def forget_a_write(model: Model, pick: Pick) -> str:
    """Add a read that begins after an acknowledged write ended, and does not see the write."""
    entry: Entry = some(pick, writes(model, "acknowledged"))
    assert entry.ended is not None
    key = f"after {entry.key}"
    begun, number = entry.ended + 0.01, (entry.number or 0) - 1
    model.entries.append(
        Entry(key, "read", begun, begun, "acknowledged", entry.node, writer=entry.writer, number=number)
    )
    return key


def send_again_in_doubt(model: Model, pick: Pick) -> str:
    entry: Entry = some(pick, writes(model, "acknowledged", "refused", repeatable=False))
    first = replace(entry.attempts[0], outcome=pick(st.sampled_from(["in doubt", None, "applied"])))
    later = replace(first, sent_at=900.0, head_at=None, answered_at=None, outcome="not applied")
    return change(model, entry, attempts=(first, later), ending="in doubt")


def refuse_without_proof(model: Model, pick: Pick) -> str:
    entry: Entry = some(pick, writes(model, "in doubt"))
    model.applied = [row for row in model.applied if row[0] != entry.key]
    return change(model, entry, ending="refused")


def answer_before_it_is_sent(model: Model, pick: Pick) -> str:
    entry = some(pick, model.entries)
    first, *others = entry.attempts
    return change(model, entry, attempts=(replace(first, answered_at=first.sent_at - 0.5), *others))


def try_once_more(model: Model, pick: Pick) -> str:
    entry = some(pick, [entry for entry in model.entries if entry.kind == "read" or entry.repeatable])
    attempts = [
        replace(entry.attempts[-1], sent_at=900.0 + i, head_at=None, answered_at=None) for i in range(5)
    ]
    return change(model, entry, attempts=(*entry.attempts, *attempts))


MUTATIONS: list[tuple[str, Callable[[Model, Pick], str]]] = [
    ("lost", drop_a_write),
    ("doubled", double_a_row),
    ("doubled", apply_once_more_than_tried),
    ("in_doubt_twice", double_what_is_in_doubt),
    ("refused_present", apply_what_was_refused),
    ("wrongly_resolved", resolve_by_guessing),
    ("unasked", make_up_a_row),
    ("crossed", swap_two_answers),
    ("late", keep_a_caller_waiting),
    ("unended", never_end),
    ("stale", forget_a_write),
    ("unproven_retry", send_again_in_doubt),
    ("unproven_refusal", refuse_without_proof),
    ("disordered", answer_before_it_is_sent),
    ("too_many_attempts", try_once_more),
]


def test_every_rule_has_a_mutation() -> None:
    assert {rule for rule, _ in MUTATIONS} == RULES.keys()


@pytest.mark.parametrize(("rule", "mutate"), MUTATIONS, ids=lambda value: getattr(value, "__name__", value))
def test_a_broken_promise_is_caught(rule: str, mutate: Callable[[Model, Pick], str]) -> None:
    @settings(max_examples=30)
    @given(models(), st.data())
    def run(model: Model, data: st.DataObject) -> None:
        key = mutate(model, data.draw)
        found = check(model.history, model.rows, Promise(max_attempts=4))
        assert (rule, key) in {(violation.rule, violation.key) for violation in found}
        # The change to one operation (two in a swap) must not cause violations of other rules.
        assert rules_of(found) == {rule}

    run()
