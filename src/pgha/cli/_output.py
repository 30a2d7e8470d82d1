"""What every command writes with, and how it ends when nobody can read it."""

from __future__ import annotations

import os
import signal
import sys
from typing import TextIO


class OutputClosed(Exception):
    """Whoever read the output has left; or, with words, it cannot be written. Not an `OSError`: one of a
    connection would look the same.
    """


def write(text: str, file: TextIO, end: str = "\n") -> None:
    """Print it at once, or `OutputClosed`."""
    try:
        print(text, file=file, end=end, flush=True)
    except OSError as error:
        # What is still buffered must not complain once more when the interpreter flushes it at its end.
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - os.devnull is no path of ours
            os.dup2(nowhere.fileno(), file.fileno())
        words = () if isinstance(error, BrokenPipeError) else (error.strerror or str(error),)
        raise OutputClosed(*words) from None


def output_closed(error: OutputClosed | BaseExceptionGroup[OutputClosed], name: str) -> int:
    """The exit code of the command ``name``; what its user does not know by himself is told in a line."""
    if words := str(first_of(error)):
        sys.stderr.write(f"pgha {name}: the output cannot be written: {words}\n")
        return 1
    return 128 + signal.SIGPIPE


def first_of(error: BaseException) -> BaseException:
    """The first of a group, of groups perhaps; an error that is none, itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
