"""What became of the demo's writes: the kit's rules, in the demo's words."""

from __future__ import annotations

from dataclasses import dataclass

from pgha.chaos.checkers import Rows, Violation, check, times_applied
from pgha.chaos.history import History

_DOUBLED = ("doubled", "in_doubt_twice", "refused_present", "unasked")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The keys that broke a rule, and those that were applied more than once."""

    lost: tuple[str, ...] = ()
    """Acknowledged, and not on every node."""
    doubled: tuple[str, ...] = ()
    """Applied more than once, or never asked for, or said to be not applied."""
    repeated: tuple[str, ...] = ()
    """Applied more than once; the ledger is to keep them from it."""
    others: tuple[Violation, ...] = ()
    """Of the other rules."""


def judge(history: History, rows: Rows) -> Verdict:
    """Judge the writes by the rows of every node, taken after replication caught up."""
    held = {node: list(found) for node, found in rows.items()}
    found = check(history, held)
    return Verdict(
        lost=tuple(one.key or "" for one in found if one.rule == "lost"),
        doubled=tuple(one.key or "" for one in found if one.rule in _DOUBLED),
        repeated=tuple(key for key, times in times_applied(held).items() if times > 1),
        others=tuple(one for one in found if one.rule not in ("lost", *_DOUBLED)),
    )
