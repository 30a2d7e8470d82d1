"""Functions that write the output of every command, and end a command whose output cannot be written."""

from __future__ import annotations

import os
import signal
import sys
from typing import TextIO


class OutputClosed(Exception):
    """The reader of the output has closed it; or, with a message, the output cannot be written.

    This is not an `OSError`, because an `OSError` of a connection would look the same.
    """


def write(text: str, file: TextIO, end: str = "\n") -> None:
    """Print `text` without buffering, or raise `OutputClosed`."""
    try:
        print(text, file=file, end=end, flush=True)
    except OSError as error:
        # Otherwise the interpreter would flush the buffer at its exit and report the same error again.
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - os.devnull is no path of ours
            os.dup2(nowhere.fileno(), file.fileno())
        words = () if isinstance(error, BrokenPipeError) else (error.strerror or str(error),)
        raise OutputClosed(*words) from None


def output_closed(error: OutputClosed | BaseExceptionGroup[OutputClosed], name: str) -> int:
    """Return the exit code of the command `name`. Report an output that cannot be written in one line.

    A reader that closed the output is not reported: the user knows.
    """
    if words := str(first_of(error)):
        sys.stderr.write(f"pgha {name}: the output cannot be written: {words}\n")
        return 1
    return 128 + signal.SIGPIPE


def first_of(error: BaseException) -> BaseException:
    """Return the first error of a group, which may contain groups, or `error` itself if it is no group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
