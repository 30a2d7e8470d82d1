"""What the nodes of a chaos run were like, and when which fault was on. Pure, as `_chaos_report`.

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
"""Seconds: so long a time of a node is slow, or is not."""
_SLOWER = 10.0
"""Times the node's own median, ..."""
_NOTICED = 0.02
"""... and so many seconds at least: below that a busy machine alone makes the difference."""


@dataclass(frozen=True, slots=True)
class Bar:
    """What a node was like from `begin` to `end`."""

    begin: float
    end: float
    condition: Condition


@dataclass(frozen=True, slots=True)
class Promotion:
    """A standby became a primary."""

    at: float
    node: str


@dataclass(frozen=True, slots=True)
class Band:
    """A fault was on from `begin` to `end`, healing included."""

    begin: float
    end: float
    kind: str
    node: str

    @property
    def label(self) -> str:
        return f"{self.kind.replace('_', ' ')} {self.node}"


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the label of a fault is, left-aligned at `at`; None where there was no room for it."""

    band: Band
    row: int
    at: float | None


def topology(trial: Trial) -> str:
    """As what the nodes were first seen: 3 primaries, 1 primary and 2 standbys."""
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
    """When a node that was known as a standby was first seen as a primary."""
    known: dict[str, str] = {}
    found = []
    for sighting in sorted(trial.sightings, key=lambda one: one.at):
        if sighting.role == "primary" and known.get(sighting.node) == "standby":
            found.append(Promotion(max(0.0, sighting.at - trial.began), sighting.node))
        if sighting.role != "unknown":
            known[sighting.node] = sighting.role
    return found


def lanes(trial: Trial, span: float) -> dict[str, list[Bar]]:
    """What each node was like, from 0 to `span`, one bar after the other.

    Slow is a node that pgha suspects; and one that is up where the 99th percentile of its answers within a
    quarter of a second is above 10 times its median of the whole run, and above 20 ms. Before a node was seen
    it counts as connecting.
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
    """Each bar that is up, cut where a slow quarter of a second begins or ends."""
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
    """The numbers of the quarters of a second in which each node was slow, by what it answered then."""
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
    """Which node answered, when it was asked, and when it did.

    By the attempts, since what waited for a node that is down was not slow on the one that answered.
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
    """The faults that were done, in the order of their beginning; what never was healed lasts to the end."""
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
    """When any fault was on: disjoint, in order."""
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
    """Put the faults, in the order of their beginning, into rows: nothing in a row covers anything else.

    `width_of` says how many seconds wide a label is. A label begins with its fault, or ends with the time.
    Where there is no room for a label, the fault stands without one; where there is none for that either, it
    is left out. The second value: how many have no label.
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
