"""A libpq connection in pipeline mode: whole segments in, whole answers out. No waiting, no tasks.

psycopg's own pipeline loop is not used because that loop drops the answers that came before an error. A link
reads everything that still arrives, also from a connection that is already broken.
"""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import capabilities, errors, pq
from psycopg.adapt import AdaptersMap
from psycopg.pq.abc import PGconn, PGresult

from pgha._core.outcome import Handed
from pgha._core.statements import Entry, StatementCache
from pgha._wire import tcp_info
from pgha._wire.compiler import Statement
from pgha._wire.connect import cancel
from pgha._wire.libpq import pointer_of, sync_unwritten
from pgha._wire.loader import Loader
from pgha._wire.segment import Piece, PieceKind, Segment

_SYNC = pq.ExecStatus.PIPELINE_SYNC
_COPIES = frozenset({pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH})
_BAD = pq.ConnStatus.BAD
_IDLE = pq.TransactionStatus.IDLE
_REPLICATION_WAIT = b"SyncRepWaitForLSN"
"""The server's function that issues the warning that the wait for a synchronous standby was broken off."""
_CRASH_WARNING = b"quickdie"
"""The server's function that issues the warning that all connections end after a crash."""
ADMIN_SHUTDOWN = "57P01"
CRASH_SHUTDOWN = "57P02"
_CLOSES = capabilities.has_send_close_prepared()

_READ_ONLY = b"default_transaction_read_only"
WATCHED = (
    b"client_encoding",
    b"DateStyle",
    b"IntervalStyle",
    b"TimeZone",
    b"application_name",
    b"standard_conforming_strings",
    b"session_authorization",
    _READ_ONLY,
    b"search_path",
)
"""The settings whose changes the server reports (search_path: since PostgreSQL 18)."""

_SEND_ERRORS = (psycopg.Error, TypeError, ValueError, OverflowError, MemoryError, BufferError)
"""What psycopg raises when it hands something to libpq: its C layer raises TypeError for a value of the wrong
type, and BufferError for a memory view with gaps. Anything else is an exception of a signal's handler, or a
defect."""


class SendFailed(Exception):
    """Sending failed; the connection must be closed."""

    def __init__(self, handed: Handed, segment: Segment, cause: BaseException) -> None:
        super().__init__(str(cause) or type(cause).__name__)
        self.handed = handed
        """WHOLE if all of the segment was handed to libpq, perhaps with its Sync; else PART."""
        self.segment = segment


@dataclass(frozen=True, slots=True)
class Notice:
    """A notice from the server. 57P01 and 57P02 as a *warning* do not prove that nothing was applied."""

    severity: str
    sqlstate: str
    message: str


@dataclass(slots=True)
class Received:
    """The result of reading the socket once."""

    answers: list[list[PGresult]]
    """The results of each segment whose Sync arrived, oldest first."""
    more: bool = False
    """Whether the limit was reached: read again soon, without waiting for the socket."""
    notified: bool = False
    """Whether a notification arrived because a statement ran LISTEN."""
    broken: BaseException | None = None
    """The reason why the connection ended, after which nothing more arrives; None while it is open."""


@dataclass(frozen=True, slots=True)
class Extras:
    """The parts of a segment other than the user's statements."""

    framed: bool = False
    prologue: tuple[bytes, ...] = ()
    epilogue: tuple[bytes, ...] = ()
    unprepared: bool = False
    undone: bool = False
    """Whether a framed segment ends with ROLLBACK, because only its results are needed."""


NO_EXTRAS = Extras()
_UNPREPARED = Segment()
_UNPREPARED_KEYED = Segment(keyed=True)


@dataclass(frozen=True, slots=True)
class LedgerPart:
    """The ledger's statement, and the number of the user's statements in front of it."""

    statement: Statement
    behind: int = 0


class Link:
    """The libpq connection of one lane; see the head of this file. Not safe for use from several threads.

    `pgha._wire.protocol.PipelinedConnection` is the interface that a lane uses.
    """

    def __init__(
        self, pgconn: PGconn, threshold: int | None, limit: int, adapters: AdaptersMap | None = None, *,
        listens: bool = False, reads: bool = False,
    ) -> None:  # fmt: skip
        self._pgconn = pgconn
        self._listens = listens
        """Whether the session listened for notifications before the first operation."""
        self.listened = False
        """Whether a statement has made the session listen: a notification arrived that none was to expect."""
        loader = Loader(pgconn, adapters or psycopg.adapters)
        self.load, self.many, self.load_in_parts = loader.load, loader.many, loader.load_in_parts
        self._pointer = pointer_of(pgconn)
        self._cache = StatementCache(threshold if _CLOSES else None, limit)
        self._partial: list[PGresult] = []
        self._unreplicated = False
        self._crashed = False
        self._notice: Notice | None = None
        """The last notice behind the last Sync: what a segment that was answered said ends no connection."""
        pgconn.notice_handler = self._on_notice
        pgconn.enter_pipeline_mode()
        # At the end of file libpq closes its socket, even if tasks still wait for that socket, and the next
        # connection may get the same descriptor number. So tasks wait for a duplicate descriptor.
        self.fd = os.dup(pgconn.socket)
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)
        self._sync_due = False
        """Whether the Sync of the last segment is still to be handed over, with the next segment or flush."""
        self._finished = False
        self.pid = pgconn.backend_pid
        self.tls = pgconn.ssl_in_use
        self.server_version = pgconn.server_version
        self._settings = self._read_settings()
        self._reads = reads and pgconn.parameter_status(_READ_ONLY) == b"on"
        """Whether the connection is for reads, and read-only by its own setting, whatever the server's is."""
        self.turned_writable = False
        """Whether a statement ended the read-only mode of this connection for reads. Answers behind that
        statement are never taken: what they belong to may have written as a read."""

    def _on_notice(self, result: PGresult) -> None:
        field = pq.DiagnosticField
        self._notice = Notice(
            *(
                (result.error_field(code) or b"").decode("utf-8", "replace")
                for code in (field.SEVERITY_NONLOCALIZED, field.SQLSTATE, field.MESSAGE_PRIMARY)
            )
        )
        # libpq may hand over this warning before the Sync of the segment in front of it.
        self._crashed |= result.error_field(field.SOURCE_FUNCTION) == _CRASH_WARNING
        # "canceling wait for synchronous replication": the message is localized, and every warning has 01000.
        self._unreplicated |= result.error_field(field.SOURCE_FUNCTION) == _REPLICATION_WAIT

    def _read_settings(self) -> list[bytes | None]:
        return list(map(self._pgconn.parameter_status, WATCHED))

    @property
    def pgconn(self) -> PGconn:
        """The libpq connection, for the adaptation context and for cancelling."""
        return self._pgconn

    def clean(self) -> bool:
        """Return whether the session is unchanged since the lane opened; call only with nothing in flight."""
        return self._pgconn.transaction_status == _IDLE and self.settings_kept()

    def settings_kept(self) -> bool:
        """Return whether no setting that the server reports was changed, and no LISTEN was noticed."""
        return not self.listened and self._read_settings() == self._settings

    def closing_notice(self) -> str:
        """Return the server's last notice if that notice is about the end of the connection, else ""."""
        notice = self._notice
        ending = notice is not None and (notice.severity == "FATAL" or notice.sqlstate.startswith("57P"))
        return f"{notice.severity} {notice.sqlstate}: {notice.message}" if notice and ending else ""

    def send(
        self, statements: Sequence[Statement], extras: Extras = NO_EXTRAS, ledger: LedgerPart | None = None
    ) -> Segment:
        """Hand a whole segment to libpq, which keeps it until the next `flush` (libpq 17 and later).

        So one system call writes all the segments that were sent one after another.

        Raises:
            SendFailed: The link must be finished once everything that still arrives was received.
        """
        segment: Segment | None = None
        try:
            if self._sync_due:
                self._sync_due = False
                if self._pointer is None or not sync_unwritten(self._pointer):
                    self._pgconn.pipeline_sync()
            cache = self._cache
            if extras is not NO_EXTRAS or len(statements) != 1 or cache.to_close:
                segment = self._send_many(statements, extras, ledger, cache.closing())
            elif ledger is None:
                segment = self._send_one(statements[0])
            elif ledger.behind:
                segment = self._send_many(statements, extras, ledger, ())
            else:
                segment = self._send_keyed(ledger, statements[0])
        except _SEND_ERRORS as error:
            handed = Handed.PART if segment is None else Handed.WHOLE
            raise SendFailed(handed, segment or Segment([], framed=extras.framed), error) from error
        self._sync_due = True
        return segment

    def _lookup(self, statement: Statement) -> Entry | None:
        # A statement that commits by itself cannot be run again after DDL made its plan stale, so such a
        # statement is sent unprepared.
        if statement.kind.self_committing:
            return None
        return self._cache.lookup((statement.query, statement.types))

    def _send_one(self, statement: Statement) -> Segment:
        # As `_lookup` and `_send_prepared`, without the calls.
        committing = statement.kind.self_committing
        entry = None if committing else self._cache.lookup((statement.query, statement.types))
        if entry is None:
            self._send_unprepared(statement)
            return _UNPREPARED
        if entry.ready:
            assert entry.name is not None
            self._pgconn.send_query_prepared(entry.name, statement.params, statement.formats)
            if entry.segment is None:
                entry.segment = Segment(entry=entry)
            return entry.segment  # type: ignore[no-any-return]
        pieces: list[Piece] = []
        self._parse_and_send(entry, statement, pieces)
        return Segment(pieces)

    def _send_keyed(self, ledger: LedgerPart, statement: Statement) -> Segment:
        """Send the ledger's statement and one user statement.

        In the usual case both are prepared, or neither is; then the segment needs no list of pieces.
        """
        first, entry = self._lookup(ledger.statement), self._lookup(statement)
        if first is not None and entry is not None and first.ready and entry.ready:
            self._send_prepared(first, ledger.statement)
            self._send_prepared(entry, statement)
            segment = entry.keyed
            if segment is None or segment.ledger is not first:
                segment = entry.keyed = Segment(entry=entry, keyed=True, ledger=first)
            return segment  # type: ignore[no-any-return]
        if first is None and entry is None:
            self._send_unprepared(ledger.statement)
            self._send_unprepared(statement)
            return _UNPREPARED_KEYED
        pieces: list[Piece] = []
        self._send_found(first, ledger.statement, PieceKind.LEDGER, pieces)
        self._send_found(entry, statement, PieceKind.USER, pieces)
        return Segment(pieces)

    def _send_many(
        self, statements: Sequence[Statement], extras: Extras, ledger: LedgerPart | None,
        closing: Sequence[bytes],
    ) -> Segment:  # fmt: skip
        pieces: list[Piece] = []
        for name in closing:
            self._pgconn.send_close_prepared(name)
            pieces.append(Piece(PieceKind.CLOSE))
        hidden = (b"BEGIN", *extras.prologue) if extras.framed else extras.prologue
        self._send_hidden(hidden, pieces)
        for index, statement in enumerate(statements):
            if ledger is not None and index == ledger.behind:
                self._send_user(ledger.statement, extras.unprepared, pieces, PieceKind.LEDGER)
            self._send_user(statement, extras.unprepared, pieces)
        if ledger is not None and ledger.behind == len(statements):
            self._send_user(ledger.statement, extras.unprepared, pieces, PieceKind.LEDGER)
        self._send_hidden(extras.epilogue, pieces)
        if extras.framed:
            self._pgconn.send_query_params(b"ROLLBACK" if extras.undone else b"COMMIT", None)
            pieces.append(Piece(PieceKind.COMMIT))
        return Segment(pieces, framed=extras.framed)

    def _send_hidden(self, queries: Sequence[bytes], pieces: list[Piece]) -> None:
        for query in queries:
            self._pgconn.send_query_params(query, None)
            pieces.append(Piece(PieceKind.HIDDEN))

    def _send_user(
        self, statement: Statement, unprepared: bool, pieces: list[Piece], kind: PieceKind = PieceKind.USER
    ) -> None:
        self._send_found(None if unprepared else self._lookup(statement), statement, kind, pieces)

    def _send_found(
        self, entry: Entry | None, statement: Statement, kind: PieceKind, pieces: list[Piece]
    ) -> None:
        if entry is None:
            self._send_unprepared(statement)
            pieces.append(Piece(kind))
        elif entry.ready:
            self._send_prepared(entry, statement)
            pieces.append(Piece(kind, entry, True))
        else:
            self._parse_and_send(entry, statement, pieces, kind)

    def _parse_and_send(
        self, entry: Entry, statement: Statement, pieces: list[Piece], kind: PieceKind = PieceKind.USER
    ) -> None:
        assert entry.name is not None
        self._pgconn.send_prepare(entry.name, statement.query, statement.types)
        pieces.append(Piece(PieceKind.PARSE, entry, of_ledger=kind is PieceKind.LEDGER))
        self._send_prepared(entry, statement)
        pieces.append(Piece(kind))

    def _send_unprepared(self, statement: Statement) -> None:
        self._pgconn.send_query_params(statement.query, statement.params, statement.types, statement.formats)

    def _send_prepared(self, entry: Entry, statement: Statement) -> None:
        assert entry.name is not None
        self._pgconn.send_query_prepared(entry.name, statement.params, statement.formats)

    @property
    def cache(self) -> StatementCache:
        """The prepared statements of the connection."""
        return self._cache

    def readable(self) -> bool:
        """Return whether the socket holds anything unread, the end of the connection included."""
        return bool(self._poll.poll(0))

    def flush(self) -> bool:
        """Write to the socket, and return whether the kernel has taken everything.

        Raises:
            psycopg.OperationalError: The connection is broken.
        """
        if self._sync_due:
            # libpq writes with the Sync: one call for both.
            self._sync_due = False
            self._pgconn.pipeline_sync()
        return self._pgconn.flush() == 0

    def receive(self, expected: int, limit: int) -> Received:
        """Read what has arrived, without waiting.

        At most ``limit`` answers are taken; ``expected`` is the number of segments in flight.
        """
        pgconn = self._pgconn
        received = Received([])
        try:
            if self._sync_due:
                self.flush()  # libpq writes before it reads
            pgconn.consume_input()
        except psycopg.Error as error:
            received.broken = error
        try:
            self._take_results(received.answers, expected if expected < limit else limit)
        except psycopg.Error as error:
            received.broken = received.broken or error
        if pgconn.notifies() is not None:
            received.notified = self._drop_notifications()
        received.more = expected > limit and len(received.answers) == limit
        if received.broken is None and pgconn.status == _BAD and not received.more:
            received.broken = errors.OperationalError("the connection was closed")
        return received

    def _drop_notifications(self) -> bool:
        """Drop what a LISTEN brings, which libpq would keep for ever; return whether a statement listened."""
        while self._pgconn.notifies() is not None:
            pass
        self.listened = not self._listens
        return self.listened

    def _take_results(self, answers: list[list[PGresult]], limit: int) -> None:
        """Add at most ``limit`` answers to ``answers``."""
        pgconn = self._pgconn
        is_busy, get_result = pgconn.is_busy, pgconn.get_result
        if not limit or self.turned_writable:
            is_busy()  # parses notices and settings, even if no answer is due
            return
        nulls = 0
        while limit and not is_busy():
            result = get_result()
            if result is None:
                # One NULL ends each statement; a second NULL in a row means that nothing is left.
                nulls += 1
                if nulls > 1:
                    return
                continue
            nulls = 0
            status = result.status
            if status == _SYNC:
                if self._unreplicated:
                    # libpq handles a notice before the results behind it, and never a result in advance. So
                    # the notice belongs to this segment: its Sync is kept as a mark for `read_answer`.
                    self._unreplicated = False
                    self._partial.append(result)
                answers.append(self._partial)
                self._partial = []
                self._notice = None
                limit -= 1
                # The server reports a changed setting before the Sync's answer.
                if self._reads and pgconn.parameter_status(_READ_ONLY) != b"on":
                    self.turned_writable = True
                    return
            elif status in _COPIES:
                # A lane never sends COPY; libpq would return this result for ever.
                raise errors.NotSupportedError("COPY cannot be used on a pipelined connection")
            else:
                self._partial.append(result)

    def unfinished(self) -> list[PGresult]:
        """Return the head's results that came without its Sync; used to decide its outcome after a loss."""
        return self._partial

    def ended_by_order(self) -> bool:
        """Return whether the last notice says that an administrator ended the connection.

        The cause was pg_terminate_backend or a shutdown.
        """
        return self._notice is not None and self._notice.sqlstate == ADMIN_SHUTDOWN

    def ended_by_crash(self) -> bool:
        """Return whether the last notice says that the server ends all connections after a crash.

        The process that crashed may be that of another connection.
        """
        return self._crashed or (self._notice is not None and self._notice.sqlstate == CRASH_SHUTDOWN)

    @property
    def unreplicated(self) -> bool:
        """Whether the server warned that the head's commit no longer waits for its standby."""
        return self._unreplicated

    async def cancel(self) -> None:
        """Ask the server to cancel what the connection runs; see `pgha._wire.connect.cancel`."""
        await cancel(self._pgconn)

    def read_only(self) -> bool:
        """Return whether the server reports that the connection's transactions are read-only by default."""
        status = self._pgconn.parameter_status
        return b"on" in (status(b"default_transaction_read_only"), status(b"in_hot_standby"))

    def moved(self) -> int:
        """Return the bytes carried so far, both ways; see `tcp_info`."""
        return tcp_info.moved(self.fd)

    def unsent(self) -> int:
        """Return the number of bytes written that the other kernel has not confirmed; see `tcp_info`."""
        return tcp_info.unsent(self.fd)

    def finish(self) -> None:
        """Close the connection, without waiting; no task may be waiting for ``fd`` any more."""
        if not self._finished:
            self._finished = True
            self._pointer = None
            self._pgconn.finish()
            os.close(self.fd)
