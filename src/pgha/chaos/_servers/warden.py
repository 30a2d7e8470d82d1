"""Finding, freezing and killing the processes of a node's folder, and the warden.

The warden is a program that does so when the program that uses the nodes dies.

This file uses the standard library only, because it has two lives: `LocalNode` imports its functions, and
`guard` runs it as a program of its own (`python -I -S warden.py`) that outlives the program that uses the
nodes. That program holds the writing end of the warden's standard input. The kernel closes that end however
the program ends. At end of file, the warden kills the servers and removes the folders that were not
unregistered.

A process belongs to a folder by its command line: the postmaster and what it has just forked carry `-D
<folder>/data`, every other child has the title `postgres: <name of the folder>: ...` (its `cluster_name`).
This is the only mark that every account may read: `/proc/<pid>/cwd` needs CAP_SYS_PTRACE for the process of
another user, which root often lacks in a container. And unlike the tree of parents, the mark also finds the
children of a dead postmaster. Folder names are never used twice, so a process id that the kernel has reused
is not taken for one of the node's.

The processes of a container are found in the same way. But only the container's engine can remove the
container, and processes of a paused container do not die before that. So the folder has a note that names the
container, written before the container is made.
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
_LONGEST = 1 << 16
"""Bytes of a command line: ours are shorter."""
_IPC_RMID = 0
_PRIVATE = 0
_KEY_BITS = 0xFFFFFFFF
_ALREADY_GONE = (errno.EINVAL, errno.EIDRM)
ADD, DROP = b"+", b"-"
NOTE = "container"
_MAKING = 5.0


class Stubborn(Exception):
    """Processes or folders were not gone in time."""


def processes(folder: Path, sessions: Collection[int] = ()) -> list[int]:
    """Return the sorted ids of all living processes that belong to `folder` or to one of `sessions`.

    Zombies carry no mark of the folder.
    """
    title = b"postgres: " + os.fsencode(folder.name) + b": "
    inside = os.fsencode(folder) + b"/"
    found = []
    # Every start and end of a server looks several times: without pathlib in half the time.
    with os.scandir(_PROC) as entries:
        for entry in entries:
            if entry.name.isdecimal() and (_belongs(entry, title, inside) or _session(entry, sessions)):
                found.append(int(entry.name))
    return sorted(found)


def _belongs(process: os.DirEntry[str], title: bytes, inside: bytes) -> bool:
    line = _command(process.name)
    if not line.startswith(title):
        if inside not in line:
            return False
        program, *arguments = line.split(b"\0")
        if program.rpartition(b"/")[2] not in _PROGRAMS or not any(w.startswith(inside) for w in arguments):
            return False
    try:  # this account may not signal processes of other accounts, whatever their names
        return os.geteuid() in (0, process.stat().st_uid)
    except (FileNotFoundError, ProcessLookupError):
        return False


def _command(process: str) -> bytes:
    """Return a process's arguments, each followed by a NUL; b"" for zombies and ended processes."""
    try:
        file = os.open(f"{_PROC}/{process}/cmdline", os.O_RDONLY)
    except (FileNotFoundError, ProcessLookupError):
        return b""
    try:
        return os.read(file, _LONGEST)
    except ProcessLookupError:
        return b""
    finally:
        os.close(file)


def _session(process: os.DirEntry[str], sessions: Collection[int]) -> bool:
    """Return whether the process lives in one of `sessions`.

    The children of initdb carry no mark of the folder, but stay in its session.
    """
    if not sessions:
        return False
    pid = int(process.name)
    try:
        return os.getsid(pid) in sessions and state(pid) not in ("Z", None)
    except ProcessLookupError:
        return False


def _status(pid: int) -> list[str] | None:
    """Return the fields of /proc/<pid>/stat after the name: state, parent, group, session, ...

    None if the process is gone.
    """
    try:
        return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def started(pid: int) -> int | None:
    """Return when a living process began, in ticks since the kernel began; None if the process is gone.

    A process id together with this time identifies one process for ever.
    """
    status = _status(pid)
    return int(status[19]) if status is not None and status[0] not in ("Z", "X") else None


def state(pid: int) -> str | None:
    """Return the kernel's letter for a process (R, S, D, T stopped, Z zombie); None if it is gone."""
    status = _status(pid)
    return status[0] if status is not None else None


def send(pid: int, sig: signal.Signals) -> None:
    """Send a signal to a process that may be gone by now."""
    try:
        os.kill(pid, sig)
    except ProcessLookupError:
        pass


def kill_all(folder: Path, timeout: float = 10.0, reap: Callable[[], object] = lambda: None) -> None:
    """Send SIGKILL to every process of `folder`, frozen ones too, and wait until none is left.

    `reap` is called between looks, for a caller that is the parent of one of the processes. Raises `Stubborn`
    after `timeout` seconds.
    """
    sessions: set[int] = set()

    def look() -> list[int]:
        reap()
        found = processes(folder, sessions)
        sessions.update(found)  # every program that the kit starts leads a session
        return [pid for pid in found if state(pid) not in ("Z", None)]

    _repeat(look, signal.SIGKILL, timeout)


def freeze_all(folder: Path, timeout: float = 10.0) -> None:
    """Send SIGSTOP to every process of `folder`, and wait until each one is suspended.

    Raises `Stubborn` after `timeout` seconds.
    """

    def look() -> list[int]:
        return [pid for pid in processes(folder) if state(pid) not in ("T", "Z", None)]

    _repeat(look, signal.SIGSTOP, timeout)


def thaw_all(folder: Path) -> None:
    """Send SIGCONT to every process of `folder`."""
    for pid in processes(folder):
        send(pid, signal.SIGCONT)


def _repeat(look: Callable[[], list[int]], sig: signal.Signals, timeout: float) -> None:
    """Send `sig` to the processes that `look` finds, until it finds none.

    One empty look is not enough: the postmaster may fork after the list of processes was read, and be
    suspended right after that. The second look begins when the postmaster was certainly suspended (or gone)
    already.
    """
    deadline = time.monotonic() + timeout
    quiet = 0
    while quiet < 2:
        left = look()
        quiet = 0 if left else quiet + 1
        for pid in left:
            send(pid, sig)
        if left and time.monotonic() > deadline:
            raise Stubborn(f"processes {left} did not react to {sig.name} within {timeout} s")
        if left:
            time.sleep(_STEP)


def remove_shared_memory(data: Path) -> None:
    """Remove the SysV segments that killed servers of the data folder `data` left.

    A server uses the inode of its data folder as the key of its segment, or the next free number, which is
    then in line 7 of postmaster.pid (written a moment later, and never by the servers that initdb starts). A
    segment is removed only if its creator is dead or no process is attached: even if the segment should
    belong to another program, it is as useless as the node's own.
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
        return _PRIVATE  # the server never made a segment, or has removed segment and file itself


def remove_folder(folder: Path, timeout: float = 10.0) -> None:
    """Remove `folder` and everything below it.

    The removal is repeated for up to `timeout` seconds, because a dying process may still write there.
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
    """Write a note that `folder` has the container `name` at the engine behind the socket `engine`.

    The note is written before the container is made, and again when it exists.
    """
    draft = folder / f"{NOTE}.new"
    draft.write_text(f"{engine}\n{name}\n{'made' if made else ''}\n")
    draft.rename(folder / NOTE)  # atomic: a program that dies here leaves the whole note or none


def remove_container(folder: Path, timeout: float = 20.0) -> None:
    """Have the engine remove the container of `folder`, in whatever state it is, if there is one.

    The program that makes a container may die while its request is on the way. So a container that was not
    known to exist gets some time to appear. Raises `Stubborn` after `timeout` seconds, and `OSError` if the
    engine does not answer.
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
    """Send a DELETE request over the socket `engine`; return the HTTP status and the text of the answer."""
    # Imported here: the import takes 50 ms, and few programs need it.
    from http.client import HTTPConnection, HTTPException

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
    """Remove everything of `folder`: its container, its processes, their shared memory, the folder."""
    try:
        remove_container(folder)
    finally:
        kill_all(folder)
    remove_shared_memory(folder / "data")
    remove_folder(folder)


def main() -> int:
    """Read `+folder` and `-folder` (NUL-terminated) until end of file, then remove what is left."""
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        # A signal that ends the program must not end its warden first.
        signal.signal(sig, signal.SIG_IGN)
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

    # In parallel: an engine may take seconds per container.
    threads = [threading.Thread(target=end, args=(name,)) for name in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(failures)


if __name__ == "__main__":
    sys.exit(main())
