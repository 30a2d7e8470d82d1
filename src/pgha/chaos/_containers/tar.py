"""A file system for a container: PostgreSQL's server, `sh`, and the libraries that they need.

All files keep the paths that they have here. So the server finds its own files, and the loader the libraries,
as they do here, however they were built and moved.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pgha.chaos._errors import ChaosError
from pgha.chaos._servers.account import ask, run_tool, server_account
from pgha.chaos._servers.binaries import Installation

_LIBRARY = re.compile(r"^\s+(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)
_MISSING = re.compile(r"^\s+(\S+) => not found$", re.MULTILINE)
_SHELL = Path("/bin/sh")
_ZONES = Path("/usr/share/zoneinfo")
_LOADER_CACHE = Path("/etc/ld.so.cache")
_TMP = Path("/tmp")
_UNWANTED = ("llvmjit",)
"""LLVM takes a hundred megabytes; without it, the server only compiles no expressions."""
_OTHER_FOLDERS = {"bitcode", "pgxs"}


def pack(installation: Installation) -> bytes:
    """Return the content of a tar file; `ChaosError` if the server lacks a library. Blocks."""
    bindir = installation.bindir.resolve()
    server = bindir / "postgres"
    plugins, shared = _folders(bindir)
    modules = [path for path in _below(plugins) if not path.name.startswith(_UNWANTED)]
    libraries = [path for path in modules if ".so" in path.suffixes]
    found, missing = _needed([server, _SHELL])
    if missing:
        raise ChaosError(f"{server} needs {', '.join(missing)}, not found by 'ldd': install it")
    # The module of an extension may lack a library of its own: then the module does not work here either.
    found |= _needed(libraries)[0]
    files = {server, _SHELL, *libraries, *_below(shared), *found}
    if not (shared / "timezone").is_dir():
        files |= set(_below(_ZONES))
    if _LOADER_CACHE.exists():
        files.add(_LOADER_CACHE)
    return _tar(sorted(files))


def _folders(bindir: Path) -> tuple[Path, Path]:
    """Return the folders of the server's modules and of its shared files."""
    program = bindir / "pg_config"
    if not program.exists():
        raise ChaosError(f"{program} is missing, but is needed to find the server's files: install it")
    answer = run_tool([program, "--pkglibdir", "--sharedir"], cwd=Path("/")).splitlines()
    return Path(answer[0]), Path(answer[1])


def _below(folder: Path) -> Iterator[Path]:
    for top, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _OTHER_FOLDERS]
        yield from (Path(top) / name for name in names)


def _needed(programs: Sequence[Path]) -> tuple[set[Path], list[str]]:
    """Return the libraries that `programs` need, directly and indirectly, and the names of missing ones."""
    if not programs:
        return set(), []
    try:
        asked = ask("ldd", *programs)
    except FileNotFoundError as error:
        raise ChaosError("making an image needs the program ldd (of glibc): install it") from error
    paths = {Path(os.path.normpath(name)) for name in _LIBRARY.findall(asked.stdout)}
    return paths, sorted(set(_MISSING.findall(asked.stdout)))


def _tar(files: Sequence[Path]) -> bytes:
    account = server_account()
    users = f"root:x:0:0::/:/bin/sh\npostgres:x:{account.uid}:{account.gid}::/:/bin/sh\n"
    there = [path for path in files if path.is_file()]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        # A path must occur only once, and the server's own files may be below /tmp.
        for folder in sorted({parent for path in there for parent in path.parents} - {Path("/"), _TMP}):
            _add_folder(archive, folder, 0o755)  # otherwise the engine chooses its mode
        _add_folder(archive, _TMP, 0o1777)
        for path in there:
            _add(archive, path, path.read_bytes(), 0o755 if os.access(path, os.X_OK) else 0o644)
        _add(archive, Path("/etc/passwd"), users.encode(), 0o644)
    return buffer.getvalue()


def _add_folder(archive: tarfile.TarFile, path: Path, mode: int) -> None:
    member = tarfile.TarInfo(str(path)[1:])
    member.type, member.mode = tarfile.DIRTYPE, mode
    archive.addfile(member)


def _add(archive: tarfile.TarFile, path: Path, content: bytes, mode: int) -> None:
    """Add a file that root owns. A link here becomes a file there."""
    member = tarfile.TarInfo(str(path)[1:])
    member.size, member.mode = len(content), mode
    archive.addfile(member, io.BytesIO(content))
