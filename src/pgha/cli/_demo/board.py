"""What the live view knows: each node, its last seconds, and what happened. No terminal, no clock."""

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
"""Seconds of one sample: thirty are the fifteen seconds of a demo."""
_HAPPENINGS = 50
_AT_ONCE = 0.5
"""Seconds between two changes of a node that are one to the eye."""

Held: TypeAlias = DemoFault | Literal["returning"]
Sort: TypeAlias = Literal["fault", "change", "move", "back", "no", "note"]


@dataclass(slots=True)
class Row:
    """A node."""

    name: str
    step: str = "preparing"
    """How far it is while the servers come up."""
    port: int | None = None
    status: pgha.NodeStatus | None = None
    """What pgha thinks of it; None before the workload."""
    held: Held | None = None
    """What the demo is doing to it."""
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    """Operations a second that it answered, a value for each sample."""
    latencies: deque[float | None] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    """Seconds: the median of what it answered, or of pgha's pings when it answered nothing."""


@dataclass(frozen=True, slots=True)
class Happening:
    """One line of what happened."""

    at: float | None
    """Seconds since the workload began; None before and after it."""
    sort: Sort
    text: str
    mark: str = ""
    """The name of its symbol."""
    change: tuple[str | None, str] | None = None
    """Of which node, and the state that it is in then."""


@dataclass(slots=True)
class Board:
    """Everything that a frame shows."""

    title: str
    rows: list[Row]
    seconds: float
    """How long the workload is to run."""
    keys: bool = False
    """Whether there is a keyboard."""
    stage: str = ""
    """What is going on while there is no workload."""
    waited: float = 0.0
    """Seconds since the stage began."""
    running: bool = False
    """Whether the workload is."""
    over: bool = False
    elapsed: float = 0.0
    chosen: int = 0
    writer: str | None = None
    errors: int = 0
    retried: int = 0
    gap: float = 0.0
    """The longest, in seconds."""
    second: Second | None = None
    happenings: list[Happening] = field(default_factory=list)
    _sampled: float = 0.0
    _answered: dict[str, int] = field(default_factory=dict)
    _moves: int = 0

    @property
    def rate(self) -> float:
        """Operations a second of all nodes, in the last sample."""
        return sum(row.rates[-1] for row in self.rows if row.rates)

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def choose(self, number: int) -> None:
        """The keys are for the node of this index from now on, if there is one."""
        if 0 <= number < len(self.rows):
            self.chosen = number

    def step(self, by: int) -> None:
        """Choose the next node, or with -1 the one before."""
        self.chosen = (self.chosen + by) % len(self.rows)

    def tell(self, at: float | None, sort: Sort, text: str, mark: str = "") -> None:
        self._add(Happening(at, sort, _one_line(text), mark))

    def _add(self, happening: Happening) -> None:
        """In the order of time: what is heard of later may have been before."""
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
        """A line for a node's whole way down, with the first reason: the steps follow each other at once, and
        what came of the first tells no more.
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
        """Whether its way up is told by `back`, just now or soon."""
        last = self.happenings[-1] if self.happenings else None
        just = last is not None and last.sort == "back" and last.text.startswith(f"{node} ")
        return just or any(row.name == node and row.held is not None for row in self.rows)

    def look(self, recorder: Recorder, statuses: Mapping[str, pgha.NodeStatus], retried: int) -> None:
        """Take over what the workload and pgha say at this moment; a sample when one is due."""
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
        text = f"writes go on at {move.node} after {in_words(move.gap)}"
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
