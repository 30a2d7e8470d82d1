"""Facts about failed segments, for the tests of outcomes and next steps: by name, and drawn by Hypothesis."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

from pgha._core.backoff import Budget
from pgha._core.next_step import ENDING, LATER, READ_ONLY, STALE_PLAN, Case
from pgha._core.outcome import Facts, Handed, ServerError

quick = settings(deadline=None, max_examples=120)
OTHERS = ("57014", "57P02", "40003", "08006", "08P01", "53100", "53300", "23502", "23505", "42P01", "P0001")
KNOWN = [*sorted(ENDING | LATER | STALE_PLAN), READ_ONLY, *OTHERS]
"""The SQLSTATEs that some rule knows, and a few others."""


def error(sqlstate: str, severity: str = "ERROR", *, reused: bool = False) -> ServerError:
    return ServerError(sqlstate, severity, reused)


def fatal(sqlstate: str = "57P01") -> ServerError:
    return ServerError(sqlstate, "FATAL")


def failed(sqlstate: str, severity: str = "ERROR", *, reused: bool = False) -> Facts:
    return Facts(synced=severity == "ERROR", error=error(sqlstate, severity, reused=reused))


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
    total=st.integers(0, 12),
    max_total=st.integers(2, 12),
    max_attempts=st.integers(1, 6),
    suspected_crashes=st.integers(0, 3),
    max_suspected_crashes=st.integers(1, 3),
    unprepared=st.booleans(),
    unkeyed=st.booleans(),
    role_changed=st.sampled_from([None, True, False]),
    exhausted=st.sampled_from([frozenset(), frozenset(), frozenset(Budget)])
    | st.frozensets(st.sampled_from(Budget)),
)
