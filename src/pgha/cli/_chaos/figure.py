"""The page of a chaos run: answers, latencies and nodes on one time axis, with the faults behind them.

The colours are those of Okabe and Ito, which colour-blind people can tell apart. Marks whose colours look
alike in grey also differ in shape. The figure uses neither pyplot nor global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

from pgha.cli._chaos.panels import (
    BLACK,
    BLUE,
    GREEN,
    LEFT,
    PURPLE,
    RED,
    RIGHT,
    SMALL,
    aside,
    draw_answers,
    draw_errors,
    draw_lanes,
    draw_latencies,
    time_axis,
)
from pgha.cli._chaos.report import Totals, counted, dots, in_words, series, span, totals
from pgha.cli._chaos.timelines import Band, Placed, bands, lanes, place, promotions, topology, union

if TYPE_CHECKING:
    from pgha._trials.trial import Trial

SUFFIXES = (".png", ".svg")

_WIDE, _HIGH, _DPI = 16.0, 10.0, 100
_SHADE, _EDGE = "#DDDDDD", "#AAAAAA"
_ROWS = 5
"""The maximum number of rows of fault labels."""
_ROW = 0.0185
"""The height of a row of labels, as a fraction of the page."""
_TOLD = 3
"""The maximum number of violations in the title."""
_LONG = 190
"""The maximum number of characters of a violation in the title."""
_BACKEND = ("kill_backend", "terminate", "freeze_backend")
_SERVER = ("kill", "crash", "restart", "freeze")
_STYLE = {"font.size": 10.0, "svg.fonttype": "none", "svg.hashsalt": "pgha"}


def save(trial: Trial, path: Path) -> None:
    """Draw the page into a file. Block for a second or two.

    The name ends in `.png` (1600 x 1000 pixels) or `.svg` (whose text stays text, not outlines).

    Raises:
        OSError: The file cannot be written.
    """
    metadata: dict[str, Any] = {"Date": None} if path.suffix.lower() == ".svg" else {}
    # The default style, so that the user's own matplotlibrc does not change the page.
    with style.context(["default", _STYLE]):
        page(trial).savefig(path, dpi=_DPI, metadata=metadata)


def page(trial: Trial) -> Figure:
    """Return the page as a figure."""
    figure = Figure(figsize=(_WIDE, _HIGH), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    seconds = span(trial) or 1.0
    shown = [band for band in bands(trial) if band.begin <= seconds]
    placed, unlabelled = place(shown, seconds, _ROWS, lambda label: _width(label) * seconds)
    rates, found = series(trial), totals(trial)
    top = _draw_title(figure, trial, found)
    panels = _Panels(figure, seconds, top)
    _draw_faults(panels.add(_ROW * max([1, *(one.row + 1 for one in placed)]), 0.004), placed)
    if unlabelled:
        text = f"{len(shown) - unlabelled} of {len(shown)} have\nroom for a label"
        aside(panels.axes[0], text, 0.5)
    failing = any(rates.errors) or any(rates.in_doubt)
    rest = panels.rest - 0.045  # for the times below
    heights = [0.31, 0.1, 0.36, 0.23] if failing else [0.38, 0.0, 0.39, 0.23]
    draw_answers(panels.add(rest * heights[0]), rates, found, seconds)
    if failing:
        draw_errors(panels.add(rest * heights[1]), rates, found)
    draw_latencies(panels.add(rest * heights[2]), dots(trial), found)
    draw_lanes(panels.add(rest * heights[3]), lanes(trial, seconds), promotions(trial), shown)
    for axes in panels.axes[1:]:
        _shade(axes, shown, over=axes is panels.axes[1])
        time_axis(axes, seconds, labelled=axes is panels.axes[-1])
    return figure


@dataclass(slots=True)
class _Panels:
    """Axes placed one below the other, on a common time axis."""

    figure: Figure
    seconds: float
    rest: float
    """The fraction of the page that is still free below."""
    axes: list[Axes]

    def __init__(self, figure: Figure, seconds: float, top: float) -> None:
        self.figure, self.seconds, self.rest, self.axes = figure, seconds, top, []

    def add(self, height: float, gap: float = 0.033) -> Axes:
        """Add axes below the others.

        `gap` is the space above them. It is taken from `height`, except for the first axes (the faults).
        """
        if self.axes:
            height -= gap
        self.rest -= height + gap
        axes = self.figure.add_axes((LEFT, self.rest, RIGHT - LEFT, height))
        axes.set_xlim(0.0, self.seconds)
        axes.tick_params(labelbottom=False, length=3)
        axes.spines[["top", "right"]].set_visible(False)
        self.axes.append(axes)
        return axes


def _draw_title(figure: Figure, trial: Trial, found: Totals) -> float:
    """Draw the title, and return the position of its lower end."""
    seed = "" if trial.seed is None else f", seed {trial.seed}"
    title = shorten(trial.title, 90, placeholder=" ...") + seed
    figure.text(LEFT, 0.975, title, size=16, weight="bold", va="top")
    verdict, color = counted(len(trial.violations), "violation"), RED if trial.violations else GREEN
    figure.text(0.985, 0.975, verdict, size=16, weight="bold", va="top", ha="right", color=color)
    at = 0.938
    for line in _facts(trial, found):
        figure.text(LEFT, at, line, va="top")
        at -= 0.019
    for line in _told(trial):
        figure.text(LEFT, at, line, va="top", color=RED, weight="bold", size=SMALL)
        at -= 0.018
    return at - 0.006


def _facts(trial: Trial, found: Totals) -> list[str]:
    seconds = trial.ended - trial.began
    ends = (
        f"{found.answered:,} with a result",
        counted(found.errors, "error"),
        f"{found.in_doubt:,} in doubt",
        *([f"{found.left:,} left by their callers"] if found.left else []),
        *([f"{found.unfinished:,} unfinished"] if found.unfinished else []),
    )
    return [
        f"{trial.loop}; {trial.kind} nodes {', '.join(trial.nodes)}: {topology(trial)}; {seconds:.1f} s,"
        f" {counted(len(bands(trial)), 'fault')}",
        f"{counted(found.operations, 'operation')} ({counted(found.reads, 'read')},"
        f" {counted(found.writes, 'write')}): {', '.join(ends)};"
        f" {counted(found.retried, 'time')} run again; longest gap {in_words(found.longest_gap)}",
    ]


def _told(trial: Trial) -> list[str]:
    told = [shorten(f"{one.rule}: {one.text}", _LONG, placeholder=" ...") for one in trial.violations[:_TOLD]]
    more = len(trial.violations) - len(told)
    return [*told, f"and {more} more, listed in the JSON next to this page"] if more else told


@cache
def _width(label: str) -> float:
    """Return the width of a fault's label and the gap after it, as a fraction of the time axis."""
    inches = TextPath((0, 0), label, size=SMALL).get_extents().x1 / 72 + 0.1
    return float(inches / (_WIDE * (RIGHT - LEFT)))


def _draw_faults(axes: Axes, placed: Sequence[Placed]) -> None:
    """Draw the rows of labels, with a line below each label for the duration of its fault."""
    rows = max([1, *(one.row + 1 for one in placed)])
    axes.set_ylim(rows, 0)
    axes.spines[:].set_visible(False)
    axes.set_xticks([])
    axes.set_yticks([0.5], ["faults"])
    axes.tick_params(left=False)
    for one in placed:
        color = _color(one.band)
        axes.hlines(one.row + 0.92, one.band.begin, one.band.end, color=color, lw=2.0)
        # A fault that was over at once has no length, so a mark shows its beginning.
        axes.vlines(one.band.begin, one.row + 0.2, one.row + 0.98, color=color, lw=1.2)
        if one.at is not None:
            axes.text(one.at, one.row + 0.52, f" {one.band.label}", size=SMALL, va="center", gid="fault")
    if not placed:
        axes.text(0.0, 0.5, "none", va="center", size=SMALL, color="#666666", transform=axes.transAxes)


def _color(band: Band) -> str:
    """Return the colour of what the fault hits: a server, a backend or the network."""
    if band.kind in _SERVER:
        return BLACK
    return PURPLE if band.kind in _BACKEND else BLUE


def _shade(axes: Axes, shown: Sequence[Band], *, over: bool) -> None:
    """Shade the times of faults in a row, so that their effects can be related to them.

    With `over`, shade above the row's own drawing too, which would otherwise cover the shade.
    """
    whole = axes.get_xaxis_transform()
    ranges = [(begin, end - begin) for begin, end in union(shown)]
    axes.broken_barh(ranges, (0, 1), transform=whole, facecolor=_SHADE, alpha=0.6, lw=0, zorder=0.2)
    if over:
        axes.broken_barh(ranges, (0, 1), transform=whole, facecolor=_EDGE, alpha=0.25, lw=0, zorder=2.5)
    if shown:
        # A line where each fault begins: a fault that was over at once has no shaded area.
        width = 0.7 if len(shown) < 100 else 0.3
        axes.vlines([one.begin for one in shown], 0, 1, transform=whole, color=_EDGE, lw=width, zorder=0.3)
