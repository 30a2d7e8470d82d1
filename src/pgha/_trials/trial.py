"""What a trial is given, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias

import pgha
from pgha.chaos import Done, NodeKind, Schedule, Workload
from pgha.chaos.checkers import Violation
from pgha.chaos.history import History, Recorder

Topology: TypeAlias = Literal["masters", "replicas", "standalone"]
_MOST_TOLD = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The servers of a trial, its load, and how the cluster is opened."""

    topology: Topology = "masters"
    nodes: int = 3
    kind: NodeKind = "local"
    version: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    synchronous: int = 0
    """Replicas: so many standbys must have a write before it is acknowledged."""
    tls: bool = False
    password: str | None = None
    """Servers ask for it; nothing that pgha shows may have it."""
    proxied: bool = False
    """The cluster reaches its nodes through fault proxies."""
    workload: Workload = field(default_factory=Workload)
    options: Mapping[str, Any] = field(default_factory=dict)
    """More arguments of `pgha.open_cluster`."""
    ledger: bool = False
    """It is installed; also by itself where the load has keyed writes."""
    schema: str = ""
    """DDL beside the load's own table."""

    @property
    def keyed(self) -> bool:
        """There are keyed writes."""
        return self.ledger or self.workload.keyed > 0

    def on(self, kind: NodeKind) -> Setup:
        """The same, on nodes of another kind."""
        return replace(self, kind=kind)


@dataclass(frozen=True, slots=True)
class Sighting:
    """A node as the cluster saw it from this moment on."""

    at: float
    """`time.monotonic`."""
    node: str
    state: str
    """As in `pgha.NodeStatus`."""
    role: str
    """``primary``, ``standby`` or ``unknown``."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What happened in one run, and which promises it broke. Times are `time.monotonic` seconds."""

    title: str
    seed: int | None
    loop: str
    kind: NodeKind
    nodes: tuple[str, ...]
    began: float
    """When the load began."""
    ended: float
    history: History
    faults: tuple[Done, ...]
    sightings: tuple[Sighting, ...]
    violations: tuple[Violation, ...]
    schedule: Schedule | None
    retried: int
    """Times that an operation was run again."""
    replayed: int = 0
    """Writes that the ledger knew to be applied by an earlier attempt."""

    @property
    def kept(self) -> bool:
        """Every promise was kept."""
        return not self.violations

    def complaint(self) -> str:
        """The broken promises in words, the first of them if they are many; "" if there are none."""
        lines = [str(one) for one in self.violations[:_MOST_TOLD]]
        more = len(self.violations) - len(lines)
        return "\n".join([*lines, *([f"and {more} more"] if more else [])])


def violation(rule: str, text: str, key: str | None = None) -> Violation:
    """A broken rule that a scenario found by itself."""
    return Violation(rule, key, text)


class Watch(Protocol):
    """Who looks on while a trial runs; called in a task of its loop."""

    def __call__(self, cluster: pgha.Cluster, recorder: Recorder, faults: Sequence[Done]) -> None:
        """The load has begun. What is given goes on changing."""


def unwatched(cluster: pgha.Cluster, recorder: Recorder, faults: Sequence[Done]) -> None:
    """Nobody looks on."""
