"""The cut sweep: three operations through a proxy that cuts connections at every possible byte.

Each connection is cut in each direction, by end of file, by reset and by stall. A first run without a cut
counts the bytes of each connection, in the order of opening: the monitor's, one for reads, one for writes.
Then the same script is run once for each of those bytes and each way of cutting. Many runs go on at a time,
each with a proxy and a cluster of its own, on one server. Their records and the rows at the end are checked
together.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, get_args

import anyio
import psycopg

import pgha
from pgha import chaos
from pgha._trials.load import ROWS, TABLE, WRITE, by_origin, note_failure
from pgha._trials.rules import shown, torn
from pgha._trials.trial import violation
from pgha.chaos import Cut, CutHow, Direction
from pgha.chaos.checkers import Promise, Violation, check
from pgha.chaos.history import History, Recorder

_APPLICATION = "pgha_sweep"
_TIMEOUT = 10.0
"""Seconds for one operation, so that a failure ends. pgha has to detect a stall in less time."""
_CONNECT = 1.0
_TERMINATE = 5
"""The bytes of the message Terminate, which ends a client's connection."""
_OPTIONS: Mapping[str, Any] = {
    "read_connections": 1,
    "connect_timeout": _CONNECT,
    "ping_interval": 30.0,  # only the first ping, and pings on suspicion: the bytes are always the same
    "application_name": _APPLICATION,
}
HOWS: Sequence[CutHow] = get_args(CutHow)
Lengths = Mapping[tuple[int, Direction], int]
"""The number of bytes by connection and direction."""


@dataclass(frozen=True, slots=True)
class Swept:
    """The result of a sweep."""

    lengths: Lengths
    cuts: Counter[CutHow]
    """The number of cuts of each kind."""
    history: History
    violations: tuple[Violation, ...]
    seconds: float

    def line(self) -> str:
        """Return the result as a line of text."""
        endings = Counter(entry.ending or "never ended" for entry in self.history)
        ways = ", ".join(f"{count} {how}" for how, count in sorted(self.cuts.items()))
        ends = ", ".join(f"{count} {ending}" for ending, count in sorted(endings.items()))
        return (
            f"{self.cuts.total()} cuts ({ways}) in {self.seconds:.0f} s: {len(self.history)} operations"
            f" ({ends}), {len(self.violations)} violations"
        )


def all_cuts(lengths: Lengths, hows: Iterable[CutHow] = HOWS) -> Iterator[Cut]:
    """Yield a cut for every byte offset of every connection and direction, first and last included."""
    for how in hows:
        for (connection, direction), length in sorted(lengths.items()):
            for after in range(length + 1):
                yield Cut(after, how, direction, connection)


async def sweep(
    node: chaos.Node, hows: Iterable[CutHow] = HOWS, *, width: int = 32, keep: Callable[[Cut], bool] = bool
) -> Swept:
    """Run all cuts for which `keep` returns true, `width` at a time, on a running server."""
    began = time.monotonic()
    await node.execute(TABLE)
    recorder = Recorder()
    lengths = await _measure(node)
    waiting = iter([cut for cut in all_cuts(lengths, hows) if keep(cut)])
    cuts: Counter[CutHow] = Counter()

    async def work() -> None:
        for cut in waiting:
            cuts[cut.how] += 1
            await _tried(node, cut, recorder)

    async with (
        chaos.nothing_left(node, application_name=_APPLICATION) as left,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(width):
            tasks.start_soon(work)
    rows = by_origin({node.name: await node.execute(ROWS, timeout=60)}, {node.port: node.name})
    history = recorder.history()
    found = [
        *check(history, rows, Promise(max_attempts=5)),
        *shown(history),
        *torn(history, rows),
        *_unanswered(history),
        *left,
    ]
    return Swept(lengths, cuts, history, tuple(found), time.monotonic() - began)


async def _measure(node: chaos.Node) -> Lengths:
    """Run the script without a cut, and return the number of bytes."""
    recorder = Recorder()
    async with _opened(node, None) as (cluster, proxy):
        await _script(cluster, recorder, "measure")
        lengths: dict[tuple[int, Direction], int] = {}
        for one in proxy.connections:
            lengths[one.number, "up"] = one.up + _TERMINATE
            lengths[one.number, "down"] = one.down
    await node.execute("TRUNCATE pgha_trial")
    return lengths


@asynccontextmanager
async def _opened(node: chaos.Node, cut: Cut | None) -> AsyncGenerator[tuple[pgha.Cluster, chaos.Proxy]]:
    async with chaos.Proxy(node) as proxy:
        proxy.cut(cut)
        async with pgha.open_cluster(pgha.Node(proxy.dsn, node.name), **_OPTIONS) as cluster:
            yield cluster, proxy


def named(cut: Cut) -> str:
    """Return the prefix of the keys of a cut's operations."""
    return f"{cut.how}-{cut.direction}-{cut.connection}-{cut.after}"


async def _tried(node: chaos.Node, cut: Cut, recorder: Recorder) -> None:
    async with _opened(node, cut) as (cluster, _):
        await _script(cluster, recorder, named(cut))


async def _script(cluster: pgha.Cluster, recorder: Recorder, name: str) -> None:
    """Do a read, a write and a batch, one after the other."""
    entry = recorder.begin("read", f"{name}-read", timeout=_TIMEOUT)
    try:
        result = await cluster.fetch("SELECT %s::text", [entry.key], timeout=_TIMEOUT)
    except psycopg.Error as error:
        note_failure(entry, error)
    else:
        entry.acknowledged(node=result.node, answer=result.value())
    entry = recorder.begin("write", f"{name}-write", timeout=_TIMEOUT)
    operation = cluster.submit(WRITE, [entry.key, 1, 1], timeout=_TIMEOUT)
    try:
        result = await operation
    except psycopg.Error as error:
        note_failure(entry, error, operation)
    else:
        entry.acknowledged(node=result.node, record=operation.record)
    entries = [recorder.begin("write", f"{name}-batch.{part}", timeout=_TIMEOUT) for part in range(2)]
    try:
        results = await cluster.execute_batch([(WRITE, [one.key, 1, 1]) for one in entries], timeout=_TIMEOUT)
    except psycopg.Error as error:
        for one in entries:
            note_failure(one, error)
    else:
        for one, result in zip(entries, results, strict=True):
            one.acknowledged(node=result.node)


def _unanswered(history: History) -> list[Violation]:
    """Return a violation for each read without an answer: pgha must retry it on another connection."""
    return [
        violation("shown", f"read {entry.key} ended with {entry.error}", entry.key)
        for entry in history
        if entry.kind == "read" and entry.ending != "acknowledged"
    ]
