"""The account which servers run under, and running PostgreSQL's tools under it."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypedDict

from pgha.chaos._errors import ChaosError


class Credentials(TypedDict, total=False):
    """Keyword arguments for `subprocess.Popen` which switch the account."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True, slots=True)
class Account:
    """A system account. `switch` says whether this program runs as somebody else (root)."""

    name: str
    uid: int
    gid: int
    switch: bool

    @property
    def credentials(self) -> Credentials:
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.switch else {}

    def give(self, path: Path) -> None:
        """Make the account the owner of `path`."""
        if self.switch:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)


@cache
def server_account() -> Account:
    """Who servers run as: the caller, or as root (whom PostgreSQL refuses) `postgres`, or else `nobody`."""
    if os.geteuid() != 0:
        return Account(str(os.geteuid()), os.geteuid(), os.getegid(), switch=False)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid, switch=True)
    raise ChaosError("PostgreSQL refuses to run as root and there is no user 'postgres' or 'nobody': add one")


def environment() -> dict[str, str]:
    """This program's environment without what would steer PostgreSQL's tools: PG*, locale, time zone, and the
    home folder, where libpq looks for passwords and certificates (and stops when it may not look).
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_", "LANG"))}
    return kept | {"LC_ALL": "C", "TZ": "UTC", "HOME": "/"}


def ask(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program that only tells something, as this process's account; it may fail, which its result says.

    In a session of its own: a Ctrl-C at the terminal is for this program, which else would take its end for
    an answer.
    """
    return subprocess.run(
        words, capture_output=True, text=True, env=environment(), check=False, start_new_session=True
    )


def run_tool(arguments: Sequence[str | Path], cwd: Path, *, stdin: str = "", timeout: float = 60.0) -> str:
    """Run a program under the server's account in `cwd`; its output. `ChaosError` has its last words."""
    account = server_account()
    program = Path(arguments[0]).name
    try:
        done = subprocess.run(
            [str(word) for word in arguments],
            cwd=cwd,
            env=environment(),
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            start_new_session=True,  # a Ctrl-C at the terminal must not leave half a data folder behind
            umask=0o077,
            **account.credentials,
        )
    except OSError as error:
        hint = "; set TMPDIR to a folder it can reach" if error.filename == str(cwd) else ""
        raise ChaosError(f"cannot run {program} as user {account.name}: {error}{hint}") from error
    except subprocess.TimeoutExpired as error:
        raise ChaosError(f"{program} took more than {timeout} s") from error
    if done.returncode != 0:
        words = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise ChaosError(f"{program} failed with status {done.returncode}: {words}")
    return done.stdout
