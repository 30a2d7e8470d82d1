"""Check the kit's page: its programs print the output shown below them, and its tests pass."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pgha.chaos import ALL_FAULTS, checkers
from pgha.cli._app import app

PAGE = (Path(__file__).parents[2] / "docs/chaos.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", PAGE, re.DOTALL)
PROGRAMS = [block for block in BLOCKS if block[0].endswith("\nanyio.run(main)\n")]
TESTS = [block[0] for block in BLOCKS if block not in PROGRAMS]
PATIENCE = 400.0
"""Seconds. The shown tests take 5 s of CPU, which is minutes if the machine is busy."""


def test_every_block_is_tried_here() -> None:
    assert (len(PROGRAMS), len(TESTS)) == (4, 3)
    assert all("def test_" in code or "TestCase" in code for code in TESTS)


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_a_program(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Run a complete program in this process; `tests/packaging/test_readme.py` runs one as a process."""
    monkeypatch.chdir(tmp_path)
    code, output = PROGRAMS[number]
    exec(compile(code, "program", "exec"), {"__name__": "__main__"})
    assert capfd.readouterr() == (output, "")
    if "psycopg" not in code:  # psycopg's connections need asyncio
        other = code.replace("\nanyio.run(main)\n", "\nanyio.run(main, backend='trio')\n")
        exec(compile(other, "program", "exec"), {"__name__": "__main__"})
        assert capfd.readouterr() == (output, "")


def test_the_tests(tmp_path: Path) -> None:
    for number, code in enumerate(TESTS):
        (tmp_path / f"test_shown_{number}.py").write_text(code)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-v", "--strict-markers", "--strict-config"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    for number in range(len(TESTS)):
        assert re.search(rf"^test_shown_{number}\.py::\S+ PASSED", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"=+ [1-9]\d* passed in ", done.stdout), done.stdout


def test_the_tables_are_whole() -> None:
    """Every kind of fault and every rule is in the first column of a table."""
    cells = re.findall(r"^\| (`[^|]*) \|", PAGE, re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert {*ALL_FAULTS, *checkers.RULES} - named == set()


def test_the_command_knows_these_options() -> None:
    (shown,) = re.findall(r"```sh\n(pgha chaos.*?)```", PAGE, re.DOTALL)
    words = {word for line in shown.splitlines() for word in line.partition("#")[0].split()}
    told = ""
    for option in ("--help", "--list"):
        done = CliRunner().invoke(app, ["chaos", option], terminal_width=200)
        assert done.exit_code == 0
        told += done.stdout
    assert {word for word in words if word.startswith("--") and word not in told} == set()
    assert "freeze-the-node" in words and "freeze-the-node" in told
