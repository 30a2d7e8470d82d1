"""The system account that servers run under, and running PostgreSQL's tools under that account."""

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
    """Keyword arguments for `subprocess.Popen` that switch the account."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True, slots=True)
class Account:
    """A system account; `switch` says whether this program, as root, must switch to it."""

    name: str
    uid: int
    gid: int
    switch: bool

    @property
    def credentials(self) -> Credentials:
        """The arguments for `subprocess.Popen` that start a process under this account."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.switch else {}

    def give(self, path: Path) -> None:
        """Make the account the owner of `path`."""
        if self.switch:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)


@cache
def server_account() -> Account:
    """Return the account for servers: the caller's own.

    For root, which PostgreSQL refuses, the account is `postgres`, or `nobody` if there is no such user.
    """
    if os.geteuid() != 0:
        return Account(str(os.geteuid()), os.geteuid(), os.getegid(), switch=False)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid, switch=True)
    raise ChaosError(
        "PostgreSQL refuses to run as root, and there is no user 'postgres' or 'nobody': add one"
    )


def environment() -> dict[str, str]:
    """Return this program's environment without the variables that influence PostgreSQL's tools.

    These are PG*, the locale, the time zone, and the home folder, in which libpq looks for passwords and
    certificates (libpq fails if it may not look there).
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_", "LANG"))}
    return kept | {"LC_ALL": "C", "TZ": "UTC", "HOME": "/"}


def ask(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program that only prints information, under this process's account.

    A failure is visible in the result.

    The program runs in a session of its own: a Ctrl-C at the terminal must reach only this program. Otherwise
    the end of the interrupted child would be taken for its answer.
    """
    return subprocess.run(
        words, capture_output=True, text=True, env=environment(), check=False, start_new_session=True
    )


def run_tool(arguments: Sequence[str | Path], cwd: Path, *, stdin: str = "", timeout: float = 60.0) -> str:
    """Run a program under the servers' account in the folder `cwd`, and return its output.

    `ChaosError`, with the last lines of the output, if the program fails or takes longer than `timeout`
    seconds.
    """
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
        hint = "; set TMPDIR to a folder that this user can reach" if error.filename == str(cwd) else ""
        raise ChaosError(f"cannot run {program} as user {account.name}: {error}{hint}") from error
    except subprocess.TimeoutExpired as error:
        raise ChaosError(f"{program} took more than {timeout} s") from error
    if done.returncode != 0:
        words = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise ChaosError(f"{program} failed with status {done.returncode}: {words}")
    return done.stdout
