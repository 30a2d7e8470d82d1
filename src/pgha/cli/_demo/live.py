"""The demo on a terminal: a picture that is updated eight times per second, and keys that begin faults.

The view does not use the alternate screen, so that the last picture and the summary stay in the scrollback.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import final

import anyio
import anyio.to_thread
from rich.console import Console, Group
from rich.live import Live
from rich.syntax import Syntax
from rich.text import Text

import pgha
from pgha.chaos import Masters
from pgha.chaos._topologies.nodes import Step
from pgha.cli._demo import keyboard as _keys
from pgha.cli._demo.board import Board, rows
from pgha.cli._demo.draw import frame
from pgha.cli._demo.faults import STRIKES, DemoFault, Fault, Refused, Saboteur
from pgha.cli._demo.glyphs import glyphs_for
from pgha.cli._demo.summary import Options, Summary
from pgha.cli._demo.view import TEN_LINES
from pgha.cli._demo.workload import Recorder, Second
from pgha.cli._output import OutputClosed

_FRAME = 1 / 8
_MUST_BE_ZERO = ("in doubt", "errors", "lost", "doubled")


@final
class LiveView:
    """A view (see `View`) on a terminal. `keyboard` is the file descriptor of its keys; None: no keys."""

    def __init__(self, options: Options, console: Console, keyboard: int | None) -> None:
        self._console = console
        self._keyboard = keyboard
        self._glyphs = glyphs_for(console.encoding, os.environ)
        title = f"{options.nodes} masters, {options.loop}, seed {options.seed}"
        names = [f"n{number}" for number in range(1, options.nodes + 1)]  # the names in `chaos.masters`
        self._board = Board(title, rows(names), options.seconds, keys=keyboard is not None)
        self._cluster: pgha.Cluster | None = None
        self._recorder: Recorder | None = None
        self._saboteur: Saboteur | None = None
        self._ended = False
        self._staged = time.monotonic()
        self._tick = 0
        self._width = console.width
        self._drawn: list[int] = []
        """The number of cells of each line of the last picture."""

    @asynccontextmanager
    async def shown(self) -> AsyncGenerator[None]:
        """Draw until the end of the block, and restore the terminal."""
        live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False)
        keys = nullcontext() if self._keyboard is None else _keys.unbuffered(self._keyboard)
        with keys, _hanging_up_told(), live:
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._paint, live)
                    if self._keyboard is not None:
                        tasks.start_soon(_keys.listen, self._keyboard, self._pressed)
                    yield
                    tasks.cancel_scope.cancel()
            except BaseException:
                self._board.stage = "Ended early. The servers have been removed."
                raise
            else:
                self._board.stage = "Every node was checked. The servers have been removed."
            finally:
                self._finish(live)

    def _finish(self, live: Live) -> None:
        """Leave the last picture on the terminal, unless there was no workload that it could show."""
        self._board.running, self._board.over = False, True
        if self._recorder is not None:
            live.transient = False
            live.update(self.picture())

    async def _paint(self, live: Live) -> None:
        while True:
            live.update(self.picture())
            # Written in a thread, since a slow terminal must not delay the measured operations.
            await anyio.to_thread.run_sync(self._write, live)
            await anyio.sleep(_FRAME)
            self._tick += 1

    def picture(self) -> Group:
        """Return the current picture."""
        self._look()
        width, height = self._console.size
        # The last column and the last line stay empty, since some terminals wrap or scroll there.
        lines = frame(self._board, width - 1, height - 1, self._glyphs, self._tick)
        return Group(*lines)

    def _look(self) -> None:
        self._board.waited = time.monotonic() - self._staged
        if self._board.running and self._cluster is not None and self._recorder is not None:
            self._board.look(self._recorder, self._cluster.nodes, self._cluster.statistics().retried)

    def _write(self, live: Live) -> None:
        width = self._console.width
        if width < self._width:
            self._unwrap(width)
        self._width = width
        self._drawn = [line.cell_len for line in _lines(live)]
        live.refresh()

    def _unwrap(self, width: int) -> None:
        """Erase the last picture after the terminal became narrower.

        The terminal has wrapped the picture's lines, so that it covers more rows. Rich would move up only by
        the number of lines, and leave some rows.
        """
        height = len(self._drawn)
        wrapped = sum(max(1, math.ceil(cells / width)) for cells in self._drawn)
        if wrapped > height:
            # Erased line by line: some terminals keep text in the scrollback that is erased all at once.
            erased = "\r\x1b[2K" + "\x1b[1A\x1b[2K" * (wrapped - 1)
            down = f"\x1b[{height - 1}B" if height > 1 else ""
            self._console.file.write(erased + down)

    # The methods of `View`

    def stage(self, text: str) -> None:
        self._look()
        self._board.running = False
        self._board.stage, self._staged = text, time.monotonic()

    def note(self, text: str) -> None:
        self._board.tell(None, "note", text)

    def progress(self, node: str, step: Step) -> None:
        self._board.row(node).step = step

    def load(self, cluster: pgha.Cluster, nodes: Masters, recorder: Recorder, saboteur: Saboteur) -> None:
        self._cluster, self._recorder, self._saboteur = cluster, recorder, saboteur
        for node in nodes:
            self._board.row(node.name).port = node.port
        self._board.running = True
        if self._ended:
            recorder.stop()

    def second(self, second: Second, nodes: Mapping[str, pgha.NodeStatus]) -> None:
        self._board.second = second

    def fault(self, fault: Fault) -> None:
        self._board.fault(fault)

    def mending(self, node: str) -> None:
        self._board.mending(node)

    def back(self, node: str, at: float, away: float) -> None:
        self._board.back(node, at, away)

    def changed(self, at: float, event: pgha.NodeStateChanged) -> None:
        self._board.changed(at, event, self._glyphs.arrow)

    def result(self, summary: Summary) -> None:
        """Print the summary and the example as ordinary lines, which can be copied."""
        with _hanging_up_told():
            for line in _summary_lines(summary, self._console.width):
                self._console.print(line, soft_wrap=True)
            self._console.print("\nTry pgha yourself with these ten lines:\n")
            code = Syntax("", "python", theme="ansi_dark", background_color="default").highlight(TEN_LINES)
            self._console.print(code, end="", soft_wrap=True)

    # The keys

    def _pressed(self, key: str) -> None:
        match key:
            case "up":
                self._board.step(-1)
            case "down":
                self._board.step(1)
            case "k" | "f" | "r":
                self._strike(STRIKES[key])
            case "q":
                self._end()
            case "suspend":
                self._say("Ctrl-Z would spoil the measurement: press q to end the demo")
            case _ if key.isdecimal():
                self._board.choose(int(key) - 1)

    def _strike(self, kind: DemoFault) -> None:
        if self._saboteur is None:
            self._say(f"{kind}: wait until the workload runs")
            return
        try:
            self._saboteur.strike(kind, self._board.rows[self._board.chosen].name)
        except Refused as refused:
            self._say(f"{kind}: {refused}")

    def _end(self) -> None:
        self._ended = True
        if self._recorder is not None:
            self._recorder.stop()

    def _say(self, text: str) -> None:
        at = self._recorder.elapsed if self._recorder is not None else None
        self._board.tell(at, "no", text, "no")


def _lines(live: Live) -> list[Text]:
    picture = live.get_renderable()
    return (
        [line for line in picture.renderables if isinstance(line, Text)] if isinstance(picture, Group) else []
    )


@contextmanager
def _hanging_up_told() -> Iterator[None]:
    """Raise `OutputClosed` if writing fails because the terminal is gone."""
    try:
        yield
    except OSError as error:
        raise OutputClosed from error


def _summary_lines(summary: Summary, width: int) -> Iterator[Text]:
    """Yield a line per number, without its explanation if there is no room for it."""
    yield Text()
    for name, value, remark in summary.rows():
        style = "bold"
        if name in _MUST_BE_ZERO:
            style = "bold green" if value == "0" else "bold white on red"
        line = Text.assemble("  ", name.ljust(12), " " * (10 - len(value)), (value, style))
        if line.cell_len + len(remark) + 3 < width:
            line.append(f"   {remark}", "dim")
        yield line
    for sample in summary.recorder.samples:
        yield Text(f"  ! {sample}", "red")
    yield Text()
    yield Text(summary.last_words(), "bold green" if summary.good else "bold red")
