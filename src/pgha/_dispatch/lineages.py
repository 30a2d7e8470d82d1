"""Keeping writes on the newest timeline of each lineage, for the dispatcher.

`pgha._core.timelines` decides which primaries are superseded; this module marks the nodes, and reports.
"""

from __future__ import annotations

from collections.abc import Callable

from pgha._core.timelines import Timelines
from pgha._dispatch.common import Common
from pgha._node.node import ManagedNode
from pgha._types import PrimarySuperseded


class Lineages:
    """The lineages of a cluster's nodes."""

    def __init__(self, common: Common, reroute: Callable[[], None]) -> None:
        self._timelines = Timelines()
        self._nodes = common.nodes
        self._events = common.tracker.events
        self._log = common.tracker.log
        self._times = common.times
        self._clock = common.clock
        self._first_look = common.tuning.first_look
        self._reroute = reroute
        self._planned: set[str] = set()
        """The nodes for whose first answer a choice waits, each with a timer."""
        self._changed: list[ManagedNode] = []
        self._reported: set[str] = set()
        """The names of the superseded nodes that were reported."""

    def status_seen(self, node: ManagedNode) -> None:
        """Compare a node's timeline with the others of its lineage, after the node's status was read."""
        newer = self._timelines.seen(node.health.status)
        for one in tuple(self._nodes.values()) if newer else (node,):
            if one.health.supersede(self._timelines.superseded(one.health.status)):
                self._changed.append(one)
                self._reported.discard(one.name)
            # A primary that is down is no danger; it is reported if it comes back as it was.
            if one.health.superseded and one.health.usable and one.name not in self._reported:
                self._report(one)

    def take_changed(self) -> list[ManagedNode]:
        """Return the nodes that began or ceased to be superseded since the last call."""
        changed, self._changed = self._changed, []
        return changed

    def incomplete(self) -> bool:
        """Return whether a node was not heard of yet, and may be a newer primary than all others.

        A node is waited for only for a short time after it was added; `reroute` is called at its end.
        """
        now = self._clock()
        waited_for = False
        for node in self._nodes.values():
            until = node.health.since + self._first_look
            if node.health.state == "connecting" and now < until and not node.leaving:
                waited_for = True
                if node.name not in self._planned:
                    self._planned.add(node.name)
                    self._times.at(until, lambda name=node.name: self._waited(name))  # type: ignore[misc]
        return waited_for

    def _waited(self, name: str) -> None:
        self._planned.discard(name)
        self._reroute()

    def _report(self, node: ManagedNode) -> None:
        self._reported.add(node.name)
        status = node.health.status
        old, newest = status.timeline or 0, self._timelines.newest(status.system) or 0
        self._events.emit(
            PrimarySuperseded(at=self._clock(), node=node.name, timeline=old, newest_timeline=newest)
        )
        self._log.superseded(node.name, old, newest)
