"""The workload of the demo: tasks that read and write through pgha, and the record of the results.

The client makes the key of each write, so that the check can find the write's outcome afterwards. The same
key is the idempotency key. The row of a write holds the port of the server that applied it (a default of the
column, since pgha sends the same SQL to whichever node), and counts how often that server did. So a
repetition is visible, and does not stop the replication, as two masters inserting the same primary key would.
"""

from __future__ import annotations

import random
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import anyio
import psycopg
from anyio.abc import TaskGroup

import pgha
from pgha.chaos import Masters, history
from pgha.chaos.checkers import Row

OperationKind: TypeAlias = Literal["read", "write"]
_Once: TypeAlias = Callable[[], Coroutine[Any, Any, pgha.Result[Any]]]

READERS, WRITERS = 12, 6
_PAUSE = 0.005
"""Seconds between two operations of a task, since the servers share the machine with their client."""
_LONG = 0.25
"""Seconds for which a task waits for an operation before it begins another one in parallel."""
_ITEMS = 1000
_SAMPLES = 5
_RECENT = 256

TABLES = """
CREATE TABLE pgha_demo_item (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE pgha_demo_write (
    key uuid, node int DEFAULT inet_server_port(), times int NOT NULL DEFAULT 1, PRIMARY KEY (key, node)
);
"""
_FILL = "INSERT INTO pgha_demo_item SELECT i, 'item ' || i FROM generate_series(0, %s - 1) AS i"
_READ = "SELECT id, name FROM pgha_demo_item WHERE id = %s"
_WRITE = (
    "INSERT INTO pgha_demo_write (key) VALUES (%s)"
    " ON CONFLICT (key, node) DO UPDATE SET times = pgha_demo_write.times + 1"
)


@dataclass(frozen=True, slots=True)
class Second:
    """The answers since the previous `Second`."""

    at: float
    """Seconds since the workload began."""
    rate: float
    """Operations per second."""
    p50: float
    """Median latency in seconds, from the call to its answer; 0 without answers."""
    p99: float


@dataclass(frozen=True, slots=True)
class Move:
    """The moment when the writes moved from one node to another."""

    at: float
    """Seconds since the workload began."""
    node: str
    """The node that takes the writes now."""
    gap: float
    """Seconds since the previous acknowledged write."""


@dataclass(slots=True)
class Recorder:
    """Records the results that callers saw. Times are `time.monotonic` seconds, as in pgha's events."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    writes: history.Recorder = field(default_factory=history.Recorder)
    operations: dict[OperationKind, int] = field(default_factory=lambda: {"read": 0, "write": 0})
    gaps: dict[OperationKind | None, float] = field(
        default_factory=lambda: {None: 0.0, "read": 0.0, "write": 0.0}
    )
    """The longest time between two successes of any operation (None), of reads, and of writes."""
    errors: int = 0
    in_doubt: int = 0
    samples: list[str] = field(default_factory=list)
    writer: str | None = None
    """The node that took the last write."""
    moves: list[Move] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)
    """The number of operations that each node answered since the workload began."""
    started: float = 0.0
    _moved: float = 0.0
    """The time when the writes last moved."""
    _last: dict[OperationKind | None, float] = field(default_factory=dict)
    _latencies: list[float] = field(default_factory=list)
    _recent: dict[str, deque[float]] = field(default_factory=dict)
    _looked: float = 0.0

    def begin(self) -> None:
        """Note that the workload begins now."""
        self.started = self._looked = self.clock()
        self._last = dict.fromkeys(self.gaps, self.started)

    @property
    def elapsed(self) -> float:
        return self.clock() - self.started

    @property
    def over(self) -> bool:
        """Whether the time is over, so that no new operation may begin."""
        return self.elapsed >= self.seconds

    def stop(self) -> None:
        """Let no new operation begin from now on."""
        self.seconds = min(self.seconds, self.elapsed)

    def succeeded(self, kind: OperationKind, result: pgha.Result[Any]) -> None:
        self.operations[kind] += 1
        self.answered[result.node] += 1
        self._latencies.append(result.latency)
        self._recent.setdefault(result.node, deque(maxlen=_RECENT)).append(result.latency)
        # After the end no operations are submitted, so silence is not a gap.
        now = min(self.clock(), self.started + self.seconds)
        if kind == "write":
            self._written(result.node, now, now - result.latency)
        which: OperationKind | None
        for which in (None, kind):
            self.gaps[which] = max(self.gaps[which], now - self._last[which])
            self._last[which] = now

    def _written(self, node: str, now: float, begun: float) -> None:
        if self.writer == node or begun < self._moved:
            # A write that began before the writes moved, and whose outcome only its own node could tell.
            return
        if self.writer is not None:
            self.moves.append(Move(now - self.started, node, now - self._last["write"]))
            self._moved = now
        self.writer = node

    def failed(self, kind: OperationKind, error: Exception) -> None:
        self.operations[kind] += 1
        self.complain(
            f"{kind}: {type(error).__name__}: {error}", in_doubt=isinstance(error, pgha.CommitInDoubt)
        )

    def complain(self, message: str, *, in_doubt: bool = False) -> None:
        """Count an error that a user of pgha must not see, and keep the first few messages."""
        if in_doubt:
            self.in_doubt += 1
        else:
            self.errors += 1
        if len(self.samples) < _SAMPLES:
            self.samples.append(f"at {self.elapsed:.2f} s, {message}")

    def second(self) -> Second:
        """Return the rate and the latencies of the answers since the last call."""
        now = self.clock()
        ordered, self._latencies = sorted(self._latencies), []
        spent, self._looked = now - self._looked, now
        p50, p99 = (ordered[int(len(ordered) * part)] if ordered else 0.0 for part in (0.5, 0.99))
        return Second(now - self.started, len(ordered) / spent if spent else 0.0, p50, p99)

    def medians(self) -> dict[str, float]:
        """Return each node's median latency in seconds, for its answers since the last call.

        Of many answers only the last few hundred count. A node without answers is left out.
        """
        recent, self._recent = self._recent, {}
        return {node: sorted(found)[len(found) // 2] for node, found in recent.items()}


async def fill(cluster: pgha.Cluster, nodes: Masters) -> None:
    """Install the ledger, write the rows to be read, and wait until every node has them."""
    await cluster.ledger.install()
    await nodes.create("SELECT 1")  # updates the replication, so that it includes the ledger's table
    await cluster.execute(_FILL, [_ITEMS])
    await nodes.wait_replicated()


async def work(cluster: pgha.Cluster, recorder: Recorder) -> None:
    """Read and write until the recorder's time is over, and await the end of every operation."""
    async with anyio.create_task_group() as tasks:
        for number in range(READERS):
            tasks.start_soon(_repeat, tasks, recorder, "read", _Reader(cluster, number))
        for _ in range(WRITERS):
            tasks.start_soon(_repeat, tasks, recorder, "write", _Writer(cluster, recorder))


async def _repeat(tasks: TaskGroup, recorder: Recorder, kind: OperationKind, once: _Once) -> None:
    """Run one operation after the other, but do not wait for a slow one before beginning the next.

    A write may have to wait for the node that alone knows its outcome. Other writes shall not wait for that
    write.
    """
    while not recorder.over:
        done = anyio.Event()
        tasks.start_soon(_perform, recorder, kind, once, done)
        with anyio.move_on_after(_LONG):
            await done.wait()
        await anyio.sleep(_PAUSE)


async def _perform(recorder: Recorder, kind: OperationKind, once: _Once, done: anyio.Event) -> None:
    try:
        recorder.succeeded(kind, await once())
    except Exception as error:  # noqa: BLE001 - every error that reaches a caller is counted
        recorder.failed(kind, error)
    finally:
        done.set()


class _Reader:
    """Reads random items, and checks the answers."""

    def __init__(self, cluster: pgha.Cluster, seed: int) -> None:
        self._cluster = cluster
        self._random = random.Random(seed)

    async def __call__(self) -> pgha.Result[Any]:
        number = self._random.randrange(_ITEMS)
        result = await self._cluster.fetch(_READ, [number])
        if list(result) != [(number, f"item {number}")]:
            raise AssertionError(f"the read of item {number} returned {list(result)}")
        return result


class _Writer:
    """Writes new keys, and records the outcome of each."""

    def __init__(self, cluster: pgha.Cluster, recorder: Recorder) -> None:
        self._cluster = cluster
        self._recorder = recorder

    async def __call__(self) -> pgha.Result[Any]:
        key = pgha.new_idempotency_key()
        write = self._recorder.writes.begin("write", str(key), keyed=True)
        operation = self._cluster.submit(_WRITE, [key], idempotency_key=key)
        try:
            result = await operation
        except psycopg.Error as error:
            write.failed(error, pgha.error_info(error).outcome, record=operation.record)
            raise
        write.acknowledged(node=result.node, record=operation.record)
        return result


async def applied(nodes: Masters) -> dict[str, list[Row]]:
    """Wait until replication has caught up, and return the rows of every node.

    There is one row for each time that a key was applied.
    """
    await nodes.wait_replicated(60.0)
    names = {node.port: node.name for node in nodes}
    found = await nodes.execute("SELECT key::text, node, times FROM pgha_demo_write", timeout=60.0)
    return {
        name: [row for key, port, times in rows for row in [(key, names[port])] * times]
        for name, rows in found.items()
    }
