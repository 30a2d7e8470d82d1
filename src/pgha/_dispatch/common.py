"""What every part of the dispatcher uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pgha._core.sources import Sources
from pgha._dispatch.timers import Timers
from pgha._dispatch.tracker import Tracker
from pgha._node.node import ManagedNode
from pgha._operation.operation import OperationCallbacks
from pgha._options import Options, Tuning


@dataclass(frozen=True, slots=True)
class Common:
    """The same objects for every part of one dispatcher."""

    runner: OperationCallbacks
    """The dispatcher, as the operations know it."""
    options: Options
    nodes: Mapping[str, ManagedNode]
    times: Timers
    tracker: Tracker
    enter: Callable[[Callable[[Any], object], Any], None]
    """Does an act, or puts it in line; see `pgha._core.door`."""

    @property
    def sources(self) -> Sources:
        """The clocks and the chance of the cluster."""
        return self.options.sources

    @property
    def clock(self) -> Callable[[], float]:
        """The cluster's clock."""
        return self.options.sources.clock

    @property
    def tuning(self) -> Tuning:
        """The bounds and times of the parts."""
        return self.options.tuning
