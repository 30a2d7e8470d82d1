"""A lane without a cluster, which records the facts of each segment and never retries an operation."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
from psycopg.rows import tuple_row

from pgha import nearest
from pgha._core.door import Door
from pgha._core.need import WRITE
from pgha._core.outcome import Facts, Handed
from pgha._core.pipeline import Bounds, Doing
from pgha._core.statement_kind import classify_statement
from pgha._core.statements import Entry
from pgha._node.callbacks import FlightSlot, LaneBounds, SegmentFailure
from pgha._node.evidence import failure_of
from pgha._node.lane import Lane
from pgha._node.receiving import Receiver
from pgha._operation.observer import Observers
from pgha._operation.operation import AttemptState, Operation, OperationCallbacks, Request
from pgha._options import REAL, parse_nodes
from pgha._wire import PGresult
from pgha._wire.compiler import Statement
from pgha._wire.connect import open_pgconn
from pgha._wire.link import NO_EXTRAS, Extras, Link
from pgha._wire.loops import current_loop
from pgha._wire.segment import Piece, PieceKind, Segment, read_answer
from pgha.chaos import Node
from support.common import PATIENCE, eventually

_NEVER = 3600.0
_BOUNDS = LaneBounds(
    Bounds(16, _NEVER, _NEVER, _NEVER, _NEVER, _NEVER, _NEVER, _NEVER), _NEVER, _NEVER, _NEVER
)
MISFIT = object()
"""A parameter of a type that libpq does not accept."""

Query = str | tuple[str, Sequence[object]]


class _Watched(Receiver[Lane]):
    """Also records the facts of a success, which only tests need."""

    def _answered(self, slot: FlightSlot, results: list[PGresult], now: float) -> None:
        if slot.item is not None:
            answer = read_answer(slot.segment, results)
            owner = cast(Witness, self._owner)
            owner.facts[slot.item] = failure_of(slot, answer, synced=not answer.protocol_mismatch).facts
        super()._answered(slot, results, now)


class _WatchedLane(Lane):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._receiver = _Watched(self, self._owner, self._sender.rollback)


class Witness:
    """The owner and the user of a lane: sends segments, and keeps the facts that the lane recorded."""

    def __init__(self) -> None:
        self.loop = current_loop()
        self.door = Door(self._settle)
        self._handed_over: list[Lane] = []
        self.observers = Observers()
        self.facts: dict[Operation[Any], Facts] = {}
        self.lane: Lane
        self.link: Link

    # Methods for the test

    def send(self, *queries: Query, framed: bool = False, undone: bool = False) -> Operation[Any]:
        """Send an operation: a segment of these statements. Statements such as BEGIN are not refused.

        With `undone`, the frame ends with ROLLBACK.
        """
        statements = tuple(_statement(one) for one in queries)
        extras = Extras(framed=True, undone=undone) if framed else NO_EXTRAS
        committing = len(statements) == 1 and statements[0].kind.self_committing
        request = Request(
            statements, WRITE, False, len(statements) > 1, nearest(), tuple_row,
            exclusive=framed or committing, self_committing=committing, extras=extras,
        )  # fmt: skip
        operation: Operation[Any] = Operation(cast(OperationCallbacks, self), request, time.monotonic())
        self.lane.freshen()
        if self.lane.has_capacity(time.monotonic()):
            self.lane.send(operation, time.monotonic())
            self.lane.flush()
        else:
            self.facts[operation] = Facts(handed=Handed.NOTHING)
        return operation

    def send_commit(self) -> Operation[Any]:
        """Send the COMMIT of a frame that another segment began."""
        pgconn = self.link.pgconn
        pgconn.send_query_params(b"COMMIT", None)
        pgconn.pipeline_sync()
        request = Request((), WRITE, False, True, nearest(), tuple_row)
        operation: Operation[Any] = Operation(cast(OperationCallbacks, self), request, time.monotonic())
        operation.attempts.append(AttemptState(self.lane.node, time.monotonic()))
        self.lane.pipeline.sent(operation, Segment([Piece(PieceKind.COMMIT)], framed=True), time.monotonic())
        return operation

    async def told(self, operation: Operation[Any]) -> Facts:
        """Wait until the lane has recorded the facts of an operation, and return them."""
        await eventually(lambda: operation in self.facts, PATIENCE, "the lane has recorded the facts")
        return self.facts[operation]

    @property
    def pid(self) -> int:
        return self.lane.link.pid

    # Callbacks of the lane

    def succeeded(
        self, lane: Lane, operation: Operation[Any], results: Sequence[PGresult], entry: Entry | None
    ) -> None:
        """Do nothing: the facts are recorded already."""

    def segment_failed(self, lane: Lane, operation: Operation[Any], failure: SegmentFailure) -> None:
        self.facts[operation] = failure.facts

    def handed_over(self, lane: Lane) -> None:
        self._handed_over.append(lane)

    def _settle(self) -> bool:
        lanes, self._handed_over = self._handed_over, []
        for lane in lanes:
            lane.flush()
        return bool(self._handed_over)

    def stranded(self, operation: Operation[Any]) -> None: ...
    def capacity_freed(self, lane: Lane) -> None: ...
    def lane_broke(self, lane: Lane, reason: str, *, lost: bool, in_flight: int) -> None: ...
    def terminate(self, lane: Lane) -> None: ...
    def inspect(self, lane: Lane, report: Callable[[Doing], None]) -> None: ...
    def cancel_sent(self) -> None: ...


def _statement(query: Query) -> Statement:
    text, params = query if isinstance(query, tuple) else (query, ())
    encoded = text.encode()
    values = [value if value is MISFIT else str(value).encode() for value in params]
    return Statement(encoded, cast(Any, values), (0,) * len(values), None, classify_statement(encoded))


@asynccontextmanager
async def witnessed(dsn: str) -> AsyncGenerator[Witness]:
    """Yield a witness of a lane with its own connection."""
    witness = Witness()
    (config,) = parse_nodes([dsn])
    pgconn = await open_pgconn(config, PATIENCE)
    link = witness.link = Link(pgconn, None, 1)
    witness.lane = _WatchedLane(link, "n1", "write", witness, _BOUNDS, REAL)
    async with anyio.create_task_group() as tasks:
        opened = anyio.Event()
        tasks.start_soon(witness.lane.run, opened.set)
        await opened.wait()
        try:
            yield witness
        finally:
            tasks.cancel_scope.cancel()


async def applied(node: Node, table: str = "t") -> bool:
    """Wait until all other backends are idle, and return whether the row exists."""
    busy = (
        "SELECT 1 FROM pg_stat_activity WHERE backend_type = 'client backend' AND state <> 'idle'"
        " AND pid <> pg_backend_pid()"
    )

    async def at_rest() -> bool:
        return not await node.execute(busy)

    await eventually(at_rest, what="the server is at rest")
    return bool(await node.execute(f"SELECT 1 FROM {table} WHERE id = 1"))


async def waits(node: Node, event: str) -> int:
    """Wait until a backend waits for `event`; return its process id."""
    found: list[int] = []

    async def look() -> bool:
        rows = await node.execute(
            "SELECT pid FROM pg_stat_activity WHERE wait_event = %s AND backend_type = 'client backend'",
            [event],
        )
        found[:] = [row[0] for row in rows]
        return bool(found)

    await eventually(look, what=f"a backend waits for {event}")
    return found[0]


async def terminate(node: Node, pid: int) -> None:
    await node.execute("SELECT pg_terminate_backend(%s)", [pid])
