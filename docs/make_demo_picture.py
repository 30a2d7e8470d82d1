"""Make docs/demo.svg, a picture of a real `pgha demo`.

    uv run python docs/make_demo_picture.py [seed [second]]

The script runs the demo on a terminal in memory. The picture is what this terminal showed at the chosen
second.
"""

from __future__ import annotations

import io
import pty
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

import pgha
from pgha.cli._demo.command import watched
from pgha.cli._demo.live import LiveView
from pgha.cli._demo.summary import Options
from pgha.cli._demo.workload import Second

TARGET = Path(__file__).with_name("demo.svg")
WIDTH, HEIGHT = 100, 20
SECONDS = 15


class Photographer:
    """A view that is the live view, and saves a picture of it at one moment."""

    def __init__(self, view: LiveView, moment: int) -> None:
        self._view = view
        self._moment = moment

    def __getattr__(self, name: str) -> Any:
        return getattr(self._view, name)

    def second(self, second: Second, nodes: Mapping[str, pgha.NodeStatus]) -> None:
        self._view.second(second, nodes)
        if int(second.at) == self._moment:
            save(self._view)


def save(view: LiveView) -> None:
    paper = terminal(record=True)
    paper.print(Text.assemble(("$ ", "dim"), "pgha demo"))
    paper.print(view.picture())
    svg = paper.export_svg(title="", theme=MONOKAI, unique_id="pgha")
    # No font from a web server: any monospaced font is good enough.
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    TARGET.write_text(svg.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace"))


def terminal(*, record: bool = False) -> Console:
    return Console(
        file=io.StringIO(),
        record=record,
        force_terminal=True,
        color_system="truecolor",
        width=WIDTH,
        height=HEIGHT,
        highlight=False,
    )


async def main(seed: int, moment: int) -> None:
    options = Options(SECONDS, 3, seed, "asyncio")
    _, keyboard = pty.openpty()  # so that the view shows its keys; none is pressed
    view = LiveView(options, terminal(), keyboard)
    async with view.shown():
        await watched(options, Photographer(view, moment))


if __name__ == "__main__":
    chosen = [int(word) for word in sys.argv[1:]]
    anyio.run(main, *(chosen + [4, 11][len(chosen) :]))
