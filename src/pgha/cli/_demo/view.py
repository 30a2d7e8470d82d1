"""The views of a running demo: lines of text, or only the JSON at the end.

Another view is one more class with the methods of `View`: see `live`.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from textwrap import shorten
from typing import Protocol, final

import pgha
from pgha.chaos import Masters
from pgha.chaos._topologies.nodes import Step
from pgha.cli._demo.faults import Fault, Saboteur
from pgha.cli._demo.summary import Summary
from pgha.cli._demo.workload import Recorder, Second
from pgha.cli._output import write

_WIDTH = 79

TEN_LINES = """\
import anyio, pgha, pgha.chaos

async def main():
    async with pgha.chaos.masters(3) as nodes:
        await nodes.create("CREATE TABLE item (id int PRIMARY KEY, name text)")
        async with pgha.open_cluster(*nodes.dsns) as cluster:
            await cluster.execute("INSERT INTO item VALUES (1, %s)", ["tea"])
            await nodes.wait_replicated()
            await nodes[0].kill()
            print(list(await cluster.fetch("SELECT id, name FROM item")))

anyio.run(main)
"""


class View(Protocol):
    """A view of a running demo.

    Every method may raise `OutputClosed`. Times are seconds since the workload began.
    """

    def shown(self) -> AbstractAsyncContextManager[None]:
        """Return a context manager that surrounds all other calls except `result`."""
        ...

    def stage(self, text: str) -> None:
        """Show that a longer activity begins."""
        ...

    def note(self, text: str) -> None:
        """Show a piece of information."""
        ...

    def progress(self, node: str, step: Step) -> None:
        """Show a step of a server's start; see `pgha.chaos.masters`."""
        ...

    def load(self, cluster: pgha.Cluster, nodes: Masters, recorder: Recorder, saboteur: Saboteur) -> None:
        """Show that the workload begins. It runs until the next stage."""
        ...

    def second(self, second: Second, nodes: Mapping[str, pgha.NodeStatus]) -> None:
        """Show the last second; called once per second during the workload."""
        ...

    def fault(self, fault: Fault) -> None:
        """Show that a node is about to be killed, frozen or restarted."""
        ...

    def mending(self, node: str) -> None:
        """Show that the node's server is being started or thawed again."""
        ...

    def back(self, node: str, at: float, away: float) -> None:
        """Show that pgha uses the node again, `away` seconds after the fault."""
        ...

    def changed(self, at: float, event: pgha.NodeStateChanged) -> None:
        """Show that the state of a node changed, as pgha sees it."""
        ...

    def result(self, summary: Summary) -> None:
        """Show the summary of the finished demo."""
        ...


class _Quiet:
    """A base class whose methods show nothing."""

    @asynccontextmanager
    async def shown(self) -> AsyncGenerator[None]:
        yield

    def progress(self, node: str, step: Step) -> None:
        pass

    def load(self, cluster: pgha.Cluster, nodes: Masters, recorder: Recorder, saboteur: Saboteur) -> None:
        pass

    def second(self, second: Second, nodes: Mapping[str, pgha.NodeStatus]) -> None:
        pass

    def fault(self, fault: Fault) -> None:
        pass

    def mending(self, node: str) -> None:
        pass

    def back(self, node: str, at: float, away: float) -> None:
        pass

    def changed(self, at: float, event: pgha.NodeStateChanged) -> None:
        pass


@final
class PlainView(_Quiet):
    """Lines of text that look right in 80 columns and in a pipe."""

    def stage(self, text: str) -> None:
        write(f"{text} ...", sys.stdout)

    def note(self, text: str) -> None:
        write(text, sys.stdout)

    def second(self, second: Second, nodes: Mapping[str, pgha.NodeStatus]) -> None:
        speed = (
            f"{second.rate:6,.0f} ops/s   p50 {second.p50 * 1000:5.1f} ms   p99 {second.p99 * 1000:5.1f} ms"
        )
        self._at(second.at, f"{speed}   {_states(nodes)}")

    def fault(self, fault: Fault) -> None:
        remark = ", which takes the writes" if fault.at_writer else ""
        self._at(fault.at, f"---- {fault.kind} {fault.node}{remark}")

    def changed(self, at: float, event: pgha.NodeStateChanged) -> None:
        reason = f" ({event.reason})" if event.reason else ""
        self._at(at, f"     {event.node}: {event.before} -> {event.state}{reason}")

    def result(self, summary: Summary) -> None:
        text = f"\n{summary.text()}\n\nTry pgha yourself with these ten lines:\n\n{TEN_LINES}"
        write(text, sys.stdout, end="")

    def _at(self, at: float, text: str) -> None:
        # On one line, even if a message of the server has several.
        room = _WIDTH - len("99.99 s  ")
        text = text.rstrip() if len(text) <= room and "\n" not in text else _squeezed(text, room)
        write(f"{at:5.2f} s  {text}", sys.stdout)


@final
class JsonView(_Quiet):
    """The summary as JSON on standard output; the stages on standard error."""

    def stage(self, text: str) -> None:
        write(f"{text} ...", sys.stderr)

    def note(self, text: str) -> None:
        write(text, sys.stderr)

    def result(self, summary: Summary) -> None:
        write(summary.json(), sys.stdout)


def _states(nodes: Mapping[str, pgha.NodeStatus]) -> str:
    text = "  ".join(f"{name} {status.state}" for name, status in nodes.items())
    if len(text) <= 28:
        return text
    return f"{sum(status.state == 'up' for status in nodes.values())} of {len(nodes)} up"


def _squeezed(text: str, width: int) -> str:
    indent = len(text) - len(text.lstrip())
    return " " * indent + shorten(text, width - indent, placeholder=" ...")
