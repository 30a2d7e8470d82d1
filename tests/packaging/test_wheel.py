"""Test the built wheel in an empty environment, with and without its extras."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )


def ran(*command: str | Path, cwd: Path) -> str:
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def uv() -> str:
    found = shutil.which("uv")
    assert found is not None, "the README installs uv first: pip install uv"
    return found


@pytest.fixture(scope="module")
def wheel(uv: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    ran(uv, "build", "-q", "--wheel", "--out-dir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_without_extras(uv: str, wheel: Path, tmp_path: Path) -> None:
    """Without extras, the library is complete, and the command prints in one line which extra is missing."""
    ran(uv, "venv", "-q", "env", cwd=tmp_path)
    python = tmp_path / "env/bin/python"
    ran(uv, "pip", "install", "-q", "--python", python, wheel, cwd=tmp_path)
    told = "import pgha, pgha.blocking, pgha.chaos, sys; print('typer' in sys.modules, 'rich' in sys.modules)"
    assert ran(python, "-W", "error", "-c", told, cwd=tmp_path) == "False False\n"
    # The folder with the types against which a user's program is checked.
    assert ran(python, "-c", "import pgha; print(pgha.__path__[0])", cwd=tmp_path).strip().endswith("pgha")
    assert (
        Path(ran(python, "-c", "import pgha; print(pgha.__path__[0])", cwd=tmp_path).strip()) / "py.typed"
    ).exists()
    for command in ("demo", "soak"):
        done = run(tmp_path / "env/bin/pgha", command, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert len(done.stderr.splitlines()) == 1
        assert "pip install 'pgha[demo]'" in done.stderr


def test_with_the_extra(uv: str, wheel: Path, tmp_path: Path) -> None:
    """Run the same as ``uvx --from 'pgha[demo]' pgha demo``, with the wheel instead of an index."""
    start = (uv, "tool", "run", "-q", "--from", f"pgha[demo] @ {wheel.as_uri()}", "pgha")
    assert ran(*start, "--version", cwd=tmp_path).startswith("pgha ")
    found = json.loads(ran(*start, "demo", "--seconds", "2", "--nodes", "2", "--json", cwd=tmp_path))
    assert found["operations"] > 0
    assert (found["errors"], found["lost"], found["doubled"]) == (0, 0, 0)
