"""The choice of a node for an operation, given the state of all nodes. Pure, without state of its own.

A chosen node is kept until it is down, takes no operations of the need any more, or cannot open connections
while another node can. Suspicion alone moves nothing: operations wait for the one ping that decides. A node
that is *much* nearer takes over, except between two primaries of one lineage. The reasons: spreading writes
over masters invites conflicts, spreading writes over two primaries of one lineage loses them, and reads on
the node of the writes see those writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pgha._core.need import WRITE, Need
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
    lineage: int | None = None
    """The server's system identifier; None if unknown."""
    read_only: bool = False
    """Whether the server's transactions are read-only by default, apart from its role."""
    superseded: bool = False
    """Whether the server is a primary of an old timeline; see `pgha._core.timelines`."""


NEARER_FACTOR = 0.5
NEARER_BY = 0.002
"""Another node replaces the chosen one if that other node answers in half the time and 2 ms sooner."""


def _rank(one: Candidate) -> tuple[int, float, str]:
    return (0 if one.serving else 1) + (0 if one.state == "up" else 2), one.latency, one.name


def eligible(one: Candidate, need: Need) -> bool:
    """Return whether an operation with this need may be sent to the node, at once or after a ping.

    A write is never sent to a standby, to a read-only server, or to a primary of an old timeline.
    """
    if one.state not in ("up", "suspect"):
        return False
    if need.node is not None and need.node != one.name:
        return False
    if need.lineage is not None and need.lineage != one.lineage:
        return False
    if need.access == "write" and one.read_only:
        return False
    return not (need.access == "write" or need.role == "primary") or (
        one.role == "primary" and not one.superseded
    )


def choose(candidates: Iterable[Candidate], current: str | None, need: Need) -> str | None:
    """Return the node for operations with this need, or None if no node is eligible.

    ``current`` is the node chosen last.
    """
    usable = [one for one in candidates if eligible(one, need)]
    if not usable:
        return None
    kept = next((one for one in usable if one.name == current), None)
    if kept is None:
        return min(usable, key=_rank).name
    others = [one for one in usable if _replaces(one, kept, need)]
    return min(others, key=_rank).name if others else kept.name


def _replaces(other: Candidate, kept: Candidate, need: Need) -> bool:
    """Return whether an eligible node takes over from another eligible one, which was chosen earlier."""
    if other is kept or not other.serving or other.state != "up":
        return False
    same_lineage = other.lineage is not None and other.lineage == kept.lineage
    if need.role == "primary" and same_lineage:
        # Both say that they are the primary, on one timeline. What was written to the kept one would be lost.
        return False
    much_nearer = other.latency < kept.latency * NEARER_FACTOR and other.latency < kept.latency - NEARER_BY
    return much_nearer or not kept.serving


def elsewhere(candidates: Iterable[Candidate], avoid: str, need: Need) -> str | None:
    """Return a node other than ``avoid``, or None if no other node is eligible."""
    return choose([one for one in candidates if one.name != avoid], None, need)


def among(members: Sequence[Candidate], current: str | None, last: str | None) -> str | None:
    """Return the node for a write that may only be sent to ``members``, the nodes of one lineage.

    The choice is a member that takes writes, ``current`` if possible. While no member takes writes, the write
    waits for ``last``, or for another member if ``last`` is none. None means that there is no member.
    """
    if any(one.name == current and eligible(one, WRITE) for one in members):
        return current
    found = choose(members, None, WRITE)
    if found is not None:
        return found
    names = [one.name for one in members]
    return last if last in names or not names else names[0]
