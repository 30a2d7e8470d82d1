"""From recorded facts to *applied / not applied / in doubt*, and from there to what happens next.

The acknowledgement of a segment is its Sync. What the other evidence proves, most telling first:

======================================  ===========  ===================================================
evidence                                outcome      because
======================================  ===========  ===================================================
nothing was handed to libpq             not applied  nobody was asked
unreplicated                            in doubt     it committed, and the wait for its synchronous
                                                     standby was broken off: a warning says so
framed: COMMIT                          applied      the COMMIT's own CommandComplete
framed: ROLLBACK                        not applied  the block had failed
Sync                                    applied      without an error
after a FATAL                           not applied  a genuine FATAL answered an earlier segment of the
                                                     connection: the server never began with this one
commits by itself                       in doubt     CALL, VACUUM: a part may be there, without the above
without the V field                     in doubt     the error is a pooler's, or libpq's own
40003 and class 08                      in doubt     they say so
FATAL after the last CommandComplete    in doubt     before or after the commit
PANIC of a frame's COMMIT               in doubt     the record may be on disk
ERROR, or FATAL before the end          not applied  the transaction was aborted
its Sync was never handed               not applied  nothing commits without it (but a frame's COMMIT)
the connection ended without these      in doubt
======================================  ===========  ===================================================

What happens next is decided in this order: a proven result is delivered; what its caller gave up on is
answered for good; else each kind of error has its place in `_after_error`. A keyed write whose attempt ended
in doubt is run again, in the same lineage, where its insert into the ledger meets the first one's; where it
may not be run again, the ledger alone decides (`pgha._core.ledger_rules`), and it never fails in doubt
before.

Sources: PostgreSQL's protocol documentation (pipelining, error fields), measurements; every line is a test.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from pgha._core.ledger_rules import EXISTS, LATE, UNUSABLE


class Outcome(enum.Enum):
    """Whether a segment took effect."""

    APPLIED = "applied"
    NOT_APPLIED = "not applied"
    IN_DOUBT = "in doubt"


class Handed(enum.IntEnum):
    """How much of a segment libpq was given."""

    NOTHING = 0
    PART = 1
    """Statements, but not the Sync that would commit them."""
    WHOLE = 2


@dataclass(frozen=True, slots=True)
class ServerError:
    """The error that answered a statement."""

    sqlstate: str
    severity: str
    """ERROR, FATAL or PANIC: the V field, which is never localized; empty without one."""
    reused: bool = False
    """The statement had been prepared by an earlier segment."""

    @property
    def genuine(self) -> bool:
        """It carries the V field: it comes from a PostgreSQL server, not from a pooler or libpq."""
        return self.severity != ""

    @property
    def fatal(self) -> bool:
        return self.severity in ("FATAL", "PANIC")

    @property
    def broken_connection(self) -> bool:
        """40003 and class 08 say by themselves that nobody knows."""
        return self.sqlstate == "40003" or self.sqlstate.startswith("08")


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen of one segment, on one connection."""

    handed: Handed = Handed.WHOLE
    synced: bool = False
    error: ServerError | None = None
    completed: int = 0
    """CommandCompletes seen, hidden statements included."""
    statements: int = 1
    """CommandCompletes that were to come."""
    framed: bool = False
    commit_tag: str | None = None
    """Framed: the tag of the COMMIT's CommandComplete."""
    self_committing: bool = False
    unreplicated: bool = False
    """The server warned that the commit's wait for a synchronous standby was broken off: it is there, and is
    lost when that standby takes over."""
    at_ledger: bool = False
    """The error answered the ledger's statement, which stands before the user's own."""
    after_fatal: bool = False
    """A genuine FATAL answered an earlier segment, so the server never began with this one."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A line of the table at the head of this file."""

    evidence: str
    holds: Callable[[Facts], bool]
    proves: Outcome


def _fatal_at_the_end(facts: Facts) -> bool:
    return facts.error is not None and facts.error.fatal and facts.completed >= facts.statements


def _commit_panicked(facts: Facts) -> bool:
    """The record may have reached the disk, and recovery will find it."""
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
"""In the order in which they are asked; the first that holds decides."""


def outcome(facts: Facts, rules: Iterable[Rule] = RULES) -> Outcome:
    """Whether the segment took effect: what the first line that holds proves, else nobody knows."""
    return next((rule.proves for rule in rules if rule.holds(facts)), Outcome.IN_DOUBT)


GaveUp = Literal["cancelled", "timeout"]


@dataclass(frozen=True, slots=True)
class Case:
    """Everything that decides what becomes of an operation after an attempt."""

    facts: Facts
    read: bool = False
    idempotent: bool = False
    keyed: bool = False
    """The ledger will tell: each attempt that ended in doubt had inserted the key, all in one lineage."""
    auto: bool = False
    """The key is pgha's own."""
    doubted: bool = False
    """An earlier attempt ended in doubt."""
    gave_up: GaveUp | None = None
    """The caller cancelled, or its deadline passed."""
    ours: bool = False
    """A cancel of ours was in flight on the lane while the segment was."""
    attempts: int = 1
    max_attempts: int = 5
    suspected_crashes: int = 0
    """Connections that the operation may have broken, this one included: lost while it was their head, and by
    nobody else as far as is known."""
    max_suspected_crashes: int = 2
    unprepared: bool = False
    """It was already run again without prepared statements."""
    budget: bool = True
    """The cluster's retry budget has something left."""

    @property
    def repeatable(self) -> bool:
        """Running it twice does no harm."""
        return self.read or self.idempotent

    @property
    def asks_ledger(self) -> bool:
        """Before it may fail in doubt, the ledger is asked."""
        return self.keyed and not self.repeatable


class NextStep(enum.Enum):
    """What happens next."""

    DELIVER = "deliver the result"
    FAIL_SQL = "raise the server's error"
    FAIL_LOST = "raise the loss of the connection: proven not applied, but not to be sent again"
    FAIL_IN_DOUBT = "raise CommitInDoubt"
    FAIL_LEDGER = "raise LedgerError: there is none that can be used"
    FAIL_TIMEOUT = "raise OperationTimeout"
    FAIL_CANCELLED = "raise OperationCancelled"
    AGAIN_ELSEWHERE = "run again on another node if there is one"
    AGAIN_LATER = "run again on the same node after a backoff"
    AGAIN_NOW = "run again on the same node, in quiet (our own cancel hit it)"
    AGAIN_UNKEYED = "run again on the same node without a key of ours: there is no ledger"
    RESOLVE = "have the ledger tell, or decide, whether it was applied"
    AGAIN_UNPREPARED = "run again on the same node without prepared statements"


FAILS = frozenset({NextStep.FAIL_SQL, NextStep.FAIL_LOST, NextStep.FAIL_IN_DOUBT, NextStep.FAIL_LEDGER})
ELSEWHERE = frozenset({"25006", "57P03", "57P01", "57P05"})
"""Not applied here, and another node may do: read-only, starting up, shut down, idle session timeout."""
LATER = frozenset({"40001", "40P01"})
"""Serialization failure and deadlock: the same operation may well pass now."""
STALE_PLAN = frozenset({"0A000", "26000"})
"""What DDL does to a reused prepared statement."""
QUERY_CANCELED = "57014"


def decide(case: Case) -> tuple[Outcome, NextStep]:
    """The outcome of an attempt and what happens next."""
    proof = outcome(case.facts)
    if proof is Outcome.APPLIED:
        return proof, NextStep.DELIVER
    then = _at_ledger(case) if case.facts.at_ledger and proof is Outcome.NOT_APPLIED else None
    if then is None:
        if case.gave_up is not None:
            return proof, _gave_up(case, proof)
        error = case.facts.error
        genuine = error is not None and error.genuine
        then = _after_error(case, error, proof) if genuine and error else _after_loss(case, proof)
    if then in FAILS and case.asks_ledger and (case.doubted or proof is Outcome.IN_DOUBT):
        then = NextStep.RESOLVE
    return proof, then


def _at_ledger(case: Case) -> NextStep | None:
    """The ledger's own statement failed, and with it the attempt."""
    state = case.facts.error.sqlstate if case.facts.error is not None else ""
    if state == EXISTS:
        # Also where its caller has given up: this is proof that an earlier attempt was applied.
        return NextStep.RESOLVE
    if case.gave_up is not None:
        return None
    if state == LATE:
        return NextStep.AGAIN_LATER if _allowed(case) else NextStep.FAIL_LEDGER
    if state in UNUSABLE:
        without = case.auto and (case.repeatable or not case.doubted)
        return NextStep.AGAIN_UNKEYED if without else NextStep.FAIL_LEDGER
    return None


def _gave_up(case: Case, proof: Outcome) -> NextStep:
    if proof is Outcome.IN_DOUBT and not case.read:
        return NextStep.FAIL_IN_DOUBT
    return NextStep.FAIL_CANCELLED if case.gave_up == "cancelled" else NextStep.FAIL_TIMEOUT


def _after_error(case: Case, error: ServerError, proof: Outcome) -> NextStep:
    if error.broken_connection or (error.fatal and proof is Outcome.IN_DOUBT):
        return _after_loss(case, proof)
    then = _run_again(case, error)
    if proof is Outcome.IN_DOUBT and not case.repeatable and not case.keyed:
        # A CALL, say. An error that invites a retry must not be passed on: the retry would double the work.
        said = then is NextStep.FAIL_SQL and case.facts.self_committing
        return NextStep.FAIL_SQL if said else NextStep.FAIL_IN_DOUBT
    if then is not NextStep.FAIL_SQL and _allowed(case):
        return then
    # An error after which nothing can have been applied but by the statement's own commits is told as it is.
    told = proof is Outcome.NOT_APPLIED or case.read or case.facts.self_committing
    return NextStep.FAIL_SQL if told else NextStep.FAIL_IN_DOUBT


def _run_again(case: Case, error: ServerError) -> NextStep:
    state = error.sqlstate
    if state == QUERY_CANCELED:
        return NextStep.AGAIN_NOW if case.ours else NextStep.FAIL_SQL
    if state in STALE_PLAN and error.reused and not case.unprepared:
        return NextStep.AGAIN_UNPREPARED
    if state in LATER:
        return NextStep.AGAIN_LATER
    # A read that is told 25006 tried to write: no other node will let it.
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
