"""What the callers of a database were told: one entry for each operation, kept to be checked later.

    recorder = Recorder()
    one = recorder.begin("write", timeout=2.0)
    try:
        result = await operation
    except psycopg.Error as error:
        one.failed(error, pgha.error_info(error).outcome, record=operation.record)
    else:
        one.acknowledged(node=result.node, record=operation.record)
    ...
    violations = checkers.check(recorder.history(), rows)

Nothing here knows pgha: any client's operations can be recorded. Times are seconds of one clock, that of
`time.monotonic` unless another is given, which is also the clock of pgha's records.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, Literal, Protocol, Self, TypeAlias, final, overload
from uuid import uuid4

__all__ = ["Ending", "Entry", "History", "OperationKind", "Open", "Recorder", "Attempt"]

OperationKind: TypeAlias = Literal["read", "write"]
Ending: TypeAlias = Literal["acknowledged", "refused", "in doubt", "lost"]
"""What the caller was told. ``acknowledged``: a result. ``refused``: an error that says that nothing was
applied. ``in doubt``: an error that says that nobody knows. ``lost``: an error that says nothing of it, as
other clients raise, or none, since the caller left before the end.
"""
_Error: TypeAlias = BaseException | str
_FORMAT = 1


@final
@dataclass(frozen=True, slots=True)
class Attempt:
    """One time that an operation was handed to a node."""

    node: str
    sent_at: float
    head_at: float | None = None
    """When it became the oldest on its connection, and the server could begin with it; None: not known."""
    answered_at: float | None = None
    """When its answer was there; None: there was none."""
    outcome: str | None = None
    """``applied``, ``not applied`` or ``in doubt``, as the client proved it; None: it proved nothing."""


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """One operation as its caller saw it."""

    key: str
    """Unique in a history; of a read also the nonce that it asked for."""
    kind: OperationKind
    begun: float
    ended: float | None = None
    """When the caller was told; None: it never was."""
    ending: Ending | None = None
    """None: still running when the history was closed."""
    node: str | None = None
    """The one that answered, if that is known."""
    answer: str | None = None
    """The nonce that came back; None: none was looked at."""
    error: str | None = None
    """Class and text, on one line."""
    timeout: float | None = None
    """Seconds that were promised; None: no promise."""
    repeatable: bool = False
    """Declared idempotent: it may be applied more than once, though not more often than it was tried."""
    attempts: tuple[Attempt, ...] = ()
    """In the order in which they were sent; those of a race stand side by side. Empty: none, or not known."""
    writer: int | None = None
    """Of a write: whose it is. Of a read: whose writes it asked for."""
    number: int | None = None
    """Of a write: the running number of its writer's (1, 2, ...). Of a read: the highest number that it saw
    among the writes of `writer` which the answering node had applied itself; None or 0: it saw none.
    """
    keyed: bool = False
    """It carries a key by which its servers know it: sent again, it is not applied again."""
    resolved: str | None = None
    """What the caller of one in doubt learned later, in the words of `Attempt.outcome`; None: nothing."""


_FIELDS = {one.name: None if one.default is MISSING else one.default for one in fields(Entry)}
_ATTEMPT_FIELDS = tuple(one.name for one in fields(Attempt))


@final
@dataclass(frozen=True, slots=True, repr=False)
class History(Sequence[Entry]):
    """Entries in the order in which they were begun. `ValueError` when two of them have the same key."""

    entries: tuple[Entry, ...] = ()

    def __post_init__(self) -> None:
        keys = {entry.key for entry in self.entries}
        if len(keys) < len(self.entries):
            key, times = Counter(entry.key for entry in self.entries).most_common(1)[0]
            raise ValueError(f"{times} entries have the key {key!r}: a key names one operation")

    def __repr__(self) -> str:
        endings = Counter(entry.ending or "running" for entry in self.entries)
        words = ", ".join(f"{count} {ending}" for ending, count in sorted(endings.items()))
        return f"<History of {len(self.entries)} operations{': ' if words else ''}{words}>"

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> History: ...
    def __getitem__(self, index: int | slice) -> Entry | History:
        return History(self.entries[index]) if isinstance(index, slice) else self.entries[index]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def to_json(self) -> str:
        """For `from_json`, which gives an equal history; what has its default value is left out."""
        entries = [_packed(entry) for entry in self.entries]
        return json.dumps({"history": _FORMAT, "entries": entries}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """A history that was kept. `ValueError` when `text` is none, or of a later format."""
        found = json.loads(text)
        if not isinstance(found, dict) or found.get("history") != _FORMAT:
            raise ValueError(f"not a history of format {_FORMAT}")
        try:
            return cls(tuple(_unpacked(entry) for entry in found["entries"]))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a history: {error}") from error


def _packed(entry: Entry) -> dict[str, Any]:
    found = {name: getattr(entry, name) for name in _FIELDS}
    kept = {name: value for name, value in found.items() if value != _FIELDS[name]}
    if entry.attempts:
        kept["attempts"] = [{name: getattr(one, name) for name in _ATTEMPT_FIELDS} for one in entry.attempts]
    return kept


def _unpacked(found: dict[str, Any]) -> Entry:
    attempts = tuple(Attempt(**one) for one in found.get("attempts", ()))
    return Entry(**{**found, "attempts": attempts})


class _AttemptLike(Protocol):
    """As `pgha.Attempt` is."""

    @property
    def node(self) -> str: ...
    @property
    def sent_at(self) -> float: ...
    @property
    def head_at(self) -> float | None: ...
    @property
    def answered_at(self) -> float | None: ...
    @property
    def outcome(self) -> str | None: ...


class _Record(Protocol):
    """As `pgha.Record` is."""

    @property
    def attempts(self) -> Iterable[_AttemptLike]: ...


class Recorder:
    """Takes operations down, from any number of tasks and threads.

    `clock`: gives seconds. Nothing is locked: each change is one operation on one dict, which Python makes
    whole or not at all.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: dict[str, Open | Entry] = {}

    def begin(
        self, kind: OperationKind, key: str | None = None, *, timeout: float | None = None,
        repeatable: bool = False, keyed: bool = False, writer: int | None = None, number: int | None = None,
    ) -> Open:  # fmt: skip
        """An operation begins now; the arguments are fields of `Entry`, and a key is made if none is given.

        `ValueError` when the key was used already.
        """
        key = str(uuid4()) if key is None else key
        entry = Entry(
            key, kind, self._clock(), timeout=timeout, repeatable=repeatable, keyed=keyed, writer=writer,
            number=number,
        )  # fmt: skip
        begun = Open(entry, self._clock, self._entries)
        if self._entries.setdefault(entry.key, begun) is not begun:
            raise ValueError(f"an operation with the key {key!r} was begun before: a key names one operation")
        return begun

    def history(self) -> History:
        """All that was recorded until now; what has not ended stands there without an ending."""
        # A copy is made in one piece, whatever other threads do.
        entries = self._entries.copy().values()
        return History(tuple(one if isinstance(one, Entry) else one.entry for one in entries))


@final
class Open:
    """An operation that runs. Exactly one of its methods is called once, when its caller is told.

    `record`: anything whose `attempts` look like those of `pgha.Operation.record`. `node`: which answered;
    without it, the node of the last try that was answered. `error`: an exception, or words. A second ending
    is a `RuntimeError`, and changes nothing.
    """

    __slots__ = ("_clock", "_entries", "entry")

    def __init__(self, entry: Entry, clock: Callable[[], float], entries: dict[str, Open | Entry]) -> None:
        self.entry = entry
        """What is known of it until now."""
        self._clock = clock
        self._entries = entries

    @property
    def key(self) -> str:
        return self.entry.key

    def acknowledged(
        self, *, node: str | None = None, record: _Record | None = None, answer: str | None = None,
        number: int | None = None,
    ) -> None:  # fmt: skip
        """It gave a result. `answer`: the nonce in it; `number`: what a read saw, see `Entry`."""
        self._end("acknowledged", node, record, answer=answer, number=number)

    def refused(self, error: _Error, *, node: str | None = None, record: _Record | None = None) -> None:
        """It failed, and its caller was told that nothing was applied."""
        self._end("refused", node, record, error=error)

    def doubt(self, error: _Error, *, node: str | None = None, record: _Record | None = None) -> None:
        """It failed, and its caller was told that nobody knows whether it was applied."""
        self._end("in doubt", node, record, error=error)

    def lost(self, error: _Error, *, node: str | None = None, record: _Record | None = None) -> None:
        """It failed, and its caller was told nothing of what became of it."""
        self._end("lost", node, record, error=error)

    def failed(
        self, error: _Error, outcome: str | None = None, *, node: str | None = None,
        record: _Record | None = None,
    ) -> None:  # fmt: skip
        """It failed; `outcome` is what the error says of it, in the words of `Attempt.outcome`.

        ``applied`` (the server was done, and then the answer could not be used) is an acknowledgement.
        """
        self._end(_ENDINGS.get(outcome, "lost"), node, record, error=error)

    def resolved(self, outcome: str) -> None:
        """After `doubt`: its caller learned what became of it, in the words of `Attempt.outcome`."""
        if self.entry.ending != "in doubt":
            raise RuntimeError(f"{self.entry.key} is not in doubt: {self.entry.ending}")
        self.entry = self._entries[self.entry.key] = replace(self.entry, resolved=outcome)

    def _end(
        self, ending: Ending, node: str | None, record: _Record | None, *,
        error: _Error | None = None, answer: str | None = None, number: int | None = None,
    ) -> None:  # fmt: skip
        now, begun = self._clock(), self.entry
        if begun.ending is not None:
            raise RuntimeError(f"{begun.key} has ended before: {begun.ending}, and now {ending}")
        attempts = () if record is None else tuple(_copied(one) for one in record.attempts)
        # The history keeps the entry alone: of a long run there are millions.
        self.entry = self._entries[begun.key] = replace(
            begun,
            ended=now,
            ending=ending,
            node=_last_to_answer(attempts) if node is None else node,
            answer=answer,
            error=_words(error),
            attempts=attempts,
            number=begun.number if number is None else number,
        )


_ENDINGS: dict[str | None, Ending] = {
    "applied": "acknowledged",
    "not applied": "refused",
    "in doubt": "in doubt",
}


def _copied(one: _AttemptLike) -> Attempt:
    return Attempt(one.node, one.sent_at, one.head_at, one.answered_at, one.outcome)


def _last_to_answer(attempts: Sequence[Attempt]) -> str | None:
    return next((one.node for one in reversed(attempts) if one.answered_at is not None), None)


def _words(error: _Error | None) -> str | None:
    if isinstance(error, BaseException):
        return " ".join(f"{type(error).__name__}: {error}".split())
    return error
