"""What the kit's page shows does what it says: its programs print what stands below them, its tests pass."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pgha.chaos import ALL_FAULTS, checkers

PAGE = (Path(__file__).parents[2] / "docs/chaos.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", PAGE, re.DOTALL)
PROGRAMS = [block for block in BLOCKS if block[0].endswith("\nanyio.run(main)\n")]
TESTS = [block[0] for block in BLOCKS if block not in PROGRAMS]
PATIENCE = 120.0


def run(*words: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def test_every_block_is_tried_here() -> None:
    assert (len(PROGRAMS), len(TESTS)) == (4, 3)
    assert all("def test_" in code or "TestCase" in code for code in TESTS)


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_a_program(number: int, tmp_path: Path) -> None:
    code, output = PROGRAMS[number]
    assert run("-c", code, cwd=tmp_path) == output
    if "psycopg" not in code:  # whose connections are asyncio's
        other = code.replace("\nanyio.run(main)\n", "\nanyio.run(main, backend='trio')\n")
        assert run("-c", other, cwd=tmp_path) == output


@pytest.mark.parametrize("number", range(len(TESTS)))
def test_the_tests(number: int, tmp_path: Path) -> None:
    (tmp_path / "test_shown.py").write_text(TESTS[number])
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    told = run("-m", "pytest", "-q", "--strict-markers", "--strict-config", cwd=tmp_path)
    assert re.search(r"^[1-9]\d* passed in ", told, re.MULTILINE), told


def test_the_tables_are_whole() -> None:
    """Every kind of fault and every rule stands in the first column of a table."""
    cells = re.findall(r"^\| (`[^|]*) \|", PAGE, re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert {*ALL_FAULTS, *checkers.RULES} - named == set()


def test_the_command_knows_these_options(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```sh\n(pgha chaos.*?)```", PAGE, re.DOTALL)
    words = {word for line in shown.splitlines() for word in line.partition("#")[0].split()}
    environment = {**os.environ, "COLUMNS": "200"}
    pgha = [sys.executable, "-c", "import pgha.cli; pgha.cli.main()", "chaos"]
    told = ""
    for option in ("--help", "--list"):
        done = subprocess.run(
            [*pgha, option], env=environment, capture_output=True, text=True, timeout=PATIENCE, check=True
        )
        told += done.stdout
    assert {word for word in words if word.startswith("--") and word not in told} == set()
    assert "freeze-the-node" in words and "freeze-the-node" in told
