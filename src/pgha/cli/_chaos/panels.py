"""The rows of a chaos run's page. The axes are passed in with their time range already set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor, log10

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator, NullFormatter

from pgha.cli._chaos.report import Dots, Series, Sort, Totals, counted, in_words
from pgha.cli._chaos.timelines import Band, Bar, Condition, Promotion

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, RED, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"

LEFT, RIGHT = 0.062, 0.912
"""The ends of the axes, as fractions of the page's width. Notes about a row stand right of them."""
SMALL = 8.5
_RASTERIZED = 2_000
"""Dots above which they are drawn as a bitmap: programs cannot open an SVG with so many."""
_FLOOR = 1e-5
"""Seconds. Shorter latencies are drawn here, since a logarithmic axis has no 0."""
_APART = 0.085
"""The minimum distance between the percentiles' values, as a fraction of the row's height."""

_EDGED = 80
"""The number of bars per node from which bars are drawn without edges."""
_STEPS = (15, 30, 60, 120, 300, 600, 1800, 3600, 10**9)
"""Seconds between two labels of the time axis of a long run."""

_LOOKS: Mapping[Condition, tuple[str, str | None, float]] = {
    "up": (SKY, None, 0.62),
    "slow": (YELLOW, "....", 0.62),
    "down": (RED, "////", 0.62),
    "connecting": ("#FFFFFF", None, 0.25),
}
"""The colour, hatching and height of a node's bar."""
_DOTS: Mapping[Sort, tuple[str, str, str]] = {
    "left": ("#777777", ".", "left by its caller"),
    "read": (BLUE, ".", "read"),
    "write": (ORANGE, ".", "write"),
    "error": (RED, "x", "error"),
    "in doubt": (PURPLE, "D", "in doubt"),
}
"""The colour, mark and name of an operation's dot."""


def aside(axes: Axes, text: str, at: float) -> None:
    """Write `text` right of a row, `at` a fraction of the row's height."""
    axes.text(1.008, at, text, transform=axes.transAxes, size=SMALL, va="center")


def _step(seconds: float) -> str:
    return f"{round(seconds, 2) or seconds:.2g} s"


def _headed(axes: Axes, text: str, handles: Sequence[Line2D | Patch] = ()) -> None:
    """Write the title of a row above the row, with a legend."""
    axes.set_title(text, loc="left", size=10, pad=4)
    if handles:
        axes.legend(
            handles=handles,
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            ncols=len(handles),
            borderaxespad=0.1,
            borderpad=0.1,
            columnspacing=1.6,
            handletextpad=0.5,
            frameon=False,
            fontsize=SMALL,
        )


def _nothing(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", size=13, color="#666666")


def draw_answers(axes: Axes, rates: Series, found: Totals, seconds: float) -> None:
    """Draw the number of results per second."""
    values = [count / rates.width if rates.width else 0.0 for count in rates.answered]
    edges = [number * rates.width for number in range(len(values) + 1)]
    axes.stairs(values, edges, fill=True, color=SKY, alpha=0.6, lw=0, zorder=2)
    axes.stairs(values, edges, color=BLUE, lw=1.0 if len(values) < 600 else 0.5, zorder=2.1)
    axes.set_ylim(0.0, max(values) * 1.06 or 1.0)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(axis="y", color="#CCCCCC", lw=0.5)
    if not found.answered:
        _nothing(axes, "no answers")
    _headed(axes, f"answers per second, in steps of {_step(rates.width)}")
    aside(axes, f"{found.answered / seconds:,.0f} per second\non average", 0.5)


def draw_errors(axes: Axes, rates: Series, found: Totals) -> None:
    """Draw the numbers of operations that ended with an error or in doubt.

    They have a row of their own, because a single one could not be seen among thousands of answers.
    """
    tops = [sum(pair) for pair in zip(rates.errors, rates.in_doubt, strict=True)]
    bars = [
        _draw_bars(axes, rates.width, rates.errors, [0] * len(tops), RED, "error"),
        _draw_bars(axes, rates.width, rates.in_doubt, rates.errors, PURPLE, "in doubt"),
    ]
    axes.set_ylim(0, max(tops) * 1.1)
    axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    _headed(axes, f"errors, and operations in doubt, in each {_step(rates.width)}", bars)
    aside(axes, f"{counted(found.errors, 'error')}\n{found.in_doubt:,} in doubt", 0.5)


def _draw_bars(
    axes: Axes, width: float, values: Sequence[int], bottoms: Sequence[int], color: str, name: str
) -> Patch:
    some = [
        (number * width, value, bottom)
        for number, (value, bottom) in enumerate(zip(values, bottoms, strict=True))
        if value
    ]
    if some:
        # The edge makes a bar visible that is narrower than a pixel.
        lefts, heights, starts = zip(*some, strict=True)
        axes.bar(lefts, heights, width, starts, align="edge", color=color, edgecolor=color, lw=1.0, zorder=2)
    return Patch(color=color, label=name)


def draw_latencies(axes: Axes, dots: Mapping[Sort, Dots], found: Totals) -> None:
    """Draw each operation's latency at the time when the operation ended."""
    _headed(
        axes, "latency, each operation when it ended", [_key(sort) for sort, some in dots.items() if some.at]
    )
    every = [max(latency, _FLOOR) for some in dots.values() for latency in some.latency]
    if not every:
        axes.set_yticks([])
        _nothing(axes, "no operation ended")
        return
    # Few dots are drawn large enough to be found, many small enough to be told apart.
    size = 8.0 if len(every) < 400 else 5.0 if len(every) < 4_000 else 2.6
    for sort, some in dots.items():
        color, mark, _ = _DOTS[sort]
        rare = mark != "."
        axes.plot(
            some.at,
            [max(latency, _FLOOR) for latency in some.latency],
            mark,
            color=color,
            markersize=5.0 if rare else size,
            alpha=1.0 if rare else 0.6,
            markeredgewidth=1.3 if mark == "x" else 0.0,
            rasterized=len(some.at) > _RASTERIZED,
            zorder=3 if rare else 2,
        )
    _scale(axes, min(every), max(every))
    _draw_percentiles(axes, found)


def _scale(axes: Axes, low: float, high: float) -> None:
    """Make the axis logarithmic, with at least two labelled values."""
    axes.set_yscale("log")
    if high < 30 * low:
        low, high = 10 ** floor(log10(low)), 10 ** ceil(log10(high * 1.01))
    axes.set_ylim(low * 0.7, high * 1.5)
    axes.yaxis.set_major_locator(LogLocator(numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color="#CCCCCC", lw=0.5)


def _tick(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"


def _key(sort: Sort) -> Line2D:
    color, marker, name = _DOTS[sort]
    size = 9 if marker == "." else 6
    return Line2D([], [], ls="", marker=marker, color=color, markersize=size, markeredgewidth=1.3, label=name)


def _draw_percentiles(axes: Axes, found: Totals) -> None:
    low, high = (log10(value) for value in axes.get_ylim())
    below = 0.0
    named = (("p50", found.p50, "-"), ("p99", found.p99, "--"), ("p99.9", found.p999, ":"))
    for name, value, line in named:
        if value is None:
            continue
        axes.axhline(max(value, _FLOOR), color=BLACK, lw=1.2, ls=line, zorder=4)
        true = (log10(max(value, _FLOOR)) - low) / (high - low)
        at = max(true, below)
        below = at + _APART
        axes.plot([1.0, 1.007], [true, at], transform=axes.transAxes, color=BLACK, lw=0.6, clip_on=False)
        aside(axes, f"{name} {in_words(value)}", at)


def draw_lanes(
    axes: Axes,
    lanes: Mapping[str, Sequence[Bar]],
    promoted: Sequence[Promotion],
    faults: Sequence[Band],
) -> None:
    """Draw the state of each node as pgha saw it, and below it the faults that the node had."""
    names = list(lanes)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(left=False)
    axes.spines["left"].set_visible(False)
    for row, (name, bars) in enumerate(lanes.items()):
        _draw_lane(axes, row, bars)
        here = [band for band in faults if band.node == name]
        begins, ends = [band.begin for band in here], [band.end for band in here]
        axes.hlines([row + 0.41] * len(here), begins, ends, color=BLACK, lw=2.5, zorder=3)
        # A mark for faults that are over at once, such as resets and kills.
        axes.plot(begins, [row + 0.41] * len(here), "|", color=BLACK, markersize=4, zorder=3)
    for one in promoted:
        axes.plot(one.at, names.index(one.node), "^", color=BLACK, markersize=9, mec="white", zorder=4)
    _headed(axes, "nodes, as pgha saw them", _conditions(lanes, bool(promoted), bool(faults)))


def _draw_lane(axes: Axes, row: int, bars: Sequence[Bar]) -> None:
    # Edges help to tell few bars apart; with many bars only the edges would be visible.
    edge = 0.4 if len(bars) < _EDGED else 0.0
    for condition, (color, hatch, height) in _LOOKS.items():
        ranges = [(bar.begin, bar.end - bar.begin) for bar in bars if bar.condition == condition]
        where = (row - height / 2, height)
        axes.broken_barh(ranges, where, facecolor=color, edgecolor=BLACK, hatch=hatch, lw=edge, zorder=2)
    whole = sum(bar.end - bar.begin for bar in bars)
    up = sum(bar.end - bar.begin for bar in bars if bar.condition == "up")
    if whole:
        share = f"up {100 * up / whole:.0f} %"
        axes.text(1.008, row, share, transform=axes.get_yaxis_transform(), size=SMALL, va="center")


def _conditions(lanes: Mapping[str, Sequence[Bar]], promoted: bool, faults: bool) -> list[Line2D | Patch]:
    seen = {bar.condition for bars in lanes.values() for bar in bars}
    found: list[Line2D | Patch] = [
        Patch(facecolor=color, hatch=hatch, edgecolor=BLACK, lw=0.4, label=condition)
        for condition, (color, hatch, _) in _LOOKS.items()
        if condition in seen
    ]
    if promoted:
        found.append(Line2D([], [], ls="", marker="^", color=BLACK, markersize=7, label="promoted"))
    if faults:
        found.append(Line2D([], [], color=BLACK, lw=2.5, label="fault of this node"))
    return found


def time_axis(axes: Axes, seconds: float, *, labelled: bool) -> None:
    """Label the time axis below a row: in seconds, or for more than 180 s in minutes and seconds."""
    axes.tick_params(labelbottom=labelled)
    if seconds <= 180:
        axes.xaxis.set_major_locator(MaxNLocator(12))
    else:
        step = next(step for step in _STEPS if seconds / step <= 14)
        axes.xaxis.set_major_locator(MultipleLocator(step))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{int(at) // 60}:{int(at) % 60:02d}"))
    if labelled:
        axes.set_xlabel(f"{'' if seconds <= 180 else 'minutes and '}seconds since the load began")
