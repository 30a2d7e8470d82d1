"""The input of the rules of `pgha.chaos.checkers`, and the violations that they find."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, final

from pgha.chaos.history import Entry, History

Row: TypeAlias = tuple[str, str]
"""The key of a write, and the name of the node that applied the write."""
Rows: TypeAlias = Mapping[str, Iterable[Row]]
"""The rows that each node holds, by node name."""


@final
@dataclass(frozen=True, slots=True)
class Violation:
    """A broken rule. Violations sort by rule, key and text.

    Example::

        violation = Violation("lost", "k1", "write k1, acknowledged by n1, is on no node")
        print(violation)
    """

    rule: str
    """The name of the rule."""
    key: str | None
    """The key of the entry or row that shows the violation; None: the violation belongs to none."""
    text: str
    """A description of what happened, for people."""

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"

    def __lt__(self, other: Violation) -> bool:
        return (self.rule, self.key or "", self.text) < (other.rule, other.key or "", other.text)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """The promises of the system under test beyond those that always hold.

    Example::

        promise = Promise(everywhere=False, may_lose={"n1"}, max_attempts=5)
    """

    everywhere: bool = True
    """Whether every acknowledged write is on every node, because replication has caught up. False: the write
    is on the node that acknowledged it, or on any node if the rows of that node were not read.
    """
    may_lose: Collection[str] = frozenset()
    """The names of nodes that lost data, for example a primary whose asynchronous standby was promoted:
    writes that these nodes acknowledged may be missing, and their answers may be old.
    """
    grace: float = 1.0
    """Seconds after its timeout until an operation counts as late: the client needs time for the proof, and
    the machine may be busy.
    """
    max_attempts: int | None = None
    """The number of times that one operation may be handed to a node, the legs of a race included; None: any
    number.
    """


ALWAYS = Promise()
"""The promise that holds when none is given."""


@final
class Observations:
    """The input of the rules. Counts that several rules need are made once.

    Args:
        history: What the callers were told.
        rows: The rows that each node holds; None: the nodes were not looked at, and the rules about their
            content find nothing.
        promise: What the system under test promises.

    Example::

        found = list(lost(Observations(recorder.history(), {"n1": [("k1", "n1")]})))
    """

    def __init__(self, history: History, rows: Rows | None = None, promise: Promise = ALWAYS) -> None:
        self.history = history
        self.promise = promise
        self.rows = None if rows is None else {node: list(found) for node, found in rows.items()}

    @cached_property
    def held(self) -> dict[str, set[str]]:
        """The keys that each node holds."""
        return {node: {key for key, _ in found} for node, found in (self.rows or {}).items()}

    @cached_property
    def origins(self) -> dict[Row, int]:
        """The number of times that each node applied each key."""
        return _origins(self.rows or {})

    @cached_property
    def appliers(self) -> dict[str, set[str]]:
        """The nodes that applied each key."""
        found = defaultdict(set)
        for key, origin in self.origins:
            found[key].add(origin)
        return found

    @cached_property
    def times(self) -> dict[str, int]:
        """The number of times that each key was applied, by all nodes together."""
        return _summed(self.origins)

    @cached_property
    def _by_key(self) -> dict[str, list[str]]:
        words = defaultdict(list)
        for (key, origin), count in sorted(self.origins.items()):
            words[key].append(f"{times_words(count)} by {origin}")
        return words

    def applied(self, key: str) -> str:
        """Return in words which nodes applied a write, and how often.

        Args:
            key: The key of the write.

        Returns:
            Words such as ``once by n1, twice by n2``.
        """
        return ", ".join(self._by_key[key])

    def writes(self) -> Iterator[Entry]:
        """Return the writes of the history.

        Returns:
            An iterator over the entries.
        """
        return (entry for entry in self.history if entry.kind == "write")


def times_applied(rows: Rows) -> dict[str, int]:
    """Return the number of times that each key was applied, by all nodes together.

    Every node holds the rows of all nodes. When the nodes differ, because one lags, the highest count counts.

    Args:
        rows: The rows that each node holds.

    Returns:
        The counts, by key.
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
    """Return a count in words: once, twice, 3 times."""
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
