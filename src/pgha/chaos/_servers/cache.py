"""A folder which keeps what is slow to make (a fresh data folder, a copy of the binaries) between runs."""

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
    """`PGHA_CACHE`, or as root /var/cache/pgha (the server's account must read it), or ~/.cache/pgha; made if
    missing.
    """
    if chosen := os.environ.get("PGHA_CACHE"):
        root = Path(chosen).absolute()
    elif os.geteuid() == 0:
        root = Path("/var/cache/pgha")
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pgha"
    try:
        root.mkdir(parents=True)
        root.chmod(0o755)  # whatever the umask says
    except FileExistsError:
        return root
    except OSError as error:
        raise ChaosError(
            f"cannot make the cache folder {root}: {error.strerror}; set PGHA_CACHE to another one"
        ) from error
    return root


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """The cached folder `name`, built by `build(empty folder)` when it is not there yet. Blocks.

    Safe against other programs doing the same: each builds in a folder of its own, the first to rename it
    wins. A program that dies while building leaves nothing behind.
    """
    final = cache_root() / name
    with _one_builder:  # three nodes of one program shall not build the same thing three times
        if not final.exists():
            _build(final, build)
    return final


def _build(final: Path, build: Callable[[Path], None]) -> None:
    staging = final.with_name(f"pgha-building-{secrets.token_hex(5)}")
    guard.watch(staging)  # before it exists
    try:
        staging.mkdir()
        staging.chmod(0o755)
        build(staging)
        staging.rename(final)
    except OSError as error:
        if not final.exists():  # else another program was faster: theirs is as good
            raise ChaosError(f"cannot build {final}: {error}") from error
    finally:
        warden.remove_folder(staging)
        guard.unwatch(staging)
