"""What a primary and its standbys say about each other."""

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
    """Those that can answer."""
    return [node for node in nodes if node.running and not node.frozen]


async def ask(
    node: Node, sql: str, params: Sequence[object] | None = None, *, timeout: float = 10.0
) -> list[TupleRow]:
    """`Node.execute`, when there is no second try: that it does not answer is a `ChaosError`."""
    try:
        return await node.execute(sql, params, timeout=timeout)
    except (psycopg.OperationalError, TimeoutError) as error:
        reason = str(error).strip() or f"no answer within {timeout} s"
        raise ChaosError(f"{node.name} does not do {sql!r}: {reason}") from error


async def in_recovery(node: Node) -> bool:
    """Whether it is a standby; False: it takes writes."""
    rows = await ask(node, "SELECT pg_is_in_recovery()")
    return bool(rows[0][0])


async def leads(nodes: Sequence[Node], position: str) -> dict[str, int]:
    """By how many bytes each standby has replayed more than `position`; negative: less."""
    sql = "SELECT pg_wal_lsn_diff(pg_last_wal_replay_lsn(), %s)::bigint"
    rows = await in_parallel(lambda node: node.execute(sql, [position]), nodes)
    return {name: int(found[0][0] or 0) for name, found in rows.items()}


@dataclass(frozen=True, slots=True)
class Branch:
    """Where the timeline of a promoted primary begins."""

    timeline: str  # as the names of its WAL files begin
    begin: str | None  # a position; unknown when the primary was started again since


async def branch(primary: Node) -> Branch:
    """The present timeline: it begins where the primary's recovery ended."""
    sql = "SELECT left(pg_walfile_name(pg_current_wal_insert_lsn()), 8), pg_last_wal_replay_lsn()::text"
    return Branch(*(await ask(primary, sql))[0])


async def is_past(node: Node, branch: Branch) -> bool:
    """Whether a standby went on with the old timeline where `branch` leaves it, so that it cannot turn to it.

    One that turned to it in time is also further than its beginning, but then has WAL of the new timeline.
    That comes before it is replayed, so it is looked for last.
    """
    if branch.begin is None or (await leads([node], branch.begin))[node.name] <= 0:
        return False
    sql = "SELECT count(*) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$' AND starts_with(name, %s)"
    rows = await node.execute(sql, [branch.timeline])
    return not rows[0][0]


async def waits_for(node: Node) -> str:
    """Its synchronous_standby_names, as a new connection finds them."""
    rows = await node.execute("SHOW synchronous_standby_names")
    return str(rows[0][0])


async def replay_stands(node: Node) -> bool:
    """Whether a standby replays nothing, because it was told so."""
    rows = await node.execute("SELECT pg_get_wal_replay_pause_state()")
    return bool(rows[0][0] == "paused")


async def receives(node: Node) -> bool:
    """Whether a standby has a process that receives."""
    rows = await node.execute("SELECT count(*) FROM pg_stat_wal_receiver")
    return bool(rows[0][0])


async def idle(node: Node) -> bool:
    """Whether a standby has replayed all the WAL that it has."""
    rows = await node.execute("SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup'")
    return rows in ([("RecoveryRetrieveRetryInterval",)], [("RecoveryWalStream",)])


async def streaming(primary: Node) -> dict[str, str]:
    """The standbys that have caught up with `primary`, each with its sync_state."""
    rows = await primary.execute(
        "SELECT application_name, sync_state FROM pg_stat_replication WHERE state = 'streaming'"
    )
    return dict(rows)


async def following(primary: Node, nodes: Iterable[N]) -> set[str]:
    """Which standbys stream the present timeline of `primary`.

    What the primary says is not enough: one that is ahead of it streams the old timeline over and over again,
    up to its end.
    """
    names, timeline = await streaming(primary), (await branch(primary)).timeline
    sql = "SELECT received_tli FROM pg_stat_wal_receiver WHERE status = 'streaming'"
    rows = await in_parallel(lambda node: node.execute(sql), [node for node in nodes if node.name in names])
    return {name for name, found in rows.items() if found == [(int(timeline, 16),)]}


async def why_not(node: Node) -> str:
    """What keeps a standby from streaming, as far as its log knows."""
    reasons = re.findall(r"(?:FATAL: |ERROR: ) *(.*)", await node.logs())
    return f"{node.name}: {reasons[-1] if reasons else 'its log has no reason'}"
