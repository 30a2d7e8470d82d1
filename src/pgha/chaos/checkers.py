"""Rules for what a database must keep of what it told its callers, one function per rule.

Example::

    violations = check(history, rows, Promise(max_attempts=5))

`rows` is what each node holds at the end, one (key, origin) per row found: the key of the write, and the name
of the node that applied it (not of a node that received the row by replication). A write that was applied
twice leaves two rows. So give the table no unique key, or let it count. Read the rows when all faults are
healed and replication has caught up. All functions are pure, and take time in proportion to the history and
the rows.

The origin of the rules: *lost*, *doubled*, *in_doubt_twice*, *refused_present*, *wrongly_resolved* and
*unasked* compare what callers were told with what the nodes hold, as Jepsen's set checker does. *crossed*,
*late* and *unended* are duties of the client itself. *stale* is "read your writes", at one node and for one
writer. *unproven_retry*, *unproven_refusal*, *disordered* and *too_many_attempts* compare a client's record
of its attempts with the first rule of pgha: an operation is sent again, or reported as not applied, only with
proof.
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
"""A rule: a function that returns the violations in its observations."""


def check(history: History, rows: Rows | None = None, promise: Promise = ALWAYS) -> list[Violation]:
    """Return all violations of all rules, sorted.

    Args:
        history: What the callers were told.
        rows: The rows that each node holds, one (key, origin) per row; None: the nodes were not looked at,
            and only what callers and clients saw is checked.
        promise: What the system under test promises.

    Returns:
        The violations; empty if every rule holds.
    """
    evidence = Observations(history, rows, promise)
    return sorted(violation for rule in RULES.values() for violation in rule(evidence))


# Rules about what the nodes hold


def lost(evidence: Observations) -> Iterator[Violation]:
    """Find acknowledged writes that are not where they were promised to be.

    `Promise.everywhere` says on which nodes a write must be, `Promise.may_lose` which nodes may have lost
    writes.

    Args:
        evidence: The history, the rows of the nodes, and the promise.

    Returns:
        An iterator over the violations.
    """
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
    """Find acknowledged writes that were applied more than once.

    A repeatable write, which need not be acknowledged, may be applied as often as it was attempted.

    Args:
        evidence: The history, the rows of the nodes, and the promise.

    Returns:
        An iterator over the violations.
    """
    for entry in evidence.writes():
        times = evidence.times.get(entry.key, 0)
        limit = max(1, len(entry.attempts)) if entry.repeatable else 1
        if times > limit and (entry.ending == "acknowledged" or (entry.repeatable and not _refused(entry))):
            told = f"attempted {times_words(len(entry.attempts))}" if entry.repeatable else "not repeatable"
            text = (
                f"write {entry.key}, {told}, was applied {times_words(times)}: {evidence.applied(entry.key)}"
            )
            yield Violation("doubled", entry.key, text)


def in_doubt_twice(evidence: Observations) -> Iterator[Violation]:
    """Find writes that ended in doubt, lost or never, and were applied more than once.

    Repeatable writes are left to `doubled`.

    Args:
        evidence: The history, the rows of the nodes, and the promise.

    Returns:
        An iterator over the violations.
    """
    for entry in evidence.writes():
        times = evidence.times.get(entry.key, 0)
        if times > 1 and not entry.repeatable and entry.ending != "acknowledged" and not _refused(entry):
            text = (
                f"write {entry.key}, which ended {_told(entry)}, was applied {times_words(times)}:"
                f" {evidence.applied(entry.key)}"
            )
            yield Violation("in_doubt_twice", entry.key, text)


def refused_present(evidence: Observations) -> Iterator[Violation]:
    """Find writes that were applied, although their callers were told that they were not.

    Args:
        evidence: The history, the rows of the nodes, and the promise.

    Returns:
        An iterator over the violations.
    """
    for entry in evidence.writes():
        if _refused(entry) and entry.key in evidence.times:
            text = (
                f"write {entry.key}, reported as not applied ({entry.error}), was applied:"
                f" {evidence.applied(entry.key)}"
            )
            yield Violation("refused_present", entry.key, text)


def wrongly_resolved(evidence: Observations) -> Iterator[Violation]:
    """Find writes in doubt whose outcome, as learned later, contradicts what the nodes hold.

    Args:
        evidence: The history, the rows of the nodes, and the promise.

    Returns:
        An iterator over the violations.
    """
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
    """Find rows that no recorded write asked for.

    Args:
        evidence: The history, the rows of the nodes, and the promise.

    Returns:
        An iterator over the violations.
    """
    asked = {entry.key for entry in evidence.writes()}
    for key in evidence.times:
        if key not in asked:
            text = f"row {key}, which no recorded write asked for, was applied: {evidence.applied(key)}"
            yield Violation("unasked", key, text)


# Rules about what the callers saw


def crossed(evidence: Observations) -> Iterator[Violation]:
    """Find operations that got the answer to another operation: the nonce is not the one that was asked for.

    Args:
        evidence: The history, the rows of the nodes, and the promise.

    Returns:
        An iterator over the violations.
    """
    for entry in evidence.history:
        if entry.answer is not None and entry.answer != entry.key:
            text = f"{entry.kind} {entry.key} was given the answer {entry.answer}{_by(entry)}"
            yield Violation("crossed", entry.key, text)


def late(evidence: Observations) -> Iterator[Violation]:
    """Find operations that ended more than `Promise.grace` seconds after their timeout.

    Args:
        evidence: The history, the rows of the nodes, and the promise.

    Returns:
        An iterator over the violations.
    """
    for entry in evidence.history:
        if entry.timeout is None or entry.ended is None:
            continue
        took = entry.ended - entry.begun
        if took > entry.timeout + evidence.promise.grace:
            text = f"{entry.kind} {entry.key} took {took:.3f} s, with a timeout of {entry.timeout:g} s"
            yield Violation("late", entry.key, text)


def unended(evidence: Observations) -> Iterator[Violation]:
    """Find operations that never ended, with or without a timeout.

    Args:
        evidence: The history, the rows of the nodes, and the promise.

    Returns:
        An iterator over the violations.
    """
    for entry in evidence.history:
        if entry.ended is None:
            promised = "without a timeout" if entry.timeout is None else f"timeout {entry.timeout:g} s"
            yield Violation("unended", entry.key, f"{entry.kind} {entry.key} never ended ({promised})")


def stale(evidence: Observations) -> Iterator[Violation]:
    """Find reads that missed a write which their node had acknowledged before the read began.

    Only writes that the answering node applied itself count (`Entry.number`), as the rows show, or else the
    acknowledgement: a node has its own commits at once, and those of other nodes only after replication.

    Args:
        evidence: The history, the rows of the nodes, and the promise.

    Returns:
        An iterator over the violations.
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
                f" {numbers[before - 1]} of {entry.node} had been acknowledged"
            )
            yield Violation("stale", entry.key, text)


def _applied_by(entry: Entry, evidence: Observations) -> str | None:
    """Return the node that applied a write, or None if that is unknown.

    A write that was sent several times may be acknowledged by another node than the one that applied it.
    """
    appliers = evidence.appliers.get(entry.key, set())
    if not appliers or entry.node in appliers:
        return entry.node
    return next(iter(appliers)) if len(appliers) == 1 else None


def _acknowledged(evidence: Observations) -> dict[tuple[int, str | None], tuple[list[float], list[int]]]:
    """Return by writer and node: the times of acknowledgements, and the highest number at each."""
    found: dict[tuple[int, str | None], list[tuple[float, int]]] = defaultdict(list)
    for entry in evidence.writes():
        if entry.ending != "acknowledged" or entry.writer is None or entry.number is None:
            continue
        node = _applied_by(entry, evidence)
        if node is None or node in evidence.promise.may_lose or entry.ended is None:
            continue
        found[entry.writer, node].append((entry.ended, entry.number))
    highest = {}
    for place, pairs in found.items():
        pairs.sort()
        numbers: list[int] = []
        for _, number in pairs:
            numbers.append(max(number, numbers[-1]) if numbers else number)
        highest[place] = ([ended for ended, _ in pairs], numbers)
    return highest


# Rules about what the client did


def unproven_retry(evidence: Observations) -> Iterator[Violation]:
    """Find writes that were sent again without proof that they were not applied.

    Repeatable and keyed writes may be sent again without proof.

    Args:
        evidence: The history, the rows of the nodes, and the promise.

    Returns:
        An iterator over the violations.
    """
    for entry in evidence.writes():
        for number, (one, after) in enumerate(pairwise(entry.attempts), 1):
            if not (entry.repeatable or entry.keyed) and one.outcome != "not applied":
                text = (
                    f"write {entry.key} was sent again, to {after.node}, after attempt {number} on {one.node}"
                    f" had ended {one.outcome or 'without any proof'}"
                )
                yield Violation("unproven_retry", entry.key, text)
                break


def unproven_refusal(evidence: Observations) -> Iterator[Violation]:
    """Find writes reported as not applied although one of their attempts was applied, or may have been.

    Keyed writes are left out: their key tells whether they were applied.

    Args:
        evidence: The history, the rows of the nodes, and the promise.

    Returns:
        An iterator over the violations.
    """
    for entry in evidence.writes():
        unproven = [one for one in entry.attempts if one.outcome != "not applied"]
        if _refused(entry) and unproven and not entry.keyed:
            text = (
                f"write {entry.key} was reported as not applied ({entry.error}), but an attempt on"
                f" {unproven[0].node} had ended {unproven[0].outcome or 'without any proof'}"
            )
            yield Violation("unproven_refusal", entry.key, text)


def disordered(evidence: Observations) -> Iterator[Violation]:
    """Find attempts whose times run backwards.

    The order is: sent, head of its connection, answered, and then the next attempt of a write. The attempts
    of a read may be a race, and may overlap.

    Args:
        evidence: The history, the rows of the nodes, and the promise.

    Returns:
        An iterator over the violations.
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
    return [(at, f"attempt {number} was {what}") for at, what in times if at is not None]


def too_many_attempts(evidence: Observations) -> Iterator[Violation]:
    """Find operations that were handed to nodes more often than `Promise.max_attempts`.

    Args:
        evidence: The history, the rows of the nodes, and the promise.

    Returns:
        An iterator over the violations.
    """
    most = evidence.promise.max_attempts
    for entry in evidence.history:
        if most is not None and len(entry.attempts) > most:
            made = len(entry.attempts)
            text = f"{entry.kind} {entry.key} had {made} attempts, at most {most} are allowed"
            yield Violation("too_many_attempts", entry.key, text)


RULES: Mapping[str, Rule] = {
    rule.__name__: rule
    for rule in (
        lost, doubled, in_doubt_twice, refused_present, wrongly_resolved, unasked,
        crossed, late, unended, stale,
        unproven_retry, unproven_refusal, disordered, too_many_attempts,
    )
}  # fmt: skip
"""All rules of `check`, by name."""


def _refused(entry: Entry) -> bool:
    return entry.ending == "refused"


def _by(entry: Entry) -> str:
    return "" if entry.node is None else f" by {entry.node}"


def _told(entry: Entry) -> str:
    return "never" if entry.ending is None else f"{entry.ending} ({entry.error})"
