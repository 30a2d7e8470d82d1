"""The characters of the live view: Unicode's, or ASCII's where the terminal shows no others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import log

UTF8 = ("utf8", "utf-8")
_COERCED = ("C.UTF-8", "C.utf8", "UTF-8")


@dataclass(frozen=True, slots=True)
class Glyphs:
    """One cell wide each."""

    bars: str
    """The steps of a sparkline, lowest first."""
    nothing: str
    """In a sparkline: there was no value."""
    done: str
    """The part of the time that is over."""
    left: str
    spinner: str
    chosen: str
    """Before the node that the keys are for."""
    writes: str
    """After the node that takes the writes."""
    ellipsis: str
    arrow: str
    dot: str
    """Between the items of a line."""
    marks: Mapping[str, str]
    """By the state of a node."""


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
    """What a terminal shows: `encoding` is standard output's.

    That alone does not tell: in the C locale Python writes UTF-8 all the same, and sets LC_CTYPE itself.
    """
    if encoding.lower() not in UTF8:
        return ASCII
    ctype = environment.get("LC_CTYPE", "")
    chosen = environment.get("LC_ALL") or ("" if ctype in _COERCED else ctype) or environment.get("LANG", "")
    return ASCII if chosen in ("C", "POSIX") else UNICODE


def sparkline(values: Iterable[float | None], low: float, high: float, glyphs: Glyphs) -> str:
    """One character a value; None is shown as nothing. `low` is the lowest step, `high` the highest."""
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
    """As `sparkline`, for what differs by powers of ten; `low` and `high` are above zero."""
    logs = (None if value is None else log(max(value, low)) for value in values)
    return sparkline(logs, log(low), log(high), glyphs)
