"""Queries of the state of a primary and of its standbys."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import psycopg
from psycopg.rows import TupleRow

from pgha.chaos._errors import ChaosError
from pgha.chaos._servers.protocol import Node
from pgha.chaos._topologies.nodes import in_parallel

N = TypeVar("N", bound=Node)


def alive(nodes: Iterable[N]) -> list[N]:
    """Return the nodes that can answer."""
    return [node for node in nodes if node.running and not node.frozen]


async def ask(
    node: Node, sql: str, params: Sequence[object] | None = None, *, timeout: float = 10.0
) -> list[TupleRow]:
    """Run `Node.execute` without a second try: a missing answer is a `ChaosError`."""
    try:
        return await node.execute(sql, params, timeout=timeout)
    except (psycopg.OperationalError, TimeoutError) as error:
        reason = str(error).strip() or f"no answer within {timeout} s"
        raise ChaosError(f"{node.name} could not run {sql!r}: {reason}") from error


async def in_recovery(node: Node) -> bool:
    """Return whether a node is a standby; False: it takes writes."""
    rows = await ask(node, "SELECT pg_is_in_recovery()")
    return bool(rows[0][0])


async def leads(nodes: Sequence[Node], position: str) -> dict[str, int]:
    """Return by how many bytes each standby has replayed more than `position`; negative: less."""
    sql = "SELECT pg_wal_lsn_diff(pg_last_wal_replay_lsn(), %s)::bigint"
    rows = await in_parallel(lambda node: node.execute(sql, [position]), nodes)
    return {name: int(found[0][0] or 0) for name, found in rows.items()}


@dataclass(frozen=True, slots=True)
class Branch:
    """The place where the timeline of a promoted primary begins."""

    timeline: str  # the prefix of the names of its WAL files
    begin: str | None  # a position; None if unknown, because the primary was restarted since


async def branch(primary: Node) -> Branch:
    """Return the present timeline, which begins where the primary's recovery ended."""
    sql = "SELECT left(pg_walfile_name(pg_current_wal_insert_lsn()), 8), pg_last_wal_replay_lsn()::text"
    return Branch(*(await ask(primary, sql))[0])


async def is_past(node: Node, branch: Branch) -> bool:
    """Return whether a standby continued the old timeline beyond `branch`.

    Such a standby cannot switch to the new timeline. A standby that switched in time is also beyond the
    branch, but has WAL of the new timeline. That WAL arrives before it is replayed, so it is looked for last.
    """
    if branch.begin is None or (await leads([node], branch.begin))[node.name] <= 0:
        return False
    sql = "SELECT count(*) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$' AND starts_with(name, %s)"
    rows = await node.execute(sql, [branch.timeline])
    return not rows[0][0]


async def waits_for(node: Node) -> str:
    """Return a node's synchronous_standby_names, as a new connection sees them."""
    rows = await node.execute("SHOW synchronous_standby_names")
    return str(rows[0][0])


async def replay_stands(node: Node) -> bool:
    """Return whether the replay of a standby is paused on request."""
    rows = await node.execute("SELECT pg_get_wal_replay_pause_state()")
    return bool(rows[0][0] == "paused")


async def receives(node: Node) -> bool:
    """Return whether a standby has a WAL receiver process."""
    rows = await node.execute("SELECT count(*) FROM pg_stat_wal_receiver")
    return bool(rows[0][0])


async def idle(node: Node) -> bool:
    """Return whether a standby has replayed all the WAL that it has."""
    rows = await node.execute("SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup'")
    return rows in ([("RecoveryRetrieveRetryInterval",)], [("RecoveryWalStream",)])


async def streaming(primary: Node) -> dict[str, str]:
    """Return the standbys that have caught up with `primary`, each with its sync_state."""
    rows = await primary.execute(
        "SELECT application_name, sync_state FROM pg_stat_replication WHERE state = 'streaming'"
    )
    return dict(rows)


async def following(primary: Node, nodes: Iterable[N]) -> set[str]:
    """Return the names of the standbys that stream the present timeline of `primary`.

    The view of the primary is not enough: a standby that is ahead of the primary streams the old timeline up
    to its end, over and over again.
    """
    names, timeline = await streaming(primary), (await branch(primary)).timeline
    sql = "SELECT received_tli FROM pg_stat_wal_receiver WHERE status = 'streaming'"
    rows = await in_parallel(lambda node: node.execute(sql), [node for node in nodes if node.name in names])
    return {name for name, found in rows.items() if found == [(int(timeline, 16),)]}


async def why_not(node: Node) -> str:
    """Return why a standby does not stream, according to its log."""
    reasons = re.findall(r"(?:FATAL: |ERROR: ) *(.*)", await node.logs())
    return f"{node.name}: {reasons[-1] if reasons else 'its log gives no reason'}"
