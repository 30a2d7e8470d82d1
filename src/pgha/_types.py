"""Frozen facts and the words of the public face: nodes, routes, states, events, statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final
from uuid import UUID

Role = Literal["primary", "standby", "unknown"]
"""``primary`` takes writes, ``standby`` does not (in recovery, or read-only by default)."""

State = Literal["connecting", "up", "suspect", "down", "rejected"]
"""A node's state; the table of transitions stands in ``pgha._core.health``."""

Outcome = Literal["applied", "not applied", "in doubt"]
"""Whether an operation, or one try of it, took effect, as far as the evidence goes."""


@final
@dataclass(frozen=True, slots=True)
class Nearest:
    """Route to the node that answers fastest, and stay there while it is healthy."""


@final
@dataclass(frozen=True, slots=True)
class Pin:
    """Route to one node by its name, and wait for it when it is away."""

    name: str


@final
@dataclass(frozen=True, slots=True)
class Fastest:
    """Ask every node at once and take the first good answer; reads only."""


ReadRoute = Nearest | Pin | Fastest
WriteRoute = Nearest | Pin

_NEAREST = Nearest()
_FASTEST = Fastest()


def nearest() -> Nearest:
    """The node that answers fastest; the default of reads and of writes."""
    return _NEAREST


def pin(name: str) -> Pin:
    """The node called ``name``, and no other: the operation waits for it until its deadline."""
    return Pin(name)


def fastest() -> Fastest:
    """Every node at once: the first good answer wins, an error only when all fail. Reads only."""
    return _FASTEST


@final
@dataclass(frozen=True, slots=True)
class SendInfo:
    """What an ``on_send`` callback is told, each time its operation is about to be handed to a node.

    Where the connection turns out to have ended, or to be taken, it is told again, of the same ``attempt``.
    """

    node: str
    attempt: int
    """1 for the first time, 2 when it is run again, and so on."""
    statements: Sequence[tuple[bytes, Sequence[Any] | None]]
    """SQL and parameters (``$1`` placeholders, dumped values) as given to libpq, but for pgha's own."""
    idempotency_key: UUID | None = None
    """Its key in the ledger; None without one."""


@final
@dataclass(frozen=True, slots=True)
class Attempt:
    """One time that an operation was handed to a node. Times are `time.monotonic` seconds."""

    node: str
    sent_at: float
    """When it was handed to libpq."""
    head_at: float | None
    """When it became the oldest on its connection: from then on the server worked on it, unless the node was
    away. None: what was sent before it was not answered (yet)."""
    answered_at: float | None
    """When its answer was there. None: not yet, or nobody waited for it any more, or the connection ended
    before."""
    outcome: Outcome | None
    """None: not known yet, or never looked at, since nobody waited for it any more (an operation that was
    given up, the losers of `fastest`)."""


@final
@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen of the attempt that ended without proof; see `pgha.CommitInDoubt`."""

    reason: str
    """What ended it, on one line: the server's or libpq's own words."""
    sent: Literal["nothing", "part", "whole"]
    """How much of it libpq was given; a part never has what would commit it."""
    completed: int
    """Statements that the server said were done, pgha's own included; that alone proves nothing."""
    statements: int
    """Statements that were sent, pgha's own included."""
    sqlstate: str | None = None
    """Of the error that answered it, if one did."""
    severity: str | None = None
    """ERROR, FATAL or PANIC; None without an error, or where it does not come from a PostgreSQL server."""
    unreplicated: bool = False
    """It was committed, and the wait for its synchronous standby was broken off."""


@final
@dataclass(frozen=True, slots=True)
class Record:
    """What happened to an operation until now; see `Operation.record`. Times are `time.monotonic` seconds."""

    started_at: float
    """When the caller asked for it."""
    queued_at: float
    """When it last got in line, or the node that it waited for went away; as ``started_at`` if it never had
    to wait."""
    ended_at: float | None
    """When its result or error was decided; None: not yet. Its caller runs a moment later."""
    attempts: tuple[Attempt, ...]
    """In the order in which they were sent; the legs of `fastest` stand side by side, one a node. Empty:
    nothing was ever sent."""


@final
@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node as the cluster sees it at this moment."""

    name: str
    state: State
    role: Role
    state_for: float
    """Seconds since the node entered its state."""
    reason: str
    """Why it is not up, in the words of the server or of libpq; empty when up."""
    latency: float | None
    """Smoothed round trip of the pings in seconds, or None before the first."""
    server_version: int | None
    """As libpq has it, 180000 for 18.0; None before the first connection."""
    read_connections: int
    """Open connections that carry reads."""
    write_connections: int
    """Open connections that carry writes."""
    in_flight: int
    """Operations sent to this node and not answered yet."""
    clock_skew: float | None = None
    """The server's clock minus this machine's in seconds, good to half a round trip; None before the first
    ping."""


@final
@dataclass(frozen=True, slots=True)
class Statistics:
    """Counters since the cluster was opened, and gauges of this moment."""

    operations: int
    """Operations accepted (each leg of `fastest` is part of its one operation)."""
    succeeded: int
    """Operations that gave a result."""
    failed: int
    """Operations that gave an error, those below included."""
    retried: int
    """Times an operation was run again, on the same node or another."""
    replayed: int
    """Writes that the ledger knew to be applied by an earlier attempt; see `Result.replayed`."""
    in_doubt: int
    """Operations that ended as `CommitInDoubt`."""
    cancelled: int
    """Operations that were cancelled by their caller."""
    timed_out: int
    """Operations that ended as `OperationTimeout`."""
    unretrieved: int
    """Failures of submitted operations that nobody ever looked at."""
    cancels_sent: int
    """Cancel requests sent to servers."""
    connections_lost: int
    """Connections that broke or were discarded while the cluster was open."""
    events_dropped: int
    """Events not delivered because a subscriber of `Cluster.events` was too slow."""
    queued: int
    """Operations waiting now, not sent to any node."""
    in_flight: int
    """Operations sent now and not answered yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The root of what `Cluster.events` gives."""

    at: float
    """`time.monotonic` when it happened."""
    node: str | None
    """The node that it is about, if it is about one."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStateChanged(Event):
    """A node entered another state."""

    state: State
    before: State
    reason: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RoleChanged(Event):
    """A node was promoted or demoted."""

    role: Role
    before: Role


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLost(Event):
    """A connection broke or was discarded, with so many operations on it."""

    reason: str
    in_flight: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OperationRetried(Event):
    """An operation will be run again; ``reason`` says what ended the attempt."""

    attempt: int
    reason: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OperationInDoubt(Event):
    """A write ended without proof; nobody may be waiting for it any more."""

    attempt: int
    reason: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OperationResolved(Event):
    """What became of a write that nobody waits for any more: it was cancelled, or ended in doubt before."""

    outcome: Outcome
    """``in doubt`` only for what was cancelled, and of which nobody knows."""
    attempt: int
    """How many times it had been handed to a node."""
    idempotency_key: UUID | None
    """Its key in the ledger, if it had one."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ClockSkewed(Event):
    """A server's clock and this machine's are further apart than a second, or no longer (``skewed``).

    The guard of keyed writes is wider meanwhile.
    """

    skew: float
    """The server's clock minus this machine's, in seconds."""
    skewed: bool


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FailureUnretrieved(Event):
    """A submitted operation failed and was dropped before anybody awaited it."""

    error: BaseException
