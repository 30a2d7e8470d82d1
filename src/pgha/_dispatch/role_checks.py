"""Writes that got 25006 (read-only), until a ping tells whether their node still takes writes.

The statement may have caused the error itself: it asked for a read-only transaction, or it passed on the
error of another server. Only a ping that is sent after the error tells. One ping answers for all writes that
wait for it, and statements that get 25006 all the time cause one ping per interval. The node's state does
not change meanwhile, so that all other operations go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from pgha._dispatch.timers import Timers
from pgha._node.node import ManagedNode

Report: TypeAlias = Callable[[bool], None]
"""Takes whether the node takes no writes any more."""


@dataclass(slots=True)
class _Check:
    """The writes that wait for the next ping of one node. Times are `time.monotonic` seconds."""

    waiting: list[tuple[float, Report]] = field(default_factory=list)
    """For each write, the time from which on a ping may be sent that answers for it."""
    next_ping: float = 0.0
    """The time before which no ping is requested."""
    timed: bool = False
    """Whether a timer will request the next ping."""


class RoleChecks:
    """Asks nodes for their role; see the head of this file."""

    def __init__(self, times: Timers, clock: Callable[[], float], interval: float) -> None:
        self._times = times
        self._clock = clock
        self._interval = interval
        self._checks: dict[ManagedNode, _Check] = {}

    def ask(self, node: ManagedNode, report: Report) -> None:
        """Call ``report`` once a ping has told the role; at once if the node takes no writes anyway."""
        if _takes_no_writes(node):
            report(True)
            return
        check = self._checks.setdefault(node, _Check())
        check.waiting.append((self._clock(), report))
        self._request(node, check)

    def _request(self, node: ManagedNode, check: _Check) -> None:
        now = self._clock()
        if now >= check.next_ping:
            check.next_ping = now + self._interval
            node.request_ping()
        elif not check.timed:
            check.timed = True
            self._times.at(check.next_ping, lambda: self._request_later(node, check))

    def _request_later(self, node: ManagedNode, check: _Check) -> None:
        check.timed = False
        if check.waiting:
            self._request(node, check)

    def observed(self, node: ManagedNode) -> None:
        """Report to the writes that wait for the node's ping, after an answer to a ping or a failure."""
        check = self._checks.get(node)
        if check is None or not check.waiting:
            return
        changed, waiting = _takes_no_writes(node), check.waiting
        check.waiting = [one for one in waiting if not changed and one[0] > node.pinged_at]
        for since, report in waiting:
            if changed or since <= node.pinged_at:
                report(changed)

    def forget(self, node: ManagedNode) -> None:
        """Report to all writes that wait for a node which was removed: they need another one."""
        check = self._checks.pop(node, None)
        if check is not None:
            waiting, check.waiting = check.waiting, []
            for _, report in waiting:
                report(True)


def _takes_no_writes(node: ManagedNode) -> bool:
    return not node.usable or not node.health.writable
