"""The arguments of `pgha chaos`, checked before anything is started."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import cast

from pgha import chaos
from pgha._trials.scenarios import SCENARIOS, find
from pgha.chaos import ALL_FAULTS, FaultKind, Schedule
from pgha.cli._chaos.text import ChaosOptions

_SPARED = 1
"""Nodes without a fault at any moment.

Without a healthy node no operation can be answered, so pgha promises nothing.
"""


class Unusable(Exception):
    """The arguments cannot be used. `code` is the exit code."""

    def __init__(self, why: str, code: int = 2) -> None:
        super().__init__(why)
        self.code = code


def listed() -> str:
    """Return a line per scenario: number, name, the kinds of nodes it can be played on, and description."""
    width = max(map(len, SCENARIOS))
    lines = [
        f"{one.number or '-':>3}  {name:<{width}}  {'/'.join(one.kinds):<15}  {one.text}"
        for name, one in SCENARIOS.items()
    ]
    return "\n".join(lines)


def checked(options: ChaosOptions, faults: str | None, schedule: str | None, given: set[str]) -> ChaosOptions:
    """Return the options with `faults` and `schedule` parsed.

    Args:
        options: The options that need no parsing.
        faults: The kinds of faults, separated by commas.
        schedule: The name of a file with a schedule, or - for standard input.
        given: The options on the command line, without their dashes.

    Raises:
        Unusable: An argument cannot be used.
    """
    for name in sorted(given & _meaningless(options.scenario, schedule)):
        other = "a scenario" if options.scenario else "--schedule"
        raise Unusable(f"--{name}: cannot be used with {other}")
    if options.scenario is not None:
        _check_scenario(options.scenario, options)
    if faults is not None:
        options = replace(options, faults=kinds_of(faults))
    if schedule is not None:
        options = _scheduled(options, schedule_of(schedule), "count" in given)
    if options.report is not None:
        check_report(options.report)
    return options


def _meaningless(scenario: str | None, schedule: str | None) -> set[str]:
    if scenario is not None:
        return {"faults", "minutes", "count", "schedule", "shrink"}
    return set() if schedule is None else {"faults", "minutes"}


def _check_scenario(name: str, options: ChaosOptions) -> None:
    try:
        found = find(name)
    except chaos.ChaosError as error:
        raise Unusable(str(error)) from None
    if options.kind not in found.kinds:
        raise Unusable(f"{name} cannot be played on {options.kind} nodes, only on {', '.join(found.kinds)}")


def kinds_of(words: str) -> tuple[FaultKind, ...]:
    """Return the kinds of faults in `words`, separated by commas; raise `Unusable` for an unknown kind."""
    names = [name.strip() for name in words.split(",") if name.strip()]
    unknown = [name for name in names if name not in ALL_FAULTS]
    if unknown or not names:
        what = f"no fault is named {', '.join(unknown)}" if unknown else "no fault is given"
        raise Unusable(f"--faults: {what}; the faults are {', '.join(ALL_FAULTS)}")
    return tuple(cast(FaultKind, name) for name in dict.fromkeys(names))


def _scheduled(options: ChaosOptions, schedule: Schedule, counted: bool) -> ChaosOptions:
    count = options.count if counted else max(options.count, schedule.nodes)
    if troubles := schedule.conflicts(nodes=count, spare=_SPARED):
        more = f", and {len(troubles) - 1} more" if len(troubles) > 1 else ""
        raise Unusable(f"--schedule: {troubles[0]}{more}")
    return replace(options, schedule=schedule, count=count)


def schedule_of(source: str) -> Schedule:
    """Read a schedule from a file, or from standard input if `source` is -.

    The text is the JSON of a schedule or of a report. A report's shrunk schedule is preferred to its full
    one.

    Raises:
        Unusable: There is no usable schedule.
    """
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text()
        found = json.loads(text)
        if isinstance(found, dict):
            found = found.get("shrunk") or found.get("schedule") or found
        schedule = Schedule.from_json(json.dumps(found))
    except OSError as error:
        raise Unusable(f"--schedule {source}: {error.strerror or error}") from error
    except (ValueError, chaos.ChaosError) as error:
        raise Unusable(f"--schedule {source}: {error}") from error
    if not all(isinstance(step.node, int) for step in schedule.steps):
        raise Unusable(f"--schedule {source}: nodes must be whole numbers, counted from 0")
    if not schedule.steps:
        raise Unusable(f"--schedule {source}: the schedule has no faults")
    return schedule


def check_report(report: Path) -> None:
    """Raise `Unusable` if the report could not be written after the run.

    This imports matplotlib, which takes a second, so that a problem with it is reported before the run.
    """
    try:
        suffixes = import_module("pgha.cli._chaos.figure").SUFFIXES
    except ImportError as error:
        raise Unusable(f"--report needs matplotlib: pip install 'pgha[demo]' ({error})", 1) from None
    if report.suffix.lower() not in suffixes:
        raise Unusable(f"--report {report}: the file name must end in {' or '.join(suffixes)}")
    for path in (report, beside(report)):
        try:
            _try_to_write(path)
        except OSError as error:
            raise Unusable(f"--report {path}: {error.strerror or error}") from error


def _try_to_write(path: Path) -> None:
    """Open the file for writing without changing it, and remove it if it did not exist."""
    there = path.exists()
    with path.open("ab"):
        pass
    if not there:
        path.unlink()


def beside(report: Path) -> Path:
    """Return the path of the JSON file with the numbers of a report."""
    return report.with_suffix(".json")
