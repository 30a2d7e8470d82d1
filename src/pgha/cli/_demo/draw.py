"""A frame of the live view, drawn from the board alone: lines that never exceed the terminal.

Columns have fixed widths, so that nothing moves while numbers change. In a narrow terminal the least
important columns are left out. The remaining width goes to the sparklines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich.text import Text

from pgha.cli._demo.board import SAMPLES, Board, Happening, Row
from pgha.cli._demo.glyphs import Glyphs, log_sparkline, sparkline

_GAP = 2
_HAPPENINGS = 8
_NARROW = 60
_SHORTEST = 6
"""The minimum number of cells of a sparkline: a shorter one would show nothing."""
_LATENCY_STEPS = (0.0004, 0.4)
"""Seconds at the lowest and at the highest step of a sparkline of latencies."""
_STYLES = {
    "up": "green",
    "suspect": "yellow",
    "down": "red",
    "connecting": "cyan",
    "rejected": "bold red",
    "kill": "bold red",
    "freeze": "bold cyan",
    "restart": "bold magenta",
    "returning": "yellow",
    "back": "green",
    "no": "bold yellow",
}
_HELD = {"kill": "killed", "freeze": "frozen", "restart": "restarting", "returning": "returning"}
_SORTS = {"change": "dim", "back": "green", "no": "yellow", "note": "dim"}


def frame(board: Board, width: int, height: int, glyphs: Glyphs, tick: int = 0) -> list[Text]:
    """Return at most `height` lines of at most `width` cells each. `tick` turns the spinner."""
    top = _head(board, width, glyphs, tick)
    table = _table(board, width, glyphs)
    foot = [] if board.over else [Text(), _foot(board, width, glyphs) if board.running else Text()]
    room = height - len(top) - len(table) - len(foot) - 2
    tail = _happenings(board, min(room, _HAPPENINGS), width < _NARROW, glyphs)
    lines = [*top, *([Text()] if room >= 0 else []), *table, *([Text(), *tail] if tail else []), *foot]
    for line in lines:
        line.no_wrap = True
        _cut(line, width, glyphs)
    return lines[:height]


def _cut(line: Text, width: int, glyphs: Glyphs) -> None:
    if line.cell_len > width:
        line.truncate(max(0, width - len(glyphs.ellipsis)))
        line.append(glyphs.ellipsis, "dim")


def _head(board: Board, width: int, glyphs: Glyphs, tick: int) -> list[Text]:
    title = Text("pgha demo", "bold")
    clock = f"{board.elapsed:.1f} / {board.seconds:.0f} s" if board.running else f"{board.waited:.1f} s"
    clock = "" if board.over else clock
    rest = width - title.cell_len - len(clock) - 2 * _GAP
    title.append("  " + (board.title if len(board.title) <= rest else "").ljust(rest) + "  ", "dim")
    title.append(clock, "bold")
    return [title, _progress(board, width, glyphs, tick), _numbers(board, width, glyphs)]


def _progress(board: Board, width: int, glyphs: Glyphs, tick: int) -> Text:
    if not board.running:
        if board.over:
            return Text(board.stage)
        return Text.assemble((glyphs.spinner[tick % len(glyphs.spinner)], "cyan"), " ", board.stage)
    share = min(1.0, board.elapsed / board.seconds) if board.seconds > 0 else 1.0
    done = round(share * width)
    return Text.assemble((glyphs.done * done, "green"), (glyphs.left * (width - done), "dim"))


def _numbers(board: Board, width: int, glyphs: Glyphs) -> Text:
    """Return the line of numbers: as many as fit, the most important first."""
    if not (board.running or board.over):
        return Text()
    errors = Text(f"{board.errors} error{'' if board.errors == 1 else 's'}")
    errors.stylize("bold green" if board.errors == 0 else "bold white on red")
    items = [errors]
    if board.running:
        items.insert(0, Text(f"{board.rate:,.0f} ops/s".rjust(11), "bold"))
    items.append(Text(f"{board.retried} retries"))
    items.append(Text(f"longest gap {board.gap * 1000:.0f} ms"))
    if board.second is not None and board.running:
        items.append(Text(f"p50 {board.second.p50 * 1000:.1f} ms"))
        items.append(Text(f"p99 {board.second.p99 * 1000:.1f} ms"))
    return _joined(items, width, f"  {glyphs.dot}  ")


def _joined(items: Iterable[Text], width: int, between: str) -> Text:
    line = Text()
    for item in items:
        if line and line.cell_len + len(between) + item.cell_len > width:
            break
        line.append(between if line else "", "dim").append_text(item)
    return line


# The table


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    width: int
    cell: Callable[[Row, int], Text]
    """The function that draws a cell, given the row and the width."""
    right: bool = False
    gap: int = _GAP


def _table(board: Board, width: int, glyphs: Glyphs) -> list[Text]:
    columns = _fitted(_columns(board, width, glyphs), width)
    head = Text()
    for column in columns:
        _put(head, Text(column.title, "dim"), column)
    lines = [head]
    for row in board.rows:
        line = Text()
        for column in columns:
            _put(line, column.cell(row, column.width), column)
        lines.append(line)
    return lines


def _put(line: Text, cell: Text, column: _Column) -> None:
    line.append(" " * (column.gap if line else 0))
    padding = " " * (column.width - cell.cell_len)
    line.append(padding if column.right else "").append_text(cell).append("" if column.right else padding)


def _columns(board: Board, width: int, glyphs: Glyphs) -> list[tuple[int, _Column]]:
    """Return the columns from left to right, each with its rank: the highest ranks are left out first.

    In a wide terminal, a server's fault and the node's state as pgha sees it stand side by side. In a narrow
    one they share a column: a fault hides the state.
    """
    wide = width >= 99
    top = max((rate for row in board.rows for rate in row.rates), default=0.0)

    def seen(row: Row, _: int) -> Text:
        return _state(row.status.state, row.status.state, glyphs) if row.status else Text()

    def state(row: Row, cells: int) -> Text:
        if row.held is not None:
            return _state(row.held, _HELD[row.held], glyphs)
        if row.status is None:
            return _state("up" if row.step == "linked" else "connecting", row.step, glyphs)
        return _state("up", "runs", glyphs) if wide else seen(row, cells)

    def rates(row: Row, cells: int) -> Text:
        return Text(sparkline(list(row.rates)[-cells:], 0.0, top, glyphs).rjust(cells), "cyan")

    def latencies(row: Row, cells: int) -> Text:
        values = list(row.latencies)[-cells:]
        return Text(log_sparkline(values, *_LATENCY_STEPS, glyphs).rjust(cells), "bright_blue")

    return [
        (0, _Column("", 2, lambda row, _: _key(board, row, glyphs))),
        (0, _Column("node", 4, lambda row, _: _name(board, row, glyphs), gap=1)),
        (6, _Column("port", 5, lambda row, _: Text(str(row.port or ""), "dim"))),
        (0, _Column("server" if wide else "state", 12, state)),
        *([(0, _Column("pgha sees", 12, seen))] if wide else []),
        (5, _Column("role", 7, lambda row, _: Text(_role(row)))),
        (0, _Column("ops/s", 5, lambda row, _: _rate(row), right=True)),
        (1, _Column("", _SHORTEST, rates, gap=1)),
        (2, _Column("latency", 7, lambda row, _: _latency(row), right=True)),
        (3, _Column("", _SHORTEST, latencies, gap=1)),
    ]


def _role(row: Row) -> str:
    if row.status is None or row.status.writable or row.status.role != "primary":
        return row.status.role if row.status else ""
    return "r/o" if row.status.read_only else "old"


def _fitted(ranked: Sequence[tuple[int, _Column]], width: int) -> list[_Column]:
    """Return the columns that fit, with the sparklines stretched to fill the width.

    The sparklines are the columns without a title, except the first column.
    """
    taken: set[int] = set()
    left = width
    for _, column in sorted(ranked, key=lambda pair: pair[0]):
        left -= column.width + (column.gap if taken else 0)
        if left < 0:
            left += column.width + column.gap
            break
        taken.add(id(column))
    columns = [column for _, column in ranked if id(column) in taken]
    sparks = [column for column in columns[1:] if not column.title]
    more = min(SAMPLES - _SHORTEST, left // len(sparks)) if sparks else 0
    return [_Column(c.title, c.width + more, c.cell, c.right, c.gap) if c in sparks else c for c in columns]


def _key(board: Board, row: Row, glyphs: Glyphs) -> Text:
    if not board.keys or board.over:
        return Text()
    number = board.rows.index(row)
    chosen = number == board.chosen
    return Text(f"{glyphs.chosen if chosen else ' '}{number + 1}", "bold" if chosen else "dim")


def _name(board: Board, row: Row, glyphs: Glyphs) -> Text:
    name = Text(row.name, "bold")
    if row.name == board.writer and not board.over:
        name.append(f" {glyphs.writes}", "yellow")
    return name


def _state(kind: str, word: str, glyphs: Glyphs) -> Text:
    return Text(f"{glyphs.marks[kind]} {word}", _STYLES[kind])


def _rate(row: Row) -> Text:
    if not row.rates:
        return Text()
    return Text(f"{row.rates[-1]:,.0f}", "" if row.rates[-1] else "dim")


def _latency(row: Row) -> Text:
    seconds = row.latencies[-1] if row.latencies else None
    if seconds is None:
        return Text()
    milliseconds = seconds * 1000
    return Text(f"{milliseconds:.1f} ms" if milliseconds < 1000 else f"{seconds:.1f} s")


# Below the table


def _happenings(board: Board, room: int, narrow: bool, glyphs: Glyphs) -> list[Text]:
    """Return exactly `room` lines, the newest event last, so that the lines below never move."""
    if room <= 0:
        return []
    lines = [_happening(one, narrow, glyphs) for one in board.happenings[-room:]]
    return lines + [Text()] * (room - len(lines))


def _happening(one: Happening, narrow: bool, glyphs: Glyphs) -> Text:
    at = "" if one.at is None else f"{one.at:6.2f} s  "
    if narrow:
        at = at.strip().removesuffix(" s").ljust(6)
    mark = glyphs.marks[one.mark] if one.mark else " "
    style = _STYLES[one.mark] if one.sort == "fault" else _SORTS.get(one.sort, "")
    return Text.assemble((at or " ", "dim"), (f"{mark} {one.text}", style))


def _foot(board: Board, width: int, glyphs: Glyphs) -> Text:
    legend = Text.assemble((glyphs.writes, "yellow"), (" takes the writes", "dim"))
    if not board.keys:
        return _joined([legend, _hint("Ctrl-C", "end")], width, "   ")
    last = len(board.rows)
    keys = [_hint(f"1-{last}", "choose"), _hint("k", "kill"), _hint("f", "freeze"), _hint("r", "restart")]
    if width < _NARROW:
        keys[0] = _hint(f"1-{last}")
    keys.append(_hint("q", "end"))
    return _joined([*keys, legend], width, "  " if width < _NARROW else "   ")


def _hint(key: str, word: str = "") -> Text:
    return Text.assemble((key, "bold reverse"), f" {word}" if word else "")
