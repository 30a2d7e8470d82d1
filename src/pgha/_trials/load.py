"""The load of a trial: readers, writers, batches, and callers that cancel their operations.

Every operation carries a key of its own. Its outcome is recorded as its caller was told, together with pgha's
own record of the attempts. Afterwards the table shows what the servers applied.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine, Mapping
from random import Random
from typing import Any
from uuid import UUID

import anyio
import psycopg

import pgha
from pgha.chaos import Workload
from pgha.chaos.history import Ending, Open, Recorder

TABLE = """
CREATE TABLE pgha_trial (
    key text NOT NULL, writer int NOT NULL, number int NOT NULL,
    origin int NOT NULL DEFAULT inet_server_port()
);
CREATE INDEX ON pgha_trial (writer, origin, number)
"""
"""The table has no unique key, so that a write that is applied twice is visible instead of being rejected."""
WRITE = "INSERT INTO pgha_trial (key, writer, number) VALUES (%s, %s, %s)"
READ = (
    "SELECT %s::text, coalesce(max(number), 0) FROM pgha_trial"
    " WHERE writer = %s AND origin = inet_server_port()"
)
ROWS = "SELECT key, origin FROM pgha_trial"


class Load:
    """Runs a workload on a cluster until `stop` is called, and records every operation."""

    def __init__(self, cluster: pgha.Cluster, recorder: Recorder, workload: Workload, seed: int) -> None:
        self.cluster = cluster
        self.recorder = recorder
        self.answers = 0
        self.answered: dict[str, int] = {}
        """The number of acknowledged operations by node."""
        self.writer: str | None = None
        """The node that answered the last write."""
        self.reader: str | None = None
        self.doubts: list[tuple[Open, pgha.CommitInDoubt]] = []
        """Keyed writes in doubt, whose outcomes `settle` asks for."""
        self._left: dict[UUID, Open] = {}
        """Keyed writes whose callers left, by idempotency key."""
        self._told: dict[UUID, set[str]] = {}
        """The outcomes that events reported of writes whose callers left, by idempotency key."""
        self._workload = workload
        self._random = Random(seed)
        self._stopping = False
        self._news = anyio.Event()

    async def run(self) -> None:
        """Run the workload until `stop` was called and every operation has ended."""
        workload = self._workload
        async with anyio.create_task_group() as tasks:
            for number in range(workload.readers):
                tasks.start_soon(self._repeat, number, self._read)
            for number in range(workload.writers):
                tasks.start_soon(self._repeat, number, self._write)
            for number in range(workload.batchers):
                tasks.start_soon(self._repeat, 1000 + number, self._batch)
            for number in range(workload.cancellers):
                tasks.start_soon(self._repeat, 2000 + number, self._change_mind)

    def stop(self) -> None:
        """Let no further operation begin."""
        self._stopping = True

    async def more(self, count: int = 50, *, node: str | None = None) -> None:
        """Wait for `count` more acknowledged operations (of `node`, if given)."""
        before = self._count(node)
        while self._count(node) < before + count:
            await self._news.wait()

    def _count(self, node: str | None) -> int:
        return self.answers if node is None else self.answered.get(node, 0)

    async def _repeat(self, writer: int, once: Callable[[int, int], Coroutine[Any, Any, None]]) -> None:
        pace = self._workload.pace
        for number in itertools.count(1):
            if self._stopping:
                return
            await once(writer, number)
            if pace:
                await anyio.sleep(pace * (0.5 + self._random.random()))

    async def _read(self, reader: int, number: int) -> None:
        asked = self._random.randrange(self._workload.writers or 1)
        entry = self.recorder.begin("read", f"r{reader}-{number}", writer=asked, timeout=self._timeout)
        operation = self.cluster.submit(READ, [entry.key, asked], read=True, timeout=self._timeout)
        try:
            result = await operation
        except psycopg.Error as error:
            note_failure(entry, error, operation)
            return
        self.reader = result.node
        answer, seen = _echo(result)
        entry.acknowledged(node=result.node, record=operation.record, answer=answer, number=seen)
        self._tell(result.node)

    async def _write(self, writer: int, number: int) -> None:
        repeatable = self._random.random() < self._workload.idempotent
        keyed = not repeatable and self._keyed()
        entry = self.recorder.begin(
            "write",
            f"w{writer}-{number}",
            writer=writer,
            number=number,
            repeatable=repeatable,
            keyed=keyed,
            timeout=self._timeout,
        )
        operation = self.cluster.submit(
            WRITE,
            [entry.key, writer, number],
            idempotent=repeatable,
            idempotency_key=pgha.new_idempotency_key() if keyed else None,
            timeout=self._timeout,
        )
        try:
            result = await operation
        except psycopg.Error as error:
            note_failure(entry, error, operation)
            self._doubted(error, entry)
            return
        self.writer = result.node
        record = operation.record
        entry.acknowledged(node=applied_by(result, record), record=record)
        self._tell(result.node)

    async def _batch(self, writer: int, number: int) -> None:
        """Write a batch, of which all rows or none must be applied. Its keys differ only after the dot."""
        keys = [f"b{writer}-{number}.{part}" for part in range(self._workload.batch)]
        keyed = self._keyed()
        entries = [self.recorder.begin("write", key, keyed=keyed, timeout=self._timeout) for key in keys]
        try:
            results = await self.cluster.execute_batch(
                [(WRITE, [key, writer, number]) for key in keys],
                idempotency_key=pgha.new_idempotency_key() if keyed else None,
                timeout=self._timeout,
            )
        except psycopg.Error as error:
            for entry in entries:
                note_failure(entry, error)
            self._doubted(error, *entries)
            return
        for entry, result in zip(entries, results, strict=True):
            entry.acknowledged(node=result.node)
        self._tell(results[0].node)

    async def _change_mind(self, writer: int, number: int) -> None:
        """Leave the operation's scope at a random moment.

        The write may or may not have been applied, but must not have been applied twice.
        """
        patience = self._random.choice([0.0, 0.0005, 0.002, 0.01, 0.05])
        keyed = self._keyed()
        key = pgha.new_idempotency_key() if keyed else None
        entry = self.recorder.begin("write", f"c{writer}-{number}", keyed=keyed, timeout=self._timeout)
        with anyio.CancelScope(deadline=anyio.current_time() + patience) as scope:
            try:
                result = await self.cluster.execute(
                    WRITE, [entry.key, writer, number], idempotency_key=key, timeout=self._timeout
                )
                entry.acknowledged(node=result.node)
            except psycopg.Error as error:
                note_failure(entry, error)
                self._doubted(error, entry)
        if scope.cancelled_caught:
            entry.doubt("left by its caller")
            if key is not None:
                self._left[key] = entry

    def _keyed(self) -> bool:
        share = self._workload.keyed
        return share > 0 and self._random.random() < share

    def _doubted(self, error: psycopg.Error, *entries: Open) -> None:
        if isinstance(error, pgha.CommitInDoubt) and error.idempotency_key is not None:
            self.doubts += [(entry, error) for entry in entries if entry.entry.ending == "in doubt"]

    def told(self, event: pgha.OperationResolved) -> None:
        """Record the outcome that an event reports of a write whose caller left."""
        if event.idempotency_key is not None and event.outcome != "in doubt":
            self._told.setdefault(event.idempotency_key, set()).add(event.outcome)

    async def settle(self, timeout: float) -> None:
        """Resolve each keyed write in doubt, within `timeout` seconds for all of them.

        Also record the outcomes that events reported of writes whose callers left.
        """
        end = anyio.current_time() + timeout
        for entry, error in self.doubts:
            entry.resolved(await error.resolve(max(0.1, end - anyio.current_time())))
        for key, entry in self._left.items():
            if outcomes := self._told.get(key):
                entry.resolved(" and ".join(sorted(outcomes)))

    @property
    def _timeout(self) -> float | None:
        return self._workload.timeout

    def _tell(self, node: str) -> None:
        self.answers += 1
        self.answered[node] = self.answered.get(node, 0) + 1
        news, self._news = self._news, anyio.Event()
        news.set()


def _echo(result: pgha.Result[Any]) -> tuple[str, int | None]:
    """Return the nonce and the number in a read's answer.

    An answer that belongs to another operation may have any shape, and is returned as text.
    """
    rows = list(result)
    if len(rows) == 1 and [type(value) for value in rows[0]] == [str, int]:
        return str(rows[0][0]), int(rows[0][1])
    return repr(rows)[:80], None


def applied_by(result: pgha.Result[Any], record: pgha.Record) -> str:
    """Return the node that applied a write.

    If the ledger on another node answered, that is the node on which the write was in doubt.
    """
    if result.replayed:
        return next((one.node for one in record.attempts if one.outcome == "in doubt"), result.node)
    return result.node


def note_failure(entry: Open, error: psycopg.Error, operation: pgha.Operation[Any] | None = None) -> Ending:
    """Record the outcome that the caller was told, and return it."""
    record = operation.record if operation is not None else None
    entry.failed(error, pgha.error_info(error).outcome, record=record)
    return entry.entry.ending or "lost"


def by_origin(
    found: Mapping[str, list[tuple[Any, ...]]], ports: Mapping[int, str]
) -> dict[str, list[tuple[str, str]]]:
    """Return the rows of every node as pairs: the key, and the name of the node that applied the write."""
    return {name: [(key, ports[origin]) for key, origin in rows] for name, rows in found.items()}
