"""The rules of pgha in addition to those of `pgha.chaos`: no error reaches a caller, for example."""

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
    """Return what a topology promises of acknowledged writes, as long as no node loses data for good."""
    return Promise(everywhere=setup.topology != "standalone", max_attempts=MAX_TRIES)


def shown(history: Iterable[Entry], expected: Container[str] = ()) -> list[Violation]:
    """Return a violation for each error that reached a caller though another node could have answered.

    A write in doubt does not count, nor an error by the caller's own deadline, nor an error that the scenario
    provoked (keys in `expected`). A read in doubt does count.
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
    """Return a violation for each keyed write that must not be in doubt.

    Without a deadline, a keyed write must not end in doubt. With a deadline, it may, but must be resolved
    once all faults are healed.
    """
    found = []
    for entry in history:
        doubted = entry.keyed and _in_doubt(entry) and entry.key not in expected
        if doubted and entry.timeout is None:
            text = f"keyed write {entry.key} was in doubt, without a deadline: {entry.error}"
            found.append(violation("undecided", text, entry.key))
        elif doubted and entry.resolved not in ("applied", "not applied"):
            text = f"keyed write {entry.key} stays in doubt after all faults were healed: {entry.error}"
            found.append(violation("undecided", text, entry.key))
    return found


def unfounded(history: Iterable[Entry]) -> list[Violation]:
    """Return a violation for each write reported in doubt though the outcome of each attempt was proven."""
    return [
        violation("unfounded", f"write {entry.key} has a proven outcome: {entry.error}", entry.key)
        for entry in history
        if _in_doubt(entry) and entry.timeout is None and entry.attempts
        if all(one.outcome in ("applied", "not applied") for one in entry.attempts)
    ]


def fickle(history: Iterable[Entry]) -> list[Violation]:
    """Return a violation for each write of which two different outcomes were reported."""
    return [
        violation("fickle", f"write {entry.key} was reported as {entry.resolved}", entry.key)
        for entry in history
        if entry.resolved is not None and " and " in entry.resolved
    ]


def strayed(history: Iterable[Entry]) -> list[Violation]:
    """Return a violation for each keyed write that was sent to another master while it was in doubt on one.

    Each master knows only its own keys, so that the write could be applied twice.
    """
    found = []
    for entry in history:
        doubtful = {one.node for one in entry.attempts if one.outcome == "in doubt"}
        after = entry.attempts[-1].node if entry.attempts else None
        if entry.keyed and entry.kind == "write" and doubtful and not doubtful <= {after}:
            where = ", ".join(sorted(doubtful))
            text = f"keyed write {entry.key} was in doubt on {where} and was sent to {after}"
            found.append(violation("strayed", text, entry.key))
    return found


def _in_doubt(entry: Entry) -> bool:
    """Return whether pgha reported the write as in doubt. A write that its caller left does not count."""
    return entry.ending == "in doubt" and str(entry.error).startswith("CommitInDoubt")


def betrayed(password: str | None, texts: Iterable[str]) -> list[Violation]:
    """Return a violation for each text of pgha that shows the password."""
    if password is None:
        return []
    found = [text for text in texts if password in text]
    return [violation("betrayed", f"a password is shown: {text.replace(password, '***')}") for text in found]


@contextmanager
def logged(texts: list[str]) -> Iterator[None]:
    """Add the messages that pgha logs during the body to `texts`."""

    class Taking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts.append(record.getMessage())

    logger, handler = logging.getLogger("pgha"), Taking()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def _poisonous(entry: Entry) -> bool:
    """Return whether the operation was running on two connections when they were lost.

    pgha does not retry such an operation, since it may be crashing the server.
    """
    broke = [one for one in entry.attempts if one.head_at is not None and one.outcome == "in doubt"]
    return len(broke) >= 2 and "the connection was lost" in str(entry.error)


def torn(history: History, rows: Mapping[str, Iterable[tuple[str, str]]]) -> list[Violation]:
    """Return a violation for each batch of which a node has some rows but not all.

    The keys of a batch's rows differ only after the dot.
    """
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
