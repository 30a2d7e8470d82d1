"""Frozen data types of the public API: routes, node states, events, statistics and records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final
from uuid import UUID

Role = Literal["primary", "standby", "unknown"]
"""A node's role: ``standby`` is in recovery and accepts no writes, ``primary`` is not in recovery. A primary
accepts writes if it is neither read-only by default nor superseded; see `NodeStatus`."""

State = Literal["connecting", "up", "suspect", "down", "rejected"]
"""A node's state. The transitions are listed in ``pgha._core.health``."""

Outcome = Literal["applied", "not applied", "in doubt"]
"""Whether an operation, or one attempt of it, took effect, as far as the evidence shows."""


@final
@dataclass(frozen=True, slots=True)
class Nearest:
    """Route to the node with the lowest latency; the choice is kept while that node is healthy.

    Example::

        rows = await cluster.fetch("SELECT id, name FROM item", route=pgha.Nearest())
    """


@final
@dataclass(frozen=True, slots=True)
class Pin:
    """Route to one node by its name; the operation waits for that node while it is unavailable.

    Example::

        rows = await cluster.fetch("SELECT id FROM item", route=pgha.Pin("db1:5432"))
    """

    name: str
    """The node's name, a key of `Cluster.nodes`."""


@final
@dataclass(frozen=True, slots=True)
class Fastest:
    """Route to every node at once; the first good answer wins. For reads only.

    Example::

        rows = await cluster.fetch("SELECT id, name FROM item", route=pgha.Fastest())
    """


@final
@dataclass(frozen=True, slots=True)
class Primary:
    """Route to the primary that the writes go to; for reads that must see what was written.

    Example::

        rows = await cluster.fetch("SELECT id, name FROM item", route=pgha.Primary())
    """


ReadRoute = Nearest | Pin | Fastest | Primary
WriteRoute = Nearest | Pin | Primary

_NEAREST = Nearest()
_FASTEST = Fastest()
_PRIMARY = Primary()


def nearest() -> Nearest:
    """Return the route to the node with the lowest latency: the default for reads and writes.

    Returns:
        The route. Another node takes over only when the present one is down, or when the other answers in
        half the time and at least 2 ms sooner. Writes do not leave a primary for another one of its timeline.
    """
    return _NEAREST


def pin(name: str) -> Pin:
    """Return the route to the node called ``name``, and to no other node.

    Args:
        name: The node's name, a key of `Cluster.nodes`. An unknown name raises `ConfigError` when the route
            is used.

    Returns:
        The route. While that node is unavailable the operation waits, at most ``failover_timeout`` seconds.
    """
    return Pin(name)


def fastest() -> Fastest:
    """Return the route to every node at once, for reads only.

    Returns:
        The route. The first good answer wins; the operation fails only when every node has failed.
    """
    return _FASTEST


def primary() -> Primary:
    """Return the route to the primary that the writes go to: of several masters, the one that has them now.

    A read by this route sees every write that was acknowledged before the read began, on the same node. After
    a failover it sees what the new primary has; see the promises. For a write the route is `nearest`: writes
    go to a primary in any case.

    Returns:
        The route. While there is no primary the operation waits, at most ``failover_timeout`` seconds. A
        server that is read-only by default is read only if no other primary is known.
    """
    return _PRIMARY


@final
@dataclass(frozen=True, slots=True)
class SendInfo:
    """The argument of an ``on_send`` callback, called each time the operation is about to be sent.

    If the chosen connection turns out to be lost or full, the callback is called again with the same
    ``attempt``.

    Example::

        def on_send(info: pgha.SendInfo) -> None:
            print(f"attempt {info.attempt} on {info.node}")

        await cluster.execute("UPDATE item SET price = 9 WHERE id = 1", on_send=on_send)
    """

    node: str
    """Name of the node."""
    attempt: int
    """1 for the first attempt, 2 for the first retry, and so on."""
    statements: Sequence[tuple[bytes, Sequence[Any] | None]]
    """SQL and parameters (``$1`` placeholders, dumped values) as given to libpq, without the statements that
    pgha adds."""
    idempotency_key: UUID | None = None
    """The idempotency key sent with the operation; None if there is none."""


@final
@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt: the operation was handed to a node. Times are `time.monotonic` seconds.

    Example::

        operation = cluster.submit("SELECT 1", read=True)
        await operation
        for attempt in operation.record.attempts:
            print(attempt.node, attempt.outcome)
    """

    node: str
    """Name of the node."""
    sent_at: float
    """Time at which the operation was handed to libpq."""
    head_at: float | None
    """Time at which the operation became the oldest one on its connection. From then on the server worked on
    it, unless the node was unavailable. None if earlier operations on that connection were not answered
    (yet)."""
    answered_at: float | None
    """Time at which the answer arrived. None if there is no answer yet, if the caller had stopped waiting, or
    if the connection was lost first."""
    outcome: Outcome | None
    """None if the outcome is not known yet, or was never examined because no caller was waiting any more (a
    cancelled operation, the losers of `fastest`)."""


@final
@dataclass(frozen=True, slots=True)
class Evidence:
    """Observations about the attempt that ended without proof of its outcome; see `CommitInDoubt`.

    Example::

        try:
            await cluster.execute("UPDATE item SET price = 9 WHERE id = 1")
        except pgha.CommitInDoubt as error:
            if error.evidence is not None:
                print(error.evidence.reason, error.evidence.sent)
    """

    reason: str
    """The cause that ended the attempt, on one line, in the server's or libpq's own words."""
    sent: Literal["nothing", "part", "whole"]
    """How much of the operation was given to libpq. A part never includes the message that commits it."""
    completed: int
    """Number of statements that the server reported as done, including those added by pgha. This alone proves
    nothing: a completed statement may still be rolled back."""
    statements: int
    """Number of statements that were sent, including those added by pgha."""
    sqlstate: str | None = None
    """SQLSTATE of the error that answered the attempt; None if there was none."""
    severity: str | None = None
    """``ERROR``, ``FATAL`` or ``PANIC``; None without an error, or if the error does not come from a
    PostgreSQL server."""
    unreplicated: bool = False
    """Whether the write was committed, but the wait for its synchronous standby was interrupted."""


@final
@dataclass(frozen=True, slots=True)
class Record:
    """The history of an operation until now; see `Operation.record`. Times are `time.monotonic` seconds.

    Example::

        operation = cluster.submit("SELECT 1", read=True)
        await operation
        record = operation.record
        print(len(record.attempts), "attempts since", record.started_at)
    """

    started_at: float
    """Time at which the caller started the operation."""
    queued_at: float
    """Time at which the operation was last queued, or at which the node that it waited for became
    unavailable. Equal to ``started_at`` if the operation never had to wait."""
    ended_at: float | None
    """Time at which the result or error was decided; None if the operation is still running. The caller
    resumes a moment later."""
    attempts: tuple[Attempt, ...]
    """The attempts in the order of sending. With `fastest` there is one per node, side by side. Empty if the
    operation was never sent."""


@final
@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node's state, as the cluster sees it at this moment; see `Cluster.nodes`.

    Example::

        for name, status in cluster.nodes.items():
            print(name, status.state, status.role, status.latency)
    """

    name: str
    """The node's name."""
    state: State
    """``connecting``, ``up``, ``suspect``, ``down`` or ``rejected``."""
    role: Role
    """``primary``, ``standby`` (in recovery), or ``unknown`` before the first connection."""
    state_for: float
    """Seconds since the node entered its state."""
    reason: str
    """Why the node is not up, in the words of the server or of libpq, or why a primary takes no writes; else
    empty."""
    latency: float | None
    """Least round trip of the last ten pings in seconds; None before the first ping."""
    server_version: int | None
    """Version number as libpq reports it, 180000 for 18.0; None before the first connection."""
    read_connections: int
    """Number of open connections for reads."""
    write_connections: int
    """Number of open connections for writes."""
    in_flight: int
    """Number of operations sent to this node and not answered yet."""
    clock_skew: float | None = None
    """Server clock minus local clock in seconds, accurate to half a round trip; None before the first ping.
    """
    read_only: bool = False
    """Whether transactions are read-only by default (``default_transaction_read_only``). Such a node takes no
    writes, whatever its role."""
    superseded: bool = False
    """Whether the node is a primary of an old timeline: after a promotion, another server of its lineage has
    a newer one. Such a node takes no writes, even if the newer server is lost."""
    timeline: int | None = None
    """PostgreSQL's timeline, a number that each promotion increases; None if the role may not read it."""

    @property
    def writable(self) -> bool:
        """Whether the node takes writes, as a primary that is neither read-only nor superseded."""
        return self.role == "primary" and not self.read_only and not self.superseded


@final
@dataclass(frozen=True, slots=True)
class Statistics:
    """Counters since the cluster was opened, and gauges of this moment; see `Cluster.statistics`.

    Example::

        statistics = cluster.statistics()
        print(statistics.operations, statistics.retried, statistics.in_flight)
    """

    operations: int
    """Operations accepted (a `fastest` operation counts once)."""
    succeeded: int
    """Operations that returned a result."""
    failed: int
    """Operations that raised an error, including those counted separately below."""
    retried: int
    """Number of retries, on the same node or another."""
    replayed: int
    """Writes that the ledger showed to be applied by an earlier attempt; see `Result.replayed`."""
    in_doubt: int
    """Operations that ended with `CommitInDoubt`."""
    cancelled: int
    """Operations cancelled by their caller."""
    timed_out: int
    """Operations that ended with `OperationTimeout`."""
    unretrieved: int
    """Submitted operations that failed, and whose error was never retrieved."""
    cancels_sent: int
    """Cancel requests sent to servers."""
    connections_lost: int
    """Connections that broke or were discarded while the cluster was open."""
    events_dropped: int
    """Events not delivered because a subscriber of `Cluster.events` was too slow."""
    queued: int
    """Operations waiting now, not sent to any node."""
    in_flight: int
    """Operations sent to a node and not answered yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base class of the events that `Cluster.events` delivers.

    Example::

        async with cluster.events() as events:
            async for event in events:
                if isinstance(event, pgha.NodeStateChanged):
                    print(event.node, event.before, event.state, event.reason)
    """

    at: float
    """`time.monotonic` time of the event."""
    node: str | None
    """Name of the node concerned; None if the event does not concern a node."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStateChanged(Event):
    """Emitted when a node's state changes."""

    state: State
    """The new state."""
    before: State
    """The previous state."""
    reason: str
    """Why the node is not up, in the words of the server or of libpq; empty when the node is up."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RoleChanged(Event):
    """Emitted when a node is promoted or demoted, or becomes read-only or writable again."""

    role: Role
    """The new role."""
    before: Role
    """The previous role; equal to ``role`` if only ``read_only`` changed."""
    read_only: bool = False
    """Whether transactions are read-only by default now, so that the node takes no writes."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PrimarySuperseded(Event):
    """Emitted when a primary takes no more writes, because its lineage has a newer timeline.

    Another server was promoted, and the old primary was neither stopped nor demoted. Whatever is written to
    the old primary is lost when it joins the new one. Fence old primaries before a promotion.

    Example::

        async with cluster.events() as events:
            async for event in events:
                if isinstance(event, pgha.PrimarySuperseded):
                    print("fence", event.node, event.timeline, event.newest_timeline)
    """

    timeline: int
    """The node's timeline."""
    newest_timeline: int
    """The highest timeline of the lineage that was seen."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLost(Event):
    """Emitted when a connection breaks or is discarded."""

    reason: str
    """Why the connection ended, on one line."""
    in_flight: int
    """Number of operations that were sent on the connection and not answered."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OperationRetried(Event):
    """Emitted when an operation is about to be retried."""

    attempt: int
    """Number of attempts so far."""
    reason: str
    """The cause that ended the last attempt."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OperationInDoubt(Event):
    """Emitted when a write ends with `CommitInDoubt`, also if its caller has stopped waiting."""

    attempt: int
    """Number of attempts."""
    reason: str
    """The text of the error."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OperationResolved(Event):
    """Emitted when the outcome of a cancelled or in-doubt write becomes known."""

    outcome: Outcome
    """``in doubt`` only if the write was cancelled and its outcome cannot be determined."""
    attempt: int
    """Number of attempts."""
    idempotency_key: UUID | None
    """The write's idempotency key; None if there was none."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ClockSkewed(Event):
    """Emitted when a server's clock starts or stops differing from the local clock by more than a second.

    While the clocks differ, the time guard of keyed writes is wider.
    """

    skew: float
    """Server clock minus local clock, in seconds."""
    skewed: bool
    """Whether the clocks differ by more than a second now."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FailureUnretrieved(Event):
    """Emitted when a submitted operation has failed and is dropped without being awaited."""

    error: BaseException
    """The operation's error."""
