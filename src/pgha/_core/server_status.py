"""What one health check learns of a server, as one value, read from the named columns of a query."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pgha._types import Role

Columns = Mapping[str, bytes | None]
"""One row of a server's answer, in text format, by the names of its columns."""

_HEXADECIMAL = frozenset("0123456789abcdefABCDEF")
_TIMELINE_DIGITS = 8
"""The number of hexadecimal digits with which the name of a WAL file begins, and which are its timeline."""


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """The status of a server at one moment. None: the server or the role's rights do not tell."""

    in_recovery: bool = False
    """Whether the server is a standby."""
    read_only: bool = False
    """Whether transactions are read-only by default, which is apart from being a standby."""
    system: int | None = None
    """The system identifier, which a primary shares with every server that takes over from it."""
    timeline: int | None = None
    """The timeline that a primary writes, or the newest one that a standby follows."""
    position: int | None = None
    """The position in the write-ahead log, in bytes, up to which queries on this server see changes: where a
    primary inserts, or what a standby has replayed."""
    durable: int | None = None
    """The position in the write-ahead log, in bytes, that is on this server's disk: what a primary has
    flushed, or what a standby has received from its primary."""
    replay_age: float | None = None
    """Seconds since the commit, on the primary, of the newest transaction that a standby has replayed. This
    grows while nothing is written, so it is a lag only if more was received than was replayed. None for a
    primary."""
    clock: float | None = None
    """The server's clock, in seconds since 1970."""

    @property
    def role(self) -> Role:
        """The role that the server claims."""
        return "standby" if self.in_recovery else "primary"


def server_status(columns: Columns) -> ServerStatus:
    """Return the status that a row tells; columns that are missing, NULL or not understood tell nothing."""
    in_recovery = columns.get("in_recovery") == b"t"
    timelines = [
        _timeline_of_file(_text(columns, "wal_file")),
        *(_whole(_text(columns, name)) for name in ("checkpoint_timeline", "received_timeline")),
    ]
    return ServerStatus(
        in_recovery=in_recovery,
        read_only=columns.get("read_only") in (b"on", b"t"),
        system=_whole(_text(columns, "system")),
        # A promoted server writes the new timeline before its control file says so.
        timeline=max((one for one in timelines if one is not None), default=None),
        position=_position(_text(columns, "position")),
        durable=_position(_text(columns, "durable")),
        replay_age=_seconds(_text(columns, "replay_age")) if in_recovery else None,
        clock=_seconds(_text(columns, "clock")),
    )


def _text(columns: Columns, name: str) -> str:
    return (columns.get(name) or b"").decode("ascii", "replace")


def _whole(text: str) -> int | None:
    return int(text) or None if text.isascii() and text.isdigit() else None


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) else None


def _hexadecimal(text: str) -> int | None:
    return int(text, 16) if text and not set(text) - _HEXADECIMAL else None


def _position(text: str) -> int | None:
    """Return the number of a pg_lsn, such as ``16/B374D848``."""
    high, low = (_hexadecimal(part) for part in text.partition("/")[::2])
    return None if high is None or low is None else (high << 32) + low


def _timeline_of_file(name: str) -> int | None:
    return _hexadecimal(name[:_TIMELINE_DIGITS]) or None if len(name) > _TIMELINE_DIGITS else None
