"""Check that the command imports a subcommand's dependencies only when the subcommand runs."""

from __future__ import annotations

import json
import subprocess
import sys

SLOW = ("docker", "hypothesis", "matplotlib", "pgha._trials", "pgha.chaos", "pygments", "rich")
PARTS = {
    "pgha.cli._app": set(),
    "pgha.cli._ledger": set(),
    "pgha.cli._soak.command": set(),
    "pgha.cli._demo.command": {"pgha.chaos"},
    "pgha.cli._demo.serve": {"pgha.chaos"},
    "pgha.cli._chaos.arguments": {"pgha.chaos", "pgha._trials"},
    "pgha.cli._chaos.command": {"pgha.chaos", "pgha._trials"},
}
"""The modules and their slow imports; each module may also have the imports of all modules before it."""
PROGRAM = """
import importlib, json, sys
slow, parts = json.loads(sys.argv[1])
found = {}
for part in parts:
    importlib.import_module(part)
    found[part] = [name for name in slow if name in sys.modules]
print(json.dumps(found))
"""


def test_slow_modules_are_imported_when_they_are_needed() -> None:
    asked = json.dumps([SLOW, list(PARTS)])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, asked], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert {part: set(found) for part, found in json.loads(done.stdout).items()} == PARTS
