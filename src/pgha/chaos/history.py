"""Records of what the callers of a database were told, one entry per operation, to be checked later.

Example::

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

This module does not depend on pgha: the operations of any client can be recorded. Times are seconds of one
clock. By default that is `time.monotonic`, which is also the clock of pgha's records.
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
"""The kind of an operation: ``read`` or ``write``."""
Ending: TypeAlias = Literal["acknowledged", "refused", "in doubt", "lost"]
"""The ending of an operation: what its caller was told.

``acknowledged``: a result. ``refused``: an error that says that nothing was applied. ``in doubt``: an error
that says that the outcome is unknown. ``lost``: an error that says nothing about the outcome, as other
clients raise it, or no error, because the caller left before the operation ended.
"""
_Error: TypeAlias = BaseException | str
_FORMAT = 1


@final
@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of an operation: the operation was handed to a node once.

    Example::

        attempt = Attempt("n1", sent_at=1.0, answered_at=1.2, outcome="applied")
    """

    node: str
    """The name of the node."""
    sent_at: float
    """The time when the operation was sent, in seconds of the recorder's clock."""
    head_at: float | None = None
    """The time when the operation became the oldest one on its connection, so that the server could begin
    with it; None: not known.
    """
    answered_at: float | None = None
    """The time when the answer arrived; None: no answer arrived."""
    outcome: str | None = None
    """The outcome that the client proved: ``applied``, ``not applied`` or ``in doubt``; None: the client
    proved nothing.
    """


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """One operation as its caller saw it.

    Example::

        entry = Entry("k1", "write", begun=1.0, ended=1.2, ending="acknowledged", node="n1")
    """

    key: str
    """The key of the operation, unique in a history; for a read, also the nonce that the read asked for."""
    kind: OperationKind
    """The kind of the operation, ``read`` or ``write``."""
    begun: float
    """The time when the operation began, in seconds of the recorder's clock."""
    ended: float | None = None
    """The time when the caller was told; None: the caller was never told."""
    ending: Ending | None = None
    """The ending that the caller was told; None: the operation was still running in this history."""
    node: str | None = None
    """The name of the node that answered; None: not known."""
    answer: str | None = None
    """The nonce in the answer; None: no nonce was looked at."""
    error: str | None = None
    """The class and the text of the error, on one line; None: no error."""
    timeout: float | None = None
    """The promised timeout in seconds; None: no promise."""
    repeatable: bool = False
    """Whether the operation was declared idempotent: it may be applied more than once, but not more often
    than it was attempted.
    """
    attempts: tuple[Attempt, ...] = ()
    """The attempts in the order in which they were sent; those of a race stand side by side. Empty: no
    attempts, or not known.
    """
    writer: int | None = None
    """For a write: the number of its writer. For a read: the writer whose writes the read asked for."""
    number: int | None = None
    """For a write: its running number among the writes of its writer (1, 2, ...). For a read: the highest
    number that the read saw among the writes of `writer` which the answering node had applied itself; None or
    0: the read saw none.
    """
    keyed: bool = False
    """Whether the operation carries an idempotency key that the servers know: sent again, the operation is
    not applied again.
    """
    resolved: str | None = None
    """The outcome that the caller of an operation in doubt learned later, in the words of `Attempt.outcome`;
    None: the caller learned nothing.
    """


_FIELDS = {one.name: None if one.default is MISSING else one.default for one in fields(Entry)}
_ATTEMPT_FIELDS = tuple(one.name for one in fields(Attempt))


@final
@dataclass(frozen=True, slots=True, repr=False)
class History(Sequence[Entry]):
    """Entries in the order in which they began. Two entries with the same key are a `ValueError`.

    Example::

        history = History((Entry("k1", "write", begun=0.0), Entry("k2", "read", begun=0.1)))
        assert History.from_json(history.to_json()) == history
    """

    entries: tuple[Entry, ...] = ()
    """The entries."""

    def __post_init__(self) -> None:
        keys = {entry.key for entry in self.entries}
        if len(keys) < len(self.entries):
            key, times = Counter(entry.key for entry in self.entries).most_common(1)[0]
            raise ValueError(f"{times} entries have the key {key!r}: give each operation a key of its own")

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
        """Return the history as JSON, without the fields that have their default values.

        Returns:
            A text from which `from_json` makes an equal history.

        Raises:
            ValueError: If a number is not finite.
        """
        entries = [_packed(entry) for entry in self.entries]
        return json.dumps({"history": _FORMAT, "entries": entries}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Return the history that `to_json` wrote.

        Args:
            text: The JSON text.

        Returns:
            A history equal to the original.

        Raises:
            ValueError: If `text` is not a history, or has another format version.
        """
        found = json.loads(text)
        if not isinstance(found, dict) or found.get("history") != _FORMAT:
            raise ValueError(f"not a history of format {_FORMAT}: pass what `History.to_json` returned")
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
    """An object like `pgha.Attempt`."""

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
    """An object like `pgha.Record`."""

    @property
    def attempts(self) -> Iterable[_AttemptLike]: ...


class Recorder:
    """A recorder of operations, for any number of tasks and threads.

    Nothing is locked: each change is one operation on one dict, and Python makes such an operation either
    completely or not at all.

    Args:
        clock: A function that returns the time in seconds.

    Example::

        recorder = Recorder()
        recorder.begin("write", "k1", timeout=2.0).acknowledged(node="n1")
        assert recorder.history()[0].ending == "acknowledged"
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: dict[str, Open | Entry] = {}

    def begin(
        self, kind: OperationKind, key: str | None = None, *, timeout: float | None = None,
        repeatable: bool = False, keyed: bool = False, writer: int | None = None, number: int | None = None,
    ) -> Open:  # fmt: skip
        """Record that an operation begins now.

        Args:
            kind: The kind of the operation, ``read`` or ``write``.
            key: The key of the operation; None: a new one is made.
            timeout: The promised timeout in seconds; None: no promise.
            repeatable: Whether the operation was declared idempotent.
            keyed: Whether the operation carries an idempotency key that the servers know.
            writer: For a write: the number of its writer. For a read: the writer whose writes the read asks
                for.
            number: For a write: its running number among the writes of its writer (1, 2, ...).

        Returns:
            The running operation. Call exactly one of its ending methods when the caller is told.

        Raises:
            ValueError: If an operation with this key was begun before.
        """
        key = str(uuid4()) if key is None else key
        entry = Entry(
            key, kind, self._clock(), timeout=timeout, repeatable=repeatable, keyed=keyed, writer=writer,
            number=number,
        )  # fmt: skip
        begun = Open(entry, self._clock, self._entries)
        if self._entries.setdefault(entry.key, begun) is not begun:
            raise ValueError(
                f"an operation with the key {key!r} was begun before: give each operation a new key"
            )
        return begun

    def history(self) -> History:
        """Return everything that was recorded so far.

        Returns:
            The history. An operation that has not ended has no ending there.
        """
        # The copy is one atomic operation: another thread cannot change the dict in the middle of it.
        entries = self._entries.copy().values()
        return History(tuple(one if isinstance(one, Entry) else one.entry for one in entries))


@final
class Open:
    """A running operation. Call exactly one of its ending methods, once, when the caller is told.

    The ending methods are `acknowledged`, `refused`, `doubt`, `lost` and `failed`. A second ending is a
    `RuntimeError` and changes nothing. `Recorder.begin` makes this object.

    Args:
        entry: The entry as it is at the beginning.
        clock: A function that returns the time in seconds.
        entries: The recorder's entries, by key.

    Example::

        one = Recorder().begin("write")
        one.doubt(TimeoutError("no answer"), node="n1")
        one.resolved("applied")
    """

    __slots__ = ("_clock", "_entries", "entry")

    def __init__(self, entry: Entry, clock: Callable[[], float], entries: dict[str, Open | Entry]) -> None:
        self.entry = entry
        """The entry as far as it is known now."""
        self._clock = clock
        self._entries = entries

    @property
    def key(self) -> str:
        """The key of the operation."""
        return self.entry.key

    def acknowledged(
        self, *, node: str | None = None, record: _Record | None = None, answer: str | None = None,
        number: int | None = None,
    ) -> None:  # fmt: skip
        """Record that the caller got a result.

        Args:
            node: The name of the node that answered; None: the node of the last attempt that was answered.
            record: An object whose `attempts` look like those of `pgha.Operation.record`; None: no attempts
                are known.
            answer: The nonce in the answer; None: no nonce was looked at.
            number: What a read saw, see `Entry.number`; None: the number given to `begin` stays.

        Raises:
            RuntimeError: If the operation has ended before.
        """
        self._end("acknowledged", node, record, answer=answer, number=number)

    def refused(self, error: _Error, *, node: str | None = None, record: _Record | None = None) -> None:
        """Record that the caller was told that nothing was applied.

        Args:
            error: The exception, or its text.
            node: The name of the node that answered; None: the node of the last attempt that was answered.
            record: An object whose `attempts` look like those of `pgha.Operation.record`; None: no attempts
                are known.

        Raises:
            RuntimeError: If the operation has ended before.
        """
        self._end("refused", node, record, error=error)

    def doubt(self, error: _Error, *, node: str | None = None, record: _Record | None = None) -> None:
        """Record that the caller was told that the outcome is unknown.

        Args:
            error: The exception, or its text.
            node: The name of the node that answered; None: the node of the last attempt that was answered.
            record: An object whose `attempts` look like those of `pgha.Operation.record`; None: no attempts
                are known.

        Raises:
            RuntimeError: If the operation has ended before.
        """
        self._end("in doubt", node, record, error=error)

    def lost(self, error: _Error, *, node: str | None = None, record: _Record | None = None) -> None:
        """Record that the operation failed and the caller was told nothing about the outcome.

        Args:
            error: The exception, or its text.
            node: The name of the node that answered; None: the node of the last attempt that was answered.
            record: An object whose `attempts` look like those of `pgha.Operation.record`; None: no attempts
                are known.

        Raises:
            RuntimeError: If the operation has ended before.
        """
        self._end("lost", node, record, error=error)

    def failed(
        self, error: _Error, outcome: str | None = None, *, node: str | None = None,
        record: _Record | None = None,
    ) -> None:  # fmt: skip
        """Record that the operation failed, with the outcome that the error tells.

        Args:
            error: The exception, or its text.
            outcome: The outcome in the words of `Attempt.outcome`. ``applied`` (the server committed, then
                the answer could not be used) counts as an acknowledgement. None, or any other word: the
                ending is ``lost``.
            node: The name of the node that answered; None: the node of the last attempt that was answered.
            record: An object whose `attempts` look like those of `pgha.Operation.record`; None: no attempts
                are known.

        Raises:
            RuntimeError: If the operation has ended before.
        """
        self._end(_ENDINGS.get(outcome, "lost"), node, record, error=error)

    def resolved(self, outcome: str) -> None:
        """Record the outcome that the caller learned after `doubt`.

        Args:
            outcome: The outcome in the words of `Attempt.outcome`.

        Raises:
            RuntimeError: If the operation is not in doubt.
        """
        if self.entry.ending != "in doubt":
            raise RuntimeError(
                f"operation {self.entry.key} is not in doubt, it is {self.entry.ending or 'running'}"
            )
        self.entry = self._entries[self.entry.key] = replace(self.entry, resolved=outcome)

    def _end(
        self, ending: Ending, node: str | None, record: _Record | None, *,
        error: _Error | None = None, answer: str | None = None, number: int | None = None,
    ) -> None:  # fmt: skip
        now, begun = self._clock(), self.entry
        if begun.ending is not None:
            raise RuntimeError(
                f"operation {begun.key} has already ended as {begun.ending!r}, it cannot end as {ending!r}"
            )
        attempts = () if record is None else tuple(_copied(one) for one in record.attempts)
        # Only the entry is kept, not this object: a long run has millions of operations.
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
