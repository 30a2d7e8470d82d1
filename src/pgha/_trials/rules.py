"""What pgha promises beyond the kit's rules: no error is shown, and a batch is never torn."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from pgha import chaos
from pgha._trials.trial import Setup, violation
from pgha.chaos.checkers import Promise, Violation
from pgha.chaos.history import Entry, History

_EXPECTED: Final = ("CommitInDoubt", "OperationTimeout", "OperationCancelled")


def promise_of(setup: Setup, nodes: chaos.Nodes) -> Promise:
    """What a topology keeps of what was acknowledged, while nobody loses data for good."""
    return Promise(everywhere=setup.topology != "standalone", max_tries=5)


def shown(history: Iterable[Entry], expected: Container[str] = ()) -> list[Violation]:
    """An error reached a caller, though another node could have answered.

    A write in doubt is no such error, nor what the caller's own deadline or cancel brought, nor what the
    scenario provoked (``expected`` keys).
    """
    return [
        violation("shown", f"{entry.kind} {entry.key} ended with {entry.error}", entry.key)
        for entry in history
        if entry.ending in ("refused", "lost")
        and entry.key not in expected
        and not _poisonous(entry)
        and not str(entry.error).startswith(_EXPECTED)
    ]


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
    return sum(one.head_at is not None and one.answered_at is None for one in entry.tries) >= 2


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
