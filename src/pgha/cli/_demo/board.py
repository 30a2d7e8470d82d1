"""The data of the live view: nodes, their last seconds, and events. The board needs no terminal or clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import pgha
from pgha.cli._demo.faults import DemoFault, Fault, in_words
from pgha.cli._demo.workload import Move, Recorder, Second

SAMPLES = 30
SAMPLE = 0.5
"""Seconds per sample: thirty samples cover the fifteen seconds of a demo."""
_HAPPENINGS = 50
_AT_ONCE = 0.5
"""Seconds within which two changes of a node share a line."""

Held: TypeAlias = DemoFault | Literal["returning"]
Sort: TypeAlias = Literal["fault", "change", "move", "back", "no", "note"]


@dataclass(slots=True)
class Row:
    """A node of the table."""

    name: str
    step: str = "preparing"
    """The progress of the server's start."""
    port: int | None = None
    status: pgha.NodeStatus | None = None
    """The node's status as pgha sees it; None before the workload."""
    held: Held | None = None
    """The fault that the demo is inflicting on the node, or its recovery."""
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    """Operations per second that the node answered, one value per sample."""
    latencies: deque[float | None] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    """Median latency of the node's answers in seconds, or the latency of pgha's pings if there were none."""


@dataclass(frozen=True, slots=True)
class Happening:
    """A line of the list of events."""

    at: float | None
    """Seconds since the workload began; None before and after it."""
    sort: Sort
    text: str
    mark: str = ""
    """The name of the symbol before the text."""
    change: tuple[str | None, str] | None = None
    """For a change of state: the node, and its new state."""


@dataclass(slots=True)
class Board:
    """The data of a frame."""

    title: str
    rows: list[Row]
    seconds: float
    """The duration of the workload."""
    keys: bool = False
    """Whether there is a keyboard."""
    stage: str = ""
    """The current activity while no workload runs."""
    waited: float = 0.0
    """Seconds since the stage began."""
    running: bool = False
    """Whether the workload is running."""
    over: bool = False
    elapsed: float = 0.0
    chosen: int = 0
    writer: str | None = None
    errors: int = 0
    retried: int = 0
    gap: float = 0.0
    """The longest time without an answer, in seconds."""
    second: Second | None = None
    happenings: list[Happening] = field(default_factory=list)
    _sampled: float = 0.0
    _answered: dict[str, int] = field(default_factory=dict)
    _moves: int = 0

    @property
    def rate(self) -> float:
        """Operations per second of all nodes, in the last sample."""
        return sum(row.rates[-1] for row in self.rows if row.rates)

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def choose(self, number: int) -> None:
        """Apply the keys to the node with the index `number` from now on, if there is one."""
        if 0 <= number < len(self.rows):
            self.chosen = number

    def step(self, by: int) -> None:
        """Choose the next node, or with -1 the previous one."""
        self.chosen = (self.chosen + by) % len(self.rows)

    def tell(self, at: float | None, sort: Sort, text: str, mark: str = "") -> None:
        self._add(Happening(at, sort, _one_line(text), mark))

    def _add(self, happening: Happening) -> None:
        """Insert an event in the order of time, since an earlier event may be reported later."""
        at = happening.at
        place = len(self.happenings)
        while at is not None and place and (self.happenings[place - 1].at or 0.0) > at:
            place -= 1
        if len(self.happenings) == _HAPPENINGS:
            del self.happenings[0]
            place = max(0, place - 1)
        self.happenings.insert(place, happening)

    def fault(self, fault: Fault) -> None:
        self.row(fault.node).held = fault.kind
        hand = " by hand" if fault.by_hand else ""
        writer = ", which takes the writes" if fault.at_writer else ""
        self.tell(fault.at, "fault", f"{fault.kind} {fault.node}{hand}{writer}", fault.kind)

    def mending(self, node: str) -> None:
        self.row(node).held = "returning"

    def back(self, node: str, at: float, away: float) -> None:
        self.row(node).held = None
        self.tell(at, "back", f"{node} is back after {in_words(away)}", "back")

    def changed(self, at: float, event: pgha.NodeStateChanged, arrow: str) -> None:
        """Add a line for a node's change of state.

        Changes that follow each other at once share one line, with the first reason: the reasons of the later
        steps say no more.
        """
        if event.state == "up" and self._told_back(event.node):
            return
        last = self.happenings[-1] if self.happenings else None
        if last is not None and last.change == (event.node, event.before) and at - (last.at or at) < _AT_ONCE:
            before, bracket, reason = last.text.partition(" (")
            self.happenings.pop()
            at, text = last.at or at, f"{before} {arrow} {event.state}{bracket}{reason}"
        else:
            reason = f" ({event.reason})" if event.reason else ""
            text = f"{event.node}: {event.before} {arrow} {event.state}{reason}"
        self._add(Happening(at, "change", _one_line(text), change=(event.node, event.state)))

    def _told_back(self, node: str | None) -> bool:
        """Return whether `back` has just reported, or will soon report, that the node is up again."""
        last = self.happenings[-1] if self.happenings else None
        just = last is not None and last.sort == "back" and last.text.startswith(f"{node} ")
        return just or any(row.name == node and row.held is not None for row in self.rows)

    def look(self, recorder: Recorder, statuses: Mapping[str, pgha.NodeStatus], retried: int) -> None:
        """Update the board from the workload and from pgha, and take a sample if one is due."""
        self.elapsed = min(recorder.elapsed, recorder.seconds)
        self.seconds = recorder.seconds
        self.writer, self.errors = recorder.writer, recorder.errors + recorder.in_doubt
        self.retried, self.gap = retried, recorder.gaps[None]
        for row in self.rows:
            row.status = statuses.get(row.name)
        for move in recorder.moves[self._moves :]:
            self._moved(move)
        self._moves = len(recorder.moves)
        spent = recorder.elapsed - self._sampled
        if spent >= SAMPLE:
            self._sampled = recorder.elapsed
            self._sample(spent, recorder.answered, recorder.medians())

    def _moved(self, move: Move) -> None:
        text = f"writes continue on {move.node} after {in_words(move.gap)}"
        self.tell(move.at, "move", text)

    def _sample(self, spent: float, answered: Mapping[str, int], medians: Mapping[str, float]) -> None:
        for row in self.rows:
            count = answered.get(row.name, 0)
            row.rates.append((count - self._answered.get(row.name, 0)) / spent)
            self._answered[row.name] = count
            row.latencies.append(medians.get(row.name, _pinged(row.status)))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _pinged(status: pgha.NodeStatus | None) -> float | None:
    return status.latency if status is not None and status.state == "up" else None


def rows(names: Iterable[str]) -> list[Row]:
    return [Row(name) for name in names]
