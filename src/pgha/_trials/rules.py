"""What pgha promises beyond the kit's rules: no error is shown, and a batch is never torn."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from pgha._trials.trial import Setup, violation
from pgha.chaos.checkers import Promise, Violation
from pgha.chaos.history import Entry, History

MAX_TRIES: Final = 5


_SHOWN: Final = {"read": ("refused", "lost", "in doubt"), "write": ("refused", "lost")}


def promise_of(setup: Setup) -> Promise:
    """What a topology keeps of what was acknowledged, while nobody loses data for good."""
    return Promise(everywhere=setup.topology != "standalone", max_attempts=MAX_TRIES)


def shown(history: Iterable[Entry], expected: Container[str] = ()) -> list[Violation]:
    """An error reached a caller, though another node could have answered.

    A write in doubt is no such error, nor what the caller's own deadline brought, nor what the scenario
    provoked (``expected`` keys). A read is never in doubt.
    """
    return [
        violation("shown", f"{entry.kind} {entry.key} ended with {entry.error}", entry.key)
        for entry in history
        if entry.ending in _SHOWN[entry.kind]
        and entry.key not in expected
        and not _poisonous(entry)
        and not (entry.timeout is not None and str(entry.error).startswith("OperationTimeout"))
    ]


def undecided(history: Iterable[Entry], expected: Container[str] = ()) -> list[Violation]:
    """A keyed write ended in doubt before its time was over; or nobody could tell when all was healed."""
    found = []
    for entry in history:
        doubted = entry.keyed and _in_doubt(entry) and entry.key not in expected
        if doubted and entry.timeout is None:
            text = f"keyed write {entry.key} was in doubt, without a deadline: {entry.error}"
            found.append(violation("undecided", text, entry.key))
        elif doubted and entry.resolved not in ("applied", "not applied"):
            text = f"keyed write {entry.key} stays in doubt when all is healed: {entry.error}"
            found.append(violation("undecided", text, entry.key))
    return found


def unfounded(history: Iterable[Entry]) -> list[Violation]:
    """A write was said to be in doubt, though each of its attempts was proven to be applied, or not to be."""
    return [
        violation("unfounded", f"write {entry.key} is no matter of doubt: {entry.error}", entry.key)
        for entry in history
        if _in_doubt(entry) and entry.timeout is None and entry.attempts
        if all(one.outcome in ("applied", "not applied") for one in entry.attempts)
    ]


def fickle(history: Iterable[Entry]) -> list[Violation]:
    """Of one write two things were told, one after the other."""
    return [
        violation("fickle", f"write {entry.key} was told to be {entry.resolved}", entry.key)
        for entry in history
        if entry.resolved is not None and " and " in entry.resolved
    ]


def strayed(history: Iterable[Entry]) -> list[Violation]:
    """A keyed write that one master may have applied was given to another: each knows its own keys."""
    found = []
    for entry in history:
        doubtful = {one.node for one in entry.attempts if one.outcome == "in doubt"}
        after = entry.attempts[-1].node if entry.attempts else None
        if entry.keyed and entry.kind == "write" and doubtful and not doubtful <= {after}:
            text = f"keyed write {entry.key}, in doubt on {', '.join(sorted(doubtful))}, went on to {after}"
            found.append(violation("strayed", text, entry.key))
    return found


def _in_doubt(entry: Entry) -> bool:
    """By an error of pgha's, not since its caller left."""
    return entry.ending == "in doubt" and str(entry.error).startswith("CommitInDoubt")


def betrayed(password: str | None, texts: Iterable[str]) -> list[Violation]:
    """The password stands in something that pgha showed."""
    if password is None:
        return []
    found = [text for text in texts if password in text]
    return [violation("betrayed", f"a password is shown: {text.replace(password, '***')}") for text in found]


@contextmanager
def logged(texts: list[str]) -> Iterator[None]:
    """What pgha logs meanwhile is added to ``texts``."""

    class Taking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts.append(record.getMessage())

    logger, handler = logging.getLogger("pgha"), Taking()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _poisonous(entry: Entry) -> bool:
    """It was first in line on two connections that broke: it is not sent a third time, since it may be what
    breaks them.
    """
    broke = [one for one in entry.attempts if one.head_at is not None and one.outcome == "in doubt"]
    return len(broke) >= 2 and "the connection was lost" in str(entry.error)


def torn(history: History, rows: Mapping[str, Iterable[tuple[str, str]]]) -> list[Violation]:
    """The rows of a batch (their keys differ behind the dot) are on a node all, or none."""
    batches: dict[str, set[str]] = defaultdict(set)
    for entry in history:
        name, dot, _ = entry.key.partition(".")
        if dot:
            batches[name].add(entry.key)
    found = []
    for node, held in rows.items():
        there: dict[str, set[str]] = defaultdict(set)
        for key, _ in held:
            there[key.partition(".")[0]].add(key)
        found += [
            violation("torn", f"{node} has only {sorted(there[name])} of batch {name}", name)
            for name, keys in batches.items()
            if there.get(name) and there[name] != keys
        ]
    return found
