"""Finding, freezing and killing the processes of a node's folder, and the warden which does so when a program
dies.

Standard library only, because this file has two lives: `LocalNode` imports its routines, and `_guard` runs it
as a program of its own (`python -I -S _warden.py`) which outlives the program that uses the nodes. That
program holds the writing end of the warden's standard input. The kernel closes it whatever way the program
ends, and at that end of file the warden kills the servers and removes the folders which were not handed back.

A process belongs to a folder by what its command line says: the postmaster and what it has just forked carry
`-D <folder>/data`, every other child has the title `postgres: <name of the folder>: ...` (its
`cluster_name`). That is the one mark which anybody may read (`/proc/<pid>/cwd` needs CAP_SYS_PTRACE for
another user's process, which root in a container often lacks), and, unlike the tree of parents, it also finds
the children of a dead postmaster. Folder names are never used twice, so a process id which was reused is not
taken for ours.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

_PROC = Path("/proc")
_PROGRAMS = (b"postgres", b"initdb", b"cp")
_STEP = 0.001
_IPC_RMID = 0
ADD, DROP = b"+", b"-"


class Stubborn(Exception):
    """Processes or folders did not go in time."""


def processes(folder: Path) -> list[int]:
    """The ids of all living processes of the node in `folder`, ascending; zombies have none of its marks."""
    title = b"postgres: " + os.fsencode(folder.name) + b": "
    inside = os.fsencode(folder) + b"/"
    found = []
    for entry in _PROC.iterdir():
        if entry.name.isdecimal() and _belongs(entry, title, inside):
            found.append(int(entry.name))
    return sorted(found)


def _belongs(process: Path, title: bytes, inside: bytes) -> bool:
    try:
        if os.geteuid() not in (0, process.stat().st_uid):
            return False  # not ours to signal, whatever it calls itself
        line = (process / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    if line.startswith(title):
        return True
    program, *arguments = line.split(b"\0")
    return program.rpartition(b"/")[2] in _PROGRAMS and any(word.startswith(inside) for word in arguments)


def state(pid: int) -> str | None:
    """The kernel's letter for a process (R, S, D, T stopped, Z zombie), None when it is gone."""
    try:
        status = (_PROC / str(pid) / "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return status.rpartition(b")")[2].split(maxsplit=1)[0].decode()


def send(pid: int, sig: signal.Signals) -> None:
    """Signal a process which may be gone by now."""
    try:
        os.kill(pid, sig)
    except ProcessLookupError:
        pass


def kill_all(folder: Path, timeout: float = 10.0, reap: Callable[[], object] = lambda: None) -> None:
    """SIGKILL every process of `folder`, frozen ones too, and wait until none is left (at most `timeout`
    seconds).

    `reap` is called between looks, for a caller who is the parent of one of them. Raises `Stubborn` when time
    is up.
    """
    _repeat(folder, timeout, "SIGKILL", lambda: _pass_over(folder, signal.SIGKILL, reap))


def freeze_all(folder: Path, timeout: float = 10.0) -> None:
    """SIGSTOP every process of `folder` and wait until each one stands (at most `timeout` seconds)."""
    _repeat(folder, timeout, "SIGSTOP", lambda: _pass_over(folder, signal.SIGSTOP))


def thaw_all(folder: Path) -> None:
    """SIGCONT every process of `folder`."""
    for pid in processes(folder):
        send(pid, signal.SIGCONT)


def _pass_over(folder: Path, sig: signal.Signals, reap: Callable[[], object] = lambda: None) -> bool:
    """Send `sig` where it is still needed; True when it was needed nowhere."""
    reap()
    settled = ("Z", None, "T") if sig is signal.SIGSTOP else ("Z", None)
    left = [pid for pid in processes(folder) if state(pid) not in settled]
    for pid in left:
        send(pid, sig)
    return not left


def _repeat(folder: Path, timeout: float, what: str, step: Callable[[], bool]) -> None:
    # One quiet look is not enough: the postmaster may fork after the list of processes was read and be caught
    # right after. The second look begins when the postmaster certainly stood (or was gone) already.
    deadline = time.monotonic() + timeout
    quiet = 0
    while quiet < 2:
        quiet = quiet + 1 if step() else 0
        if quiet:
            continue
        if time.monotonic() > deadline:
            raise Stubborn(f"{what} did not reach all of {processes(folder)} of {folder} in {timeout} s")
        time.sleep(_STEP)


def remove_shared_memory(data: Path) -> None:
    """Remove the SysV segment which a killed server left, named in line 7 of its postmaster.pid.

    Ids are used again by the kernel, so the segment goes only if id, key and creator all are the server's.
    """
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        key, segment = (int(word) for word in lines[6].split())
    except (FileNotFoundError, IndexError, ValueError):
        return  # it never came as far as having a segment, or removed both itself
    wanted = (key & 0xFFFFFFFF, segment, int(lines[0]))
    for line in (_PROC / "sysvipc/shm").read_text().splitlines()[1:]:
        words = line.split()
        if (int(words[0]) & 0xFFFFFFFF, int(words[1]), int(words[4])) == wanted:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.shmctl(segment, _IPC_RMID, None) != 0:
                raise OSError(ctypes.get_errno(), f"cannot remove the shared memory segment {segment}")


def remove_folder(folder: Path, timeout: float = 10.0) -> None:
    """Remove `folder` and all below it; tries again for `timeout` seconds while a dying process still writes
    there.
    """
    deadline = time.monotonic() + timeout
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_STEP)


def clear(folder: Path) -> None:
    """Kill the processes of `folder`, remove their shared memory, then the folder itself."""
    kill_all(folder)
    remove_shared_memory(folder / "data")
    remove_folder(folder)


def main() -> int:
    """Read `+folder` and `-folder` (NUL-terminated) until end of file, then clear what is left."""
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(sig, signal.SIG_IGN)  # whoever ends the program must not end its warden first
    folders: dict[bytes, None] = {}
    for record in sys.stdin.buffer.read().split(b"\0")[:-1]:
        if record[:1] == ADD:
            folders[record[1:]] = None
        else:
            folders.pop(record[1:], None)
    failures = 0
    for name in folders:
        try:
            clear(Path(os.fsdecode(name)))
        except (OSError, Stubborn) as error:
            sys.stderr.write(f"pgha.chaos: {error}\n")
            failures = 1
    return failures


if __name__ == "__main__":
    sys.exit(main())
