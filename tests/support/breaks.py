"""Ways to break each rule of the design on purpose, for the tests that show that the suite notices.

Each row of `BREAKS` names a rule of the design (section 4), the function that breaks it, the scenario to
play, and the rules of the checkers that detect the break.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import anyio
import pytest

from pgha._cluster.cluster import Cluster
from pgha._core import next_step, statement_kind
from pgha._core.ledger_rules import LIFE
from pgha._core.next_step import NextStep
from pgha._core.outcome import Facts, Outcome
from pgha._core.outcome import outcome as outcome_of
from pgha._core.pipeline import Act, Pipeline
from pgha._core.statement_kind import Handling
from pgha._dispatch import resolution
from pgha._dispatch.cancellation import Cancellation
from pgha._dispatch.timers import Timers
from pgha._node.monitor import Monitor
from pgha._node.receiving import Receiver
from pgha._operation.key import Keyed, new_idempotency_key
from pgha._operation.operation import Operation, Request
from pgha._wire import compiler, link
from pgha._wire.connect import ConnectFailed
from pgha._wire.link import Link

Patch = pytest.MonkeyPatch


def retry_without_proof(patch: Patch) -> None:
    patch.setattr(next_step, "_after_loss", lambda case, proof: NextStep.AGAIN_ELSEWHERE)


def forget_the_key(patch: Patch) -> None:
    """Let each attempt insert another key, so that no attempt finds the key of an earlier one."""
    kept = Keyed.insert
    patch.setattr(
        Keyed,
        "insert",
        lambda keyed, system, until: kept(replace(keyed, key=new_idempotency_key()), system, until),
    )


def take_any_master_for_another(patch: Patch) -> None:
    """Let a keyed write in doubt be retried on a node that does not know its key."""
    patch.setattr(Operation, "exactly_once", property(lambda operation: False))


def guard_nothing(patch: Patch) -> None:
    """Let an attempt begin however late its backend thaws."""
    kept = Keyed.insert
    patch.setattr(Keyed, "insert", lambda keyed, system, until: kept(keyed, system, until + LIFE))


def look_without_deciding(patch: Patch) -> None:
    """Report what the ledger contains, without preventing that the write is applied later.

    A backend that does not answer is terminated after a while, which would prevent that too.
    """
    patch.setattr(Monitor, "terminate", lambda monitor, pid: None)
    kept = resolution._question

    def question(resolution: resolution.Resolution, now: float) -> Request:
        return kept(replace(resolution, look=True), now)

    patch.setattr(resolution, "_question", question)


def acknowledge_at_command_complete(patch: Patch) -> None:
    def outcome(facts: Facts) -> Outcome:
        return Outcome.APPLIED if facts.completed >= facts.statements else outcome_of(facts)

    patch.setattr(next_step, "outcome", outcome)


def believe_a_broken_wait(patch: Patch) -> None:
    """Do not recognize the warning that a commit may not be on its standby."""
    patch.setattr(link, "_REPLICATION_WAIT", b"another function")


def swap_answers(patch: Patch) -> None:
    kept = Receiver._handle

    def handle(receiver: Receiver[Any], answers: Sequence[Any], now: float) -> None:
        kept(receiver, answers[::-1], now)

    patch.setattr(Receiver, "_handle", handle)


def cancel_without_a_gate(patch: Patch) -> None:
    def cancel(pipeline: Pipeline[Any, Any], now: float) -> Act:
        return Act.CANCEL

    patch.setattr(Pipeline, "_cancel", cancel)


def forget_what_was_cancelled(patch: Patch) -> None:
    patch.setattr(Cancellation, "_give_up_sent", lambda cancellation, operation, why: None)


_left: list[Link] = []
_finish = Link.finish


def leave_connections_open(patch: Patch) -> None:
    patch.setattr(Link, "finish", _left.append)


def close_what_was_left() -> None:
    """Close the connections that `leave_connections_open` kept open."""
    while _left:
        _finish(_left.pop())


def do_not_obey_scopes(patch: Patch) -> None:
    kept = Cluster.fetch

    async def fetch(*args: Any, **options: Any) -> Any:
        with anyio.CancelScope(shield=True):
            return await kept(*args, **options)

    patch.setattr(Cluster, "fetch", fetch)


def forget_deadlines(patch: Patch) -> None:
    kept = Timers.at
    patch.setattr(Timers, "at", lambda times, when, call: kept(times, when + 60, call))


def tell_the_conninfo(patch: Patch) -> None:
    from pgha._options import NodeConfig

    kept = ConnectFailed.__init__
    told: list[str] = []
    conninfo = NodeConfig.conninfo

    def remember(config: NodeConfig, **more: str | int) -> str:
        told.append(conninfo(config, **more))
        return told[-1]

    def init(error: ConnectFailed, reason: str, *, rejected: bool = False) -> None:
        kept(error, f"{reason} {told[-1:]}", rejected=rejected)

    patch.setattr(NodeConfig, "conninfo", remember)
    patch.setattr(ConnectFailed, "__init__", init)


def let_any_statement_pass(patch: Patch) -> None:
    def classify_statement(query: bytes) -> statement_kind.StatementKind:
        return replace(statement_kind.classify_statement(query), handling=Handling.PLAIN)

    patch.setattr(compiler, "classify_statement", classify_statement)


@dataclass(frozen=True)
class Break:
    rule: int
    how: Callable[[Patch], None]
    scenario: str
    caught_by: set[str]
    """The rules that must detect the break; others may detect it too."""


BREAKS = [
    Break(1, retry_without_proof, "drop-down", {"unproven_retry"}),
    Break(1, forget_the_key, "keyed-lost-acknowledgement", {"doubled"}),
    Break(1, take_any_master_for_another, "keyed-masters", {"strayed"}),
    Break(1, guard_nothing, "keyed-left", {"wrongly_resolved"}),
    Break(1, look_without_deciding, "keyed-resolved", {"wrongly_resolved"}),
    Break(2, acknowledge_at_command_complete, "terminate-in-a-deferred-trigger", {"lost"}),
    Break(2, believe_a_broken_wait, "cancel-a-synchronous-wait", {"verdict"}),
    Break(3, swap_answers, "kill-the-node", {"crossed"}),
    Break(4, cancel_without_a_gate, "late-cancel", {"neighbour"}),
    Break(5, forget_what_was_cancelled, "no-cancel", {"prompt"}),
    Break(5, leave_connections_open, "kill-the-node", {"leftovers"}),
    Break(6, do_not_obey_scopes, "left-scopes", {"prompt"}),
    Break(7, forget_deadlines, "deadlines", {"late"}),
    Break(8, tell_the_conninfo, "passwords", {"betrayed"}),
    Break(9, let_any_statement_pass, "unruly-sql", {"refused"}),
]
