"""The log: the same facts as the events, passed to `logging` in a few lines.

A handler of `logging` is the user's code, and may use the cluster. For this reason nothing is logged while
the cluster is changing its state. Facts are added to the digest, and a timer of the cluster logs the lines
that are due; no other code of the cluster is running at that time. A handler that raises an exception harms
neither the cluster nor an operation.

The logger ``pgha`` has a `logging.NullHandler`: a program without a logging configuration sees no output of
pgha on its stderr, not even an error.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any, Protocol

import psycopg

from pgha._errors import Error
from pgha._telemetry.digest import Counted, Digest, Level, Line, Topic, brief, unretrieved
from pgha._types import Outcome, Role, State

logging.getLogger("pgha").addHandler(logging.NullHandler())
cluster_logger = logging.getLogger("pgha.cluster")
_LOGGERS: dict[Topic, logging.Logger] = {
    "node": logging.getLogger("pgha.node"),
    "operation": logging.getLogger("pgha.operation"),
    "connection": logging.getLogger("pgha.connection"),
}
_LEVELS: dict[Level, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
# PostgreSQL puts values and names after one of these characters, depending on `lc_messages`. A value may
# itself contain quotes and line breaks, so the end of a value cannot be found.
_QUOTE = re.compile('["„“”«»]')


def say(logger: logging.Logger, level: int, message: str, *args: object) -> None:
    """Log a message, and suppress errors of handlers; for the ends of tasks and threads that others need."""
    if logger.isEnabledFor(level):
        try:
            logger.log(level, message, *args)
        except Exception:  # noqa: BLE001 - the user's handler: what it raises is not the cluster's failure
            pass


class Schedule(Protocol):
    """The cluster's timers."""

    def at(self, when: float, call: Callable[[], None]) -> Any: ...

    def cancel(self, moment: Any) -> None: ...


class ClusterLog:
    """The log of one cluster. Its methods may be called at any time in the loop's thread."""

    def __init__(self, schedule: Schedule, clock: Callable[[], float]) -> None:
        self._schedule = schedule
        self._clock = clock
        self._digest = Digest()
        self._secrets: set[str] = set()
        self._timer: Any = None
        """The only timer, set to `_flushed_at`."""
        self._flushed_at = float("inf")
        self.closed = False
        """Whether the log was closed. A closed log starts no timer."""

    def keep_secret(self, text: str | None) -> None:
        """Write ``***`` in place of ``text`` if a server's message contains it."""
        if text:
            self._secrets.add(text)

    # Facts

    def state_changed(self, node: str, before: State, after: State, reason: str, role: str) -> None:
        self._digest.state_changed(self._clock(), node, before, after, self._brief(reason), role)
        self._plan()

    def role_changed(self, node: str, before: Role, after: Role, *, read_only: bool = False) -> None:
        self._digest.role_changed(self._clock(), node, before, after, read_only=read_only)
        self._plan()

    def superseded(self, node: str, timeline: int, newest: int) -> None:
        self._digest.superseded(self._clock(), node, timeline, newest)
        self._plan()

    def clock_skewed(self, node: str, skew: float, *, skewed: bool) -> None:
        self._digest.clock_skewed(self._clock(), node, skew, skewed=skewed)
        self._plan()

    def connection_lost(self, node: str, reason: str, in_flight: int, *, by_choice: bool) -> None:
        kind = Counted.DISCARDED if by_choice else Counted.LOST
        self._digest.count(self._clock(), node, kind, self._brief(reason), in_flight)
        self._plan()

    def retried(self, node: str | None, reason: str) -> None:
        self._digest.count(self._clock(), node or "-", Counted.RETRIED, self._brief(reason))
        self._plan()

    def in_doubt(self, node: str | None, reason: str) -> None:
        self._digest.count(self._clock(), node or "-", Counted.IN_DOUBT, self._brief(reason))
        self._plan()

    def resolved(self, node: str | None, outcome: Outcome) -> None:
        self._digest.resolved(self._clock(), node or "-", outcome)
        self._plan()

    def forget(self, node: str) -> None:
        self._digest.forget(node)

    def unretrieved(self, error: BaseException) -> None:
        """Log a failure that was never retrieved.

        Handlers run before the method returns, so do not call the method while sending. After `close`, the
        method may be called in any thread, and each failure has a line of its own.
        """
        what = self._brief(described(error))
        if self.closed:
            self._log([unretrieved(what)])
        else:
            self._digest.unretrieved(self._clock(), what)
            self._flush()

    def close(self) -> None:
        """Log every line that is not due yet. A later unretrieved failure is logged at once."""
        self.closed = True
        self._log(self._digest.lines(self._clock(), everything=True))

    # Lines

    def _plan(self) -> None:
        """Set the timer to the time at which the next lines are due."""
        if self._digest.due < self._flushed_at and not self.closed:
            if self._timer is not None:
                self._schedule.cancel(self._timer)
            self._flushed_at = self._digest.due
            self._timer = self._schedule.at(self._flushed_at, self._on_time)

    def _on_time(self) -> None:
        self._timer, self._flushed_at = None, float("inf")
        self._flush()

    def _flush(self) -> None:
        lines = self._digest.lines(self._clock())
        # Set the timer before a handler runs: a handler may use the cluster, which calls `_plan` again.
        self._plan()
        self._log(lines)

    def _log(self, lines: list[Line]) -> None:
        for line in lines:
            say(_LOGGERS[line.topic], _LEVELS[line.level], line.template, *line.args)

    def _brief(self, reason: str) -> str:
        # Replace secrets before shortening: a shortened secret would not be found, and is still secret.
        for secret in self._secrets:
            reason = reason.replace(secret, "***")
        return brief(reason)


def described(error: BaseException) -> str:
    """Return a description of a failure without any value, since a value may be a secret.

    The description of a server's error has the SQLSTATE and the first line, up to the first quote. An error
    that comes neither from pgha nor from a server is described by its class alone: for example an error of a
    row factory, or psycopg's own error, which repeats a value that cannot be converted.
    """
    name = type(error).__name__
    words = str(error).partition("\n")[0]
    if isinstance(error, Error):
        return f"{name}: {words}"
    if not isinstance(error, psycopg.Error) or not error.sqlstate:
        return name
    quote = _QUOTE.search(words)
    if quote is not None:
        words = f'{words[: quote.start()]}"..."'
    return f"{name} ({error.sqlstate}): {words}"
