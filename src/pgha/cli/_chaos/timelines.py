"""The states of a chaos run's nodes over time, and the times of its faults. Pure, like `report`.

Times are seconds since the load began.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from pgha._trials.trial import Trial
    from pgha.chaos.history import Entry

Condition: TypeAlias = Literal["up", "slow", "down", "connecting"]

_CONDITIONS: dict[str, Condition] = {
    "up": "up",
    "suspect": "slow",
    "down": "down",
    "rejected": "down",
    "connecting": "connecting",
}
_SLOW_BIN = 0.25
"""Seconds. Each interval of this length of a node is slow or not."""
_SLOWER = 10.0
"""A node is slow from this many times the median of its own answers on."""
_NOTICED = 0.02
"""Seconds from which answers can be slow: below, a busy machine alone makes the difference."""


@dataclass(frozen=True, slots=True)
class Bar:
    """The condition of a node from `begin` to `end`."""

    begin: float
    end: float
    condition: Condition


@dataclass(frozen=True, slots=True)
class Promotion:
    """The moment when a standby became a primary."""

    at: float
    node: str


@dataclass(frozen=True, slots=True)
class Band:
    """The time of a fault from `begin` to `end`, healing included."""

    begin: float
    end: float
    kind: str
    node: str

    @property
    def label(self) -> str:
        return f"{self.kind.replace('_', ' ')} {self.node}"


@dataclass(frozen=True, slots=True)
class Placed:
    """The position of a fault's label, left-aligned at `at`; None if there was no room for the label."""

    band: Band
    row: int
    at: float | None


def topology(trial: Trial) -> str:
    """Return the first known roles of the nodes as text: 3 primaries, 1 primary and 2 standbys."""
    roles: dict[str, str] = {}
    for sighting in sorted(trial.sightings, key=lambda one: one.at):
        if sighting.role != "unknown":
            roles.setdefault(sighting.node, sighting.role)
    if not roles:
        return f"{len(trial.nodes)} nodes"
    known = list(roles.values())
    primaries, standbys = known.count("primary"), known.count("standby")
    unknown = len(trial.nodes) - primaries - standbys
    parts = [f"{primaries} {'primary' if primaries == 1 else 'primaries'}"] if primaries else []
    parts += [f"{standbys} standby{'' if standbys == 1 else 's'}"] if standbys else []
    parts += [f"{unknown} of unknown role"] if unknown else []
    return " and ".join(parts)


def promotions(trial: Trial) -> list[Promotion]:
    """Return the times when a node that was known as a standby was first seen as a primary."""
    known: dict[str, str] = {}
    found = []
    for sighting in sorted(trial.sightings, key=lambda one: one.at):
        if sighting.role == "primary" and known.get(sighting.node) == "standby":
            found.append(Promotion(max(0.0, sighting.at - trial.began), sighting.node))
        if sighting.role != "unknown":
            known[sighting.node] = sighting.role
    return found


def lanes(trial: Trial, span: float) -> dict[str, list[Bar]]:
    """Return the condition of each node from 0 to `span` as consecutive bars.

    A node is slow while pgha suspects it. A node that is up is also slow in each quarter of a second in which
    the 99th percentile of its answers is above 10 times its median of the whole run and above 20 ms. A node
    counts as connecting until it is first seen.
    """
    slow = _slow(trial)
    found = {}
    for node in trial.nodes:
        changes: list[tuple[float, Condition]] = [(0.0, "connecting")]
        for sighting in sorted(trial.sightings, key=lambda one: one.at):
            if sighting.node == node:
                changes.append((max(0.0, sighting.at - trial.began), _CONDITIONS[sighting.state]))
        found[node] = _merged(_with_slow(_between(changes, span), slow[node], span))
    return found


def _between(changes: Sequence[tuple[float, Condition]], span: float) -> Iterator[Bar]:
    ends = [at for at, _ in changes[1:]] + [span]
    for (begin, condition), end in zip(changes, ends, strict=True):
        if begin < (end := min(end, span)):
            yield Bar(begin, end, condition)


def _with_slow(bars: Iterable[Bar], slow: set[int], span: float) -> Iterator[Bar]:
    """Yield the bars, with each bar that is up cut where a slow quarter of a second begins or ends."""
    for bar in bars:
        if bar.condition != "up" or not slow:
            yield bar
            continue
        begin = bar.begin
        for number in range(int(bar.begin / _SLOW_BIN), int(bar.end / _SLOW_BIN) + 1):
            end = min(bar.end, (number + 1) * _SLOW_BIN, span)
            if begin < end:
                yield Bar(begin, end, "slow" if number in slow else "up")
                begin = end


def _merged(bars: Iterable[Bar]) -> list[Bar]:
    found: list[Bar] = []
    for bar in bars:
        if found and found[-1].condition == bar.condition:
            bar = Bar(found.pop().begin, bar.end, bar.condition)
        found.append(bar)
    return found


def _slow(trial: Trial) -> dict[str, set[int]]:
    """Return the numbers of the quarters of a second in which each node's answers were slow."""
    by_bin: dict[str, dict[int, list[float]]] = {node: defaultdict(list) for node in trial.nodes}
    for entry in trial.history:
        for node, sent_at, answered_at in _answers(entry):
            if node in by_bin:
                by_bin[node][int((answered_at - trial.began) / _SLOW_BIN)].append(answered_at - sent_at)
    found = {}
    for node, answers in by_bin.items():
        every = sorted(latency for some in answers.values() for latency in some)
        limit = max(_NOTICED, _SLOWER * every[len(every) // 2]) if every else 0.0
        found[node] = {number for number, some in answers.items() if _p99(some) > limit}
    return found


def _answers(entry: Entry) -> list[tuple[str, float, float]]:
    """Return the node, the time of sending and the time of the answer, for each answer.

    The times are those of the attempts: an operation that waited for a node that is down was not slow on the
    node that answered.
    """
    attempts = [
        (one.node, one.sent_at, one.answered_at) for one in entry.attempts if one.answered_at is not None
    ]
    if entry.attempts or entry.node is None or entry.ended is None:
        return attempts
    return [(entry.node, entry.begun, entry.ended)]


def _p99(latencies: list[float]) -> float:
    return sorted(latencies)[(99 * len(latencies) + 99) // 100 - 1]


def bands(trial: Trial) -> list[Band]:
    """Return the faults that were done, in the order of their beginnings.

    A fault that never was healed lasts to the end of the run.
    """
    found = [
        Band(
            fault.at - trial.began,
            max(fault.at, min(fault.until, trial.ended)) - trial.began,
            fault.kind,
            fault.node,
        )
        for fault in trial.faults
        if not fault.skipped
    ]
    return sorted(found, key=lambda band: (band.begin, band.end, band.node))


def union(found: Iterable[Band]) -> list[tuple[float, float]]:
    """Return the times when any fault was on, as disjoint intervals in order."""
    merged: list[tuple[float, float]] = []
    for band in sorted(found, key=lambda one: one.begin):
        begin, end = band.begin, band.end
        if merged and begin <= merged[-1][1]:
            begin, last = merged.pop()
            end = max(end, last)
        merged.append((begin, end))
    return merged


def place(
    found: Sequence[Band], span: float, rows: int, width_of: Callable[[str], float]
) -> tuple[list[Placed], int]:
    """Place the faults into rows in which nothing overlaps. Also return the number of faults without a label.

    `found` is in the order of the faults' beginnings, and `width_of` returns the width of a label in seconds.
    A label begins with its fault, or earlier so that it ends within the time axis. If there is no room for
    the label, the fault is placed without one; if there is no room for the fault either, it is left out.
    """
    ends = [0.0] * rows
    placed = []
    labelled = 0
    for band in found:
        width = width_of(band.label)
        at = max(0.0, min(band.begin, span - width))
        row = next((row for row in range(rows) if ends[row] <= at), None)
        if row is not None:
            placed.append(Placed(band, row, at))
            ends[row] = max(band.end, at + width)
            labelled += 1
            continue
        row = next((row for row in range(rows) if ends[row] <= band.begin), None)
        if row is not None:
            placed.append(Placed(band, row, None))
            ends[row] = band.end
    return placed, len(found) - labelled
