"""Exceptions that pgha raises, and `error_info`, which returns the facts known about any failed operation.

SQL errors stay psycopg's own classes (``psycopg.errors.UniqueViolation`` and so on). The classes here report
decisions of pgha itself. All of them are subclasses of `psycopg.Error`, so that one ``except`` catches both.
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
    """Facts known about the operation behind an error; see `error_info`.

    Example::

        try:
            await cluster.execute("UPDATE item SET price = 9 WHERE id = 1")
        except psycopg.Error as error:
            info = pgha.error_info(error)
            print(info.node, info.attempts, info.outcome)
    """

    node: str | None
    """Name of the node that the last attempt was sent to; None if the operation was never sent."""
    statement: int | None
    """Index of the failed statement in its batch, counted from 0; None if no statement failed."""
    attempts: int
    """Number of attempts: how many times the operation was handed to a node."""
    outcome: Outcome
    """Whether the operation took effect, as far as the evidence shows."""


@final
@dataclass(frozen=True, slots=True)
class NodeReport:
    """One node's entry in `NoNodeAvailable`.

    Example::

        try:
            await cluster.fetch("SELECT 1", timeout=5)
        except pgha.NoNodeAvailable as error:
            for report in error.nodes:
                print(report.name, report.state, report.state_for, report.reason)
    """

    name: str
    """The node's name."""
    state: str
    """``connecting``, ``up``, ``suspect``, ``down`` or ``rejected``, as in `NodeStatus`."""
    state_for: float
    """Seconds since the node entered that state."""
    reason: str
    """The last failure in the words of the server or of libpq; never contains a password."""

    def __str__(self) -> str:
        return f"{self.name}: {self.state} for {self.state_for:.1f} s ({self.reason or 'no failure seen'})"


class Error(psycopg.Error):
    """Base class of pgha's own errors."""


@final
class ConfigError(Error, ValueError):
    """Raised for an argument that cannot be used. The message names the argument, the reason and the remedy."""


@final
class ClusterClosed(Error):
    """Raised for operations on a cluster whose ``with`` block has ended, or is ending."""


class NoNodeAvailable(Error):
    """Raised if no suitable node became available within the time allowed. The operation was not applied.

    The attribute `nodes` lists every node of the cluster with its state, since when, and why.

    Example::

        try:
            await cluster.execute("UPDATE item SET price = 9 WHERE id = 1")
        except pgha.NoNodeAvailable as error:
            for report in error.nodes:
                print(report.name, report.state, report.reason)
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
