"""The figures as a table and as JSON: medians, spreads, ratios, missed targets. Pure: numbers in, text out.

A machine's speed varies from round to round. So a ratio is taken between two samples of the same round,
seconds apart, and the result is the median of those ratios. A ratio of two medians would mix rounds of
different speed.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

OURS = "pgha"
"""The prefix of the names of pgha's own contestants. All others are peers."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The median, the minimum and the maximum of some samples."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        return cls(statistics.median(samples), min(samples), max(samples))


@dataclass(frozen=True, slots=True)
class Metric:
    """A measured quantity, and its targets."""

    title: str
    unit: str
    better: Literal["more", "less"] = "more"
    targets: Mapping[str, float] = field(default_factory=dict)
    """By peer: the ratio that each of pgha's contestants should reach."""
    at_most: float | None = None
    """The maximum value for each of pgha's contestants."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """The ratio of one of pgha's contestants to a peer. A greater ratio is better, whatever the metric."""

    ours: str
    peer: str
    spread: Spread
    target: float | None

    @property
    def missed(self) -> bool:
        return self.target is not None and self.spread.median < self.target


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric and its samples by contestant: one sample per round, in the order of the rounds."""

    metric: Metric
    samples: Mapping[str, Sequence[float]]

    @property
    def ours(self) -> list[str]:
        return [name for name in self.samples if name.startswith(OURS)]

    @property
    def peers(self) -> list[str]:
        return [name for name in self.samples if not name.startswith(OURS)]

    def ratio(self, ours: str, peer: str) -> Ratio | None:
        """Return the ratio of `ours` to `peer`; None if a sample is zero, since no ratio can be taken."""
        pairs = list(zip(self.samples[ours], self.samples[peer], strict=True))
        if not all(mine and other for mine, other in pairs):
            return None
        more = self.metric.better == "more"
        quotients = [mine / other if more else other / mine for mine, other in pairs]
        return Ratio(ours, peer, Spread.of(quotients), self.metric.targets.get(peer))

    def ratios(self) -> list[Ratio]:
        found = (self.ratio(ours, peer) for peer in self.peers for ours in self.ours)
        return [one for one in found if one is not None]

    def excess(self) -> list[str]:
        """Return the names of pgha's contestants that exceed the maximum value."""
        limit = self.metric.at_most
        return [
            name for name in self.ours if limit is not None and Spread.of(self.samples[name]).median > limit
        ]

    @property
    def missed(self) -> bool:
        return any(one.missed for one in self.ratios()) or bool(self.excess())


@dataclass(frozen=True, slots=True)
class Report:
    """All figures of a run."""

    figures: Sequence[Figure]
    notes: Sequence[str] = ()
    """Notes for the reader about how the figures were measured."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Versions of programs and packages."""

    @property
    def missed(self) -> int:
        return sum(figure.missed for figure in self.figures)

    def table(self) -> str:
        """Return the table, at most 110 columns wide except the notes."""
        return "\n\n".join([*map(_block, self.figures), *self._last_words()])

    def json(self) -> str:
        return json.dumps(
            {
                "facts": dict(self.facts),
                "figures": [_numbers(figure) for figure in self.figures],
                "missed": self.missed,
                "notes": list(self.notes),
            },
            indent=2,
        )

    def _last_words(self) -> Iterable[str]:
        aimed = sum(bool(f.metric.targets) or f.metric.at_most is not None for f in self.figures)
        yield f"{aimed - self.missed} of {aimed} figures with a target reached their target."
        if self.facts:
            yield ", ".join(f"{name} {value}" for name, value in self.facts.items())
        if self.notes:
            yield "\n".join(f"* {note}" for note in self.notes)


def _numbers(figure: Figure) -> dict[str, Any]:
    metric = figure.metric
    return {
        "title": metric.title,
        "unit": metric.unit,
        "better": metric.better,
        "contestants": {
            name: {**asdict(Spread.of(values)), "samples": list(values)}
            for name, values in figure.samples.items()
        },
        "ratios": [
            {"ours": r.ours, "peer": r.peer, **asdict(r.spread), "target": r.target, "missed": r.missed}
            for r in figure.ratios()
        ],
        "at_most": metric.at_most,
        "missed": figure.missed,
    }


def _block(figure: Figure) -> str:
    """Return the lines of a figure: pgha's contestants first, then the peers with the ratios."""
    metric = figure.metric
    columns = "".join(f"{f'{name} / peer':>24}" for name in figure.ours)
    head = f"  {metric.unit:<43}{columns}{'target':>9}" if figure.peers else f"  {metric.unit}"
    lines = [metric.title, head]
    excess = figure.excess()
    for name in [*figure.ours, *figure.peers]:
        line = f"  {name:<22}{_range(Spread.of(figure.samples[name])):>21}"
        if name in figure.peers:
            line += _versus(figure, name)
        elif metric.at_most is not None:
            line += f"  at most {_number(metric.at_most)}{'  missed' if name in excess else ''}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def _versus(figure: Figure, peer: str) -> str:
    found = [figure.ratio(ours, peer) for ours in figure.ours]
    cells = "".join(f"{'' if one is None else _times(one.spread):>24}" for one in found)
    target = figure.metric.targets.get(peer)
    missed = any(one is not None and one.missed for one in found)
    return cells + ("" if target is None else f"{target:>8.1f}x{'  missed' if missed else ''}")


def _times(spread: Spread) -> str:
    return f"{spread.median:.2f}x ({spread.low:.2f}-{spread.high:.2f})"


def _range(spread: Spread) -> str:
    if spread.low == spread.high:
        return _number(spread.median)
    return f"{_number(spread.median)} ({_number(spread.low)}-{_number(spread.high)})"


def _number(value: float) -> str:
    """Return the value with three digits: such measurements are no more exact."""
    if value >= 1e6:
        return f"{value / 1e6:.2f}M"
    if value >= 1e4:
        return f"{value / 1e3:.1f}k"
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
