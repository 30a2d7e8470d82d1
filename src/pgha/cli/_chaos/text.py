"""The text of `pgha chaos`: a line per second, the summary, and the command that replays a run."""

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
"""The maximum number of violations in the summary. A report has them all."""
_LONG = 200
"""The maximum number of characters of a violation's line."""
_WIDTH, _INDENT = 79, 26
"""The width of the summary, and the column where its remarks begin."""


@dataclass(frozen=True, slots=True)
class ChaosOptions:
    """The options of the command."""

    seed: int
    scenario: str | None = None
    schedule: Schedule | None = None
    """The schedule to play; None: the seed gives one."""
    faults: tuple[FaultKind, ...] | None = None
    """The kinds of random faults; None: all kinds."""
    minutes: float = 0.5
    kind: NodeKind = "local"
    count: int = 3
    loop: str = "asyncio"
    report: Path | None = None
    json: bool = False
    shrink: float = 60.0
    """Seconds that shrinking may take; 0: no shrinking."""

    @property
    def title(self) -> str:
        if self.scenario is not None:
            return f"scenario {self.scenario}"
        return "random faults" if self.schedule is None else "faults of a schedule"

    @property
    def again(self) -> str:
        """The command line of the same run, without the report."""
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
        """Return the first line of output: what the run will do."""
        where = f"{self.kind} nodes, {self.loop}; seed {self.seed}"
        if self.scenario is not None:
            return f"Scenario {self.scenario} on {where}."
        if self.schedule is not None:
            faults = counted(len(self.schedule.steps), "fault")
            what = f"Schedule of {faults} in {self.schedule.seconds:g} s"
        else:
            what = f"Random faults for {self.minutes * 60:g} s"
        return f"{what}, on {self.count} {where}."


def played_again(options: ChaosOptions, schedule: Schedule | None) -> str:
    """Return a shell command that replays the run. If `schedule` is given, the command contains its steps."""
    if schedule is None:
        return options.again
    return f"{replace(options, scenario=None, schedule=schedule).again} <<'END'\n{schedule.to_json()}\nEND"


class Ticker:
    """Formats the lines of a running trial, which began at `began` in `time.monotonic` seconds."""

    def __init__(self, began: float) -> None:
        self._began = self._looked = began
        self._succeeded = 0
        self._operations = -1

    def line(
        self, now: float, so_far: Statistics, nodes: Mapping[str, NodeStatus], faults: Sequence[Done]
    ) -> str | None:
        """Return a line about the time since the last line; None if the load has ended."""
        idle = so_far.operations == self._operations and not so_far.in_flight + so_far.queued
        answered = so_far.succeeded - self._succeeded
        spent, self._looked = now - self._looked, now
        self._succeeded, self._operations = so_far.succeeded, so_far.operations
        if idle:
            return None
        # Writes in doubt are not errors here: most of them were left by their callers, who saw no error.
        errors = so_far.failed - so_far.in_doubt - so_far.cancelled
        states = "  ".join(f"{name} {status.state}" for name, status in nodes.items())
        on = ", ".join(f"{one.kind} {one.node}" for one in faults if isinf(one.until) and not one.skipped)
        line = (
            f"{now - self._began:6.1f} s  {answered / spent if spent > 0 else 0.0:6,.0f} ops/s"
            f"   {errors:,} errors   {states}"
        )
        return f"{line}   -- {on}" if on else line


def summary(trial: Trial) -> str:
    """Return the summary: the outcomes of the operations, and the broken promises."""
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
    rate = f"{found.answered / seconds:,.0f} per second" if seconds > 0 else ""
    yield "answered", f"{found.answered:,}", rate
    yield "retried", f"{found.retried:,}", "times an operation was run again, unseen by its caller"
    yield from _ends(found)
    kinds = faults_by_kind(trial)
    skipped = sum(bool(one.skipped) for one in trial.faults)
    words = [f"{count} {kind}" for kind, count in kinds.items()]
    words += [f"{skipped} more could not be done"] if skipped else []
    yield "faults", f"{sum(kinds.values())}", ", ".join(words)
    if found.p50 is not None and found.p99 is not None and found.p999 is not None:
        others = f"p99 {in_words(found.p99)}, p99.9 {in_words(found.p999)}"
        yield "p50", in_words(found.p50), others
    yield "longest gap", in_words(found.longest_gap), f"without an answer, beginning at {found.gap_at:.1f} s"
    yield "violations", f"{len(trial.violations):,}", "" if trial.violations else "every promise was kept"


def _ends(found: Totals) -> Iterator[tuple[str, str, str]]:
    yield "in doubt", f"{found.in_doubt:,}", "writes that may or may not have been applied"
    yield "errors", f"{found.errors:,}", "operations that ended with an error"
    if found.left:
        yield "left", f"{found.left:,}", "operations whose callers did not wait for the end"
    if found.unfinished:
        yield "unfinished", f"{found.unfinished:,}", "operations that never ended"


def _violations(trial: Trial) -> list[str]:
    lines = [
        "  ! " + shorten(f"{one.rule}: {one.text}", _LONG, placeholder=" ...")
        for one in trial.violations[:_TOLD]
    ]
    if (more := len(trial.violations) - len(lines)) > 0:
        lines.append(f"  ! and {more:,} more, listed in the JSON report")
    return lines
