"""The check of the demo's writes by the rules of `pgha.chaos`."""

from __future__ import annotations

from dataclasses import dataclass

from pgha.chaos.checkers import Rows, Violation, check, times_applied
from pgha.chaos.history import History

_DOUBLED = ("doubled", "in_doubt_twice", "refused_present", "unasked")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The keys that broke a rule, and those that were applied more than once."""

    lost: tuple[str, ...] = ()
    """Keys of writes that were acknowledged but are not on every node."""
    doubled: tuple[str, ...] = ()
    """Keys that were applied more than once, never submitted, or applied though reported as not applied."""
    repeated: tuple[str, ...] = ()
    """Keys that were applied more than once, which the ledger should prevent."""
    others: tuple[Violation, ...] = ()
    """Violations of the other rules."""


def judge(history: History, rows: Rows) -> Verdict:
    """Check the writes against the rows of every node, read after replication caught up."""
    held = {node: list(found) for node, found in rows.items()}
    found = check(history, held)
    return Verdict(
        lost=tuple(one.key or "" for one in found if one.rule == "lost"),
        doubled=tuple(one.key or "" for one in found if one.rule in _DOUBLED),
        repeated=tuple(key for key, times in times_applied(held).items() if times > 1),
        others=tuple(one for one in found if one.rule not in ("lost", *_DOUBLED)),
    )
