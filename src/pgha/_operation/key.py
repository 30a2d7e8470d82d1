"""Idempotency keys, and the ledger's statements for them."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import anyio
import anyio.to_thread

from pgha._core.ledger_rules import TOMBSTONE
from pgha._core.sources import Sources
from pgha._core.statement_kind import classify_statement, makes_read_only
from pgha._errors import ConfigError, OperationTimeout
from pgha._options import REAL
from pgha._wire.compiler import Statement

TABLE = "pgha.ledger"
_BINARY = (1, 1, 1, 1)
_INT8, _BYTEA, _TIMESTAMPTZ, _UUID = 20, 17, 1184, 2950
_TYPES = (_INT8, _UUID, _BYTEA, _TIMESTAMPTZ)
_EPOCH_2000 = 946_684_800
_INSERT = (
    b"INSERT INTO pgha.ledger (system_identifier, key, fingerprint, deadline) VALUES"
    b" ($1, $2, $3, CASE WHEN pg_catalog.clock_timestamp() OPERATOR(pg_catalog.<) $4 THEN $4 END)"
)
"""The row contains the time guard: after the deadline the value is NULL, which the column rejects (23502). It
is one statement, so that its lock on the table is held before the clock is read. Functions and operators are
qualified, as in `pgha._ledger.schema`."""
_DECIDE = (
    b"INSERT INTO pgha.ledger AS l (system_identifier, key, fingerprint, deadline) VALUES"
    b" ($1, $2, $3, pg_catalog.clock_timestamp())"
    b" ON CONFLICT (system_identifier, key) DO UPDATE SET deadline = l.deadline"
    b" RETURNING pg_catalog.encode(l.fingerprint, 'hex')"
)
"""Waits for any transaction that is inserting the key. Writes even if the row exists: the commit then waits
for a synchronous standby, which proves that the row has reached the standby."""
_INSERTED, _DECIDED = classify_statement(_INSERT), classify_statement(_DECIDE)
_pack_long = struct.Struct("!q").pack


def new_idempotency_key() -> UUID:
    """Return a new idempotency key: a UUID of version 7 (RFC 9562).

    The key begins with the time in milliseconds, so that the ledger's index grows at one end. 74 bits are
    random, so no other program gets the same key.

    Returns:
        The key, for ``idempotency_key=`` of `Cluster.execute` and its relatives.
    """
    return key_from(REAL)


def key_from(sources: Sources) -> UUID:
    """Return a new key, made of a cluster's own clock and chance."""
    number = int.from_bytes(sources.random_bytes(10), "big") | int(sources.wall() * 1000) << 80
    # The version (4 bits) and the variant (2 bits) replace random bits.
    number = number & ~(0xF << 76) | 7 << 76
    return UUID(int=number & ~(0x3 << 62) | 2 << 62)


_TELL = (
    b"UPDATE pgha.ledger AS l SET deadline = l.deadline"
    b" WHERE system_identifier OPERATOR(pg_catalog.=) $1 AND key OPERATOR(pg_catalog.=) $2"
    b" RETURNING pg_catalog.encode(l.fingerprint, 'hex')"
)
"""Like `_DECIDE`, for a key that must not be inserted any more."""
_UNDECIDED = (
    b"SELECT CASE WHEN pg_catalog.clock_timestamp() OPERATOR(pg_catalog.<) $1 THEN -1"
    b" ELSE (SELECT pg_catalog.count(*) FROM pg_catalog.pg_locks l"
    b" LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) l.pid"
    b" WHERE l.locktype OPERATOR(pg_catalog.=) 'relation'"
    b" AND l.relation OPERATOR(pg_catalog.=) 'pgha.ledger'::pg_catalog.regclass"
    b" AND l.mode OPERATOR(pg_catalog.=) 'RowExclusiveLock'"
    b" AND (l.pid IS NULL OR l.pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid())"
    b" AND l.database OPERATOR(pg_catalog.=) (SELECT d.oid FROM pg_catalog.pg_database d"
    b" WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())"
    b" AND (a.xact_start IS NULL OR a.xact_start OPERATOR(pg_catalog.<) $1)) END"
)
"""Returns how many attempts may still insert their row: 0 proves that none can. Until the guard's deadline a
new attempt may begin (-1). After the deadline, an attempt that has begun holds the table's lock, even
while it is stopped before its insert."""
LARGE = 1 << 20
"""The size of statements, in bytes, from which on their fingerprint is computed in a worker thread: blake2b
takes a millisecond per megabyte or more, in which the event loop would stand still."""
_HEAD = frozenset({"SET TRANSACTION", "SET LOCAL", "SET CONSTRAINTS", "LOCK"})
_OTHER_ROLE = re.compile(rb"\bROLE\b|\bSESSION\b", re.IGNORECASE)


@dataclass(slots=True)
class Keyed:
    """The ledger's data for one operation; shared by its attempts, never changed."""

    key: UUID
    fingerprint: bytes
    auto: bool
    """Whether pgha assigned the key: on a node without a ledger, the write is then sent without a key."""
    behind: int
    """Number of the operation's statements that precede the ledger's insert: they must come first in a
    transaction, or before its snapshot (LOCK)."""
    unhashed: Sequence[Statement] | None = None
    """The statements whose fingerprint is still to be computed, by `hash_in_thread`; None if it is known."""

    def insert(self, system: int, deadline: float) -> Statement:
        """Return the statement that inserts the key.

        ``deadline`` is in seconds since 1970, by the server's clock.
        """
        params = (_pack_long(system), self.key.bytes, self.fingerprint, _moment(deadline))
        return Statement(_INSERT, params, _TYPES, _BINARY, _INSERTED)

    def decide(self, system: int) -> Statement:
        """Return the statement that inserts a tombstone unless the key exists, and yields the fingerprint."""
        params = (_pack_long(system), self.key.bytes, TOMBSTONE)
        return Statement(_DECIDE, params, _TYPES[:3], _BINARY[:3], _DECIDED)

    def tell(self, system: int) -> Statement:
        """Return the statement that yields the row's fingerprint, or no row."""
        params = (_pack_long(system), self.key.bytes)
        return Statement(_TELL, params, _TYPES[:2], _BINARY[:2], _DECIDED)


def undecided(deadline: float) -> Statement:
    """Return the query for attempts with this guard that may still insert; see `Keyed.insert`."""
    return Statement(_UNDECIDED, (_moment(deadline),), (_TIMESTAMPTZ,), (1,), _DECIDED)


def _moment(seconds: float) -> bytes:
    """Return a time as a binary timestamptz."""
    return _pack_long(round((seconds - _EPOCH_2000) * 1e6))


def checked(key: object) -> UUID:
    """Return ``key`` if it is a UUID; raise `ConfigError` otherwise."""
    if isinstance(key, UUID):
        return key
    raise ConfigError(
        f"idempotency_key must be a uuid.UUID, such as pgha.new_idempotency_key() returns, not {key!r}"
    )


def may_be_keyed(statements: Sequence[Statement]) -> bool:
    """Return whether an automatic key leaves the behaviour of these statements unchanged.

    That is so if they do not commit by themselves, and do not forbid the ledger's insert.
    """
    return not any(
        one.kind.self_committing
        or (one.kind.keyword in ("SET TRANSACTION", "SET LOCAL") and makes_read_only(one.query))
        for one in statements
    )


def keyed(key: UUID, statements: Sequence[Statement], *, auto: bool, hash_later: bool = False) -> Keyed:
    """Return the ledger's data for an operation with these statements.

    With ``hash_later``, the fingerprint of large statements is left to `hash_in_thread`.
    """
    behind = 0
    for one in statements:
        # The rights to the ledger belong to the connection's role: insert the key before the role changes.
        if one.kind.keyword not in _HEAD or _OTHER_ROLE.search(one.query) is not None:
            break
        behind += 1
    if hash_later and _size(statements) >= LARGE:
        return Keyed(key, b"", auto, behind, statements)
    return Keyed(key, fingerprint(statements), auto, behind)


async def hash_in_thread(pending: Keyed, timeout: float | None) -> None:
    """Compute the fingerprint that `keyed` left open, in a worker thread; cancellable at any time.

    Raises:
        OperationTimeout: ``timeout`` seconds passed before; the operation was not sent.
    """
    statements = pending.unhashed
    if statements is None:
        return
    with anyio.move_on_after(timeout):
        # The thread of an abandoned call runs on, but only reads.
        pending.fingerprint = await anyio.to_thread.run_sync(fingerprint, statements, abandon_on_cancel=True)
        pending.unhashed = None
        return
    raise OperationTimeout(f"not sent within {timeout:g} s: the fingerprint of its key took longer")


def _size(statements: Sequence[Statement]) -> int:
    size = 0
    for one in statements:
        size += len(one.query) + sum(len(value) for value in one.params or () if value is not None)
    return size


def fingerprint(statements: Sequence[Statement]) -> bytes:
    """Return 16 bytes that identify the texts and parameters of these statements, as they are sent."""
    from hashlib import blake2b  # importing OpenSSL takes a millisecond, and few programs have keys

    digest = blake2b(digest_size=16)
    for one in statements:
        digest.update(b"%d;" % len(one.query) + one.query)
        formats = one.formats or ()
        for index, value in enumerate(one.params or ()):
            if value is None:
                digest.update(b"-;")
            else:
                binary = index < len(formats) and formats[index] == 1
                digest.update(b"%d%c;" % (len(value), b"tb"[binary]))
                digest.update(value)
        digest.update(b".")
    return digest.digest()
