"""`pgha chaos`: run pgha under the faults of a scenario, a seed or a schedule, and check every promise."""

from __future__ import annotations

import json
import logging
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import anyio
import anyio.to_thread

import pgha
from pgha import chaos
from pgha._trials.chance import random_trial, replay
from pgha._trials.scenarios import find
from pgha._trials.shrink import shrink
from pgha._trials.trial import Trial, Watch, violation
from pgha.chaos import Done, Schedule
from pgha.chaos.history import Recorder
from pgha.cli._chaos.arguments import beside
from pgha.cli._chaos.report import counted, numbers
from pgha.cli._chaos.text import ChaosOptions, Ticker, played_again, summary
from pgha.cli._output import write
from pgha.cli._run import ending

_VERSIONS = ("pgha", "anyio", "trio", "psycopg")


def run(options: ChaosOptions) -> int:
    """Play the requested run, check it, write the report, and return the exit code.

    0: every promise was kept. 1: a promise was broken, servers did not start, or the report could not be
    written. No processes or files are left behind, whatever ends the run.
    """
    return ending(options.loop, lambda: _chaos(options), "chaos", chaos.ChaosError)


async def _chaos(options: ChaosOptions) -> int:
    with _defects() as defects:
        trial = await _played(options)
    if defects:
        told = [violation("logged", message) for message in defects]
        trial = replace(trial, violations=(*trial.violations, *told))
    trial = replace(trial, title=options.title, seed=options.seed)
    _say(options, f"\n{summary(trial)}\n")
    more: dict[str, Any] = {"versions": _versions(), "again": played_again(options, options.schedule)}
    await _reported(options, trial, more)
    if not trial.kept:
        more |= await _again(options, trial)
        await _reported(options, trial, more, page=False)
    if options.json:
        write(_json(trial, more), sys.stdout)
    return 0 if trial.kept else 1


def _say(options: ChaosOptions, text: str) -> None:
    """Print `text`. With --json, standard output is only for the JSON."""
    write(text, sys.stderr if options.json else sys.stdout)


async def _played(options: ChaosOptions) -> Trial:
    """Play the trial, and print a line per second meanwhile."""
    _say(options, options.beginning())
    looked_on = _LookedOn()
    async with anyio.create_task_group() as tasks:
        # Started before the trial, because the trial reports every task that begins during it and outlives it
        # as left behind.
        tasks.start_soon(looked_on.tell, options)
        trial = await _trial(options, looked_on.watch)
        tasks.cancel_scope.cancel()
    return trial


class _LookedOn:
    """Watches a trial, which may not have begun."""

    def __init__(self) -> None:
        self._begun = anyio.Event()
        self._cluster: pgha.Cluster | None = None
        self._faults: Sequence[Done] = ()

    def watch(self, cluster: pgha.Cluster, recorder: Recorder, faults: Sequence[Done]) -> None:
        """Note that the load begins now."""
        self._cluster, self._faults = cluster, faults
        self._begun.set()

    async def tell(self, options: ChaosOptions) -> None:
        """Print a line per second while the load runs."""
        await self._begun.wait()
        cluster, began, second = self._cluster, time.monotonic(), 0
        assert cluster is not None
        ticker = Ticker(began)
        while True:
            second += 1
            await anyio.sleep(max(0.0, began + second - time.monotonic()))
            line = ticker.line(time.monotonic(), cluster.statistics(), cluster.nodes, self._faults)
            if line is None:
                break
            _say(options, line)
        _say(options, "The load has ended. Replication catches up, then every node is checked ...")


async def _trial(options: ChaosOptions, watch: Watch) -> Trial:
    if options.scenario is not None:
        return await find(options.scenario).run(options.kind, options.seed, watch)
    if options.schedule is not None:
        return await replay(
            options.schedule, kind=options.kind, nodes=options.count, seed=options.seed, watch=watch
        )
    return await random_trial(
        seed=options.seed,
        seconds=options.minutes * 60,
        kind=options.kind,
        nodes=options.count,
        kinds=options.faults,
        watch=watch,
    )


@contextmanager
def _defects() -> Iterator[list[str]]:
    """Collect the errors that pgha logs: each is a defect, even if no caller saw an error."""
    found: list[str] = []

    class Collecting(logging.StreamHandler[TextIO]):
        def emit(self, record: logging.LogRecord) -> None:
            super().emit(record)
            found.append(record.getMessage())

    logger, handler = logging.getLogger("pgha"), Collecting(sys.stderr)
    handler.setLevel(logging.ERROR)
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


# The report


async def _reported(options: ChaosOptions, trial: Trial, more: dict[str, Any], *, page: bool = True) -> None:
    """Write the report, in a thread so that signals are handled meanwhile."""
    report = options.report
    if report is None:
        return
    try:
        await anyio.to_thread.run_sync(_write_report, trial, report, more, page, abandon_on_cancel=True)
    except OSError as error:
        raise chaos.ChaosError(f"--report {report}: {error.strerror or error}") from error
    if page:
        _say(options, f"Report: {report} (numbers: {beside(report)})")


def _write_report(trial: Trial, report: Path, more: dict[str, Any], page: bool) -> None:
    from pgha.cli._chaos.figure import save

    if page:
        save(trial, report)
    beside(report).write_text(_json(trial, more) + "\n")


def _json(trial: Trial, more: dict[str, Any]) -> str:
    return json.dumps(numbers(trial, more), indent=2, allow_nan=False)


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in _VERSIONS}}


# After a broken promise


async def _again(options: ChaosOptions, trial: Trial) -> dict[str, Any]:
    """Print how to replay the run, with the shortest schedule that was found. Return it for the report."""
    count = len(trial.violations)
    broken = "1 promise was broken" if count == 1 else f"{count:,} promises were broken"
    _say(
        options,
        f"{broken}. To replay the run (seed {options.seed}):\n{played_again(options, options.schedule)}\n",
    )
    if trial.schedule is None or not trial.schedule.steps:
        return {}
    shrunk = await _shrunk(options, trial, trial.schedule) if options.shrink else trial.schedule
    again = played_again(options, shrunk)
    before, after = len(trial.schedule.steps), len(shrunk.steps)
    what = (
        f"shrunk from {counted(before, 'fault')} to {after}"
        if shrunk != trial.schedule
        else f"all of {counted(before, 'fault')}"
    )
    _say(options, f"To replay the faults ({what}), in a shell:\n{again}\n")
    return {"shrunk": asdict(shrunk), "again": again}


async def _shrunk(options: ChaosOptions, trial: Trial, schedule: Schedule) -> Schedule:
    rules = {one.rule for one in trial.violations}
    tries = 0

    async def broken(candidate: Schedule) -> bool:
        """Return whether `candidate` breaks a rule that the first run broke; other defects do not count."""
        nonlocal tries
        tries += 1
        try:
            again = await replay(candidate, kind=options.kind, nodes=options.count, seed=options.seed)
        except chaos.ChaosError as error:
            _say(options, f"  attempt {tries}: could not be played: {error}")
            return False
        found = bool(rules & {one.rule for one in again.violations})
        told = "fails too" if found else "passes"
        _say(options, f"  attempt {tries}: {counted(len(candidate.steps), 'fault')}, {told}")
        return found

    _say(options, f"Looking for a shorter schedule that fails too, for at most {options.shrink:g} s ...")
    return await shrink(schedule, broken, seconds=options.shrink)
