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
    """Number of attempts, which is how many times the operation was handed to a node."""
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
        return (
            f"{self.name}: {self.state} for {self.state_for:.1f} s ({self.reason or 'no failure seen yet'})"
        )


class Error(psycopg.Error):
    """Base class of pgha's own errors."""


@final
class ConfigError(Error, ValueError):
    """Raised for an unusable argument. The message names the argument, the reason and the remedy."""


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
        """One report per node of the cluster."""
        super().__init__("; ".join([message, *map(str, self.nodes)]))


@final
class OperationTimeout(Error, TimeoutError):
    """Raised if an operation's ``timeout`` passed, and the operation certainly was not applied."""


class OperationCancelled(Error):
    """Raised after `Operation.cancel` if the operation was a read, or certainly was not applied."""


@final
class CommitInDoubt(Error):
    """Raised if a write was sent, and nothing proves whether it was applied.

    Deliberately not a subclass of `psycopg.OperationalError`: code that repeats operations on "connection
    lost" would apply the write twice.

    Example::

        key = pgha.new_idempotency_key()
        try:
            await cluster.execute("DELETE FROM item WHERE id = 1", idempotency_key=key)
        except pgha.CommitInDoubt as error:
            print(await error.resolve(timeout=60))
    """

    def __init__(
        self, message: str = "", *, idempotency_key: UUID | None = None, node: str | None = None,
        attempts: int = 0, evidence: Evidence | None = None, record: Record | None = None,
        _resolve: Callable[[float | None], Awaitable[Outcome]] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.idempotency_key = idempotency_key
        """The write's idempotency key; None if the ledger was not used."""
        self.node = node
        """Name of the node that the last attempt was sent to; None if there is none."""
        self.attempts = attempts
        """Number of attempts, which is how many times the write was handed to a node."""
        self.evidence = evidence
        """Observations about the attempt that ended without proof; None if no answer came in time."""
        self.record = record
        """Every attempt, with its times and its outcome as far as that was proven."""
        self._resolve = _resolve

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Pickle the facts without the connection to the cluster, which another process cannot use."""
        reduced = super().__reduce__()
        assert isinstance(reduced, tuple)
        return (*reduced[:2], {**reduced[2], "_resolve": None}, *reduced[3:])

    async def resolve(self, timeout: float | None = None) -> Outcome:
        """Return the outcome of the write: ``applied``, ``not applied`` or ``in doubt``.

        With an idempotency key, the ledger decides as soon as a server of the write's lineage is available.
        If the write is not applied by then, it never will be, and its key is used up. To have the write
        applied, call `Cluster.execute` again with the same key instead of resolving. Without a key, only a
        late answer can decide; once the connection is lost, the outcome stays ``in doubt``.

        Server failures never raise. Cancelling the call changes nothing: `resolve` may be called again.

        Args:
            timeout: Seconds to wait; None is no limit.

        Returns:
            The outcome. ``in doubt`` if the outcome cannot be determined within ``timeout`` seconds, or at
            all.

        Raises:
            ConfigError: The call was made in another event loop than the cluster's. Threads use
                `pgha.blocking.Cluster.resolve`.
        """
        return "in doubt" if self._resolve is None else await self._resolve(timeout)


@final
class LedgerError(Error):
    """Raised if the ledger cannot be used: it is missing, has another layout, or the role lacks a right.

    The message names the problem and the remedy. The operation was not applied.
    """


@final
class IdempotencyKeyReused(Error):
    """Raised if the key was used before: with other statements or parameters, or resolved as not applied.

    This operation was not applied.
    """


@final
class RowsLost(Error):
    """Raised if a replayed write is asked for its rows: they were lost with the first attempt's answer.

    `Result.replayed` is true for such a result. The write itself was applied.
    """


@final
class QueueFull(Error):
    """Raised if ``max_queued`` operations were waiting already. The operation was not sent.

    `Cluster.submit` raises this error at once, the waiting methods when their ``timeout`` passes.

    Example::

        try:
            operation = cluster.submit("INSERT INTO item VALUES (1, 'tea')")
        except pgha.QueueFull:
            # execute waits for space in the queue.
            await cluster.execute("INSERT INTO item VALUES (1, 'tea')")
    """


@final
class SessionRequired(Error):
    """Raised for a statement that would change the shared session. The statement was not sent."""


_UNKNOWN = ErrorInfo(node=None, statement=None, attempts=0, outcome="not applied")


def error_info(error: BaseException) -> ErrorInfo:
    """Return the facts known about the operation that raised ``error``: node, statement, attempts, outcome.

    Works for pgha's errors and for psycopg's.

    Args:
        error: An exception raised by an operation.

    Returns:
        The facts. An error that was not raised by an operation has no node, zero attempts and the outcome
        ``not applied``.
    """
    found = getattr(error, "_pgha_info", None)
    return found if isinstance(found, ErrorInfo) else _UNKNOWN


def annotate(error: BaseException, facts: ErrorInfo) -> None:
    """Attach ``facts`` to ``error``, for `error_info`."""
    try:
        error._pgha_info = facts  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        # The user's own exception class does not accept attributes: the exception is raised without an
        # `ErrorInfo`.
        return
