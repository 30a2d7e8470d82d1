"""The watch over one lane: old heads, inspections, and the delivery of cancel requests.

`pgha._core.pipeline` decides; this module performs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import anyio
import psycopg
from anyio.abc import TaskGroup

from pgha._core.pipeline import Act, Doing, Pipeline
from pgha._node.callbacks import FlightSlot
from pgha._node.evidence import request_size
from pgha._operation.operation import Operation
from pgha._wire.interrupts import uninterrupted
from pgha._wire.protocol import PipelinedConnection
from pgha._wire.segment import Segment

_SLOW_LINE = 2_000.0
"""The speed of a slow line, in bytes per second."""
_SLOWEST = 60.0
"""Seconds after which no request is on its way any more."""
_LOST = "the server is idle although a request is in flight: the request or its answer was lost on the way"
_NO_EFFECT = "a cancel had no effect in time"


def _time_to_rerun(slot: FlightSlot, now: float) -> bool:
    """Return whether the head can be run again before its deadline: it takes longer than it has taken yet."""
    if slot.item is None or slot.item.deadline is None or slot.head_at is None:
        return True
    return slot.item.deadline - now >= 2 * (now - slot.head_at)


class WatchedLane(Protocol):
    """The lane, as far as the watch needs it."""

    link: PipelinedConnection
    pipeline: Pipeline[Operation[Any] | None, Segment]
    broken: str | None
    usable: bool

    def receive(self, now: float) -> bool:
        """Read and handle what has arrived."""
        ...

    def drain(self, reason: str, now: float, *, terminate: bool) -> None:
        """Send nothing more, and wait a while for the answers to the segments in flight."""
        ...

    def abort(self, reason: str, *, lost: bool = False) -> None:
        """Close the connection now."""
        ...

    def capacity_freed(self) -> None:
        """Tell the owner that more may be sent."""
        ...

    def cancel_sent(self) -> None:
        """Tell the owner that a cancel request is sent."""
        ...

    def inspect(self, report: Callable[[Doing], None]) -> None:
        """Have the server asked what the lane's backend is doing."""
        ...


class Watch:
    """The watch over one lane; see the head of this file."""

    def __init__(
        self, lane: WatchedLane, clock: Callable[[], float],
        enter: Callable[[Callable[[Any], object], Any], None], cancel_deadline: float,
    ) -> None:  # fmt: skip
        self._lane = lane
        self._clock = clock
        self._enter = enter
        self._cancel_deadline = cancel_deadline
        self.tasks: TaskGroup | None = None
        """The lane's task group while the lane runs."""

    def tick(self, now: float) -> None:
        """Do what is due by time."""
        self.perform(self._lane.pipeline.tick(now), now)

    def perform(self, act: Act, now: float, reason: str = _NO_EFFECT) -> None:
        """Perform an action of the pipeline."""
        lane = self._lane
        match act:
            case Act.CANCEL:
                if self.tasks is not None:
                    lane.cancel_sent()
                    self.tasks.start_soon(self._deliver_cancel)
            case Act.DISCARD:
                lane.drain(reason, now, terminate=True)
            case Act.INSPECT:
                slot = lane.pipeline.slots[0]
                lane.inspect(lambda doing: self._enter(partial(self._inspected, slot), doing))
            case Act.NOTHING:
                pass

    def _inspected(self, slot: FlightSlot, doing: Doing) -> None:
        lane, now = self._lane, self._clock()
        # The server's report is older than the answers that have arrived meanwhile.
        lane.receive(now)
        if lane.usable:
            moved, travelling = lane.link.moved(), self._travelling(slot, now)
            act = lane.pipeline.inspected(
                slot, doing, moved, now, travelling=travelling, time_to_rerun=_time_to_rerun(slot, now)
            )
            self.perform(act, now, _LOST)

    def _travelling(self, slot: FlightSlot, now: float) -> bool:
        """Return whether the head's request may still be on its way between a proxy and the server.

        The kernel that confirmed all of the request may be that of a proxy or a gateway. For as long as a
        slow line would take to carry the request, an idle backend proves nothing.
        """
        if slot.item is None or slot.head_at is None or self._lane.link.unsent():
            return False
        return now - slot.head_at < min(request_size(slot.item) / _SLOW_LINE, _SLOWEST)

    @uninterrupted
    async def _deliver_cancel(self) -> None:
        certain = False
        try:
            with anyio.move_on_after(self._cancel_deadline):
                await self._lane.link.cancel()
                certain = True
        except psycopg.Error:
            # Refused or cut off: the request may or may not arrive. The target is cancelled again until the
            # deadline, and nothing new is sent on this connection.
            certain = False
        self._enter(self._delivered, certain)

    def _delivered(self, certain: bool) -> None:
        lane = self._lane
        if lane.broken is not None:
            return
        if not certain:
            lane.pipeline.stop_sending()
        lane.pipeline.cancel_done(self._clock())
        if not certain and not lane.pipeline.slots:
            lane.abort("a cancel request may still arrive")
        lane.capacity_freed()
