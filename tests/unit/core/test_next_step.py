"""Tests of the decision about the next step: one named example per rule.

`tests/unit/core/test_next_step_rules.py` has the rules that hold for all cases.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.failures import error, failed, fatal

from pgha._core.backoff import Budget
from pgha._core.next_step import Case, NextStep, decide
from pgha._core.outcome import Facts, Handed

NOTHING_LEFT = frozenset(Budget)
LOST = Facts()
NEVER_SENT = Facts(handed=Handed.NOTHING)
BEHIND_FATAL = Facts(after_fatal=True)
NO_V = Facts(error=error("08P01", ""))
DONE = Facts(synced=True, completed=1)
CALL_FAILED = replace(failed("40001"), self_committing=True)


def at_ledger(sqlstate: str) -> Facts:
    return replace(failed(sqlstate), at_ledger=True)


THENS: dict[str, tuple[Case, NextStep]] = {
    "applied": (Case(DONE), NextStep.DELIVER),
    "applied, though its caller left": (Case(DONE, gave_up="cancelled"), NextStep.DELIVER),
    "applied, though late": (Case(DONE, gave_up="timeout"), NextStep.DELIVER),
    "applied at the last attempt": (
        Case(DONE, attempts=5, exhausted=NOTHING_LEFT, suspected_crashes=2),
        NextStep.DELIVER,
    ),
    # given up
    "cancelled in time": (Case(failed("57014"), gave_up="cancelled", ours=True), NextStep.FAIL_CANCELLED),
    "timed out, proven": (Case(failed("57014"), gave_up="timeout", ours=True), NextStep.FAIL_TIMEOUT),
    "cancelled before it was sent": (Case(NEVER_SENT, gave_up="cancelled"), NextStep.FAIL_CANCELLED),
    "cancelled and lost": (Case(LOST, gave_up="cancelled"), NextStep.FAIL_IN_DOUBT),
    "timed out and lost": (Case(LOST, gave_up="timeout"), NextStep.FAIL_IN_DOUBT),
    "timed out and lost, idempotent": (
        Case(LOST, gave_up="timeout", idempotent=True),
        NextStep.FAIL_IN_DOUBT,
    ),
    "a read, cancelled and lost": (Case(LOST, gave_up="cancelled", read=True), NextStep.FAIL_CANCELLED),
    "a read, timed out and lost": (Case(LOST, gave_up="timeout", read=True), NextStep.FAIL_TIMEOUT),
    "CALL, cancelled, failed": (Case(CALL_FAILED, gave_up="cancelled"), NextStep.FAIL_IN_DOUBT),
    # connections
    "lost": (Case(LOST), NextStep.FAIL_IN_DOUBT),
    "lost, a read": (Case(LOST, read=True), NextStep.AGAIN_ELSEWHERE),
    "lost, idempotent": (Case(LOST, idempotent=True), NextStep.AGAIN_ELSEWHERE),
    "never handed over": (Case(NEVER_SENT), NextStep.AGAIN_ELSEWHERE),
    "its Sync was never handed": (Case(Facts(handed=Handed.PART)), NextStep.AGAIN_ELSEWHERE),
    "behind a FATAL": (Case(BEHIND_FATAL), NextStep.AGAIN_ELSEWHERE),
    "never handed over, too many attempts": (Case(NEVER_SENT, attempts=5), NextStep.FAIL_LOST),
    "head of two lost connections": (Case(BEHIND_FATAL, suspected_crashes=2), NextStep.FAIL_LOST),
    "head of one lost connection": (Case(BEHIND_FATAL, suspected_crashes=1), NextStep.AGAIN_ELSEWHERE),
    "no budget": (Case(BEHIND_FATAL, exhausted=NOTHING_LEFT), NextStep.FAIL_LOST),
    "a read lost too often": (Case(LOST, read=True, suspected_crashes=2), NextStep.FAIL_LOST),
    "idempotent, lost too often": (Case(LOST, idempotent=True, suspected_crashes=2), NextStep.FAIL_IN_DOUBT),
    "an error without V": (Case(NO_V), NextStep.FAIL_IN_DOUBT),
    "an error without V, a read": (Case(NO_V, read=True), NextStep.AGAIN_ELSEWHERE),
    "FATAL after CommandComplete": (Case(Facts(completed=1, error=fatal())), NextStep.FAIL_IN_DOUBT),
    "FATAL after CommandComplete, a read": (
        Case(Facts(completed=1, error=fatal()), read=True),
        NextStep.AGAIN_ELSEWHERE,
    ),
    "40003": (Case(failed("40003")), NextStep.FAIL_SQL),
    "08006 of a foreign server": (Case(failed("08006")), NextStep.FAIL_SQL),
    "08006 of a foreign server, a read": (Case(failed("08006"), read=True), NextStep.FAIL_SQL),
    "08006 of a foreign server, idempotent": (Case(failed("08006"), idempotent=True), NextStep.FAIL_SQL),
    "08006 without its Sync": (Case(Facts(error=error("08006"))), NextStep.FAIL_IN_DOUBT),
    "08006 without its Sync, a read": (
        Case(Facts(error=error("08006")), read=True),
        NextStep.AGAIN_ELSEWHERE,
    ),
    "08P01 as a FATAL": (Case(failed("08P01", "FATAL")), NextStep.FAIL_IN_DOUBT),
    "08006 of a CALL": (
        Case(replace(failed("08006"), self_committing=True)),
        NextStep.FAIL_IN_DOUBT,
    ),
    # errors of SQL
    "23505": (Case(failed("23505")), NextStep.FAIL_SQL),
    "23505, idempotent": (Case(failed("23505"), idempotent=True), NextStep.FAIL_SQL),
    "42P01, a read": (Case(failed("42P01"), read=True), NextStep.FAIL_SQL),
    "25006, a write": (Case(failed("25006")), NextStep.CHECK_ROLE),
    "25006, a write, and its node takes no writes": (
        Case(failed("25006"), role_changed=True),
        NextStep.AGAIN_ELSEWHERE,
    ),
    "25006, a write, and its node is a primary": (
        Case(failed("25006"), role_changed=False),
        NextStep.FAIL_SQL,
    ),
    "25006, a write, at its last attempt": (Case(failed("25006"), attempts=5), NextStep.FAIL_SQL),
    "25006, and then the connection was lost": (
        Case(Facts(error=error("25006"))),
        NextStep.AGAIN_ELSEWHERE,
    ),
    "25006 of a CALL": (Case(replace(failed("25006"), self_committing=True)), NextStep.FAIL_IN_DOUBT),
    "25006, keyed, after doubt, and its node is a primary": (
        Case(failed("25006"), keyed=True, doubted=True, role_changed=False),
        NextStep.RESOLVE,
    ),
    "at the ledger: 25006": (Case(at_ledger("25006"), keyed=True), NextStep.CHECK_ROLE),
    "25006, a read": (Case(failed("25006"), read=True), NextStep.FAIL_SQL),
    "53300": (Case(failed("53300", "FATAL")), NextStep.AGAIN_ELSEWHERE),
    "53200": (Case(failed("53200")), NextStep.AGAIN_ELSEWHERE),
    "57P01 of a foreign server": (Case(failed("57P01")), NextStep.FAIL_SQL),
    "57P01 of a foreign server, a read": (Case(failed("57P01"), read=True), NextStep.FAIL_SQL),
    "57P01 of a CALL": (Case(replace(failed("57P01"), self_committing=True)), NextStep.FAIL_IN_DOUBT),
    "57P03": (Case(failed("57P03", "FATAL")), NextStep.AGAIN_ELSEWHERE),
    "FATAL 57P01": (Case(failed("57P01", "FATAL")), NextStep.AGAIN_ELSEWHERE),
    "FATAL 57P05": (Case(failed("57P05", "FATAL")), NextStep.AGAIN_ELSEWHERE),
    "FATAL 57P01, too many attempts": (Case(failed("57P01", "FATAL"), attempts=5), NextStep.FAIL_SQL),
    "40001": (Case(failed("40001")), NextStep.AGAIN_LATER),
    "40P01": (Case(failed("40P01")), NextStep.AGAIN_LATER),
    "40001 of a CALL": (Case(CALL_FAILED), NextStep.FAIL_IN_DOUBT),
    "40001 of a CALL, idempotent": (Case(CALL_FAILED, idempotent=True), NextStep.AGAIN_LATER),
    "57014, hit by our cancel": (Case(failed("57014"), ours=True), NextStep.AGAIN_NOW),
    "57014, hit by our cancel, and nothing left": (
        Case(failed("57014"), ours=True, attempts=5, exhausted=NOTHING_LEFT),
        NextStep.AGAIN_NOW,
    ),
    "57014, hit by our cancel too often": (Case(failed("57014"), ours=True, total=10), NextStep.FAIL_SQL),
    "57014, somebody else's": (Case(failed("57014")), NextStep.FAIL_SQL),
    "57014, somebody else's, a read": (Case(failed("57014"), read=True), NextStep.FAIL_SQL),
    "0A000, reused": (Case(failed("0A000", reused=True)), NextStep.AGAIN_UNPREPARED),
    "26000, reused": (Case(failed("26000", reused=True)), NextStep.AGAIN_UNPREPARED),
    "XX000, reused": (Case(failed("XX000", reused=True)), NextStep.AGAIN_UNPREPARED),
    "XX000, not reused": (Case(failed("XX000")), NextStep.FAIL_SQL),
    "XX000, reused, as a PANIC": (
        Case(Facts(error=error("XX000", "PANIC", reused=True))),
        NextStep.FAIL_SQL,
    ),
    "42703, reused": (Case(failed("42703", reused=True), read=True), NextStep.AGAIN_UNPREPARED),
    "42703, reused, a second time": (
        Case(failed("42703", reused=True), unprepared=True),
        NextStep.FAIL_SQL,
    ),
    "42703, reused, of a CALL": (
        Case(replace(failed("42703", reused=True), self_committing=True)),
        NextStep.FAIL_SQL,
    ),
    "0A000, reused, and nothing left": (
        Case(failed("0A000", reused=True), attempts=5, exhausted=NOTHING_LEFT),
        NextStep.AGAIN_UNPREPARED,
    ),
    "0A000, reused, a second time": (Case(failed("0A000", reused=True), unprepared=True), NextStep.FAIL_SQL),
    "0A000, not reused": (Case(failed("0A000")), NextStep.FAIL_SQL),
    "22P02, reused": (Case(failed("22P02", reused=True)), NextStep.FAIL_SQL),
    # keyed: the ledger has the answer
    "keyed: the end of the connection": (Case(Facts(), keyed=True), NextStep.AGAIN_ELSEWHERE),
    "keyed: the end of the connection, too many attempts": (
        Case(Facts(), keyed=True, attempts=5),
        NextStep.RESOLVE,
    ),
    "keyed: head of too many lost connections": (
        Case(Facts(), keyed=True, suspected_crashes=2),
        NextStep.RESOLVE,
    ),
    "keyed: FATAL after CommandComplete": (
        Case(Facts(completed=2, statements=2, error=fatal()), keyed=True),
        NextStep.AGAIN_ELSEWHERE,
    ),
    "keyed: 08006 of a foreign server": (Case(failed("08006"), keyed=True), NextStep.FAIL_SQL),
    "keyed: 08006 of a foreign server, after doubt": (
        Case(failed("08006"), keyed=True, doubted=True),
        NextStep.RESOLVE,
    ),
    "keyed: the wait for the standby broken off": (
        Case(Facts(synced=True, completed=2, statements=2, unreplicated=True), keyed=True),
        NextStep.RESOLVE,
    ),
    "keyed: the user's own 23505": (Case(failed("23505"), keyed=True), NextStep.FAIL_SQL),
    "keyed: the user's own 23505 after doubt": (
        Case(failed("23505"), keyed=True, doubted=True),
        NextStep.RESOLVE,
    ),
    "keyed, in doubt, and its caller gave up": (
        Case(Facts(), keyed=True, gave_up="cancelled"),
        NextStep.FAIL_IN_DOUBT,
    ),
    "at the ledger: 23505": (Case(at_ledger("23505"), keyed=True), NextStep.RESOLVE),
    "at the ledger: 23505, and its caller gave up": (
        Case(at_ledger("23505"), keyed=True, gave_up="timeout"),
        NextStep.RESOLVE,
    ),
    "at the ledger: 23502": (Case(at_ledger("23502"), keyed=True), NextStep.AGAIN_LATER),
    "at the ledger: 23502, and its caller gave up": (
        Case(at_ledger("23502"), keyed=True, gave_up="timeout"),
        NextStep.FAIL_TIMEOUT,
    ),
    "at the ledger: 23502, too many attempts": (
        Case(at_ledger("23502"), keyed=True, attempts=5),
        NextStep.FAIL_LEDGER,
    ),
    "at the ledger: 42P01": (Case(at_ledger("42P01"), keyed=True), NextStep.FAIL_LEDGER),
    "at the ledger: 42P01, a key of ours": (
        Case(at_ledger("42P01"), keyed=True, auto=True),
        NextStep.AGAIN_UNKEYED,
    ),
    "at the ledger: 42P01, a key of ours, and nothing left": (
        Case(at_ledger("42P01"), keyed=True, auto=True, attempts=5, exhausted=NOTHING_LEFT),
        NextStep.AGAIN_UNKEYED,
    ),
    "at the ledger: 42P01, a key of ours, a second time": (
        Case(at_ledger("42P01"), keyed=True, auto=True, unkeyed=True),
        NextStep.FAIL_LEDGER,
    ),
    "at the ledger: 42P01, a key of ours, too many attempts": (
        Case(at_ledger("42P01"), keyed=True, auto=True, total=10),
        NextStep.FAIL_LEDGER,
    ),
    "at the ledger: 42P01, a key of ours, after doubt": (
        Case(at_ledger("42P01"), keyed=True, auto=True, doubted=True),
        NextStep.RESOLVE,
    ),
    "an error behind a broken wait: only what commits by itself is told so": (
        Case(Facts(unreplicated=True, error=error("0A000")), idempotent=True),
        NextStep.FAIL_IN_DOUBT,
    ),
    "at the ledger: 42501": (Case(at_ledger("42501"), keyed=True), NextStep.FAIL_LEDGER),
    "at the ledger: 40001": (Case(at_ledger("40001"), keyed=True), NextStep.AGAIN_LATER),
    "at the ledger: 57014, hit by our cancel": (
        Case(at_ledger("57014"), keyed=True, ours=True),
        NextStep.AGAIN_NOW,
    ),
}


@pytest.mark.parametrize("rule", THENS)
def test_then(rule: str) -> None:
    case, expected = THENS[rule]
    assert decide(case)[1] is expected
