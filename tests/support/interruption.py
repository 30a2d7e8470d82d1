"""Something happens between any two bytecodes of pgha's own code."""

from __future__ import annotations

import dis
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pgha

_OURS = str(Path(pgha.__file__).parent)


@cache
def _where_signals_are_handled(code: CodeType) -> frozenset[int]:
    """Return where the interpreter runs the handlers of signals and can be interrupted: after calls."""
    found, before = set(), ""
    for one in dis.get_instructions(code):
        if before.startswith("CALL"):
            found.add(one.offset)
        before = one.opname
    return frozenset(found)


class Interruption:
    """Calls ``act`` at one position of pgha's own code.

    A position is any bytecode. With ``raises``, it is one of those where the interpreter runs the handlers of
    signals, and what ``act`` raises is raised there: in between, the interpreter does not survive exceptions.
    """

    def __init__(self, position: int, act: Callable[[], object], *, raises: bool = False) -> None:
        self.position = position
        self.act = act
        self.raises = raises
        self.seen = 0
        self.happened = False
        self.where = ""

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_OURS):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and not self.happened and self._possible(frame):
            if self.seen == self.position:
                self.happened = True
                self.where = f"{frame.f_code.co_qualname}:{frame.f_lineno}"
                self.act()  # nothing is traced in here
            self.seen += 1
        return self.trace

    def _possible(self, frame: FrameType) -> bool:
        if not self.raises:
            return True
        # What is raised in a finalizer reaches nobody: the interpreter drops it.
        finalizing = frame.f_code.co_name == "__del__"
        return not finalizing and frame.f_lasti in _where_signals_are_handled(frame.f_code)

    @contextmanager
    def lurking(self) -> Iterator[None]:
        before = sys.gettrace()
        # No finalizer of what an earlier round left runs in the middle of this one.
        gc.disable()
        sys.settrace(self.trace)
        try:
            yield
        finally:
            sys.settrace(before)
            gc.enable()
