"""The counters of the chaos suite, for the lines at its end."""

from __future__ import annotations

import time
from collections import Counter

from pgha._trials.exactly import Figures, total
from pgha._trials.sweep import Swept
from pgha._trials.trial import Trial


class Tally:
    """The counts of the whole run."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.trials: Counter[str] = Counter()
        """Trials by their kind (such as scenario or schedule), kind of nodes and event loop."""
        self.faults: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        """Operations by their endings."""
        self.cuts: Counter[str] = Counter()
        self.violations = 0
        self.exact: dict[int, list[Figures]] = {}
        """The figures of keyed writes by PostgreSQL version."""
        self.seconds: dict[str, list[float]] = {}
        """The durations of the trials by kind, including the start of servers."""

    def trial(self, what: str, trial: Trial, seconds: float) -> None:
        self.trials[f"{what}, {trial.kind}, {trial.loop}"] += 1
        self.faults.update(done.kind for done in trial.faults if not done.skipped)
        self.operations.update(entry.ending or "never ended" for entry in trial.history)
        self.violations += len(trial.violations)
        self.seconds.setdefault(what, []).append(seconds)

    def swept(self, swept: Swept) -> None:
        self.cuts.update(swept.cuts)
        self.operations.update(entry.ending or "never ended" for entry in swept.history)
        self.violations += len(swept.violations)

    def add(self, other: Tally) -> None:
        """Add the counts of another worker."""
        self.trials += other.trials
        self.faults += other.faults
        self.operations += other.operations
        self.cuts += other.cuts
        self.violations += other.violations
        for version, found in other.exact.items():
            self.exact.setdefault(version, []).extend(found)
        for what, taken in other.seconds.items():
            self.seconds.setdefault(what, []).extend(taken)

    def lines(self) -> list[str]:
        """Return the lines to print; [] if nothing was counted."""
        if not self.trials and not self.cuts:
            return []
        medians = ", ".join(
            f"{what} {sorted(taken)[len(taken) // 2]:.1f} s" for what, taken in sorted(self.seconds.items())
        )
        return [
            f"trials: {self.trials.total()} ({_words(self.trials)}); median {medians or 'of none'}",
            f"faults: {self.faults.total()} ({_words(self.faults)})",
            f"cuts: {self.cuts.total()} ({_words(self.cuts)})",
            f"operations: {self.operations.total()} ({_words(self.operations)})",
            *(f"exactly once, PostgreSQL {version}: {total(self.exact[version])}" for version in self.exact),
            f"violations: {self.violations}; {time.monotonic() - self.began:.0f} s",
        ]


def _words(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.most_common()) or "none"


TALLY = Tally()
