"""The prepared statements of a lane: a bounded cache whose names are never used twice.

========= ==================================================== ============================================
entry     meaning                                              exits
========= ==================================================== ============================================
counting  seen fewer times than the threshold; sent unprepared seen often enough -> parsing
parsing   a Parse is in flight; meanwhile others are sent      parsed -> ready; failed -> gone
          unprepared
ready     later segments reuse the name                        evicted or spoiled -> gone, Close is sent
========= ==================================================== ============================================

Waiting until the Parse is confirmed costs a few unprepared sends, but no pipelined segment ever depends on a
Parse that failed. If the Parse passed and its statement failed, the name stays valid (PostgreSQL: a prepared
statement is not transactional), so *ready* follows from the answer to the Parse itself.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

Key = tuple[bytes, tuple[int, ...]]


class Entry:
    """The state of one statement in the cache."""

    __slots__ = ("columns", "key", "keyed", "name", "ready", "seen", "segment")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.seen = 0
        self.name: bytes | None = None
        self.ready = False
        self.segment: Any = None
        """For `pgha._wire`: the segment that is sent each time that the statement is reused."""
        self.keyed: Any = None
        """For `pgha._wire`: the same segment with the ledger's statement in front."""
        self.columns: Any = None
        """For `pgha._wire`: the columns of each result."""


class StatementCache:
    """The statement cache of one connection.

    With a ``threshold`` of None nothing is prepared; with 0 a statement is prepared when first seen.
    """

    __slots__ = ("_entries", "_limit", "_number", "_threshold", "to_close")

    LONGEST = 8192
    """The longest text that is prepared; longer ones are mostly generated, seldom repeated, and not worth the
    server's memory."""

    def __init__(self, threshold: int | None, limit: int) -> None:
        self._threshold = threshold
        self._limit = limit
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        self._number = 0
        self.to_close: list[bytes] = []
        """The names that `closing` will return."""

    def __len__(self) -> int:
        return len(self._entries)

    def lookup(self, key: Key) -> Entry | None:
        """Return the entry of a statement that is to be sent prepared, or None to send it unprepared.

        Unless the entry is ``ready``, a Parse must be sent first.
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
        """Record that the server confirmed the Parse."""
        entry.ready = True
        if self._entries.get(entry.key) is not entry:
            # Evicted while its Parse was in flight: the name exists, and no segment will use it.
            self._close(entry)

    def failed(self, entry: Entry) -> None:
        """Record that the Parse failed or was never run; the name is free, but is not used again."""
        self._forget(entry)

    def spoiled(self, entry: Entry) -> None:
        """Record that a reused statement failed, perhaps because of a stale plan (DDL): parse it again."""
        if self._entries.get(entry.key) is entry:
            self._forget(entry)
            self._close(entry)

    def closing(self) -> list[bytes]:
        """Return the names that the next segment must close; each name is returned once."""
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
