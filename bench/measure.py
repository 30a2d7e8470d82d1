"""A measurement in which contestants take turns, round after round."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from bench.report import Figure, Metric
from pgha.chaos import Nodes


@dataclass(frozen=True, slots=True)
class Setting:
    """The servers, and the duration of a measurement."""

    nodes: Nodes
    """Running servers with the tables of `bench.peers`."""
    seconds: float
    rounds: int
    entrance: str | None = None
    """The conninfo string of a proxy in front of the first server; None without one."""

    @property
    def dsn(self) -> str:
        return self.entrance or self.nodes.dsns[0]


Sampler: TypeAlias = Callable[[Setting], Sequence[float]]
"""A function that returns a sample of every metric."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """A row of the benchmark, or several rows that come from the same run."""

    name: str
    """The name on the command line."""
    metrics: Sequence[Metric]
    contestants: Mapping[str, Sampler]
    """The contestants by name."""
    servers: int = 1

    def run(self, setting: Setting) -> list[Figure]:
        """Run the rounds, in which every contestant has a turn. Each round begins with another contestant."""
        names = list(self.contestants)
        samples: dict[str, list[Sequence[float]]] = {name: [] for name in names}
        began = time.perf_counter()
        for number in range(setting.rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                say(f"\r{self.name}, round {number + 1} of {setting.rounds}: {name:<30}", end="")
                samples[name].append(self.contestants[name](setting))
        say(f"\r{self.name}: {time.perf_counter() - began:.0f} s{'':<50}")
        return [
            Figure(metric, {name: [one[i] for one in samples[name]] for name in names})
            for i, metric in enumerate(self.metrics)
        ]


def say(text: str, end: str = "\n") -> None:
    """Print progress on standard error."""
    print(text, end=end, file=sys.stderr, flush=True)
