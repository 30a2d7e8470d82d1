"""Run the examples like a reader: with the commands of their READMEs, each in its own environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.parent.name for path in ROOT.glob("examples/*/pyproject.toml"))
# The parts of a clone of the repository that an example needs.
NEEDED = ("pyproject.toml", "README.md", "LICENSE", "src", "examples")
OWN = ("VIRTUAL_ENV", "PYTHONPATH", "UV_PROJECT_ENVIRONMENT", "UV_PROJECT")
PATIENCE = 400.0


def clone(folder: Path) -> None:
    """Copy the repository; `git clone` would leave out uncommitted changes."""
    for name in NEEDED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", ".*", "uv.lock", "*.egg-info")
            shutil.copytree(source, target, ignore=ignored)
        else:
            shutil.copy(source, target)


def test_all_of_them_are_tried() -> None:
    assert EXAMPLES == ["chaos_asyncpg"]


@pytest.mark.thorough
@pytest.mark.parametrize("name", EXAMPLES)
def test_by_the_commands_of_its_readme(name: str, tmp_path: Path) -> None:
    clone(tmp_path)
    readme = (ROOT / "examples" / name / "README.md").read_text()
    (commands,) = re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)
    assert "uv run pytest" in commands
    # This environment already has the uv that `pip install uv` would install, and must not be changed.
    commands = commands.replace("pip install uv\n", "")
    environment = {key: value for key, value in os.environ.items() if key not in OWN}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    told = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, told
    assert re.search(r"=+ [1-9]\d* passed in ", done.stdout), told
    assert not re.search(r"skipped|xfailed|warning", done.stdout.splitlines()[-1]), told
    assert (tmp_path / "examples" / name / ".venv").is_dir(), "it ran in somebody else's environment"
