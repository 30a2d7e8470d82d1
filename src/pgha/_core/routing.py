"""The choice of a node for an operation, given the state of all nodes. Pure, without state of its own.

A chosen node is kept while that node is usable and no other node is *much* nearer: spreading writes over
masters invites conflicts, and reads on the node of the writes see those writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pgha._types import Role, State


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as seen by routing."""

    name: str
    state: State
    role: Role
    latency: float
    serving: bool
    """Whether a lane of the requested kind is open or was not tried yet; False while connecting fails."""


NEARER_FACTOR = 0.5
NEARER_BY = 0.002
"""Another node replaces the chosen one if that other node answers in half the time and 2 ms sooner."""


def _rank(one: Candidate) -> tuple[int, float, str]:
    return (0 if one.serving else 1) + (0 if one.state == "up" else 2), one.latency, one.name


def eligible(one: Candidate, *, write: bool) -> bool:
    """Return whether an operation may be sent to the node; a write is never sent to a standby."""
    return one.state in ("up", "suspect") and not (write and one.role != "primary")


def choose(candidates: Sequence[Candidate], current: str | None, *, write: bool) -> str | None:
    """Return the node for operations routed ``nearest()``, or None if no node is usable.

    ``current`` is the node chosen last.
    """
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
    """Return a node other than ``avoid``, or None if no other node is usable."""
    return choose([one for one in candidates if one.name != avoid], None, write=write)


def among(members: Sequence[Candidate], current: str | None, last: str | None) -> str | None:
    """Return the node for a write that may only be sent to ``members``, the nodes of one lineage.

    The choice is a member that takes writes, ``current`` if possible. While no member takes writes, the write
    waits for ``last``, or for another member if ``last`` is none. None means that there is no member.
    """
    if any(one.name == current and eligible(one, write=True) for one in members):
        return current
    found = choose(members, None, write=True)
    if found is not None:
        return found
    names = [one.name for one in members]
    return last if last in names or not names else names[0]
