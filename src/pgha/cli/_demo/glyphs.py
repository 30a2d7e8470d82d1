"""The characters of the live view: Unicode, or ASCII if the terminal shows no others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import log

UTF8 = ("utf8", "utf-8")
_COERCED = ("C.UTF-8", "C.utf8", "UTF-8")


@dataclass(frozen=True, slots=True)
class Glyphs:
    """A set of characters, each one cell wide except the ASCII arrow."""

    bars: str
    """The steps of a sparkline, lowest first."""
    nothing: str
    """A missing value in a sparkline."""
    done: str
    """The part of the progress bar for the elapsed time."""
    left: str
    """The part of the progress bar for the remaining time."""
    spinner: str
    chosen: str
    """The mark before the node that the keys apply to."""
    writes: str
    """The mark after the node that takes the writes."""
    ellipsis: str
    arrow: str
    dot: str
    """The separator between the items of a line."""
    marks: Mapping[str, str]
    """Symbols of the states of a node and of the events."""


UNICODE = Glyphs(
    bars="▁▂▃▄▅▆▇█",
    nothing=" ",
    done="━",
    left="─",
    spinner="⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏",
    chosen="▸",
    writes="◀",
    ellipsis="…",
    arrow="→",
    dot="·",
    marks={
        "up": "●",
        "suspect": "◐",
        "down": "○",
        "connecting": "◌",
        "rejected": "⊘",
        "kill": "✗",
        "freeze": "‖",
        "restart": "↻",
        "returning": "◔",
        "back": "✓",
        "no": "!",
    },
)
ASCII = Glyphs(
    bars="_.-=+*%#",
    nothing=" ",
    done="#",
    left="-",
    spinner="|/-\\",
    chosen=">",
    writes="<",
    ellipsis="~",
    arrow="->",
    dot="-",
    marks={
        "up": "*",
        "suspect": "?",
        "down": "o",
        "connecting": ".",
        "rejected": "!",
        "kill": "x",
        "freeze": "=",
        "restart": "@",
        "returning": "~",
        "back": "+",
        "no": "!",
    },
)


def glyphs_for(encoding: str, environment: Mapping[str, str]) -> Glyphs:
    """Return the characters that the terminal can show. `encoding` is that of standard output.

    The encoding alone does not tell: in the C locale Python writes UTF-8 too, and sets LC_CTYPE itself.
    """
    if encoding.lower() not in UTF8:
        return ASCII
    ctype = environment.get("LC_CTYPE", "")
    chosen = environment.get("LC_ALL") or ("" if ctype in _COERCED else ctype) or environment.get("LANG", "")
    return ASCII if chosen in ("C", "POSIX") else UNICODE


def sparkline(values: Iterable[float | None], low: float, high: float, glyphs: Glyphs) -> str:
    """Return one character per value, from `low` (the lowest step) to `high` (the highest).

    None is shown as `Glyphs.nothing`.
    """
    steps = len(glyphs.bars) - 1
    span = high - low
    return "".join(
        glyphs.nothing
        if value is None
        else glyphs.bars[max(0, min(steps, round((value - low) / span * steps)))]
        if span > 0
        else glyphs.bars[0]
        for value in values
    )


def log_sparkline(values: Iterable[float | None], low: float, high: float, glyphs: Glyphs) -> str:
    """Return a sparkline on a logarithmic scale; `low` and `high` must be above zero."""
    logs = (None if value is None else log(max(value, low)) for value in values)
    return sparkline(logs, log(low), log(high), glyphs)
