"""The command on a terminal: its controlling pty, and the screen that a user would see."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import pyte

COMMAND = str(Path(sysconfig.get_path("scripts")) / "pgha")
PATIENCE = 240.0
"""Seconds until a test gives up. At a load of 30, the demo needs more than a minute."""
# Popen has no option for the controlling terminal, so a small program sets it and then starts the command.
_CONTROLLED = """\
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
_WITHOUT = ("NO_COLOR", "COLUMNS", "LINES", "LANG", "LC_ALL", "LC_CTYPE", "FORCE_COLOR", "PGHA_BINDIR")


def own_folder() -> str:
    """Return a new folder for a program's nodes, which the account that servers run as can read."""
    folder = tempfile.mkdtemp(prefix="pgha-test-")
    os.chmod(folder, 0o755)
    return folder


class Terminal:
    """`pgha` with `arguments` on a terminal of `size` (columns, lines), with its own temporary folder."""

    def __init__(
        self, *arguments: str, size: tuple[int, int] = (80, 24), environment: dict[str, str] | None = None
    ) -> None:
        columns, lines = size
        self.folder = own_folder()
        self.raw = ""
        self._screen = pyte.HistoryScreen(columns, lines, history=1000)
        self._stream = pyte.ByteStream(self._screen)
        self._ours, self._theirs = pty.openpty()
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._before = termios.tcgetattr(self._theirs)
        clean = {key: value for key, value in os.environ.items() if key not in _WITHOUT}
        terminal = {"TERM": "xterm-256color", "LANG": "en_US.UTF-8", "TMPDIR": self.folder}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CONTROLLED, COMMAND, *arguments],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            start_new_session=True,
            env=clean | terminal | (environment or {}),
        )
        self._below: set[psutil.Process] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._note_processes()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for descriptor in (self._ours, self._theirs):
            if descriptor >= 0:
                os.close(descriptor)

    @property
    def text(self) -> str:
        """The text of the screen."""
        return "\n".join(line.rstrip() for line in self._screen.display)

    @property
    def everything(self) -> str:
        """The text of the scrollback and the screen."""
        columns = range(self._screen.columns)
        above = ["".join(line[x].data for x in columns).rstrip() for line in self._screen.history.top]
        return "\n".join([*above, self.text])

    @property
    def cursor_hidden(self) -> bool:
        return bool(self._screen.cursor.hidden)

    @property
    def unchanged(self) -> bool:
        """Whether the terminal's settings are the same as before the program."""
        return termios.tcgetattr(self._theirs) == self._before

    @property
    def below(self) -> list[psutil.Process]:
        """All descendants of the program that were seen."""
        return list(self._below)

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def hang_up(self) -> None:
        """Close the terminal, as if its window were closed."""
        self._note_processes()
        os.close(self._theirs)
        os.close(self._ours)
        self._ours = self._theirs = -1

    def until(self, *words: str) -> None:
        """Read until all of `words` are on the screen at once."""
        deadline = time.monotonic() + PATIENCE
        while not all(word in self.text for word in words):
            assert time.monotonic() < deadline, f"{words} did not appear; the screen:\n{self.text}"
            assert self.process.poll() is None, f"pgha ended before {words} appeared:\n{self.everything}"
            self._read(0.1)
        self._note_processes()

    def end(self) -> int:
        """Read until the program ends; return its exit code."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"pgha does not end; the screen:\n{self.text}"
            self._read(0.05)
        while self._read(0.0):
            pass
        return self.process.returncode

    def _read(self, patience: float) -> bool:
        if not select.select([self._ours], [], [], patience)[0]:
            return False
        data = os.read(self._ours, 65_536)
        self.raw += data.decode(errors="replace")
        self._stream.feed(data)
        return True

    def _note_processes(self) -> None:
        if self.process.poll() is None:
            self._below.update(psutil.Process(self.process.pid).children(recursive=True))


def left_over(terminal: Any) -> list[str]:
    """Return the processes and files that an ended program left behind; `[]` after a clean end."""
    _, alive = psutil.wait_procs(terminal.below, timeout=10)
    found = [f"{process.pid}: {' '.join(process.cmdline())}" for process in alive]
    found += os.listdir(terminal.folder)
    shutil.rmtree(terminal.folder)
    return found
