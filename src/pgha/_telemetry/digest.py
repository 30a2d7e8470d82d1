"""Summarize many facts in a few log lines. Facts are added with their time; lines are returned when due.

======= ============================================== =================================================
kind    facts                                          lines
======= ============================================== =================================================
changes a node's state, role and clock; a failure that one per change, at once, but at most `AT_ONCE`
        was not retrieved                              in `CHANGES` seconds per node and topic; then one
                                                       line for all that were held back
counts  lost connections, retries, writes in doubt,    one per node and kind at the end of a window,
        suspicions                                     with the count and the most frequent reasons
======= ============================================== =================================================

A window is `WINDOW` seconds long. While facts keep coming, each next window is twice as long, up to
`LONGEST`: a burst of facts is logged soon, and a burst that continues is logged less and less often. No fact
is lost: each fact has a line of its own, or is counted in a line.

The module is pure: callers pass the times (seconds of any monotonic clock), and nothing is logged here.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pgha._types import Outcome, Role, State

Level: TypeAlias = Literal["debug", "info", "warning", "error"]
Topic: TypeAlias = Literal["node", "operation", "connection"]

WINDOW = 1.0
LONGEST = 60.0
AT_ONCE = 4
CHANGES = 10.0
_REASONS = 3
"""The largest number of different reasons that a line spells out."""
_MOST_REASONS = 100
"""The largest number of different reasons that are counted separately. Reasons contain text from outside
pgha, which may be different every time."""
_LONGEST_REASON = 200
_BOILERPLATE = (
    "consuming input failed: ",
    "This probably means the server terminated abnormally before or while processing the request.",
    "connection not open",
)
_OTHERS = "other reasons"
_LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the log, to be formatted by `logging`."""

    topic: Topic
    level: Level
    template: str
    args: tuple[object, ...]

    @property
    def text(self) -> str:
        return self.template % self.args


class Counted(enum.Enum):
    """A kind of fact that is counted, with its lines' topic, level and template."""

    SUSPECTED = ("node", "debug", "node %s was suspected %s (%s)", "time")
    LOST = ("connection", "info", "node %s: %s lost, with %d operations in flight (%s)", "connection")
    DISCARDED = ("connection", "debug", "node %s: %s closed by pgha (%s)", "connection")
    RETRIED = ("operation", "info", "node %s: %s failed and will be run again (%s)", "attempt")
    IN_DOUBT = ("operation", "warning", "node %s: %s ended in doubt (%s)", "write")
    RESOLVED = ("operation", "info", "node %s: %s resolved after ending in doubt (%s)", "write")

    def __init__(self, topic: Topic, level: Level, template: str, noun: str) -> None:
        self.topic = topic
        self.level = level
        self.template = template
        self.noun = noun


class _Tally:
    __slots__ = ("count", "in_flight", "reasons")

    def __init__(self) -> None:
        self.count = 0
        self.in_flight = 0
        self.reasons: Counter[str] = Counter()

    def add(self, reason: str, in_flight: int) -> None:
        self.count += 1
        self.in_flight += in_flight
        known = reason in self.reasons or len(self.reasons) < _MOST_REASONS
        self.reasons[reason if known else _OTHERS] += 1

    def line(self, node: str, kind: Counted) -> Line:
        much = (number(self.count, kind.noun), *((self.in_flight,) if kind is Counted.LOST else ()))
        return Line(kind.topic, kind.level, kind.template, (node, *much, self._reasons()))

    def _reasons(self) -> str:
        if len(self.reasons) == 1:
            return next(iter(self.reasons))
        shown = self.reasons.most_common(_REASONS)
        rest = self.count - sum(count for _, count in shown)
        told = [f"{count:,} x {reason}" for reason, count in shown]
        return "; ".join([*told, f"{rest:,} x {_OTHERS}"] if rest else told)


class _Window:
    """The counts of one node. Between two windows there are no tallies."""

    __slots__ = ("length", "tallies", "until")

    def __init__(self, length: float, until: float) -> None:
        self.length = length
        self.until = until
        self.tallies: dict[Counted, _Tally] = {}


class _Changes:
    """The changes of one node (or of none), by the topic of their lines."""

    __slots__ = ("held", "last", "level", "shown")

    def __init__(self) -> None:
        self.shown: deque[float] = deque(maxlen=AT_ONCE)
        """The times of the latest lines."""
        self.held = 0
        """The number of lines that are held back."""
        self.last: Line | None = None
        """The last line that is held back."""
        self.level: Level = "debug"
        """The highest level of the lines that are held back."""

    @property
    def next(self) -> float:
        """The earliest time of the next line."""
        return self.shown[0] + CHANGES if len(self.shown) == AT_ONCE else float("-inf")

    def hold(self, line: Line) -> None:
        self.held += 1
        self.last = line
        self.level = max(self.level, line.level, key=_LEVELS.index)

    def release(self, now: float) -> Line | None:
        """Return one line for all lines that are held back, or None if there are none."""
        last, count, level = self.last, self.held, self.level
        self.held, self.last, self.level = 0, None, "debug"
        if last is None:
            return None
        self.shown.append(now)
        if count == 1:
            return last
        template = f"%d more in the last seconds, the last of them: {last.template}"
        return Line(last.topic, level, template, (count, *last.args))


class Digest:
    """A summary of facts in log lines; the module's docstring has the rules."""

    def __init__(self) -> None:
        self.due = float("inf")
        """The time at which to call `lines` next."""
        self._ready: list[Line] = []
        self._changes: dict[tuple[str, Topic], _Changes] = {}
        self._windows: dict[str, _Window] = {}
        self._moved: dict[str, float] = {}
        """The time at which each node last came up or went down."""

    # Facts

    def state_changed(
        self, now: float, node: str, before: State, after: State, reason: str, role: str
    ) -> None:
        """Add that a node entered the state ``after``; ``reason`` explains every state except ``up``."""
        if after == "suspect":
            self.count(now, node, Counted.SUSPECTED, reason)
            return
        if before == "suspect" and after == "up":
            return
        since = now - self._moved.get(node, now)
        if after == "up":
            self._moved[node] = now
            if before == "connecting":
                line = Line("node", "info", "node %s is up (%s)", (node, role))
            else:
                line = Line("node", "info", "node %s is up again after %.1f s (%s)", (node, since, role))
        else:
            verb = "rejects the connection" if after == "rejected" else "is down"
            if before in ("up", "suspect"):
                line = Line("node", "warning", f"node %s {verb} after %.1f s up: %s", (node, since, reason))
            else:
                line = Line("node", "warning", f"node %s {verb}: %s", (node, reason))
            if before not in ("down", "rejected"):
                self._moved[node] = now
        self._change(now, node, line)

    def role_changed(
        self, now: float, node: str, before: Role, after: Role, *, read_only: bool = False
    ) -> None:
        """Add a promotion or demotion, or that only ``read_only`` changed.

        A node's first role is in the line that says that the node is up.
        """
        if before == "unknown":
            return
        if read_only and after == "primary":
            line = Line("node", "warning", "node %s is read-only: it takes no writes", (node,))
        elif before == after:
            line = Line("node", "info", "node %s is not read-only any more (%s)", (node, after))
        elif after == "primary":
            line = Line("node", "info", "node %s was promoted: it takes writes", (node,))
        else:
            line = Line("node", "warning", "node %s was demoted: it takes no writes", (node,))
        self._change(now, node, line)

    def superseded(self, now: float, node: str, timeline: int, newest: int) -> None:
        """Add that a primary takes no writes, because a newer timeline of its lineage was seen."""
        words = "node %s is a primary of timeline %d, but timeline %d was seen: it takes no writes; fence it"
        self._change(now, node, Line("node", "warning", words, (node, timeline, newest)))

    def clock_skewed(self, now: float, node: str, skew: float, *, skewed: bool) -> None:
        """Add that a server's clock began or ceased to differ from the local clock."""
        if skewed:
            line = Line("node", "warning", "node %s: its clock is %+.1f s off this machine's", (node, skew))
        else:
            line = Line("node", "info", "node %s: its clock is right again (%+.1f s)", (node, skew))
        self._change(now, node, line)

    def unretrieved(self, now: float, what: str) -> None:
        """Add that an operation failed by ``what``, and that its failure was never retrieved."""
        self._change(now, "", unretrieved(what))

    def count(self, now: float, node: str, kind: Counted, reason: str, in_flight: int = 0) -> None:
        """Count one more fact of this kind."""
        window = self._windows.get(node)
        if window is None:
            window = self._windows[node] = _Window(WINDOW, now + WINDOW)
        elif not window.tallies:
            goes_on = now < window.until + window.length
            window.length = min(2 * window.length, LONGEST) if goes_on else WINDOW
            window.until = now + window.length
        tally = window.tallies.get(kind)
        if tally is None:
            tally = window.tallies[kind] = _Tally()
            self.due = min(self.due, window.until)
        tally.add(reason, in_flight)

    def resolved(self, now: float, node: str, outcome: Outcome) -> None:
        """Count a write that had ended in doubt and whose outcome is now known."""
        self.count(now, node, Counted.RESOLVED, outcome)

    def forget(self, node: str) -> None:
        """Forget a removed node. Its lines that are not due yet will still be returned."""
        self._moved.pop(node, None)

    def _change(self, now: float, node: str, line: Line) -> None:
        changes = self._changes.setdefault((node, line.topic), _Changes())
        if not changes.held and now >= changes.next:
            changes.shown.append(now)
            self._ready.append(line)
            self.due = min(self.due, now)
        else:
            changes.hold(line)
            self.due = min(self.due, changes.next)

    # Lines

    def lines(self, now: float, *, everything: bool = False) -> list[Line]:
        """Return the lines that are due, each once; with ``everything``, also those that are not due yet."""
        lines, self._ready = self._ready, []
        for key, changes in tuple(self._changes.items()):
            if changes.held and (everything or now >= changes.next):
                if (line := changes.release(now)) is not None:
                    lines.append(line)
            elif not changes.held and now >= changes.shown[-1] + CHANGES:
                del self._changes[key]
        for node, window in tuple(self._windows.items()):
            if window.tallies and (everything or now >= window.until):
                lines += [window.tallies[kind].line(node, kind) for kind in Counted if kind in window.tallies]
                window.tallies.clear()
                window.until = now
            elif not window.tallies and now >= window.until + window.length:
                del self._windows[node]
        held = [changes.next for changes in self._changes.values() if changes.held]
        open_ = [window.until for window in self._windows.values() if window.tallies]
        self.due = min([*held, *open_], default=float("inf"))
        return lines


def brief(reason: str) -> str:
    """Return a reason of bounded length, without the phrases that libpq adds for every lost connection."""
    for words in _BOILERPLATE:
        reason = reason.replace(words, "")
    reason = " ".join(reason.split())
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[: _LONGEST_REASON - 1]}…"


def unretrieved(what: str) -> Line:
    """Return the line for one failure that was never retrieved."""
    return Line("operation", "error", "an operation failed, and its failure was not retrieved: %s", (what,))


def number(count: int, noun: str) -> str:
    """Return a count with its noun: ``1 write``, ``1,000 writes``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
