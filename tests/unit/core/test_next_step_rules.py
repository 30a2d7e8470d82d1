"""Tests of rules about the next step that hold for all cases.

The first part states them for drawn cases, the second part for the whole table: each SQLSTATE, from wherever
it comes, for each kind of caller and segment.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.failures import KNOWN, cases, error, failed, quick

from pgha._core.backoff import Budget
from pgha._core.next_step import (
    ENDING,
    LATER,
    OWN_DOING,
    READ_ONLY,
    STALE_PLAN,
    Case,
    NextStep,
    budget_of,
    decide,
)
from pgha._core.outcome import Facts, GaveUp, Outcome

APPLIED, NOT_APPLIED, IN_DOUBT = Outcome.APPLIED, Outcome.NOT_APPLIED, Outcome.IN_DOUBT
CHARGED = frozenset({NextStep.AGAIN_ELSEWHERE, NextStep.AGAIN_LATER, NextStep.CHECK_ROLE})
AGAIN = CHARGED | OWN_DOING
ENDS = frozenset({NextStep.FAIL_SQL, NextStep.FAIL_LOST, NextStep.FAIL_IN_DOUBT, NextStep.FAIL_LEDGER})


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
    step = decide(case)[1]
    if step in AGAIN:
        assert case.gave_up is None
        assert case.total < case.max_total
        assert case.suspected_crashes < case.max_suspected_crashes
    if step in CHARGED:
        assert case.attempts < case.max_attempts
        assert budget_of(case.facts, step) not in case.exhausted


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
    state = problem.sqlstate if problem is not None else ""
    if then is NextStep.AGAIN_NOW:
        assert state == "57014" and case.ours
    elif then is NextStep.AGAIN_LATER:
        assert state in LATER or (case.facts.at_ledger and state == "23502")
    elif then is NextStep.AGAIN_UNPREPARED:
        assert (state in STALE_PLAN or state.startswith("42")) and not case.unprepared
        assert problem is not None and problem.reused
    elif then is NextStep.AGAIN_UNKEYED:
        assert case.facts.at_ledger and case.auto and not case.unkeyed
    elif then is NextStep.CHECK_ROLE:
        assert state == READ_ONLY and case.role_changed is None and not case.read


@quick
@given(cases, st.frozensets(st.sampled_from(Budget)))
def test_a_budget_limits_only_what_is_charged_to_it(case: Case, exhausted: frozenset[Budget]) -> None:
    proof, step = decide(replace(case, exhausted=frozenset()))
    then = decide(replace(case, exhausted=exhausted))
    if budget_of(case.facts, step) in exhausted:
        assert then[0] is proof and then[1] in ENDS | {NextStep.RESOLVE}
    else:
        assert then == (proof, step)


@quick
@given(cases, st.integers(1, 20))
def test_what_pgha_did_itself_needs_no_budget(case: Case, attempts: int) -> None:
    proof, step = decide(case)
    if step in OWN_DOING:
        assert budget_of(case.facts, step) is None
        assert decide(replace(case, attempts=attempts, exhausted=frozenset(Budget))) == (proof, step)


@quick
@given(cases)
def test_all_attempts_together_are_limited(case: Case) -> None:
    assert decide(replace(case, total=case.max_total))[1] not in AGAIN


# The table: where a SQLSTATE comes from decides whether it is believed.

CALLERS = {
    "write": Case(Facts()),
    "read": Case(Facts(), read=True),
    "idempotent": Case(Facts(), idempotent=True),
    "keyed": Case(Facts(), keyed=True),
}
SEGMENTS = {
    "plain": Facts(synced=True),
    "framed": Facts(synced=True, framed=True, statements=3),
    "CALL": Facts(synced=True, self_committing=True),
    "CALL in a frame": Facts(synced=True, self_committing=True, framed=True, statements=3),
    "unreplicated": Facts(synced=True, completed=1, unreplicated=True),
}
ROLES = (None, True, False)
CERTAIN = ("plain", "framed", "CALL in a frame")
"""The segments of which an ERROR proves that nothing was applied."""
every_code = pytest.mark.parametrize("state", KNOWN)
every_caller = pytest.mark.parametrize("caller", CALLERS)


def expected(state: str, caller: str, role_changed: bool | None) -> NextStep:
    """Return the next step after an ERROR whose Sync was answered, on a connection that lives."""
    if state in LATER:
        return NextStep.AGAIN_LATER
    if state.startswith("53"):
        return NextStep.AGAIN_ELSEWHERE
    if state == READ_ONLY and caller != "read":
        steps = {None: NextStep.CHECK_ROLE, True: NextStep.AGAIN_ELSEWHERE, False: NextStep.FAIL_SQL}
        return steps[role_changed]
    return NextStep.FAIL_SQL


@every_code
@every_caller
def test_an_error_with_its_sync_is_the_statements_own(state: str, caller: str) -> None:
    """Not applied, whatever its class; raised as what it is, unless another attempt may succeed."""
    for segment, role in itertools.product(CERTAIN, ROLES):
        facts = replace(SEGMENTS[segment], error=error(state))
        case = replace(CALLERS[caller], facts=facts, role_changed=role)
        assert decide(case) == (NOT_APPLIED, expected(state, caller, role)), (segment, role)


@every_code
@every_caller
def test_an_error_that_ends_the_connection_is_believed(state: str, caller: str) -> None:
    """The node itself says so; class 08 and 40003 then leave the outcome open."""
    case = replace(CALLERS[caller], facts=Facts(error=error(state, "FATAL")))
    proof, step = decide(case)
    if state == "40003" or state.startswith("08"):
        assert proof is IN_DOUBT
        assert step is (NextStep.FAIL_IN_DOUBT if caller == "write" else NextStep.AGAIN_ELSEWHERE)
    else:
        assert proof is NOT_APPLIED
        if state in ENDING or state.startswith("53") or (state == READ_ONLY and caller != "read"):
            assert step is NextStep.AGAIN_ELSEWHERE
        else:
            assert step is expected(state, caller, None)


@every_code
@every_caller
def test_doubt_needs_a_lost_connection_or_commits_that_cannot_be_seen(state: str, caller: str) -> None:
    product = itertools.product(SEGMENTS, ("ERROR", "FATAL", "PANIC"), (True, False), ROLES)
    for segment, severity, synced, role in product:
        facts = replace(SEGMENTS[segment], error=error(state, severity), synced=synced)
        proof, step = decide(replace(CALLERS[caller], facts=facts, role_changed=role))
        if proof is IN_DOUBT:
            assert severity != "ERROR" or not synced or segment not in CERTAIN
        if step is NextStep.FAIL_IN_DOUBT:
            assert caller in ("write", "idempotent"), (segment, severity, synced, role)


@every_code
def test_an_error_that_invites_a_retry_is_not_shown_after_a_call(state: str) -> None:
    """A part of the CALL may be committed, so that a caller's own retry might do the work twice."""
    case = Case(replace(failed(state), self_committing=True))
    invites = state in LATER | {READ_ONLY, "40003"} or state.startswith(("08", "53", "57P"))
    assert decide(case) == (IN_DOUBT, NextStep.FAIL_IN_DOUBT if invites else NextStep.FAIL_SQL)


@every_code
@every_caller
@pytest.mark.parametrize("exhausted", Budget)
def test_the_budgets_are_apart(state: str, caller: str, exhausted: Budget) -> None:
    charged = (
        Budget.SERIALIZATION
        if state in LATER
        else Budget.RESOURCES
        if state.startswith("53")
        else Budget.FAILOVER
    )
    for severity, role in itertools.product(("ERROR", "FATAL"), ROLES):
        case = replace(CALLERS[caller], facts=failed(state, severity), role_changed=role)
        step = decide(case)[1]
        without = decide(replace(case, exhausted=frozenset({exhausted})))[1]
        if step in CHARGED and charged is exhausted:
            assert without in ENDS | {NextStep.RESOLVE}
        else:
            assert without is step


def test_the_ledgers_guard_has_a_budget_of_its_own() -> None:
    case = Case(replace(failed("23502"), at_ledger=True), keyed=True)
    for budget in Budget:
        step = decide(replace(case, exhausted=frozenset({budget})))[1]
        assert step is (NextStep.FAIL_LEDGER if budget is Budget.LEDGER else NextStep.AGAIN_LATER)
