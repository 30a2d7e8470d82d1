"""Proof that a commit has reached its synchronous standby although pgha itself broke off the wait for that.

A cancel that comes a moment late ends the wait of the next commit on the connection. That commit is done, and
only its replication is open. The write-ahead log is replicated in order: once a later commit of the same
server has waited for the standby, the earlier one is there, too. So pgha makes such a commit, on the same
connection, which no other server can have taken over, and then acknowledges the first.

A wait that somebody else broke off is not mended: an administrator may have had reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pgha._core.need import WRITE
from pgha._core.statement_kind import classify_statement
from pgha._node.callbacks import SegmentFailure
from pgha._node.lane import Lane
from pgha._node.node import ManagedNode
from pgha._operation.operation import Operation, OperationCallbacks, Request, Stage
from pgha._types import nearest
from pgha._wire import PGresult
from pgha._wire.compiler import Statement

_MOST = 5
"""Attempts, each of which pgha may break off in turn."""
_QUERY = (
    b"SELECT pg_catalog.set_config('synchronous_commit',"
    b" CASE WHEN pg_catalog.current_setting('synchronous_commit') OPERATOR(pg_catalog.=) 'remote_apply'"
    b" THEN 'remote_apply' ELSE 'on' END, true),"
    b" pg_catalog.set_config('client_min_messages', 'warning', true),"
    b" pg_catalog.pg_logical_emit_message(true, 'pgha', '')"
)
"""A commit that writes to the log, and nothing else; it waits for the standby whatever the session says."""
COMMIT = Statement(_QUERY, None, (), None, classify_statement(_QUERY))


class ProofCallbacks(Protocol):
    """The owner of the operations."""

    def delivered(self, lane: Lane, operation: Operation[Any], results: Sequence[PGresult]) -> None:
        """Take the results of an operation that succeeded in spite of a failure."""
        ...

    def unproven(self, lane: Lane, operation: Operation[Any], failure: SegmentFailure) -> None:
        """Take the failure of an operation that no later commit has proven."""
        ...


@dataclass(slots=True, eq=False)
class _Proof:
    operation: Operation[Any]
    failure: SegmentFailure
    attempts: int = 0


class Proofs:
    """Proves commits by later ones; see the head of this file."""

    def __init__(
        self, runner: OperationCallbacks, callbacks: ProofCallbacks, nodes: Mapping[str, ManagedNode],
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._runner = runner
        self._callbacks = callbacks
        self._nodes = nodes
        self._clock = clock
        self.waiting: dict[Lane, list[_Proof]] = {}
        """The proofs that wait until their lane takes something."""

    def begin(self, lane: Lane, operation: Operation[Any], failure: SegmentFailure) -> None:
        """Prove that a write is replicated which is committed for certain, and deliver its results."""
        operation.stage = Stage.RESOLVING
        operation.place = None
        self._wait(lane, _Proof(operation, failure))

    def _wait(self, lane: Lane, proof: _Proof) -> None:
        self.waiting.setdefault(lane, []).append(proof)
        self.capacity_freed(lane)

    def capacity_freed(self, lane: Lane) -> None:
        """Send the commits that wait for this lane, or give them up."""
        while proofs := self.waiting.get(lane):
            now = self._clock()
            if not self._trusted(lane):
                for proof in self.waiting.pop(lane):
                    self._give_up(lane, proof)
            elif lane.has_capacity(now) and self._nodes[lane.node].takes("write"):
                self._send(lane, proofs.pop(), now)
            else:
                return
        self.waiting.pop(lane, None)

    def _trusted(self, lane: Lane) -> bool:
        """Return whether a commit on this lane proves something.

        Without the same connection, another server may have taken the node's place. And a primary of an old
        timeline still commits, to no avail.
        """
        node = self._nodes.get(lane.node)
        return lane.usable and node is not None and node.health.writable

    def _send(self, lane: Lane, proof: _Proof, now: float) -> None:
        proof.attempts += 1
        request = Request((COMMIT,), WRITE, False, False, nearest(), tuple, raw=True)
        commit: Operation[Any] = Operation(self._runner, request, now)
        commit.counted = False
        commit.when_done(lambda done: self._done(lane, proof, done))
        lane.send(commit, now)

    def _done(self, lane: Lane, proof: _Proof, commit: Operation[Any]) -> None:
        commit.retrieve()
        operation = proof.operation
        if operation.stage is not Stage.RESOLVING:
            return  # its caller has left, or its deadline has passed
        if commit.failure is None and self._trusted(lane):
            operation.stage = Stage.NEW
            self._callbacks.delivered(lane, operation, proof.failure.answer.results)
        elif proof.attempts < _MOST and lane.usable:
            self._wait(lane, proof)
        else:
            self._give_up(lane, proof)

    def _give_up(self, lane: Lane, proof: _Proof) -> None:
        operation = proof.operation
        if operation.stage is Stage.RESOLVING:
            operation.stage = Stage.NEW
            self._callbacks.unproven(lane, operation, proof.failure)
