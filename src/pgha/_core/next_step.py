"""The next step of an operation after an attempt.

An applied attempt is delivered. An operation that its caller gave up on fails for good. A keyed write whose
attempt ended in doubt is run again in the same lineage, where its insert into the ledger conflicts with the
row of the first attempt, if there is one. If a keyed write may not be run again, the ledger decides
(`pgha._core.ledger_rules`); the write never fails in doubt before the ledger was asked. Else the error
decides. A SQLSTATE is believed only from where it can come: functions, `dblink` and `postgres_fdw` pass on
the codes of other servers as plain ERRORs, which say nothing about the node.

==================================== ==================== ============================== ===============
error                                where it is believed next step                      budget
==================================== ==================== ============================== ===============
the connection was lost              everywhere           another node                   failover
57P01, 57P03, 57P05                  FATAL                another node                   failover
25006, of a write                    the node's role      another node if the role       failover
                                                          changed, else raised
class 53                             everywhere           another node                   resources
40001, 40P01                         everywhere           the same node, later           serialization
23502 at the ledger                  the ledger's part    the same node, later           ledger
57014 with a cancel of pgha's own    everywhere           the same node, now             none
0A000, 26000, XX000, class 42        a reused statement   the same node, unprepared      none
no ledger for pgha's own key         the ledger's part    the same node, without a key   none
any other                                                 raised
==================================== ==================== ============================== ===============

A retry that is charged to a budget also counts as one of ``max_attempts``. The retries without a budget are
pgha's own doing, and so never the end of an operation that is innocent of them; all attempts together are
limited by ``max_total``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from pgha._core.backoff import Budget
from pgha._core.ledger_rules import EXISTS, LATE, UNUSABLE
from pgha._core.outcome import Facts, GaveUp, Outcome, ServerError, outcome


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
    """The number of attempts, without those that pgha itself made fail."""
    max_attempts: int = 5
    total: int = 1
    """The number of all attempts."""
    max_total: int = 10
    suspected_crashes: int = 0
    """The number of connections that the operation may have broken, this one included: lost while the
    operation was the head, and without another known cause."""
    max_suspected_crashes: int = 2
    unprepared: bool = False
    """Whether the operation was already run again without prepared statements."""
    unkeyed: bool = False
    """Whether the operation was already run again without pgha's own key."""
    role_changed: bool | None = None
    """Whether the node takes no writes any more; None if that was not checked since the attempt."""
    exhausted: frozenset[Budget] = frozenset()
    """The retry budgets that have nothing left."""

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
    CHECK_ROLE = "ask the node whether it still takes writes, and decide again"
    AGAIN_ELSEWHERE = "run again on another node if there is one"
    AGAIN_LATER = "run again on the same node after a backoff"
    AGAIN_NOW = "run again on the same node at once (a cancel sent by pgha hit the operation)"
    AGAIN_UNKEYED = "run again on the same node without pgha's own key: there is no ledger"
    RESOLVE = "ask the ledger whether the write was applied, or have the ledger decide"
    AGAIN_UNPREPARED = "run again on the same node without prepared statements"


FAILS = frozenset({NextStep.FAIL_SQL, NextStep.FAIL_LOST, NextStep.FAIL_IN_DOUBT, NextStep.FAIL_LEDGER})
OWN_DOING = frozenset({NextStep.AGAIN_NOW, NextStep.AGAIN_UNPREPARED, NextStep.AGAIN_UNKEYED})
"""The retries after a failure that pgha itself caused."""
ENDING = frozenset({"57P01", "57P03", "57P05"})
"""The server ends the connection as a FATAL: shut down, starting up, idle session timeout."""
READ_ONLY = "25006"
LATER = frozenset({"40001", "40P01"})
"""Serialization failure and deadlock: the same operation may succeed when run again."""
RESOURCES = "53"
"""The class of errors about full disks, used up memory and too many connections."""
STALE_PLAN = frozenset({"0A000", "26000", "XX000"})
"""Errors of a reused prepared statement after DDL (XX000: "cache lookup failed for type")."""
STALE_NAMES = "42"
"""The class of errors about names and types; a reused prepared statement may get them after DDL, too."""
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


def budget_of(facts: Facts, step: NextStep) -> Budget | None:
    """Return the budget to which ``step`` is charged; None if the step is no retry, or pgha's own doing."""
    error = facts.error
    state = error.sqlstate if error is not None and error.genuine else ""
    if step is NextStep.AGAIN_LATER:
        return Budget.LEDGER if facts.at_ledger and state == LATE else Budget.SERIALIZATION
    if step in (NextStep.AGAIN_ELSEWHERE, NextStep.CHECK_ROLE):
        return Budget.RESOURCES if state.startswith(RESOURCES) else Budget.FAILOVER
    return None


def _at_ledger(case: Case) -> NextStep | None:
    """Return the next step after the ledger's own statement failed; None if the usual rules apply."""
    state = case.facts.error.sqlstate if case.facts.error is not None else ""
    if state == EXISTS:
        # Even if the caller has given up: this error proves that an earlier attempt was applied.
        return NextStep.RESOLVE
    if case.gave_up is not None:
        return None
    if state == LATE:
        again = NextStep.AGAIN_LATER
    elif state in UNUSABLE:
        again = NextStep.AGAIN_UNKEYED
        if not case.auto or case.unkeyed or (case.doubted and not case.repeatable):
            return NextStep.FAIL_LEDGER
    else:
        return None
    return again if _allowed(case, again) else NextStep.FAIL_LEDGER


def _gave_up(case: Case, proof: Outcome) -> NextStep:
    if proof is Outcome.IN_DOUBT and not case.read:
        return NextStep.FAIL_IN_DOUBT
    return NextStep.FAIL_CANCELLED if case.gave_up == "cancelled" else NextStep.FAIL_TIMEOUT


def _after_error(case: Case, error: ServerError, proof: Outcome) -> NextStep:
    if case.facts.tells_of_loss or (error.fatal and proof is Outcome.IN_DOUBT):
        return _after_loss(case, proof)
    step = _run_again(case, error)
    if proof is Outcome.IN_DOUBT and not case.repeatable and not case.keyed:
        # For example a CALL. An error that invites a retry must not reach the caller, whose retry would do
        # the work twice.
        final = step in (NextStep.FAIL_SQL, NextStep.AGAIN_UNPREPARED)
        raise_it = final and case.facts.self_committing and not _invites_retry(error)
        return NextStep.FAIL_SQL if raise_it else NextStep.FAIL_IN_DOUBT
    if step is not NextStep.FAIL_SQL and _allowed(case, step):
        return step
    # If only the statement's own commits can have applied anything, the caller gets the server's error.
    raise_it = proof is Outcome.NOT_APPLIED or case.read or case.facts.self_committing
    return NextStep.FAIL_SQL if raise_it else NextStep.FAIL_IN_DOUBT


def _run_again(case: Case, error: ServerError) -> NextStep:
    """Return how to run the operation again after ``error``, or FAIL_SQL if ``error`` is final."""
    state = error.sqlstate
    if state == QUERY_CANCELED:
        return NextStep.AGAIN_NOW if case.ours else NextStep.FAIL_SQL
    if _stale(error) and not case.unprepared:
        return NextStep.AGAIN_UNPREPARED
    if state in LATER:
        return NextStep.AGAIN_LATER
    if state.startswith(RESOURCES) or (state in ENDING and error.fatal):
        return NextStep.AGAIN_ELSEWHERE
    # A read that gets 25006 tried to write: every other node would refuse that write as well.
    if state == READ_ONLY and not case.read:
        return _read_only(case)
    return NextStep.FAIL_SQL


def _stale(error: ServerError) -> bool:
    """Return whether DDL may have made the prepared statement unusable: parsed anew, it may succeed."""
    known = error.sqlstate in STALE_PLAN or error.sqlstate.startswith(STALE_NAMES)
    return known and error.reused and not error.fatal


def _read_only(case: Case) -> NextStep:
    """Return how to run a write again after 25006, which the statement may have caused itself."""
    if case.role_changed or case.facts.ended:
        return NextStep.AGAIN_ELSEWHERE
    return NextStep.CHECK_ROLE if case.role_changed is None else NextStep.FAIL_SQL


def _invites_retry(error: ServerError) -> bool:
    """Return whether callers usually take the error for a failure of the node, and try again."""
    return error.broken_connection or error.sqlstate == READ_ONLY or error.sqlstate.startswith("57P")


def _after_loss(case: Case, proof: Outcome) -> NextStep:
    if proof is Outcome.IN_DOUBT and not case.repeatable and not case.keyed:
        return NextStep.FAIL_IN_DOUBT
    if case.facts.unreplicated and case.asks_ledger:
        return NextStep.RESOLVE
    if _allowed(case, NextStep.AGAIN_ELSEWHERE):
        return NextStep.AGAIN_ELSEWHERE
    return NextStep.FAIL_LOST if proof is Outcome.NOT_APPLIED or case.read else NextStep.FAIL_IN_DOUBT


def _allowed(case: Case, step: NextStep) -> bool:
    """Return whether the operation may be run again by ``step``."""
    if case.total >= case.max_total or case.suspected_crashes >= case.max_suspected_crashes:
        return False
    if step in OWN_DOING:
        return True
    return case.attempts < case.max_attempts and budget_of(case.facts, step) not in case.exhausted
