"""Which node an operation goes to, given what is known of all nodes. Pure; no state but the choice itself.

A choice is kept while its node is usable and no other is *much* nearer: spreading writes over masters
invites conflicts, and reads that stay with the writes see them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pgha._types import Role, State


@dataclass(frozen=True, slots=True)
class Candidate:
    """What routing may know of a node."""

    name: str
    state: State
    role: Role
    latency: float
    serving: bool
    """It has an open lane of the kind asked for, or none was tried yet; False while connecting fails."""


NEARER_FACTOR = 0.5
NEARER_BY = 0.002
"""Another node takes over when it answers in half the time, and at least 2 ms sooner."""


def _rank(one: Candidate) -> tuple[int, float, str]:
    return (0 if one.serving else 1) + (0 if one.state == "up" else 2), one.latency, one.name


def eligible(one: Candidate, *, write: bool) -> bool:
    """Whether an operation may be sent there: never a write to a standby."""
    return one.state in ("up", "suspect") and not (write and one.role != "primary")


def choose(candidates: Sequence[Candidate], current: str | None, *, write: bool) -> str | None:
    """The node for operations routed ``nearest()``, or None when no node may be used."""
    usable = [one for one in candidates if eligible(one, write=write)]
    if not usable:
        return None
    best = min(usable, key=_rank)
    kept = next((one for one in usable if one.name == current), None)
    if kept is None or _rank(kept)[0] > _rank(best)[0]:
        return best.name
    much_nearer = best.latency < kept.latency * NEARER_FACTOR and best.latency < kept.latency - NEARER_BY
    return best.name if much_nearer else kept.name


def elsewhere(candidates: Sequence[Candidate], avoid: str, *, write: bool) -> str | None:
    """Another node than ``avoid``, or None when there is none."""
    return choose([one for one in candidates if one.name != avoid], None, write=write)


def among(members: Sequence[Candidate], current: str | None, last: str | None) -> str | None:
    """Where a write goes that only these nodes know of: to one that takes writes, ``current`` if it does;
    while none does, to wait for ``last``, or for another of them where that is none."""
    if any(one.name == current and eligible(one, write=True) for one in members):
        return current
    found = choose(members, None, write=True)
    if found is not None:
        return found
    names = [one.name for one in members]
    return last if last in names or not names else names[0]
