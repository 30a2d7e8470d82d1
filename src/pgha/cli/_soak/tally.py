"""The counters of `pgha soak`, and their text. Pure: the caller passes in the time and every event.

The memory is bounded however long a soak runs: latencies are kept as a histogram, and of the errors only the
first message per class.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pgha

_STEPS = 48
"""Buckets of the histogram per power of ten, for an error of at most 2.5 percent."""
_FLOOR = 1e-7
"""Seconds. Shorter times are counted as this."""


class Latencies:
    """A histogram of seconds."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        self._buckets[math.floor(math.log10(max(seconds, _FLOOR)) * _STEPS)] += 1

    def quantile(self, part: float) -> float:
        """Return the seconds that `part` (0 to 1) of the values did not exceed; 0 without values."""
        rank = part * self._buckets.total()
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return float(10 ** ((bucket + 0.5) / _STEPS))
        return 0.0


@dataclass(slots=True)
class Tally:
    """The outcomes of the operations so far. Times are `time.monotonic` seconds."""

    began: float
    submitted: int = 0
    finished: int = 0
    """Operations with a result."""
    in_doubt: int = 0
    """Writes that may or may not have been applied."""
    unfinished: int = 0
    """Operations that were cancelled at the end of the soak."""
    spikes: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """Errors by class."""
    samples: dict[str, str] = field(default_factory=dict)
    """The first message of each class of error, including writes in doubt."""
    by_node: Counter[str] = field(default_factory=Counter)
    """Results by the node that returned them."""
    latencies: Latencies = field(default_factory=Latencies)
    _recent: Latencies = field(default_factory=Latencies)
    """Latencies since the last line."""
    _looked: float = field(init=False)
    _ended_then: int = 0

    def __post_init__(self) -> None:
        self._looked = self.began

    @property
    def failed(self) -> int:
        """The number of operations that ended with an error."""
        return self.errors.total()

    @property
    def in_flight(self) -> int:
        """The number of operations that were submitted and are not done."""
        return self.submitted - self.finished - self.failed - self.in_doubt - self.unfinished

    def succeeded(self, node: str, latency: float) -> None:
        """Count a result of `node`. `latency` is in seconds since the submission."""
        self.finished += 1
        self.by_node[node] += 1
        self.latencies.add(latency)
        self._recent.add(latency)

    def ended_with(self, error: BaseException) -> None:
        """Count an operation that ended with `error`."""
        name = type(error).__name__
        self.samples.setdefault(name, " ".join(str(error).split()))
        if isinstance(error, pgha.CommitInDoubt):
            self.in_doubt += 1
        else:
            self.errors[name] += 1

    def line(self, now: float, nodes: Mapping[str, pgha.NodeStatus]) -> str:
        """Return a line with the totals so far, and the rate and latencies since the last line."""
        spent, self._looked = now - self._looked, now
        ended, self._ended_then = self.finished - self._ended_then, self.finished
        recent, self._recent = self._recent, Latencies()
        states = "  ".join(f"{name} {status.state}" for name, status in nodes.items())
        return (
            f"{now - self.began:5.0f} s  {self._counts()}, {self.in_flight:,} in flight"
            f"   {ended / spent if spent > 0 else 0:,.0f} ops/s   {'   '.join(_quantiles(recent))}   {states}"
        )

    def _counts(self) -> str:
        classes = ", ".join(f"{name} {count:,}" for name, count in self.errors.most_common())
        doubt = f", {self.in_doubt:,} in doubt" if self.in_doubt else ""
        return (
            f"{self.finished:,} finished, {self.failed:,} errors{f' ({classes})' if classes else ''}{doubt}"
        )

    def text(self, now: float, retried: int) -> str:
        """Return the summary as text."""
        seconds = now - self.began
        rest = f", {self.unfinished:,} unfinished" if self.unfinished else ""
        quantiles = ", ".join(_quantiles(self.latencies))
        nodes = ", ".join(f"{name} {count:,}" for name, count in self.by_node.most_common())
        lines = [
            f"{self.submitted:,} operations in {self.spikes:,} spikes and {seconds:.1f} s:"
            f" {self._counts()}{rest}",
            f"{self._rate(now):,.0f} ops/s, {quantiles}, {retried:,} retries",
            f"answered by {nodes or 'no node'}",
        ]
        return "\n".join([*lines, *(f"! {name}: {message}" for name, message in self.samples.items())])

    def json(self, now: float, retried: int, asked: Mapping[str, Any]) -> str:
        """Return the summary and the `asked` options as JSON."""
        numbers = {
            "submitted": self.submitted,
            "finished": self.finished,
            "errors": self.failed,
            "error_classes": dict(self.errors),
            "error_samples": self.samples,
            "in_doubt": self.in_doubt,
            "unfinished": self.unfinished,
            "retried": retried,
            "spikes": self.spikes,
            "seconds": round(now - self.began, 2),
            "ops_per_second": round(self._rate(now), 1),
            "p50_ms": round(self.latencies.quantile(0.5) * 1000, 2),
            "p99_ms": round(self.latencies.quantile(0.99) * 1000, 2),
            "by_node": dict(self.by_node),
        }
        return json.dumps({**numbers, **asked}, indent=2)

    def _rate(self, now: float) -> float:
        return self.finished / (now - self.began) if now > self.began else 0.0


def _quantiles(latencies: Latencies) -> list[str]:
    return [
        f"{name} {latencies.quantile(part) * 1000:.1f} ms" for name, part in (("p50", 0.5), ("p99", 0.99))
    ]
