"""Keys pressed at the terminal: one at a time, without Enter and without an echo."""

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
    """The file descriptor to read keys from: standard input, when it is the terminal of a program that runs
    in the foreground, else None.
    """
    # None: whoever started the program closed it.
    if sys.stdin is None or sys.stdin.closed or not sys.stdin.isatty():
        return None
    descriptor = sys.stdin.fileno()
    try:
        # In the background, changing the terminal would stop the program.
        return descriptor if os.tcgetpgrp(descriptor) == os.getpgrp() else None
    except OSError:  # a terminal, but not the one that controls this program
        return descriptor


@contextmanager
def unbuffered(descriptor: int) -> Iterator[None]:
    """Keys come one by one; afterwards the terminal is as it was.

    Ctrl-C stays a signal. Ctrl-Z and Ctrl-S are keys: a program that stands still would measure itself as a
    pause of the servers, and one whose output stands still could not end.
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
    """Bytes of a terminal to names of keys: a character in lower case, or up, down, suspend."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """The keys that are complete; what is not one of ours is left out."""
        self._rest += data
        found = []
        while self._rest:
            length = _length(self._rest)
            if length > len(self._rest):
                break
            key, self._rest = self._rest[:length], self._rest[length:]
            if key in _SEQUENCES:
                found.append(_SEQUENCES[key])
            elif key.isalnum():  # of ASCII: bytes have no other
                found.append(key.decode("ascii").lower())
        return found


def _length(data: bytes) -> int:
    """How many bytes the first key has; more than there are when it is not complete.

    An arrow comes as ESC [ A, or in application mode ESC O A; other keys as ESC [, parameters, a letter or ~.
    """
    if data[:1] != b"\x1b":
        return 1
    if len(data) == 1:
        return 2
    if data[1:2] == b"O":
        return 3
    if data[1:2] != b"[":
        return 1  # ESC itself, and then another key
    for index, byte in enumerate(data[2:_LONGEST], 2):
        if 0x40 <= byte <= 0x7E:
            return index + 1
    return len(data) + 1 if len(data) < _LONGEST else 1


async def listen(descriptor: int, pressed: Callable[[str], None]) -> None:
    """Call `pressed` with each key; returns when the terminal is closed."""
    decoder = Decoder()
    while True:
        await anyio.wait_readable(descriptor)
        try:
            data = os.read(descriptor, _CHUNK)
        except OSError:  # EIO: it hung up
            return
        if not data:
            return
        for key in decoder.feed(data):
            pressed(key)
