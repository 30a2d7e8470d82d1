"""The report of a failed test: the faults that were injected, and the ends of the servers' logs."""

from __future__ import annotations

import time
from math import isinf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

    from pgha.chaos import Done, Injector, Node, Nodes

_LINES = 30


class FailureReport:
    """The report of one test. Its times count from the making of this object."""

    def __init__(self, portal: BlockingPortal, nodes: Nodes) -> None:
        self.injectors: list[Injector] = []
        self._portal, self._nodes = portal, nodes
        self._began = time.monotonic()
        self._logs: list[tuple[str, str]] | None = None
        self._told = False

    def keep(self) -> None:
        """Read the logs, before the nodes are removed."""
        self._logs = [(f"pgha: the end of the log of {node.name}", self._tail(node)) for node in self._nodes]

    def _tail(self, node: Node) -> str:
        text = self._portal.call(node.logs)
        return "\n".join(text.splitlines()[-_LINES:])

    def sections(self) -> list[tuple[str, str]]:
        """Return the sections for the test's report; empty after the first call."""
        if self._told:
            return []
        self._told = True
        if self._logs is None:
            self.keep()
        faults = sorted((one for injector in self.injectors for one in injector.done), key=lambda one: one.at)
        lines = "\n".join(map(self._line, faults))
        return [*([("pgha: faults", lines)] if faults else []), *(self._logs or ())]

    def _line(self, done: Done) -> str:
        if done.skipped:
            what = f"skipped: {done.skipped}"
        elif isinf(done.until):
            what = "not healed"
        else:
            what = f"healed after {done.until - done.at:.3f} s"
        return f"{done.at - self._began:8.3f} s  {done.kind} {done.node}, {what}"
