"""What a database must keep of what it told its callers: one function for each rule.

    violations = check(history, rows, Promise(max_attempts=5))

`rows`: what each node holds at the end, as (key, origin) of every row found: the key of the write, and the
name of the node that applied it (not of one that received it by replication). A write that was applied twice
leaves two rows; so its table has no unique key, or counts. Taken when all is healed and replication has
caught up. Everything is pure, and takes time in proportion to the history and the rows.

Where the rules come from: *lost*, *doubled*, *in_doubt_twice*, *refused_present*, *wrongly_resolved*,
*unasked* compare what was told with what is there, as Jepsen's set checker does. *crossed*, *late*, *unended*
are a client's own duty. *stale* is "read your writes", at one node and for one writer. *unproven_retry*,
*unproven_refusal*, *disordered*, *too_many_attempts* hold a client's record of its attempts against the first
rule of pgha: whatever is sent again, and whatever is called not applied, needs proof.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import TypeAlias

from pgha.chaos._verify.evidence import (
    ALWAYS,
    Observations,
    Promise,
    Row,
    Rows,
    Violation,
    times_applied,
    times_words,
)
from pgha.chaos.history import Attempt, Entry, History

__all__ = [
    "RULES",
    "Observations",
    "Promise",
    "Row",
    "Rows",
    "Rule",
    "Violation",
    "check",
    "crossed",
    "disordered",
    "doubled",
    "in_doubt_twice",
    "late",
    "lost",
    "wrongly_resolved",
    "refused_present",
    "stale",
    "times_applied",
    "too_many_attempts",
    "unasked",
    "unended",
    "unproven_refusal",
    "unproven_retry",
]

Rule: TypeAlias = Callable[[Observations], Iterator[Violation]]


def check(history: History, rows: Rows | None = None, promise: Promise = ALWAYS) -> list[Violation]:
    """All violations of all rules, sorted; see the head of this file.

    `rows` None: the nodes were not looked at, and only what callers and clients saw is judged.
    """
    evidence = Observations(history, rows, promise)
    return sorted(violation for rule in RULES.values() for violation in rule(evidence))


# What is there


def lost(evidence: Observations) -> Iterator[Violation]:
    """An acknowledged write is not where it was promised to be; `Promise.everywhere`, `Promise.may_lose`."""
    if evidence.rows is None:
        return
    held, promise = evidence.held, evidence.promise
    for entry in evidence.writes():
        if entry.ending != "acknowledged" or entry.node in promise.may_lose:
            continue
        absent = [node for node, keys in held.items() if entry.key not in keys]
        if not absent and held:
            continue
        if len(absent) == len(held):
            where = "on no node"
        elif promise.everywhere:
            where = f"not on {', '.join(absent)}"
        elif entry.node in absent:
            where = f"not on {entry.node}, but elsewhere"
        else:
            continue
        yield Violation("lost", entry.key, f"write {entry.key}, acknowledged{_by(entry)}, is {where}")


def doubled(evidence: Observations) -> Iterator[Violation]:
    """A write was applied more than once; a repeatable one more often than it was tried."""
    for entry in evidence.writes():
        times = evidence.times.get(entry.key, 0)
        limit = max(1, len(entry.attempts)) if entry.repeatable else 1
        if times > limit and (entry.ending == "acknowledged" or (entry.repeatable and not _refused(entry))):
            told = f"tried {times_words(len(entry.attempts))}" if entry.repeatable else "not repeatable"
            text = (
                f"write {entry.key}, {told}, was applied {times_words(times)}: {evidence.applied(entry.key)}"
            )
            yield Violation("doubled", entry.key, text)


def in_doubt_twice(evidence: Observations) -> Iterator[Violation]:
    """A write whose caller was told "perhaps", or nothing, was applied more than once."""
    for entry in evidence.writes():
        times = evidence.times.get(entry.key, 0)
        if times > 1 and not entry.repeatable and entry.ending != "acknowledged" and not _refused(entry):
            text = (
                f"write {entry.key}, which ended {_told(entry)}, was applied {times_words(times)}:"
                f" {evidence.applied(entry.key)}"
            )
            yield Violation("in_doubt_twice", entry.key, text)


def refused_present(evidence: Observations) -> Iterator[Violation]:
    """A write is there, though its caller was told that it was not applied."""
    for entry in evidence.writes():
        if _refused(entry) and entry.key in evidence.times:
            text = (
                f"write {entry.key}, said to be not applied ({entry.error}), was applied:"
                f" {evidence.applied(entry.key)}"
            )
            yield Violation("refused_present", entry.key, text)


def wrongly_resolved(evidence: Observations) -> Iterator[Violation]:
    """What a caller in doubt learned later is not what is there."""
    if evidence.rows is None:
        return
    for entry in evidence.writes():
        times = evidence.times.get(entry.key, 0)
        if entry.resolved == "applied" and not times:
            told, found = "applied", "is on no node"
        elif entry.resolved == "not applied" and times:
            told, found = "not applied", f"was applied: {evidence.applied(entry.key)}"
        else:
            continue
        yield Violation("wrongly_resolved", entry.key, f"write {entry.key}, resolved as {told}, {found}")


def unasked(evidence: Observations) -> Iterator[Violation]:
    """A row is there that no write asked for."""
    asked = {entry.key for entry in evidence.writes()}
    for key in evidence.times:
        if key not in asked:
            text = f"row {key}, which nobody wrote, was applied: {evidence.applied(key)}"
            yield Violation("unasked", key, text)


# What the callers saw


def crossed(evidence: Observations) -> Iterator[Violation]:
    """The answer to another operation: the nonce that came back is not the one that was asked for."""
    for entry in evidence.history:
        if entry.answer is not None and entry.answer != entry.key:
            text = f"{entry.kind} {entry.key} was given the answer {entry.answer}{_by(entry)}"
            yield Violation("crossed", entry.key, text)


def late(evidence: Observations) -> Iterator[Violation]:
    """An operation with a timeout ended later than that, and `Promise.grace` more."""
    for entry in evidence.history:
        if entry.timeout is None or entry.ended is None:
            continue
        took = entry.ended - entry.begun
        if took > entry.timeout + evidence.promise.grace:
            text = f"{entry.kind} {entry.key} took {took:.3f} s, with a timeout of {entry.timeout:g} s"
            yield Violation("late", entry.key, text)


def unended(evidence: Observations) -> Iterator[Violation]:
    """An operation never ended, with or without a timeout."""
    for entry in evidence.history:
        if entry.ended is None:
            promised = "without a timeout" if entry.timeout is None else f"timeout {entry.timeout:g} s"
            yield Violation("unended", entry.key, f"{entry.kind} {entry.key} never ended ({promised})")


def stale(evidence: Observations) -> Iterator[Violation]:
    """A read missed a write that its node had acknowledged before the read began.

    Only what the answering node applied itself counts (`Entry.number`): a node has its own commits at once,
    those of others when they were replicated.
    """
    acknowledged = _acknowledged(evidence)
    for entry in evidence.history:
        if entry.kind != "read" or entry.ending != "acknowledged" or entry.writer is None:
            continue
        times, numbers = acknowledged.get((entry.writer, entry.node), ([], []))
        before = bisect_left(times, entry.begun)
        if before and (entry.number or 0) < numbers[before - 1]:
            text = (
                f"read {entry.key} of {entry.node} saw writer {entry.writer} up to {entry.number or 0}, after"
                f" {entry.node} had acknowledged {numbers[before - 1]}"
            )
            yield Violation("stale", entry.key, text)


def _acknowledged(evidence: Observations) -> dict[tuple[int, str | None], tuple[list[float], list[int]]]:
    """By writer and node: when it acknowledged, and the highest number that it had acknowledged then."""
    found: dict[tuple[int, str | None], list[tuple[float, int]]] = defaultdict(list)
    for entry in evidence.writes():
        if entry.ending != "acknowledged" or entry.writer is None or entry.number is None:
            continue
        if entry.node is not None and entry.ended is not None and entry.node not in evidence.promise.may_lose:
            found[entry.writer, entry.node].append((entry.ended, entry.number))
    highest = {}
    for place, pairs in found.items():
        pairs.sort()
        numbers: list[int] = []
        for _, number in pairs:
            numbers.append(max(number, numbers[-1]) if numbers else number)
        highest[place] = ([ended for ended, _ in pairs], numbers)
    return highest


# What the client did


def unproven_retry(evidence: Observations) -> Iterator[Violation]:
    """A write, neither repeatable nor keyed, was sent again though nothing proved that it was not applied."""
    for entry in evidence.writes():
        for number, (one, after) in enumerate(pairwise(entry.attempts), 1):
            if not (entry.repeatable or entry.keyed) and one.outcome != "not applied":
                text = (
                    f"write {entry.key} was sent again, to {after.node}, after try {number} on {one.node}"
                    f" had ended {one.outcome or 'without any proof'}"
                )
                yield Violation("unproven_retry", entry.key, text)
                break


def unproven_refusal(evidence: Observations) -> Iterator[Violation]:
    """A write was called not applied, though one of its attempts was, or may have been; of a keyed one the
    key tells."""
    for entry in evidence.writes():
        unproven = [one for one in entry.attempts if one.outcome != "not applied"]
        if _refused(entry) and unproven and not entry.keyed:
            text = (
                f"write {entry.key} was said to be not applied ({entry.error}), but a try on"
                f" {unproven[0].node} had ended {unproven[0].outcome or 'without any proof'}"
            )
            yield Violation("unproven_refusal", entry.key, text)


def disordered(evidence: Observations) -> Iterator[Violation]:
    """The times of a try run backwards: sent, head of its connection, answered; then a write's next try.

    The attempts of a read may be a race, and overlap.
    """
    for entry in evidence.history:
        moments: list[tuple[float, str]] = []
        for number, one in enumerate(entry.attempts, 1):
            if entry.kind == "read":
                moments.clear()
            moments += _moments(one, number)
            if backwards := next((pair for pair in pairwise(moments) if pair[0][0] > pair[1][0]), None):
                (earlier, what), (later, then) = backwards
                text = f"{entry.kind} {entry.key}: {then} {earlier - later:.6f} s before {what}"
                yield Violation("disordered", entry.key, text)
                break


def _moments(one: Attempt, number: int) -> list[tuple[float, str]]:
    times = ((one.sent_at, "sent"), (one.head_at, "head"), (one.answered_at, "answered"))
    return [(at, f"try {number} was {what}") for at, what in times if at is not None]


def too_many_attempts(evidence: Observations) -> Iterator[Violation]:
    """An operation was handed to nodes more often than `Promise.max_attempts`."""
    most = evidence.promise.max_attempts
    for entry in evidence.history:
        if most is not None and len(entry.attempts) > most:
            tried = times_words(len(entry.attempts))
            text = f"{entry.kind} {entry.key} was tried {tried}, at most {most} are allowed"
            yield Violation("too_many_attempts", entry.key, text)


RULES: Mapping[str, Rule] = {
    rule.__name__: rule
    for rule in (
        lost, doubled, in_doubt_twice, refused_present, wrongly_resolved, unasked,
        crossed, late, unended, stale,
        unproven_retry, unproven_refusal, disordered, too_many_attempts,
    )
}  # fmt: skip
"""All rules of `check` by name."""


def _refused(entry: Entry) -> bool:
    return entry.ending == "refused"


def _by(entry: Entry) -> str:
    return "" if entry.node is None else f" by {entry.node}"


def _told(entry: Entry) -> str:
    return "never" if entry.ending is None else f"{entry.ending} ({entry.error})"
