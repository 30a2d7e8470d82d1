"""A folder that keeps slow results between runs: a fresh data folder, a copy of the binaries."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

from pgha.chaos._errors import ChaosError
from pgha.chaos._servers import guard, warden

_one_builder = threading.Lock()


def cache_root() -> Path:
    """Return the cache folder, made if it is missing.

    The folder is `PGHA_CACHE`, or for root /var/cache/pgha (the servers' account must be able to read the
    files), or ~/.cache/pgha.
    """
    if chosen := os.environ.get("PGHA_CACHE"):
        root = Path(chosen).absolute()
    elif os.geteuid() == 0:
        root = Path("/var/cache/pgha")
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pgha"
    try:
        root.mkdir(parents=True)
        root.chmod(0o755)  # independent of the umask
    except FileExistsError:
        return root
    except OSError as error:
        raise ChaosError(
            f"cannot make the cache folder {root}: {error.strerror}; set PGHA_CACHE to another folder"
        ) from error
    return root


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """Return the cached folder `name`; if it does not exist, build it by `build(empty folder)`. Blocks.

    Other programs may do the same at the same time: each builds in a folder of its own, and the first one
    that renames its folder wins. A program that dies while building leaves nothing behind.
    """
    final = cache_root() / name
    with _one_builder:  # three nodes of one program must not build the same folder three times
        if not final.exists():
            _build(final, build)
    return final


def _build(final: Path, build: Callable[[Path], None]) -> None:
    staging = final.with_name(f"pgha-building-{secrets.token_hex(5)}")
    guard.watch(staging)  # before the folder exists, so that a program killed in between leaves nothing
    try:
        staging.mkdir()
        staging.chmod(0o755)
        build(staging)
        staging.rename(final)
    except OSError as error:
        if not final.exists():  # if it exists, another program was faster, and its folder is as good
            raise ChaosError(f"cannot build {final}: {error}") from error
    finally:
        warden.remove_folder(staging)
        guard.unwatch(staging)
