"""The outcome of an attempt (*applied / not applied / in doubt*) from recorded facts, and the next step.

The acknowledgement of a segment is its Sync. The other evidence, in the order in which it is considered:

======================================  ===========  ===================================================
evidence                                outcome      reason
======================================  ===========  ===================================================
nothing was handed to libpq             not applied  the server was never asked
unreplicated                            in doubt     the segment was committed, but the server warned that
                                                     the wait for its synchronous standby was broken off
framed: COMMIT                          applied      the COMMIT's own CommandComplete
framed: ROLLBACK                        not applied  the block had failed
Sync                                    applied      without an error
after a FATAL                           not applied  a genuine FATAL answered an earlier segment of the
                                                     connection: the server never began with this one
commits by itself                       in doubt     CALL, VACUUM: a part may have been committed
without the V field                     in doubt     the error comes from a pooler, or from libpq
40003 and class 08                      in doubt     the meaning of these codes
FATAL after the last CommandComplete    in doubt     the FATAL came before or after the commit
PANIC of a frame's COMMIT               in doubt     the commit record may be on disk
ERROR, or FATAL before the end          not applied  the transaction was aborted
its Sync was never handed               not applied  only a Sync commits (or the COMMIT of a frame)
the connection ended without these      in doubt
======================================  ===========  ===================================================

The next step is decided in this order: a proven result is delivered; an operation that its caller gave up on
fails for good; else each kind of error has its place in `_after_error`. A keyed write whose attempt ended in
doubt is run again in the same lineage, where its insert into the ledger conflicts with the row of the first
attempt, if there is one. If a keyed write may not be run again, the ledger decides
(`pgha._core.ledger_rules`); the write never fails in doubt before the ledger was asked.

Sources: PostgreSQL's protocol documentation (pipelining, error fields), measurements; every line has a test.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from pgha._core.ledger_rules import EXISTS, LATE, UNUSABLE


class Outcome(enum.Enum):
    """The effect of a segment: applied, not applied, or unknown."""

    APPLIED = "applied"
    NOT_APPLIED = "not applied"
    IN_DOUBT = "in doubt"


class Handed(enum.IntEnum):
    """The part of a segment that was handed to libpq."""

    NOTHING = 0
    PART = 1
    """Statements, but not the Sync that would commit them."""
    WHOLE = 2


@dataclass(frozen=True, slots=True)
class ServerError:
    """The error that answered a statement."""

    sqlstate: str
    severity: str
    """ERROR, FATAL or PANIC: the V field, which is never localized; empty if the error has none."""
    reused: bool = False
    """Whether the statement had been prepared by an earlier segment."""

    @property
    def genuine(self) -> bool:
        """Whether the error comes from a PostgreSQL server (has a V field), not from a pooler or libpq."""
        return self.severity != ""

    @property
    def fatal(self) -> bool:
        """Whether the error ends the connection."""
        return self.severity in ("FATAL", "PANIC")

    @property
    def broken_connection(self) -> bool:
        """Whether the code (40003 or class 08) itself says that the outcome is unknown."""
        return self.sqlstate == "40003" or self.sqlstate.startswith("08")


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts recorded about one segment on one connection."""

    handed: Handed = Handed.WHOLE
    synced: bool = False
    error: ServerError | None = None
    completed: int = 0
    """The number of CommandCompletes received, those of hidden statements included."""
    statements: int = 1
    """The number of CommandCompletes expected."""
    framed: bool = False
    commit_tag: str | None = None
    """The tag of the COMMIT's CommandComplete, if the segment is framed."""
    self_committing: bool = False
    unreplicated: bool = False
    """Whether the server warned that the commit's wait for a synchronous standby was broken off: the write is
    committed, and is lost if that standby takes over."""
    at_ledger: bool = False
    """Whether the error answered the ledger's statement, which stands before the user's statements."""
    after_fatal: bool = False
    """Whether a genuine FATAL answered an earlier segment, so that the server never began with this one."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A line of the table at the head of this file."""

    evidence: str
    holds: Callable[[Facts], bool]
    proves: Outcome


def _fatal_at_the_end(facts: Facts) -> bool:
    return facts.error is not None and facts.error.fatal and facts.completed >= facts.statements


def _commit_panicked(facts: Facts) -> bool:
    """Return whether the COMMIT caused a PANIC: its record may be on disk, and recovery will find it."""
    panicked = facts.error is not None and facts.error.severity == "PANIC"
    return panicked and facts.framed and facts.completed >= facts.statements - 1


RULES: tuple[Rule, ...] = (
    Rule("nothing was handed to libpq", lambda f: f.handed is Handed.NOTHING, Outcome.NOT_APPLIED),
    Rule("unreplicated", lambda f: f.unreplicated, Outcome.IN_DOUBT),
    Rule("framed: COMMIT", lambda f: f.framed and f.commit_tag == "COMMIT", Outcome.APPLIED),
    Rule(
        "framed: ROLLBACK",
        lambda f: f.framed and f.commit_tag is not None and f.commit_tag != "COMMIT",
        Outcome.NOT_APPLIED,
    ),
    Rule("Sync", lambda f: f.synced and f.error is None and not f.framed, Outcome.APPLIED),
    Rule("after a FATAL", lambda f: f.after_fatal and f.error is None, Outcome.NOT_APPLIED),
    Rule("commits by itself", lambda f: f.self_committing and not f.framed, Outcome.IN_DOUBT),
    Rule("without the V field", lambda f: f.error is not None and not f.error.genuine, Outcome.IN_DOUBT),
    Rule("40003 and class 08", lambda f: f.error is not None and f.error.broken_connection, Outcome.IN_DOUBT),
    Rule("FATAL after the last CommandComplete", _fatal_at_the_end, Outcome.IN_DOUBT),
    Rule("PANIC of a frame's COMMIT", _commit_panicked, Outcome.IN_DOUBT),
    Rule("ERROR, or FATAL before the end", lambda f: f.error is not None, Outcome.NOT_APPLIED),
    Rule(
        "its Sync was never handed",
        lambda f: f.handed is Handed.PART and not f.framed,
        Outcome.NOT_APPLIED,
    ),
)
"""The rules in the order in which they are considered; the first that holds decides."""


def outcome(facts: Facts, rules: Iterable[Rule] = RULES) -> Outcome:
    """Return the outcome of a segment: what the first rule that holds proves, or *in doubt* if none holds."""
    return next((rule.proves for rule in rules if rule.holds(facts)), Outcome.IN_DOUBT)


GaveUp = Literal["cancelled", "timeout"]


@dataclass(frozen=True, slots=True)
class Case:
    """Everything that decides the next step of an operation after an attempt."""

    facts: Facts
    read: bool = False
    idempotent: bool = False
    keyed: bool = False
    """Whether the ledger knows the outcome: each attempt that ended in doubt had inserted the key, all in one
    lineage."""
    auto: bool = False
    """Whether pgha chose the key, not the caller."""
    doubted: bool = False
    """Whether an earlier attempt ended in doubt."""
    gave_up: GaveUp | None = None
    """The reason why the caller does not wait any more: it cancelled, or its deadline passed."""
    ours: bool = False
    """Whether pgha had a cancel in flight on the lane together with the segment."""
    attempts: int = 1
    max_attempts: int = 5
    suspected_crashes: int = 0
    """The number of connections that the operation may have broken, this one included: lost while the
    operation was the head, and without another known cause."""
    max_suspected_crashes: int = 2
    unprepared: bool = False
    """Whether the operation was already run again without prepared statements."""
    budget: bool = True
    """Whether the cluster's retry budget has something left."""

    @property
    def repeatable(self) -> bool:
        """Whether running the operation twice does no harm."""
        return self.read or self.idempotent

    @property
    def asks_ledger(self) -> bool:
        """Whether the ledger is asked before the operation fails in doubt."""
        return self.keyed and not self.repeatable


class NextStep(enum.Enum):
    """The next step of an operation after an attempt."""

    DELIVER = "deliver the result"
    FAIL_SQL = "raise the server's error"
    FAIL_LOST = "raise the loss of the connection: proven not applied, but not to be sent again"
    FAIL_IN_DOUBT = "raise CommitInDoubt"
    FAIL_LEDGER = "raise LedgerError: no ledger is usable"
    FAIL_TIMEOUT = "raise OperationTimeout"
    FAIL_CANCELLED = "raise OperationCancelled"
    AGAIN_ELSEWHERE = "run again on another node if there is one"
    AGAIN_LATER = "run again on the same node after a backoff"
    AGAIN_NOW = "run again on the same node at once (a cancel sent by pgha hit the operation)"
    AGAIN_UNKEYED = "run again on the same node without pgha's own key: there is no ledger"
    RESOLVE = "ask the ledger whether the write was applied, or have the ledger decide"
    AGAIN_UNPREPARED = "run again on the same node without prepared statements"


FAILS = frozenset({NextStep.FAIL_SQL, NextStep.FAIL_LOST, NextStep.FAIL_IN_DOUBT, NextStep.FAIL_LEDGER})
ELSEWHERE = frozenset({"25006", "57P03", "57P01", "57P05"})
"""Errors after which the operation is not applied, and may succeed on another node: read-only, starting up,
shut down, idle session timeout."""
LATER = frozenset({"40001", "40P01"})
"""Serialization failure and deadlock: the same operation may succeed when run again."""
STALE_PLAN = frozenset({"0A000", "26000"})
"""Errors of a reused prepared statement after DDL."""
QUERY_CANCELED = "57014"


def decide(case: Case) -> tuple[Outcome, NextStep]:
    """Return the outcome of an attempt and the next step."""
    proof = outcome(case.facts)
    if proof is Outcome.APPLIED:
        return proof, NextStep.DELIVER
    step = _at_ledger(case) if case.facts.at_ledger and proof is Outcome.NOT_APPLIED else None
    if step is None:
        if case.gave_up is not None:
            return proof, _gave_up(case, proof)
        error = case.facts.error
        genuine = error is not None and error.genuine
        step = _after_error(case, error, proof) if genuine and error else _after_loss(case, proof)
    if step in FAILS and case.asks_ledger and (case.doubted or proof is Outcome.IN_DOUBT):
        step = NextStep.RESOLVE
    return proof, step


def _at_ledger(case: Case) -> NextStep | None:
    """Return the next step after the ledger's own statement failed; None if the usual rules apply."""
    state = case.facts.error.sqlstate if case.facts.error is not None else ""
    if state == EXISTS:
        # Even if the caller has given up: this error proves that an earlier attempt was applied.
        return NextStep.RESOLVE
    if case.gave_up is not None:
        return None
    if state == LATE:
        return NextStep.AGAIN_LATER if _allowed(case) else NextStep.FAIL_LEDGER
    if state in UNUSABLE:
        unkeyed_is_safe = case.auto and (case.repeatable or not case.doubted)
        return NextStep.AGAIN_UNKEYED if unkeyed_is_safe else NextStep.FAIL_LEDGER
    return None


def _gave_up(case: Case, proof: Outcome) -> NextStep:
    if proof is Outcome.IN_DOUBT and not case.read:
        return NextStep.FAIL_IN_DOUBT
    return NextStep.FAIL_CANCELLED if case.gave_up == "cancelled" else NextStep.FAIL_TIMEOUT


def _after_error(case: Case, error: ServerError, proof: Outcome) -> NextStep:
    if error.broken_connection or (error.fatal and proof is Outcome.IN_DOUBT):
        return _after_loss(case, proof)
    step = _run_again(case, error)
    if proof is Outcome.IN_DOUBT and not case.repeatable and not case.keyed:
        # For example a CALL. An error that invites a retry must not reach the caller, whose retry would do
        # the work twice.
        raise_it = step is NextStep.FAIL_SQL and case.facts.self_committing
        return NextStep.FAIL_SQL if raise_it else NextStep.FAIL_IN_DOUBT
    if step is not NextStep.FAIL_SQL and _allowed(case):
        return step
    # If only the statement's own commits can have applied anything, the caller gets the server's error.
    raise_it = proof is Outcome.NOT_APPLIED or case.read or case.facts.self_committing
    return NextStep.FAIL_SQL if raise_it else NextStep.FAIL_IN_DOUBT


def _run_again(case: Case, error: ServerError) -> NextStep:
    """Return how to run the operation again after ``error``, or FAIL_SQL if ``error`` is final."""
    state = error.sqlstate
    if state == QUERY_CANCELED:
        return NextStep.AGAIN_NOW if case.ours else NextStep.FAIL_SQL
    if state in STALE_PLAN and error.reused and not case.unprepared:
        return NextStep.AGAIN_UNPREPARED
    if state in LATER:
        return NextStep.AGAIN_LATER
    # A read that gets 25006 tried to write: every other node would refuse that write as well.
    if (state in ELSEWHERE and not (case.read and state == "25006")) or state.startswith("53"):
        return NextStep.AGAIN_ELSEWHERE
    return NextStep.FAIL_SQL


def _after_loss(case: Case, proof: Outcome) -> NextStep:
    if proof is Outcome.IN_DOUBT and not case.repeatable and not case.keyed:
        return NextStep.FAIL_IN_DOUBT
    if case.facts.unreplicated and case.asks_ledger:
        return NextStep.RESOLVE
    if _allowed(case):
        return NextStep.AGAIN_ELSEWHERE
    return NextStep.FAIL_LOST if proof is Outcome.NOT_APPLIED or case.read else NextStep.FAIL_IN_DOUBT


def _allowed(case: Case) -> bool:
    return (
        case.budget
        and case.attempts < case.max_attempts
        and case.suspected_crashes < case.max_suspected_crashes
    )
