"""The interface between lanes and their owners."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeVar

from pgha._core.door import Door
from pgha._core.ledger_rules import ServerClock
from pgha._core.outcome import Facts
from pgha._core.pipeline import Bounds, Doing, Slot
from pgha._core.statements import Entry
from pgha._operation.observer import Observers
from pgha._operation.operation import Operation
from pgha._wire import PGresult
from pgha._wire.loops import Loop
from pgha._wire.segment import Answer, Segment

LaneT = TypeVar("LaneT", contravariant=True)
"""A lane; a type variable, so that this module need not import the class."""

FlightSlot: TypeAlias = Slot[Operation[Any] | None, Segment]
"""A segment in flight, with its operation (None for the lane's own ROLLBACK)."""


@dataclass(slots=True)
class SegmentFailure:
    """The facts that a lane knows about a segment that did not simply succeed."""

    facts: Facts
    answer: Answer
    overlapped: bool
    was_head: bool
    rerun_exclusive: bool
    lost: str | None
    """The reason why the connection ended; None if the connection did not end."""
    not_suspected: bool = False
    """Whether the operation certainly did not end the connection: the server said that an administrator did,
    or pgha closed the connection."""
    crashed: bool = False
    """Whether the server said that it ends all its connections because one of its processes crashed."""
    ours: bool = False
    """Whether pgha had the backend terminated."""
    note: str = ""
    """The reason for the failure, if neither a server nor a connection gave one."""


class LaneCallbacks(Protocol[LaneT]):
    """The owner of lanes, which decides the next step of each operation."""

    loop: Loop
    door: Door
    observers: Observers

    def succeeded(
        self, lane: LaneT, operation: Operation[Any], results: Sequence[PGresult], entry: Entry | None
    ) -> None:
        """Take the results of an operation; ``entry`` belongs to the prepared statement that was reused."""
        ...

    def segment_failed(self, lane: LaneT, operation: Operation[Any], failure: SegmentFailure) -> None:
        """Take the facts of a segment that did not simply succeed."""
        ...

    def handed_over(self, lane: LaneT) -> None:
        """Flush the lane, which was handed something, before the present act is over."""
        ...

    def stranded(self, operation: Operation[Any]) -> None:
        """Send a read elsewhere that was taken back from a lane."""
        ...

    def capacity_freed(self, lane: LaneT) -> None:
        """Send more, if the lane has capacity."""
        ...

    def lane_broke(self, lane: LaneT, reason: str, *, lost: bool, in_flight: int) -> None:
        """Stop using a lane whose connection ended, with ``in_flight`` operations on it.

        ``lost`` says that pgha did not end it on purpose.
        """
        ...

    def terminate(self, lane: LaneT) -> None:
        """Have the lane's backend terminated."""
        ...

    def inspect(self, lane: LaneT, report: Callable[[Doing], None]) -> None:
        """Ask the server what the lane's backend is doing, and call ``report`` with the answer."""
        ...

    def cancel_sent(self) -> None:
        """Count a cancel request."""
        ...


@dataclass(slots=True)
class ServerFacts:
    """The facts known about a node's server; shared by its lanes."""

    clock: ServerClock = field(default_factory=lambda: ServerClock(window=60.0, margin=1.0, limit=1.0))
    system: int | None = None
    """The server's system identifier, as last read; None if the role may not read it. Each lane keeps the
    identifier of its own server, since another server may take a node's place."""
    latency: float = 0.0
    """The least round trip of the last pings, in seconds; 0 before the first one."""
    ledger: bool = False
    """Whether the server has a usable ledger; only needed for keys that pgha chooses."""
    listening_told: bool = False
    """Whether the log says already that the node's ``on_connect`` runs LISTEN."""


@dataclass(frozen=True, slots=True)
class LaneBounds:
    """The time limits of a lane, in seconds."""

    pipeline: Bounds
    cancel_deadline: float
    drain_timeout: float
    stranded_after: float
    """The age of a head from which on the reads behind it are taken back."""
