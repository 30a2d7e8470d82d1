"""pgbench, PostgreSQL's own load generator in C: one connection in pipeline mode."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

from bench.loads import KEYS
from bench.peers._client import SELECT, parts
from pgha import chaos

DEPTH = 16
"""The number of selects in a pipeline: the maximum on a connection of pgha."""
PREPARED, EXTENDED = "pgbench -M prepared", "pgbench -M extended"


def pipelined(dsn: str, seconds: float, mode: Literal["prepared", "extended"]) -> float:
    """Run pgbench, and return the selects by key per second, each in its own transaction as in pgha.

    pgbench takes whole seconds, so `seconds` is rounded.
    """
    target = parts(dsn)
    program = chaos.find_installation().program("pgbench")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "select.sql"
        draws = [f"\\set key{i} random(1, {KEYS})" for i in range(DEPTH)]
        selects = [f"{SELECT}:key{i};\n\\syncpipeline" for i in range(DEPTH)]
        script.write_text("\n".join([*draws, "\\startpipeline", *selects, "\\endpipeline", ""]))
        where = ["-h", target["host"], "-p", str(target["port"]), "-U", target["user"], target["dbname"]]
        how = ["-n", "-f", str(script), "-c", "1", "-j", "1", "-M", mode, "-T", str(max(1, round(seconds)))]
        done = subprocess.run([program, *how, *where], capture_output=True, text=True, check=False)
    match = re.search(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)
    if done.returncode != 0 or match is None:
        raise RuntimeError(f"pgbench failed: {done.stderr.strip() or done.stdout.strip()}")
    return float(match[1]) * DEPTH
