"""Keys pressed at the terminal, read one at a time, without Enter and without an echo."""

from __future__ import annotations

import os
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio

_SEQUENCES = {
    b"\x1b[A": "up",
    b"\x1b[B": "down",
    b"\x1b[C": "down",
    b"\x1b[D": "up",
    b"\x1bOA": "up",
    b"\x1bOB": "down",
    b"\x1b[Z": "up",  # Shift-Tab
    b"\t": "down",
    b"\x1a": "suspend",
}
_LONGEST = 16
_CHUNK = 256


def keyboard() -> int | None:
    """Return the file descriptor to read keys from, or None if there is none.

    The descriptor is standard input, if that is a terminal and the program runs in the foreground.
    """
    # Standard input is None if the parent process closed it.
    if sys.stdin is None or sys.stdin.closed or not sys.stdin.isatty():
        return None
    descriptor = sys.stdin.fileno()
    try:
        # A background program would be stopped when it changes the terminal's settings.
        return descriptor if os.tcgetpgrp(descriptor) == os.getpgrp() else None
    except OSError:  # a terminal, but not this program's controlling terminal
        return descriptor


@contextmanager
def unbuffered(descriptor: int) -> Iterator[None]:
    """Make the terminal deliver keys one by one, and restore its settings afterwards.

    Ctrl-C stays a signal. Ctrl-Z and Ctrl-S become keys: a stopped program would measure its own pause as one
    of the servers, and a program whose output is stopped could not end.
    """
    before = termios.tcgetattr(descriptor)
    now = termios.tcgetattr(descriptor)
    now[tty.IFLAG] &= ~termios.IXON
    now[tty.LFLAG] &= ~(termios.ICANON | termios.ECHO)
    now[tty.CC][termios.VMIN], now[tty.CC][termios.VTIME] = 1, 0
    now[tty.CC][termios.VSUSP] = b"\x00"
    try:
        termios.tcsetattr(descriptor, termios.TCSANOW, now)
        yield
    finally:
        try:
            termios.tcsetattr(descriptor, termios.TCSANOW, before)
        except termios.error:
            pass  # the terminal is gone, and its settings with it


class Decoder:
    """Decodes a terminal's bytes to names of keys: a character in lower case, or up, down, suspend."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """Return the keys that are complete. Keys that the demo does not use are left out."""
        self._rest += data
        found = []
        while self._rest:
            length = _length(self._rest)
            if length > len(self._rest):
                break
            key, self._rest = self._rest[:length], self._rest[length:]
            if key in _SEQUENCES:
                found.append(_SEQUENCES[key])
            elif key.isalnum():  # `bytes.isalnum` is true for ASCII characters alone
                found.append(key.decode("ascii").lower())
        return found


def _length(data: bytes) -> int:
    """Return the number of bytes of the first key; more than `data` has if the key is incomplete.

    An arrow arrives as ESC [ A, or in application mode as ESC O A; other keys as ESC [, parameters, and a
    letter or ~.
    """
    if data[:1] != b"\x1b":
        return 1
    if len(data) == 1:
        return 2
    if data[1:2] == b"O":
        return 3
    if data[1:2] != b"[":
        return 1  # the key ESC, followed by another key
    for index, byte in enumerate(data[2:_LONGEST], 2):
        if 0x40 <= byte <= 0x7E:
            return index + 1
    return len(data) + 1 if len(data) < _LONGEST else 1


async def listen(descriptor: int, pressed: Callable[[str], None]) -> None:
    """Call `pressed` with each key, and return when the terminal is closed."""
    decoder = Decoder()
    while True:
        await anyio.wait_readable(descriptor)
        try:
            data = os.read(descriptor, _CHUNK)
        except OSError:  # EIO: the terminal hung up
            return
        if not data:
            return
        for key in decoder.feed(data):
            pressed(key)
