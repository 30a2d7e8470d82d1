"""Which statements of a lane are prepared: a bounded cache whose names are never used twice.

========= ==================================================== ============================================
entry     meaning                                              exits
========= ==================================================== ============================================
counting  seen fewer times than the threshold; sent unprepared seen often enough -> parsing
parsing   a Parse is in flight; others go unprepared meanwhile parsed -> ready; failed -> gone
ready     later segments reuse the name                        evicted or spoiled -> gone, Close is sent
========= ==================================================== ============================================

Waiting for the Parse to be confirmed costs a few unprepared sends and means that no pipelined neighbour
ever depends on a Parse that failed. A Parse that passed before its statement failed keeps the name
(PostgreSQL: a prepared statement is not transactional), so *ready* follows the Parse's own answer.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

Key = tuple[bytes, tuple[int, ...]]


class Entry:
    __slots__ = ("columns", "key", "keyed", "name", "ready", "seen", "segment")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.seen = 0
        self.name: bytes | None = None
        self.ready = False
        self.segment: Any = None
        """For the wire: what it sends each time that the statement is reused."""
        self.keyed: Any = None
        """The same, behind the ledger's statement."""
        self.columns: Any = None
        """For the wire: what it knows of the columns of each result."""


class StatementCache:
    """For one connection. ``threshold`` None prepares nothing; 0 prepares at first sight."""

    __slots__ = ("_entries", "_limit", "_number", "_threshold", "to_close")

    LONGEST = 8192
    """Longer texts are made by programs, rarely repeated, and not worth the server's memory."""

    def __init__(self, threshold: int | None, limit: int) -> None:
        self._threshold = threshold
        self._limit = limit
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        self._number = 0
        self.to_close: list[bytes] = []
        """What `closing` will give."""

    def __len__(self) -> int:
        return len(self._entries)

    def look(self, key: Key) -> Entry | None:
        """The entry if the statement is to go prepared: to be parsed first unless it is ``ready``.

        None means: send it unprepared.
        """
        if self._threshold is None or len(key[0]) > self.LONGEST:
            return None
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = Entry(key)
            self._evict()
        else:
            self._entries.move_to_end(key)
        if entry.ready:
            return entry
        entry.seen += 1
        if entry.name is not None or entry.seen <= self._threshold:
            return None
        self._number += 1
        entry.name = b"pgha_%d" % self._number
        return entry

    def parsed(self, entry: Entry) -> None:
        """The server confirmed the Parse."""
        entry.ready = True
        if self._entries.get(entry.key) is not entry:
            # Evicted while its Parse was in flight: the name exists, and nobody will use it.
            self._close(entry)

    def failed(self, entry: Entry) -> None:
        """The Parse failed, or was never run: the name is free, but not used again."""
        self._forget(entry)

    def spoiled(self, entry: Entry) -> None:
        """A reused statement failed in a way that may be the plan's fault (DDL): parse it anew."""
        if self._entries.get(entry.key) is entry:
            self._forget(entry)
            self._close(entry)

    def closing(self) -> list[bytes]:
        """Names that the next segment is to close; each is given once."""
        if not self.to_close:
            return []
        names, self.to_close = self.to_close, []
        return names

    def _evict(self) -> None:
        if len(self._entries) > self._limit:
            _, oldest = self._entries.popitem(last=False)
            if oldest.ready:
                self._close(oldest)

    def _forget(self, entry: Entry) -> None:
        if self._entries.get(entry.key) is entry:
            del self._entries[entry.key]

    def _close(self, entry: Entry) -> None:
        if entry.name is not None:
            self.to_close.append(entry.name)
            entry.name = None
