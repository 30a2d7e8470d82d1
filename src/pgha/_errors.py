"""What pgha raises, and what can be asked of any error that an operation raised.

SQL errors stay psycopg's own classes (``psycopg.errors.UniqueViolation`` and so on); the classes here
say what pgha itself decided. All of them are `psycopg.Error`, so that one ``except`` covers both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, final
from uuid import UUID

import psycopg

from pgha._types import Evidence, Outcome, Record


@final
@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """What is known of the operation behind an error; see `error_info`."""

    node: str | None
    """Name of the node that answered last, or None when nothing was ever sent."""
    statement: int | None
    """Index of the statement in its batch that failed, or None when no statement did."""
    attempts: int
    """How many times the operation was handed to a node."""
    outcome: Outcome
    """Whether the operation took effect, as far as the evidence goes."""


@final
@dataclass(frozen=True, slots=True)
class NodeReport:
    """One node's line in `NoNodeAvailable`."""

    name: str
    state: str
    """``connecting``, ``up``, ``suspect``, ``down`` or ``rejected``, as in `NodeStatus`."""
    state_for: float
    """Seconds since the node entered that state."""
    reason: str
    """The last failure in the words of the server or of libpq; never holds a password."""

    def __str__(self) -> str:
        return f"{self.name}: {self.state} for {self.state_for:.1f} s ({self.reason or 'no failure seen'})"


class Error(psycopg.Error):
    """The root of pgha's own errors."""


@final
class ConfigError(Error, ValueError):
    """An argument that cannot be used; the message says which, why, and what to do."""


@final
class ClusterClosed(Error):
    """The cluster was left, or is being left, and takes no more operations."""


class NoNodeAvailable(Error):
    """No node that the operation may use answered within the time allowed; nothing was applied.

    `nodes` lists every node of the cluster, since when it is down, and why.
    """

    def __init__(self, message: str, nodes: Sequence[NodeReport] = ()) -> None:
        self.nodes: tuple[NodeReport, ...] = tuple(nodes)
        super().__init__("; ".join([message, *map(str, self.nodes)]))


@final
class OperationTimeout(Error, TimeoutError):
    """The operation's ``timeout=`` passed, and it certainly was not applied (or it was a read)."""


class OperationCancelled(Error):
    """`Operation.cancel` was called, and the operation certainly was not applied (or it was a read)."""


@final
class CommitInDoubt(Error):
    """The operation was sent, and nothing proves whether it was applied.

    Deliberately no `psycopg.OperationalError`: code that repeats operations on "connection lost"
    would apply the write twice.
    """

    def __init__(
        self, message: str = "", *, idempotency_key: UUID | None = None, node: str | None = None,
        attempts: int = 0, evidence: Evidence | None = None, record: Record | None = None,
        _resolve: Callable[[float | None], Awaitable[Outcome]] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.idempotency_key = idempotency_key
        """Its key in the ledger; None without one."""
        self.node = node
        """The node that it was sent to last."""
        self.attempts = attempts
        """How many times it was handed to a node."""
        self.evidence = evidence
        """What was seen of the attempt that ended without proof; None where no answer came in time."""
        self.record = record
        """Every attempt, with its times and what was proven of it."""
        self._resolve = _resolve

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Into another process go the facts, not the cluster that could resolve them."""
        reduced = super().__reduce__()
        assert isinstance(reduced, tuple)
        return (*reduced[:2], {**reduced[2], "_resolve": None}, *reduced[3:])

    async def resolve(self, timeout: float | None = None) -> Outcome:
        """Learn what became of the write: ``applied``, ``not applied``, or ``in doubt`` after ``timeout``
        seconds (None: no limit), and where nobody can tell.

        With a key, the ledger of its servers decides, as soon as one of them is there: if the write is not
        applied it never will be, and its key is used up. To have it applied, give it to `Cluster.execute`
        again with the same key instead. Without a key, only an answer that comes late can tell; once the
        connection is lost, nobody can. Never raises for what servers do. It asks in the loop of its
        cluster, while that is open (in another loop it is a `ConfigError`; threads use
        `pgha.blocking.Cluster.resolve`); leaving by cancellation changes nothing, and it may be called again.
        """
        return "in doubt" if self._resolve is None else await self._resolve(timeout)


@final
class LedgerError(Error):
    """The ledger cannot be used: it is not there, of another layout, or a right to it is missing.

    The message says which, and what to do. The operation was not applied.
    """


@final
class IdempotencyKeyReused(Error):
    """The key was used before: for other statements or parameters, or it was resolved as not applied.

    This operation was not applied.
    """


@final
class RowsLost(Error):
    """The write was applied by an earlier attempt, whose answer was lost with its connection, rows included.

    Raised by the `Result` of a replayed operation when it is asked for rows or their number.
    """


@final
class QueueFull(Error):
    """`Cluster.submit` found ``max_queued`` operations waiting already; nothing was sent."""


@final
class SessionRequired(Error):
    """The statement would change the session that operations share; it was not sent."""


_UNKNOWN = ErrorInfo(node=None, statement=None, attempts=0, outcome="not applied")


def error_info(error: BaseException) -> ErrorInfo:
    """What is known of the operation that raised ``error``: node, statement, attempts, outcome.

    Works for pgha's errors and for psycopg's own alike. For an error that no operation raised, the
    answer is an `ErrorInfo` of zero attempts.
    """
    found = getattr(error, "_pgha_info", None)
    return found if isinstance(found, ErrorInfo) else _UNKNOWN


def annotate(error: BaseException, facts: ErrorInfo) -> None:
    """Fix ``facts`` to ``error`` for `error_info` to find."""
    try:
        error._pgha_info = facts  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        # An exception of the user's own that takes no attributes: it is raised as it is, without an
        # `ErrorInfo`.
        return
