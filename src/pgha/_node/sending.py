"""The sending half of a lane: segments are handed to libpq, and written to the socket later.

*Commands* (`Sender.send`, `Sender.rollback`) are called in the middle of the owner's work: they neither read
nor call back, and leave what went wrong to an act. All other methods are for acts; see `pgha._node.lane`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import anyio
import psycopg
from anyio.abc import TaskGroup

from pgha._core.pace import UNKNOWN
from pgha._core.pipeline import Pipeline
from pgha._core.statement_kind import classify_statement
from pgha._node.callbacks import LaneCallbacks, ServerFacts
from pgha._node.evidence import one_line
from pgha._node.outgoing import Refusal, extras_of, ledger_part
from pgha._operation.operation import DONE, SENT, AccessMode, AttemptState, Operation
from pgha._wire.compiler import Statement
from pgha._wire.interrupts import uninterrupted
from pgha._wire.link import NO_EXTRAS, Extras, LedgerPart, SendFailed
from pgha._wire.protocol import PipelinedConnection
from pgha._wire.segment import Segment

_MOST_READS = 1024
"""The largest number of reads, of 8 kB and more, before a connection is written to or closed: bounds the time
spent while a server keeps on sending."""
_TOGETHER = 4
"""The number of segments that are written together, if other tasks are about to send more (measured with 10
tasks: 10 to 15 % more throughput than with one system call each)."""
_ROLLBACK = Statement(b"ROLLBACK", None, (), None, classify_statement(b"ROLLBACK"))
_UNKNOWN = Segment([])
"""The segment of a slot until libpq was handed all of it."""


class SendingLane(Protocol):
    """The lane, as far as the sending needs it."""

    node: str
    kind: AccessMode
    server: ServerFacts
    system: int | None
    link: PipelinedConnection
    pipeline: Pipeline[Operation[Any] | None, Segment]
    broken: str | None

    def fail(self, reason: str, *, lost: bool) -> None:
        """Take no more operations, and close the connection in an act of its own."""
        ...

    def interrupted(self) -> None:
        """Do the same after an exception of a signal's handler, in the middle of the work on the lane."""
        ...

    def receive(self, now: float) -> bool:
        """Read and handle what has arrived."""
        ...

    def abort(self, reason: str, *, lost: bool = False) -> None:
        """Close the connection now."""
        ...


L = TypeVar("L", bound=SendingLane)


class Sender(Generic[L]):
    """Hands segments to libpq and writes them; see the head of this file."""

    def __init__(self, lane: L, owner: LaneCallbacks[L], clock: Callable[[], float]) -> None:
        self._lane = lane
        self._owner = owner
        self._observers = owner.observers
        self._clock = clock
        self._link = lane.link
        self._pipeline = lane.pipeline
        self.tasks: TaskGroup | None = None
        """The lane's task group while the lane runs."""
        self._writing = False
        """Whether a task writes what the socket did not take at once."""
        self._unwritten = 0
        """The number of segments that libpq was handed since it was last told to write."""
        self._flush_due = False
        """Whether the owner was told to flush the lane."""
        self._fresh = False
        """Whether everything that had arrived was read since the last write; see `freshen`."""

    # Commands

    def send(self, operation: Operation[Any], now: float) -> None:
        """Hand ``operation`` to libpq; call only if the lane has capacity, and let `flush` follow.

        If the connection breaks, or if the operation must not be sent on this lane, the owner gets the facts
        in a later act.
        """
        attempts = operation.attempts
        if attempts:
            # The last attempt may have ended while the caller was sending other operations, after the caller
            # had read the clock. Times in the record must not run backwards.
            now = self._clock()
        attempt = AttemptState(self._lane.node, now)
        attempts.append(attempt)
        request = operation.request
        extras = extras_of(operation) if operation.unprepared else request.extras
        ledger: LedgerPart | None = None
        if request.need.access == "write":
            attempt.system = self._lane.system
            if request.keyed is not None or operation.lineage is not None:
                part = ledger_part(operation, attempt, self._lane.server, now)
                if isinstance(part, Refusal):
                    self._owner.door.enter(self._refused, (operation, part))
                    return
                ledger = part
        self._put(request.statements, extras, operation, now, ledger)

    def _put(
        self, statements: Sequence[Statement], extras: Extras, operation: Operation[Any] | None, now: float,
        ledger: LedgerPart | None = None,
    ) -> None:  # fmt: skip
        exclusive, expected = True, UNKNOWN
        if operation is not None:
            exclusive, pace = operation.exclusive, operation.request.pace
            if pace is not None:
                expected = pace.expected
        try:
            # The slot comes first, and counts as handed over: whatever interrupts the sending finds the order
            # of the answers, and nothing is taken for unsent that may have been sent.
            slot = self._pipeline.sent(operation, _UNKNOWN, now, exclusive, expected)
            if operation is not None:
                operation.stage = SENT
                operation.place = (self._lane, slot)
                attempt = operation.attempts[-1]
                attempt.head_at = slot.head_at
                for tell in self._observers.sent:
                    tell(operation, attempt)
                if slot.head_at is not None:
                    for tell in self._observers.became_head:
                        tell(operation, attempt)
            self._unwritten += 1
            if not self._flush_due:
                # As `_to_flush`, without the call.
                self._owner.handed_over(self._lane)
                self._flush_due = True
            slot.segment = self._link.send(statements, extras, ledger)
        except SendFailed as failure:
            slot.segment, slot.handed = failure.segment, failure.handed
            self._lane.fail(one_line(failure), lost=True)
        except BaseException:
            # An exception of a signal's handler, in the middle of it: nobody knows what libpq was handed.
            self._lane.interrupted()
            raise

    def rollback(self, now: float) -> None:
        """Send a ROLLBACK that belongs to no operation."""
        self._put((_ROLLBACK,), NO_EXTRAS, None, now)

    def _to_flush(self) -> None:
        self._owner.handed_over(self._lane)
        self._flush_due = True

    # Acts

    def _refused(self, refused: tuple[Operation[Any], Refusal]) -> None:
        operation, refusal = refused
        if operation.stage is not DONE:
            self._owner.segment_failed(self._lane, operation, refusal.failure())

    def reads_before(self, operation: Operation[Any]) -> bool:
        """Return whether `freshen` must come before ``operation`` is sent."""
        return (self._lane.kind == "write" or operation.suspected_crashes > 0) and not self._fresh

    def freshen(self) -> bool:
        """Read everything that has arrived, before something is handed over; return whether anything had.

        Writing to a connection that the server has closed causes an RST, which discards answers that were not
        read yet (measured: 46 of 47 acknowledgements). And if every connection was cut at the same moment,
        before the first attempt, the second loss must not count against an operation that never reached the
        server. libpq writes what it was handed before it reads: reading afterwards would be too late.
        """
        self._fresh = True
        if not self._flush_due:
            self._to_flush()  # the flush ends the freshness
        if not self._link.readable():
            return False
        for _ in range(_MOST_READS):
            self._lane.receive(self._clock())
            if self._lane.broken is not None or not self._link.readable():
                break
        return True

    def may_flush_later(self) -> bool:
        """Return whether the server has enough to do, so that more may be written with one system call.

        A lane for writes does not wait: it was read just before.
        """
        unwritten = self._unwritten
        return (
            self._lane.kind == "read" and 0 < unwritten < _TOGETHER and len(self._pipeline.slots) > unwritten
        )

    def flush(self) -> None:
        """Write everything that was sent since the last flush."""
        self._flush_due = self._fresh = False
        if self._lane.broken is not None or not self._unwritten:
            return
        self._unwritten = 0
        try:
            if self._link.flush() or self._writing or self.tasks is None:
                return
        except psycopg.Error as error:
            self._lane.abort(one_line(error), lost=True)
            return
        except BaseException:
            self._lane.interrupted()
            raise
        self._writing = True
        self.tasks.start_soon(self._write_out)

    @uninterrupted
    async def _write_out(self) -> None:
        """Write the rest that the socket did not take at once; the reader goes on reading meanwhile."""
        failure: psycopg.Error | None = None
        try:
            while self._lane.broken is None and not self._link.flush():
                await anyio.wait_writable(self._link.fd)
        except psycopg.Error as error:
            failure = error
        finally:
            self._writing = False
        if failure is not None:
            self._owner.door.enter(self._writing_failed, failure)

    def _writing_failed(self, failure: psycopg.Error) -> None:
        self._lane.receive(self._clock())
        self._lane.abort(one_line(failure), lost=True)
