"""The program's side of the warden: report which folders exist, and start and end the warden.

Each program has one warden, which lives as long as there is a folder to watch. `warden` describes its work.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from pgha.chaos._errors import ChaosError
from pgha.chaos._servers import warden

_lock = threading.Lock()
_folders: set[Path] = set()
_process: subprocess.Popen[bytes] | None = None
_END_TIMEOUT = 10.0


def watch(folder: Path) -> None:
    """Register `folder`: it and its servers are removed when this program ends, even by SIGKILL.

    Blocks for a short time.
    """
    global _process
    with _lock:
        _folders.add(folder)
        if _process is None or not _tell(_process, warden.ADD, folder):
            # There is no warden yet, or it was killed: a new one is told all folders.
            _process = _start()
            for known in _folders:
                if not _tell(_process, warden.ADD, known):
                    raise ChaosError(
                        f"the warden did not start: try '{sys.executable} -I -S {warden.__file__}'"
                    )


def unwatch(folder: Path) -> None:
    """Unregister `folder`, which is gone. With the last folder, the warden ends too.

    Blocks for a short time.
    """
    global _process
    with _lock:
        _folders.discard(folder)
        if _process is None:
            return
        _tell(_process, warden.DROP, folder)  # a warden that was killed need not be told
        if not _folders:
            ending, _process = _process, None
            _end(ending)


def _start() -> subprocess.Popen[bytes]:
    if not sys.executable or not Path("/proc/self/stat").exists():
        raise ChaosError("pgha.chaos needs Linux (/proc) and an ordinary Python (sys.executable)")
    return subprocess.Popen(
        [sys.executable, "-I", "-S", warden.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        bufsize=0,
        cwd="/",
        start_new_session=True,  # a Ctrl-C at the terminal must reach only the program
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(_END_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise ChaosError(f"the warden, process {process.pid}, did not end within {_END_TIMEOUT} s") from None


def _tell(process: subprocess.Popen[bytes], verb: bytes, folder: Path) -> bool:
    assert process.stdin is not None
    try:
        process.stdin.write(verb + os.fsencode(folder) + b"\0")
    except BrokenPipeError:
        _end(process)
        return False
    return True


def _forget_after_fork() -> None:
    """Close the pipe to the warden in a forked child.

    With the pipe open in the child, the parent's death would be noticed only when the child dies too.
    """
    global _lock, _process
    _lock = threading.Lock()
    _folders.clear()
    if _process is not None:
        assert _process.stdin is not None
        _process.stdin.close()
        _process.returncode = 0  # not a child of this process: there is nothing to wait for
        _process = None


os.register_at_fork(after_in_child=_forget_after_fork)
