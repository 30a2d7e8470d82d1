"""What `pgha chaos` says: a line a second, the summary, and how to play a run again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isinf
from pathlib import Path
from textwrap import shorten, wrap
from typing import TYPE_CHECKING

from pgha.cli._chaos.report import Totals, counted, faults_by_kind, in_words, totals

if TYPE_CHECKING:
    from pgha import NodeStatus, Statistics
    from pgha._trials.trial import Trial
    from pgha.chaos import Done, FaultKind, NodeKind, Schedule

_TOLD = 100
"""Most violations that are told; a report has them all."""
_LONG = 200
"""Characters of a violation's line."""
_WIDTH, _INDENT = 79, 26
"""Of the summary, and of its remarks."""


@dataclass(frozen=True, slots=True)
class ChaosOptions:
    """What was asked for."""

    seed: int
    scenario: str | None = None
    schedule: Schedule | None = None
    """To be played instead of one that the seed gives."""
    faults: tuple[FaultKind, ...] | None = None
    """Of a random run; None: all."""
    minutes: float = 0.5
    kind: NodeKind = "local"
    count: int = 3
    loop: str = "asyncio"
    report: Path | None = None
    json: bool = False
    shrink: float = 60.0
    """Seconds that shrinking may take; 0: it is not tried."""

    @property
    def title(self) -> str:
        if self.scenario is not None:
            return f"scenario {self.scenario}"
        return "random faults" if self.schedule is None else "faults of a schedule"

    @property
    def again(self) -> str:
        """The command line of the same run, without its report."""
        words = ["pgha", "chaos"]
        if self.scenario is not None:
            words.append(self.scenario)
        elif self.schedule is not None:
            words += ["--schedule", "-"]
        else:
            words += ["--minutes", f"{self.minutes:g}"]
            words += ["--faults", ",".join(self.faults)] if self.faults else []
        words += ["--seed", str(self.seed), "--nodes", self.kind, "--loop", self.loop]
        if self.scenario is None:
            words += ["--count", str(self.count)]
        return shlex.join(words)

    def beginning(self) -> str:
        """What is going to happen."""
        where = f"{self.kind} nodes, {self.loop}; seed {self.seed}"
        if self.scenario is not None:
            return f"Scenario {self.scenario} on {where}."
        if self.schedule is not None:
            faults = counted(len(self.schedule.steps), "fault")
            what = f"{faults} of a schedule within {self.schedule.seconds:g} s"
        else:
            what = f"Random faults for {self.minutes * 60:g} s"
        return f"{what}, on {self.count} {where}."


def played_again(options: ChaosOptions, schedule: Schedule | None) -> str:
    """What a shell takes to play it again: with `schedule`, its steps come along."""
    if schedule is None:
        return options.again
    return f"{replace(options, scenario=None, schedule=schedule).again} <<'END'\n{schedule.to_json()}\nEND"


class Ticker:
    """Makes the lines of a running trial. `began`: `time.monotonic` seconds."""

    def __init__(self, began: float) -> None:
        self._began = self._looked = began
        self._succeeded = 0
        self._operations = -1

    def line(
        self, now: float, so_far: Statistics, nodes: Mapping[str, NodeStatus], faults: Sequence[Done]
    ) -> str | None:
        """What was since the last line; None when nothing goes on any more."""
        idle = so_far.operations == self._operations and not so_far.in_flight + so_far.queued
        answered = so_far.succeeded - self._succeeded
        spent, self._looked = now - self._looked, now
        self._succeeded, self._operations = so_far.succeeded, so_far.operations
        if idle:
            return None
        # Not those in doubt: most of these were left by their callers, whom nobody told that.
        errors = so_far.failed - so_far.in_doubt - so_far.cancelled
        states = "  ".join(f"{name} {status.state}" for name, status in nodes.items())
        on = ", ".join(f"{one.kind} {one.node}" for one in faults if isinf(one.until) and not one.skipped)
        line = (
            f"{now - self._began:6.1f} s  {answered / spent if spent > 0 else 0.0:6,.0f} ops/s"
            f"   {errors:,} errors   {states}"
        )
        return f"{line}   -- {on}" if on else line


def summary(trial: Trial) -> str:
    """What became of the operations, and which promises were broken."""
    lines = []
    for name, value, remark in _rows(trial):
        first, *more = wrap(remark, _WIDTH - _INDENT) or [""]
        lines.append(f"  {name:<11} {value:>9}   {first}".rstrip())
        lines += [" " * _INDENT + line for line in more]
    return "\n".join([*lines, *_violations(trial)])


def _rows(trial: Trial) -> Iterator[tuple[str, str, str]]:
    found = totals(trial)
    seconds = trial.ended - trial.began
    yield "operations", f"{found.operations:,}", f"{found.reads:,} reads, {found.writes:,} writes"
    rate = f"{found.answered / seconds:,.0f} a second" if seconds > 0 else ""
    yield "answered", f"{found.answered:,}", rate
    yield "retried", f"{found.retried:,}", "times run again, which their callers did not notice"
    yield from _ends(found)
    kinds = faults_by_kind(trial)
    skipped = sum(bool(one.skipped) for one in trial.faults)
    words = [f"{count} {kind}" for kind, count in kinds.items()]
    words += [f"and {skipped} that could not be done"] if skipped else []
    yield "faults", f"{sum(kinds.values())}", ", ".join(words)
    if found.p50 is not None and found.p99 is not None and found.p999 is not None:
        others = f"p99 {in_words(found.p99)}, p99.9 {in_words(found.p999)}"
        yield "p50", in_words(found.p50), others
    yield "longest gap", in_words(found.longest_gap), f"without an answer, from {found.gap_at:.1f} s on"
    yield "violations", f"{len(trial.violations):,}", "" if trial.violations else "every promise was kept"


def _ends(found: Totals) -> Iterator[tuple[str, str, str]]:
    yield "in doubt", f"{found.in_doubt:,}", "writes of which the caller was told: perhaps"
    yield "errors", f"{found.errors:,}", "that reached a caller"
    if found.left:
        yield "left", f"{found.left:,}", "by callers who did not wait for the end"
    if found.unfinished:
        yield "unfinished", f"{found.unfinished:,}", "that never ended"


def _violations(trial: Trial) -> list[str]:
    lines = [
        "  ! " + shorten(f"{one.rule}: {one.text}", _LONG, placeholder=" ...")
        for one in trial.violations[:_TOLD]
    ]
    if (more := len(trial.violations) - len(lines)) > 0:
        lines.append(f"  ! and {more:,} more, which the JSON has")
    return lines
