"""Tests of every line of the outcome table, and of outcomes against a model server.

The table is in the docstring of `pgha._core.outcome`; its source and the measurements are in the notes on
what a failure proves. A wrong "not applied" doubles a write, a wrong "applied" loses one.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.failures import error, errors, facts_of_any_kind, fatal, quick

from pgha._core.outcome import Facts, Handed, Outcome, ServerError, outcome

APPLIED, NOT_APPLIED, IN_DOUBT = Outcome.APPLIED, Outcome.NOT_APPLIED, Outcome.IN_DOUBT

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
    "ERROR 40003, and Sync": (Facts(synced=True, error=error("40003")), NOT_APPLIED),
    "ERROR of class 08 (another server's), and Sync": (
        Facts(synced=True, error=error("08006")),
        NOT_APPLIED,
    ),
    "framed: ERROR 40003, and Sync": (
        Facts(synced=True, framed=True, statements=3, error=error("40003")),
        NOT_APPLIED,
    ),
    "framed: ERROR 08006 at the COMMIT, and Sync": (
        Facts(synced=True, framed=True, completed=2, statements=3, error=error("08006")),
        NOT_APPLIED,
    ),
    "ERROR 57P01 (a foreign server's)": (Facts(synced=True, error=error("57P01")), NOT_APPLIED),
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
    "ERROR 40003, then the end of the connection": (Facts(error=error("40003")), IN_DOUBT),
    "ERROR of class 08, then the end of the connection": (Facts(error=error("08006")), IN_DOUBT),
    "FATAL of class 08": (Facts(error=fatal("08P01")), IN_DOUBT),
    "framed: ERROR 40003, then the end of the connection": (
        Facts(framed=True, statements=3, error=error("40003")),
        IN_DOUBT,
    ),
    "CALL failed with 08006": (Facts(synced=True, self_committing=True, error=error("08006")), IN_DOUBT),
    "an ERROR of class 08 after a commit that is not replicated": (
        Facts(synced=True, completed=1, unreplicated=True, error=error("08006")),
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


# Rules that hold for all facts.


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
def test_strangers_errors_and_lost_connections_prove_nothing(facts: Facts, problem: ServerError) -> None:
    facts = replace(facts, error=problem, handed=Handed.WHOLE, commit_tag=None)
    lost = problem.fatal or not facts.synced
    if not problem.genuine or (lost and (problem.sqlstate == "40003" or problem.sqlstate.startswith("08"))):
        assert outcome(facts) is IN_DOUBT


@quick
@given(facts_of_any_kind, errors)
def test_the_code_of_an_error_with_its_sync_is_irrelevant(facts: Facts, problem: ServerError) -> None:
    facts = replace(facts, error=replace(problem, severity="ERROR"), synced=True)
    assert outcome(facts) is outcome(replace(facts, error=error("23505")))


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


_ERRORS = ("ERROR", "40003", "08006")
"""Troubles that abort the transaction, after which the Sync is answered."""


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
    trouble = draw(st.sampled_from(["none", "ERROR", "40003", "08006", "FATAL", "08P01", "stranger", "gone"]))
    at = draw(st.integers(0, reach)) if trouble != "none" else reach
    in_sync = at == statements and handed is Handed.WHOLE
    before = at > statements - 1 if framed else False  # the COMMIT was done before the trouble
    whole = handed is Handed.WHOLE
    anything = draw(st.booleans())
    if trouble == "none":
        applied = (at == statements) if framed else whole or (committing and at > 0)
    elif trouble in _ERRORS:
        applied = before or (committing and anything)
    elif trouble in ("FATAL", "08P01"):
        # During the commit, FATAL may come too late; a self-committing statement may have committed.
        applied = before or ((in_sync or committing) and anything)
    else:
        # The server continues without the client.
        possible = whole or framed or committing
        applied = before or (possible and anything)
    return applied, _seen(draw, base, trouble, at, whole)


def _seen(draw: st.DrawFn, base: Facts, trouble: str, at: int, whole: bool) -> Facts:
    """Draw the answers that arrive: all, or the first few and then the end of the connection."""
    problem = {
        "ERROR": error("23505"),
        "40003": error("40003"),
        "08006": error("08006"),
        "FATAL": fatal(),
        "08P01": fatal("08P01"),
        "stranger": error("57P01", ""),
    }.get(trouble)
    answers = at + (problem is not None) + (whole and trouble in ("none", *_ERRORS))
    arrived = draw(st.integers(0, answers) | st.just(answers))
    completed = min(at, arrived)
    return replace(
        base,
        completed=completed,
        error=problem if problem is not None and arrived > at else None,
        commit_tag="COMMIT" if base.framed and completed == base.statements else None,
        synced=whole and trouble in ("none", *_ERRORS) and arrived == answers,
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
