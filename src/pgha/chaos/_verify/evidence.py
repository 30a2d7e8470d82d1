"""What the rules of `pgha.chaos.checkers` look at, and what they find."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, final

from pgha.chaos.history import Entry, History

Row: TypeAlias = tuple[str, str]
"""The key of a write, and the name of the node that applied it."""
Rows: TypeAlias = Mapping[str, Iterable[Row]]
"""The rows that each node holds, by its name."""


@final
@dataclass(frozen=True, slots=True)
class Violation:
    """A rule was broken. Violations sort by rule, key and text."""

    rule: str
    key: str | None
    """Of the entry or row that shows it; None when it belongs to none."""
    text: str
    """What happened, for a person."""

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"

    def __lt__(self, other: Violation) -> bool:
        return (self.rule, self.key or "", self.text) < (other.rule, other.key or "", other.text)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What was promised beside what always holds."""

    everywhere: bool = True
    """Every acknowledged write is on every node, since replication has caught up. False: it is on the node
    that acknowledged it, or on any if that one's rows were not taken.
    """
    may_lose: Collection[str] = frozenset()
    """Names of nodes whose data was lost, as that of a primary whose standby, asynchronous, was promoted:
    what they acknowledged may be missing, and what they answer may be old.
    """
    grace: float = 1.0
    """Seconds past its timeout at which an operation is late: for the proof, and for a busy machine."""
    max_attempts: int | None = None
    """How often one operation may be handed to a node, legs of a race included; None: any number."""


ALWAYS = Promise()
"""What is promised when nothing is said."""


@final
class Observations:
    """What the rules look at; what several of them count is counted once."""

    def __init__(self, history: History, rows: Rows | None = None, promise: Promise = ALWAYS) -> None:
        """`rows` None: the nodes were not looked at, and the rules about what is there say nothing."""
        self.history = history
        self.promise = promise
        self.rows = None if rows is None else {node: list(found) for node, found in rows.items()}

    @cached_property
    def held(self) -> dict[str, set[str]]:
        """The keys that each node holds."""
        return {node: {key for key, _ in found} for node, found in (self.rows or {}).items()}

    @cached_property
    def origins(self) -> dict[Row, int]:
        """How often each node applied each key."""
        return _origins(self.rows or {})

    @cached_property
    def times(self) -> dict[str, int]:
        """How often each key was applied, by all nodes together."""
        return _summed(self.origins)

    @cached_property
    def _by_key(self) -> dict[str, list[str]]:
        words = defaultdict(list)
        for (key, origin), count in sorted(self.origins.items()):
            words[key].append(f"{times_words(count)} by {origin}")
        return words

    def applied(self, key: str) -> str:
        """In words, by whom."""
        return ", ".join(self._by_key[key])

    def writes(self) -> Iterator[Entry]:
        return (entry for entry in self.history if entry.kind == "write")


def times_applied(rows: Rows) -> dict[str, int]:
    """How often each key was applied, by all nodes together.

    Every node holds the rows of all; where they differ (one lags), the most that any saw is the truth.
    """
    return _summed(_origins(rows))


def _origins(rows: Rows) -> dict[Row, int]:
    most: dict[Row, int] = {}
    for found in rows.values():
        for row, count in Counter(found).items():
            if count > most.get(row, 0):
                most[row] = count
    return most


def _summed(origins: Mapping[Row, int]) -> dict[str, int]:
    times: dict[str, int] = {}
    for (key, _), count in origins.items():
        times[key] = times.get(key, 0) + count
    return times


def times_words(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
