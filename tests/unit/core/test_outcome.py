"""Tests of every line of the outcome table, of the decision after it, and of outcomes against a model server.

The table is in the docstring of `pgha._core.outcome`; its source and the measurements are in the notes on
what a failure proves. A wrong "not applied" doubles a write, a wrong "applied" loses one.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgha._core.next_step import ELSEWHERE, LATER, STALE_PLAN, Case, NextStep, decide
from pgha._core.outcome import Facts, GaveUp, Handed, Outcome, ServerError, outcome

APPLIED, NOT_APPLIED, IN_DOUBT = Outcome.APPLIED, Outcome.NOT_APPLIED, Outcome.IN_DOUBT
AGAIN = frozenset(
    {NextStep.AGAIN_ELSEWHERE, NextStep.AGAIN_LATER, NextStep.AGAIN_NOW, NextStep.AGAIN_UNPREPARED}
)
ENDS = frozenset({NextStep.FAIL_SQL, NextStep.FAIL_LOST, NextStep.FAIL_IN_DOUBT, NextStep.FAIL_LEDGER})


quick = settings(deadline=None, max_examples=120)


def error(sqlstate: str, severity: str = "ERROR", *, reused: bool = False) -> ServerError:
    return ServerError(sqlstate, severity, reused)


def fatal(sqlstate: str = "57P01") -> ServerError:
    return ServerError(sqlstate, "FATAL")


# Whether the segment was applied: one named example per line of the table.

OUTCOMES: dict[str, tuple[Facts, Outcome]] = {
    # applied
    "its Sync came without an error": (Facts(synced=True, completed=1), APPLIED),
    "Sync of a statement that commits by itself": (
        Facts(synced=True, completed=1, self_committing=True),
        APPLIED,
    ),
    "framed: COMMIT completed and Sync": (
        Facts(synced=True, framed=True, completed=3, statements=3, commit_tag="COMMIT"),
        APPLIED,
    ),
    "framed: COMMIT completed, then the end of the connection": (
        Facts(framed=True, completed=3, statements=3, commit_tag="COMMIT"),
        APPLIED,
    ),
    "framed: COMMIT completed, then FATAL": (
        Facts(framed=True, completed=3, statements=3, commit_tag="COMMIT", error=fatal()),
        APPLIED,
    ),
    "framed: COMMIT completed, then libpq's own error": (
        Facts(framed=True, completed=3, statements=3, commit_tag="COMMIT", error=error("08006", "")),
        APPLIED,
    ),
    "framed: COMMIT completed, though its Sync was never handed": (
        Facts(handed=Handed.PART, framed=True, completed=3, statements=3, commit_tag="COMMIT"),
        APPLIED,
    ),
    "framed: DO, and COMMIT completed": (
        Facts(framed=True, completed=3, statements=3, commit_tag="COMMIT", self_committing=True),
        APPLIED,
    ),
    # not applied
    "nothing was handed to libpq": (Facts(handed=Handed.NOTHING), NOT_APPLIED),
    "nothing was handed, of a statement that commits by itself": (
        Facts(handed=Handed.NOTHING, self_committing=True),
        NOT_APPLIED,
    ),
    "nothing was handed of a frame": (Facts(handed=Handed.NOTHING, framed=True), NOT_APPLIED),
    "its Sync was never handed": (Facts(handed=Handed.PART), NOT_APPLIED),
    "its Sync was never handed, and its statements were done": (
        Facts(handed=Handed.PART, completed=1),
        NOT_APPLIED,
    ),
    "ERROR": (Facts(synced=True, error=error("23505")), NOT_APPLIED),
    "ERROR, then the end of the connection": (Facts(error=error("23505")), NOT_APPLIED),
    "ERROR at the Sync (a deferred constraint)": (
        Facts(synced=True, completed=1, error=error("23505")),
        NOT_APPLIED,
    ),
    "ERROR 57014": (Facts(synced=True, error=error("57014")), NOT_APPLIED),
    "FATAL before the last CommandComplete": (Facts(error=fatal()), NOT_APPLIED),
    "FATAL between two statements": (Facts(completed=1, statements=2, error=fatal()), NOT_APPLIED),
    "PANIC before the last CommandComplete": (Facts(error=error("XX000", "PANIC")), NOT_APPLIED),
    "a genuine FATAL answered an earlier segment": (Facts(after_fatal=True), NOT_APPLIED),
    "after a FATAL, a frame": (Facts(after_fatal=True, framed=True, statements=3), NOT_APPLIED),
    "after a FATAL, a statement that commits by itself": (
        Facts(after_fatal=True, self_committing=True),
        NOT_APPLIED,
    ),
    "framed: COMMIT answered ROLLBACK": (
        Facts(synced=True, framed=True, completed=3, statements=3, commit_tag="ROLLBACK"),
        NOT_APPLIED,
    ),
    "framed: COMMIT answered ROLLBACK, then the end of the connection": (
        Facts(framed=True, completed=3, statements=3, commit_tag="ROLLBACK"),
        NOT_APPLIED,
    ),
    "framed: ERROR": (Facts(synced=True, framed=True, statements=3, error=error("23505")), NOT_APPLIED),
    "framed: FATAL before the COMMIT": (
        Facts(framed=True, completed=1, statements=3, error=fatal()),
        NOT_APPLIED,
    ),
    "framed: DO failed": (
        Facts(synced=True, framed=True, statements=3, self_committing=True, error=error("P0001")),
        NOT_APPLIED,
    ),
    # in doubt
    "the end of the connection, and nothing else": (Facts(), IN_DOUBT),
    "CommandComplete, then the end of the connection": (Facts(completed=1), IN_DOUBT),
    "a WARNING notice 57P01 is no error: only the end of the connection": (Facts(completed=1), IN_DOUBT),
    "FATAL after the last CommandComplete": (Facts(completed=1, error=fatal()), IN_DOUBT),
    "PANIC after the last CommandComplete": (Facts(completed=1, error=error("XX000", "PANIC")), IN_DOUBT),
    "FATAL without the V field (a pooler's)": (Facts(error=error("08P01", "")), IN_DOUBT),
    "57P01 without the V field": (Facts(error=error("57P01", "")), IN_DOUBT),
    "an error without the V field, and Sync": (Facts(synced=True, error=error("23505", "")), IN_DOUBT),
    "an error without the V field, after a FATAL": (
        Facts(after_fatal=True, error=error("08006", "")),
        IN_DOUBT,
    ),
    "ERROR 40003": (Facts(synced=True, error=error("40003")), IN_DOUBT),
    "ERROR of class 08 (a foreign server's)": (Facts(synced=True, error=error("08006")), IN_DOUBT),
    "FATAL of class 08": (Facts(error=fatal("08P01")), IN_DOUBT),
    "framed: ERROR 40003": (
        Facts(synced=True, framed=True, statements=3, error=error("40003")),
        IN_DOUBT,
    ),
    "committed, the wait for the standby broken off": (
        Facts(synced=True, completed=1, unreplicated=True),
        IN_DOUBT,
    ),
    "framed: committed, the wait for the standby broken off": (
        Facts(synced=True, framed=True, completed=3, statements=3, commit_tag="COMMIT", unreplicated=True),
        IN_DOUBT,
    ),
    "the wait for the standby broken off, then the end of the connection": (
        Facts(completed=1, unreplicated=True),
        IN_DOUBT,
    ),
    "framed: the end of the connection": (Facts(framed=True, completed=1, statements=3), IN_DOUBT),
    "framed: its Sync was never handed": (Facts(handed=Handed.PART, framed=True, statements=3), IN_DOUBT),
    "framed: Sync, but no COMMIT was seen": (Facts(synced=True, framed=True, statements=3), IN_DOUBT),
    "CALL failed": (Facts(synced=True, self_committing=True, error=error("23505")), IN_DOUBT),
    "CALL failed with 40001": (Facts(synced=True, self_committing=True, error=error("40001")), IN_DOUBT),
    "CALL and FATAL": (Facts(self_committing=True, error=fatal()), IN_DOUBT),
    "CALL and the end of the connection": (Facts(self_committing=True), IN_DOUBT),
    "CALL whose Sync was never handed": (Facts(handed=Handed.PART, self_committing=True), IN_DOUBT),
}


@pytest.mark.parametrize("line", OUTCOMES)
def test_outcome(line: str) -> None:
    facts, expected = OUTCOMES[line]
    assert outcome(facts) is expected


@pytest.mark.parametrize("sqlstate", ["53100", "58030", "XX000"])
def test_a_panic_while_only_the_commit_was_left_is_in_doubt(sqlstate: str) -> None:
    # XLogFlush fails in a critical section: PANIC, but recovery may find the commit record in the file.
    panic = Facts(framed=True, completed=2, statements=3, error=error(sqlstate, "PANIC"))
    assert outcome(panic) is IN_DOUBT


# The next step: one named example per rule.

LOST = Facts()
NEVER_SENT = Facts(handed=Handed.NOTHING)
BEHIND_FATAL = Facts(after_fatal=True)
NO_V = Facts(error=error("08P01", ""))
DONE = Facts(synced=True, completed=1)


def failed(sqlstate: str, severity: str = "ERROR", *, reused: bool = False) -> Facts:
    return Facts(synced=severity == "ERROR", error=error(sqlstate, severity, reused=reused))


CALL_FAILED = replace(failed("40001"), self_committing=True)


def at_ledger(sqlstate: str) -> Facts:
    return replace(failed(sqlstate), at_ledger=True)


THENS: dict[str, tuple[Case, NextStep]] = {
    "applied": (Case(DONE), NextStep.DELIVER),
    "applied, though its caller left": (Case(DONE, gave_up="cancelled"), NextStep.DELIVER),
    "applied, though late": (Case(DONE, gave_up="timeout"), NextStep.DELIVER),
    "applied at the last attempt": (
        Case(DONE, attempts=5, budget=False, suspected_crashes=2),
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
    "no budget": (Case(BEHIND_FATAL, budget=False), NextStep.FAIL_LOST),
    "a read lost too often": (Case(LOST, read=True, suspected_crashes=2), NextStep.FAIL_LOST),
    "idempotent, lost too often": (Case(LOST, idempotent=True, suspected_crashes=2), NextStep.FAIL_IN_DOUBT),
    "an error without V": (Case(NO_V), NextStep.FAIL_IN_DOUBT),
    "an error without V, a read": (Case(NO_V, read=True), NextStep.AGAIN_ELSEWHERE),
    "FATAL after CommandComplete": (Case(Facts(completed=1, error=fatal())), NextStep.FAIL_IN_DOUBT),
    "FATAL after CommandComplete, a read": (
        Case(Facts(completed=1, error=fatal()), read=True),
        NextStep.AGAIN_ELSEWHERE,
    ),
    "40003": (Case(failed("40003")), NextStep.FAIL_IN_DOUBT),
    "08006 of a foreign server": (Case(failed("08006")), NextStep.FAIL_IN_DOUBT),
    "08006 of a foreign server, a read": (Case(failed("08006"), read=True), NextStep.AGAIN_ELSEWHERE),
    # errors of SQL
    "23505": (Case(failed("23505")), NextStep.FAIL_SQL),
    "23505, idempotent": (Case(failed("23505"), idempotent=True), NextStep.FAIL_SQL),
    "42P01, a read": (Case(failed("42P01"), read=True), NextStep.FAIL_SQL),
    "25006, a write": (Case(failed("25006")), NextStep.AGAIN_ELSEWHERE),
    "25006, a read": (Case(failed("25006"), read=True), NextStep.FAIL_SQL),
    "53300": (Case(failed("53300", "FATAL")), NextStep.AGAIN_ELSEWHERE),
    "53200": (Case(failed("53200")), NextStep.AGAIN_ELSEWHERE),
    "57P03": (Case(failed("57P03", "FATAL")), NextStep.AGAIN_ELSEWHERE),
    "FATAL 57P01": (Case(failed("57P01", "FATAL")), NextStep.AGAIN_ELSEWHERE),
    "FATAL 57P05": (Case(failed("57P05", "FATAL")), NextStep.AGAIN_ELSEWHERE),
    "FATAL 57P01, too many attempts": (Case(failed("57P01", "FATAL"), attempts=5), NextStep.FAIL_SQL),
    "40001": (Case(failed("40001")), NextStep.AGAIN_LATER),
    "40P01": (Case(failed("40P01")), NextStep.AGAIN_LATER),
    "40001 of a CALL": (Case(CALL_FAILED), NextStep.FAIL_IN_DOUBT),
    "40001 of a CALL, idempotent": (Case(CALL_FAILED, idempotent=True), NextStep.AGAIN_LATER),
    "57014, hit by our cancel": (Case(failed("57014"), ours=True), NextStep.AGAIN_NOW),
    "57014, somebody else's": (Case(failed("57014")), NextStep.FAIL_SQL),
    "57014, somebody else's, a read": (Case(failed("57014"), read=True), NextStep.FAIL_SQL),
    "0A000, reused": (Case(failed("0A000", reused=True)), NextStep.AGAIN_UNPREPARED),
    "26000, reused": (Case(failed("26000", reused=True)), NextStep.AGAIN_UNPREPARED),
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
    "keyed: 08006 of a foreign server": (Case(failed("08006"), keyed=True), NextStep.AGAIN_ELSEWHERE),
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


# Rules that hold for all facts.

OTHERS = ("57014", "40003", "08006", "08P01", "53100", "53300", "23505")
KNOWN = [*sorted(ELSEWHERE | LATER | STALE_PLAN), *OTHERS]
sqlstates = st.sampled_from(KNOWN) | st.text("0358PX", min_size=5, max_size=5)
errors = st.builds(
    ServerError, sqlstates, st.sampled_from(["ERROR", "ERROR", "FATAL", "PANIC", ""]), st.booleans()
)
facts_of_any_kind = st.builds(
    Facts,
    handed=st.sampled_from([Handed.WHOLE, Handed.WHOLE, Handed.WHOLE, Handed.PART, Handed.NOTHING]),
    synced=st.booleans(),
    error=st.none() | errors,
    completed=st.integers(0, 4),
    statements=st.integers(1, 4),
    framed=st.booleans(),
    commit_tag=st.sampled_from([None, None, "COMMIT", "ROLLBACK"]),
    self_committing=st.booleans(),
    unreplicated=st.sampled_from([False, False, False, True]),
    at_ledger=st.booleans(),
    after_fatal=st.booleans(),
)
cases = st.builds(
    Case,
    facts=facts_of_any_kind,
    read=st.booleans(),
    idempotent=st.booleans(),
    keyed=st.booleans(),
    auto=st.booleans(),
    doubted=st.booleans(),
    gave_up=st.sampled_from([None, None, "cancelled", "timeout"]),
    ours=st.booleans(),
    attempts=st.integers(0, 7),
    max_attempts=st.integers(1, 6),
    suspected_crashes=st.integers(0, 3),
    max_suspected_crashes=st.integers(1, 3),
    unprepared=st.booleans(),
    budget=st.sampled_from([True, True, True, False]),
)


@quick
@given(cases)
def test_doubt_is_run_again_only_if_that_does_no_harm(case: Case) -> None:
    proof, then = decide(case)
    if then in AGAIN:
        harmless = case.read or case.idempotent or case.keyed
        assert proof is NOT_APPLIED or (proof is IN_DOUBT and harmless)


@quick
@given(cases)
def test_nothing_is_run_again_without_end(case: Case) -> None:
    if decide(case)[1] in AGAIN:
        assert case.gave_up is None
        assert case.attempts < case.max_attempts
        assert case.suspected_crashes < case.max_suspected_crashes
        assert case.budget


@quick
@given(cases)
def test_a_keyed_write_never_fails_in_doubt_before_the_ledger_was_asked(case: Case) -> None:
    case = replace(case, keyed=True, read=False, idempotent=False, gave_up=None)
    proof, then = decide(case)
    if then in ENDS:
        assert proof is NOT_APPLIED and not case.doubted


@quick
@given(cases)
def test_the_ledger_is_asked_only_where_it_knows(case: Case) -> None:
    if decide(case)[1] is NextStep.RESOLVE:
        problem = case.facts.error
        exists = case.facts.at_ledger and problem is not None and problem.sqlstate == "23505"
        assert exists or (case.keyed and not case.read and not case.idempotent)


@quick
@given(cases)
def test_applied_is_delivered_and_nothing_else_is(case: Case) -> None:
    proof, then = decide(case)
    assert (proof is APPLIED) == (then is NextStep.DELIVER)


@quick
@given(cases)
def test_what_is_told_to_the_caller_is_true(case: Case) -> None:
    proof, then = decide(case)
    if proof is IN_DOUBT and not case.read:
        assert then not in (NextStep.FAIL_CANCELLED, NextStep.FAIL_TIMEOUT, NextStep.FAIL_LOST)
        if then is NextStep.FAIL_SQL:
            # The caller sees the server's own message; `pgha.error_info` adds that the outcome is unknown.
            assert case.facts.self_committing
    if then is NextStep.FAIL_IN_DOUBT:
        assert proof is IN_DOUBT and not case.read
    if then is NextStep.FAIL_SQL:
        assert case.facts.error is not None and case.facts.error.genuine


@quick
@given(cases, st.sampled_from(["cancelled", "timeout"]))
def test_given_up_is_answered_for_good(case: Case, why: GaveUp) -> None:
    then = decide(replace(case, gave_up=why))[1]
    if then is NextStep.RESOLVE:
        # The ledger proves that an earlier attempt was applied, so the operation succeeds.
        assert case.facts.at_ledger
        return
    if then not in (NextStep.DELIVER, NextStep.FAIL_IN_DOUBT):
        assert then is (NextStep.FAIL_CANCELLED if why == "cancelled" else NextStep.FAIL_TIMEOUT)


@quick
@given(cases)
def test_words_of_giving_up_only_for_who_gave_up(case: Case) -> None:
    then = decide(replace(case, gave_up=None))[1]
    assert then not in (NextStep.FAIL_CANCELLED, NextStep.FAIL_TIMEOUT)


@quick
@given(cases, st.sampled_from(["ERROR", "FATAL"]))
def test_somebody_elses_cancel_is_final(case: Case, severity: str) -> None:
    facts = replace(case.facts, error=error("57014", severity))
    proof, then = decide(replace(case, facts=facts, ours=False))
    if severity == "ERROR" or proof is NOT_APPLIED:
        assert then not in AGAIN


@quick
@given(cases)
def test_each_way_to_run_again_has_its_cause(case: Case) -> None:
    then, problem = decide(case)[1], case.facts.error
    if then is NextStep.AGAIN_NOW:
        assert problem is not None and problem.sqlstate == "57014" and case.ours
    elif then is NextStep.AGAIN_LATER:
        assert problem is not None and problem.sqlstate in LATER
    elif then is NextStep.AGAIN_UNPREPARED:
        assert problem is not None and problem.sqlstate in STALE_PLAN
        assert problem.reused and not case.unprepared


@quick
@given(cases)
def test_without_budget_only_the_repetitions_change(case: Case) -> None:
    with_budget, without = decide(replace(case, budget=True)), decide(replace(case, budget=False))
    assert with_budget[0] is without[0]
    assert with_budget == without or with_budget[1] in AGAIN or without[1] is NextStep.RESOLVE


@quick
@given(facts_of_any_kind)
def test_what_commits_by_itself_is_hardly_ever_proven(facts: Facts) -> None:
    facts = replace(facts, self_committing=True, framed=False, synced=False)
    proof = outcome(facts)
    assert proof is not APPLIED
    if proof is NOT_APPLIED:
        assert facts.handed is Handed.NOTHING or (facts.after_fatal and facts.error is None)


@quick
@given(facts_of_any_kind, errors)
def test_nobody_knows_after_broken_connections_and_strangers_errors(
    facts: Facts, problem: ServerError
) -> None:
    facts = replace(facts, error=problem, handed=Handed.WHOLE, commit_tag=None)
    if not problem.genuine or problem.sqlstate == "40003" or problem.sqlstate.startswith("08"):
        assert outcome(facts) is IN_DOUBT


@quick
@given(facts_of_any_kind)
def test_applied_has_an_acknowledgement(facts: Facts) -> None:
    if outcome(facts) is APPLIED:
        assert facts.handed is not Handed.NOTHING
        if facts.framed:
            assert facts.commit_tag == "COMMIT"
        else:
            assert facts.synced and facts.error is None


# A model server. The drawn values decide the real outcome; the client sees less, later, or nothing.


@st.composite
def lives(draw: st.DrawFn) -> tuple[bool, Facts]:
    """Draw whether a segment changed anything permanently, and the facts that its client saw."""
    kind = draw(st.sampled_from(["plain", "framed", "self-committing"]))
    framed, committing = kind == "framed", kind == "self-committing"
    count = 1 if committing else draw(st.integers(1, 3))
    statements = count + 2 if framed else count
    base = Facts(framed=framed, self_committing=committing, statements=statements)
    if draw(st.integers(0, 9)) == 0:
        return False, replace(base, after_fatal=True)
    handed = draw(st.sampled_from([Handed.WHOLE] * 6 + [Handed.PART, Handed.NOTHING]))
    base = replace(base, handed=handed)
    if handed is Handed.NOTHING:
        return False, base
    reach = statements if handed is Handed.WHOLE else draw(st.integers(0, statements))
    # Steps 0 ... reach-1 are statements; step `statements` is the Sync, which commits unframed segments.
    trouble = draw(st.sampled_from(["none", "ERROR", "FATAL", "40003", "08006", "stranger", "gone"]))
    at = draw(st.integers(0, reach)) if trouble != "none" else reach
    in_sync = at == statements and handed is Handed.WHOLE
    before = at > statements - 1 if framed else False  # the COMMIT was done before the trouble
    whole = handed is Handed.WHOLE
    anything = draw(st.booleans())
    if trouble == "none":
        applied = (at == statements) if framed else whole or (committing and at > 0)
    elif trouble == "ERROR":
        applied = before or (committing and anything)
    elif trouble == "FATAL":
        # During the commit, FATAL may come too late; a self-committing statement may have committed.
        applied = before or ((in_sync or committing) and anything)
    else:
        # The server continues without the client, or reported itself that the outcome is unknown.
        possible = whole or framed or committing
        applied = before or (possible and anything)
    return applied, _seen(draw, base, trouble, at, whole)


def _seen(draw: st.DrawFn, base: Facts, trouble: str, at: int, whole: bool) -> Facts:
    """Draw the answers that arrive: all, or the first few and then the end of the connection."""
    problem = {
        "ERROR": error("23505"),
        "FATAL": fatal(),
        "40003": error("40003"),
        "08006": error("08006"),
        "stranger": error("57P01", ""),
    }.get(trouble)
    answers = at + (problem is not None) + (whole and trouble in ("none", "ERROR", "40003", "08006"))
    arrived = draw(st.integers(0, answers) | st.just(answers))
    completed = min(at, arrived)
    return replace(
        base,
        completed=completed,
        error=problem if problem is not None and arrived > at else None,
        commit_tag="COMMIT" if base.framed and completed == base.statements else None,
        synced=whole and trouble in ("none", "ERROR", "40003", "08006") and arrived == answers,
    )


@settings(deadline=None, max_examples=500)
@given(lives())
def test_the_verdict_never_lies(life: tuple[bool, Facts]) -> None:
    applied, facts = life
    proof = outcome(facts)
    if proof is APPLIED:
        assert applied
    if proof is NOT_APPLIED:
        assert not applied
