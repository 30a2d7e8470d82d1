"""What lanes and their owners say to each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeVar

from pgha._core.ledger_rules import ServerClock
from pgha._core.outcome import Facts
from pgha._core.pipeline import Bounds, Doing, Slot
from pgha._core.statements import Entry
from pgha._operation.operation import Operation
from pgha._wire import PGresult
from pgha._wire.loops import Loop
from pgha._wire.segment import Answer, Segment

LaneT = TypeVar("LaneT", contravariant=True)
"""A lane: what is said here does not depend on how it works."""

FlightSlot: TypeAlias = Slot[Operation[Any] | None, Segment]
"""A segment in flight, and whose it is (None: the lane's own ROLLBACK)."""


@dataclass(slots=True)
class SegmentFailure:
    """What a lane knows about a segment that did not simply succeed."""

    facts: Facts
    answer: Answer
    overlapped: bool
    was_head: bool
    rerun_exclusive: bool
    lost: str | None
    """Why the connection ended, if it did."""
    not_suspected: bool = False
    """What was sent there did not end the connection: somebody else told the server to, as it said itself, or
    we hung up."""
    crashed: bool = False
    """The server said that it ends all its connections, since one of its processes crashed."""
    ours: bool = False
    """It was us who had it ended."""
    note: str = ""
    """Why, where no server and no connection says it."""


class LaneCallbacks(Protocol[LaneT]):
    """Who decides what becomes of operations."""

    loop: Loop

    def succeeded(
        self, lane: LaneT, operation: Operation[Any], results: Sequence[PGresult], entry: Entry | None
    ) -> None: ...
    def segment_failed(self, lane: LaneT, operation: Operation[Any], failure: SegmentFailure) -> None: ...
    def capacity_freed(self, lane: LaneT) -> None: ...
    def lane_broke(self, lane: LaneT, reason: str, *, lost: bool) -> None: ...
    def terminate(self, lane: LaneT) -> None: ...
    def inspect(self, lane: LaneT, report: Callable[[Doing], None]) -> None: ...
    def cancel_sent(self) -> None: ...


@dataclass(slots=True)
class ServerFacts:
    """What is known of a node's server; shared by its lanes."""

    clock: ServerClock = field(default_factory=lambda: ServerClock(window=60.0, margin=1.0, limit=1.0))
    system: int | None = None
    """Its system identifier, as it told last; None where it does not tell. A lane has its own: another
    server may take a node's place."""
    ledger: bool = False
    """There is one that can be used; looked at for keys of our own alone."""


@dataclass(frozen=True, slots=True)
class LaneBounds:
    pipeline: Bounds
    cancel_deadline: float
    drain_timeout: float
