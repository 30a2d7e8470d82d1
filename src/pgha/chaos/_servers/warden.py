"""Finding, freezing and killing the processes of a node's folder, and the warden which does so when a program
dies.

Standard library only, because this file has two lives: `LocalNode` imports its routines, and `_guard` runs it
as a program of its own (`python -I -S warden.py`) which outlives the program that uses the nodes. That
program holds the writing end of the warden's standard input. The kernel closes it whatever way the program
ends, and at that end of file the warden kills the servers and removes the folders which were not handed back.

A process belongs to a folder by what its command line says: the postmaster and what it has just forked carry
`-D <folder>/data`, every other child has the title `postgres: <name of the folder>: ...` (its
`cluster_name`). That is the one mark which anybody may read (`/proc/<pid>/cwd` needs CAP_SYS_PTRACE for
another user's process, which root in a container often lacks), and, unlike the tree of parents, it also finds
the children of a dead postmaster. Folder names are never used twice, so a process id which was reused is not
taken for ours.

The processes of a container are found that way too, but only its engine removes it, and those of a paused one
do not die before that. So the folder has a note of the container from before it is made.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

_PROC = Path("/proc")
_PROGRAMS = (b"postgres", b"initdb", b"cp", b"pg_basebackup", b"pg_rewind")
_STEP = 0.001
_IPC_RMID = 0
_PRIVATE = 0
_KEY_BITS = 0xFFFFFFFF
_ALREADY_GONE = (errno.EINVAL, errno.EIDRM)
ADD, DROP = b"+", b"-"
NOTE = "container"
_MAKING = 5.0


class Stubborn(Exception):
    """Processes or folders did not go in time."""


def processes(folder: Path, sessions: Collection[int] = ()) -> list[int]:
    """The ids of all living processes of `folder`, ascending (zombies have none of its marks), and of those
    that belong to one of `sessions`.
    """
    title = b"postgres: " + os.fsencode(folder.name) + b": "
    inside = os.fsencode(folder) + b"/"
    found = []
    for entry in _PROC.iterdir():
        if entry.name.isdecimal() and (_belongs(entry, title, inside) or _session(entry, sessions)):
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


def _session(process: Path, sessions: Collection[int]) -> bool:
    """Whether it lives in one of `sessions`: what initdb starts has no mark, but stays in its session."""
    if not sessions:
        return False
    status = _status(int(process.name))
    return status is not None and status[0] != "Z" and int(status[3]) in sessions


def _status(pid: int) -> list[str] | None:
    """What /proc/<pid>/stat says after the name: state, parent, group, session, ...; None when it is gone."""
    try:
        return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def started(pid: int) -> int | None:
    """When a living process began, in ticks since the kernel did: with it, a process id means one process for
    ever. None when it is gone.
    """
    status = _status(pid)
    return int(status[19]) if status is not None and status[0] not in ("Z", "X") else None


def state(pid: int) -> str | None:
    """The kernel's letter for a process (R, S, D, T stopped, Z zombie), None when it is gone."""
    status = _status(pid)
    return status[0] if status is not None else None


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
    sessions: set[int] = set()

    def look() -> list[int]:
        reap()
        found = processes(folder, sessions)
        sessions.update(found)  # every program of ours leads a session
        return [pid for pid in found if state(pid) not in ("Z", None)]

    _repeat(look, signal.SIGKILL, timeout)


def freeze_all(folder: Path, timeout: float = 10.0) -> None:
    """SIGSTOP every process of `folder` and wait until each one stands (at most `timeout` seconds)."""

    def look() -> list[int]:
        return [pid for pid in processes(folder) if state(pid) not in ("T", "Z", None)]

    _repeat(look, signal.SIGSTOP, timeout)


def thaw_all(folder: Path) -> None:
    """SIGCONT every process of `folder`."""
    for pid in processes(folder):
        send(pid, signal.SIGCONT)


def _repeat(look: Callable[[], list[int]], sig: signal.Signals, timeout: float) -> None:
    """Send `sig` to what `look` finds until it finds nothing.

    One quiet look is not enough: the postmaster may fork after the list of processes was read and be caught
    right after. The second look begins when the postmaster certainly stood (or was gone) already.
    """
    deadline = time.monotonic() + timeout
    quiet = 0
    while quiet < 2:
        left = look()
        quiet = 0 if left else quiet + 1
        for pid in left:
            send(pid, sig)
        if left and time.monotonic() > deadline:
            raise Stubborn(f"processes {left} did not obey {sig.name} for {timeout} s")
        if left:
            time.sleep(_STEP)


def remove_shared_memory(data: Path) -> None:
    """Remove the SysV segments that killed servers of the data folder `data` left.

    A server takes the inode of its data folder for the segment's key, or the next free number, which is then
    in line 7 of postmaster.pid (written a moment later, and never by the servers which initdb starts). A
    segment goes only if its creator is dead or nobody is attached: should it be another's after all, it is
    as stale as ours.
    """
    try:
        about = data.stat()
    except FileNotFoundError:
        return
    keys = {about.st_ino & _KEY_BITS, _recorded_key(data) & _KEY_BITS} - {_PRIVATE}
    for line in (_PROC / "sysvipc/shm").read_text().splitlines()[1:]:
        words = [int(word) for word in line.split()]
        key, segment, creator, attached, owner = words[0], words[1], words[4], words[6], words[9]
        stale = attached == 0 or state(creator) in ("Z", None)
        if key & _KEY_BITS in keys and owner == about.st_uid and stale:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.shmctl(segment, _IPC_RMID, None) != 0 and ctypes.get_errno() not in _ALREADY_GONE:
                raise OSError(ctypes.get_errno(), f"cannot remove the shared memory segment {segment}")


def _recorded_key(data: Path) -> int:
    try:
        return int((data / "postmaster.pid").read_text().splitlines()[6].split()[0])
    except (FileNotFoundError, IndexError, ValueError):
        return _PRIVATE  # it never came as far as having a segment, or has removed both itself


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


def note_container(folder: Path, engine: Path, name: str, *, made: bool) -> None:
    """Write down that `folder` has a container called `name` at the engine behind the socket `engine`: before
    it is made, and again when it is.
    """
    draft = folder / f"{NOTE}.new"
    draft.write_text(f"{engine}\n{name}\n{'made' if made else ''}\n")
    draft.rename(folder / NOTE)  # whoever dies here leaves the whole note or none


def remove_container(folder: Path, timeout: float = 20.0) -> None:
    """Have the container of `folder` removed, in whatever state it is, if there is one.

    Its maker may have died with the request to make it on the way, so one that was not known to be made gets
    some time to appear. `Stubborn` after `timeout` seconds, `OSError` when the engine does not answer.
    """
    if not (note := folder / NOTE).exists():
        return
    engine, name, made = note.read_text().splitlines()
    began = time.monotonic()
    while True:
        status, words = _delete(engine, f"/containers/{name}?force=1&v=1", timeout)
        waited = time.monotonic() - began
        if status < 300 or (status == 404 and (made or waited > _MAKING)):
            break
        if waited > timeout:
            raise Stubborn(f"the container {name} was not removed within {timeout} s: {words}")
        time.sleep(20 * _STEP)
    note.unlink()


def _delete(engine: str, path: str, timeout: float) -> tuple[int, str]:
    """The status of an HTTP request over the socket `engine`, and what was said to it."""
    from http.client import HTTPConnection, HTTPException  # takes 50 ms, and few need it

    connection = HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.settimeout(timeout)
        connection.sock.connect(engine)
        connection.request("DELETE", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace").strip()
    except (OSError, HTTPException) as error:
        raise OSError(f"the container engine at {engine} does not answer: {error!r}") from error
    finally:
        connection.close()


def clear(folder: Path) -> None:
    """Remove the container of `folder` if it has one, kill its processes, remove their shared memory, then
    the folder itself.
    """
    try:
        remove_container(folder)
    finally:
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
    failures = []

    def end(name: bytes) -> None:
        try:
            clear(Path(os.fsdecode(name)))
        except (OSError, Stubborn) as error:
            sys.stderr.write(f"pgha.chaos: {error}\n")
            failures.append(name)

    threads = [threading.Thread(target=end, args=(name,)) for name in folders]  # engines may take seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(failures)


if __name__ == "__main__":
    sys.exit(main())
