"""The setup of a trial, and its result."""

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
    """For replicas: the number of standbys that must have a write before the write is acknowledged."""
    tls: bool = False
    password: str | None = None
    """The password that the servers require. No text of pgha may show it."""
    proxied: bool = False
    """Whether the cluster reaches its nodes through fault proxies."""
    workload: Workload = field(default_factory=Workload)
    options: Mapping[str, Any] = field(default_factory=dict)
    """More arguments of `pgha.open_cluster`."""
    ledger: bool = False
    """Whether to install the ledger even if the workload has no keyed writes."""
    schema: str = ""
    """DDL to run in addition to that of the load's own table."""

    @property
    def keyed(self) -> bool:
        """Whether the ledger is needed."""
        return self.ledger or self.workload.keyed > 0

    def on(self, kind: NodeKind) -> Setup:
        """Return the same setup with nodes of another kind."""
        return replace(self, kind=kind)


@dataclass(frozen=True, slots=True)
class Sighting:
    """The state of a node as the cluster saw it from a moment on."""

    at: float
    """The moment in `time.monotonic` seconds."""
    node: str
    state: str
    """The state, as in `pgha.NodeStatus`."""
    role: str
    """``primary``, ``standby`` or ``unknown``."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The history of a run, and the promises that were broken. Times are `time.monotonic` seconds."""

    title: str
    seed: int | None
    loop: str
    kind: NodeKind
    nodes: tuple[str, ...]
    began: float
    """The time when the load began."""
    ended: float
    history: History
    faults: tuple[Done, ...]
    sightings: tuple[Sighting, ...]
    violations: tuple[Violation, ...]
    schedule: Schedule | None
    retried: int
    """The number of times that an operation was run again."""
    replayed: int = 0
    """Writes that an earlier attempt had applied, as the ledger showed."""

    @property
    def kept(self) -> bool:
        """Whether every promise was kept."""
        return not self.violations

    def complaint(self) -> str:
        """Return the broken promises as text, or the first of them if they are many; "" if there are none."""
        lines = [str(one) for one in self.violations[:_MOST_TOLD]]
        more = len(self.violations) - len(lines)
        return "\n".join([*lines, *([f"and {more} more"] if more else [])])


def violation(rule: str, text: str, key: str | None = None) -> Violation:
    """Return a violation of a rule that is not one of `pgha.chaos`."""
    return Violation(rule, key, text)


class Watch(Protocol):
    """A callable that can observe a running trial. The trial's event loop calls it."""

    def __call__(self, cluster: pgha.Cluster, recorder: Recorder, faults: Sequence[Done]) -> None:
        """Note that the load has begun. The arguments keep changing during the trial."""


def unwatched(cluster: pgha.Cluster, recorder: Recorder, faults: Sequence[Done]) -> None:
    """Do not observe the trial."""
