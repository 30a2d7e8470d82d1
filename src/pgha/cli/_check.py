"""What became of the writes: the rules, applied to what was recorded and what the nodes hold at the end.

Pure, so that each rule can be shown to catch its own violation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

Applied: TypeAlias = tuple[UUID, int, int]
"""One row: the key, the server that applied it (its port), how many times it did."""


@dataclass(slots=True)
class Write:
    """One write as its caller saw it."""

    key: UUID
    attempts: int = 0
    """How many times it was handed to a node."""
    acknowledged: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """The keys that broke a rule, and those that were applied more than once."""

    lost: tuple[UUID, ...]
    """Acknowledged, and not on every node."""
    doubled: tuple[UUID, ...]
    """Applied more often than they were handed to a node, or never asked for at all."""
    repeated: tuple[UUID, ...]
    """Applied more than once: allowed, since the writes are declared idempotent."""


def check(writes: Iterable[Write], rows: Mapping[str, Iterable[Applied]]) -> Verdict:
    """Judge `writes` by the rows of every node, taken after replication caught up."""
    attempts: dict[UUID, int] = {}
    acknowledged: list[UUID] = []
    for write in writes:
        attempts[write.key] = write.attempts
        if write.acknowledged:
            acknowledged.append(write.key)
    keys = {node: {key for key, _, _ in found} for node, found in rows.items()}
    times = _times_applied(rows.values())
    return Verdict(
        lost=tuple(key for key in acknowledged if not all(key in held for held in keys.values())),
        doubled=tuple(key for key, count in times.items() if count > attempts.get(key, 0)),
        repeated=tuple(key for key, count in times.items() if count > 1),
    )


def _times_applied(rows: Iterable[Iterable[Applied]]) -> dict[UUID, int]:
    """How often each key was applied, on all servers together.

    Every node holds the rows of all; where they differ (one lags), the most that any saw is the truth.
    """
    seen: dict[UUID, dict[int, int]] = {}
    for found in rows:
        for key, server, count in found:
            servers = seen.setdefault(key, {})
            servers[server] = max(count, servers.get(server, 0))
    return {key: sum(servers.values()) for key, servers in seen.items()}
