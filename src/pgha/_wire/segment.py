"""Segments (everything that an operation sends up to its Sync), and the reading of their answers.

The pieces of a segment, in order: Close of evicted statements, BEGIN (framed), a hidden prologue, the
ledger's statement (keyed), the user's statements (each with its Parse, the first time), a hidden follow-up,
COMMIT (framed). libpq gives one result per piece, whatever happens: an error for the piece that failed,
"aborted" for the pieces behind that one.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from psycopg import pq
from psycopg.pq.abc import PGresult

from pgha._core.outcome import ServerError
from pgha._core.statements import Entry

_SQLSTATE = pq.DiagnosticField.SQLSTATE
_SEVERITY = pq.DiagnosticField.SEVERITY_NONLOCALIZED
FATAL_ERROR = pq.ExecStatus.FATAL_ERROR
PIPELINE_ABORTED = pq.ExecStatus.PIPELINE_ABORTED
PIPELINE_SYNC = pq.ExecStatus.PIPELINE_SYNC


_GOOD = frozenset({pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK, pq.ExecStatus.EMPTY_QUERY})


class PieceKind(enum.Enum):
    """The kinds of pieces; HIDDEN is BEGIN, the prologue and the follow-up."""

    CLOSE = enum.auto()
    PARSE = enum.auto()
    USER = enum.auto()
    HIDDEN = enum.auto()
    LEDGER = enum.auto()
    COMMIT = enum.auto()


@dataclass(slots=True)
class Piece:
    """A part of a segment that libpq answers with one result."""

    kind: PieceKind
    entry: Entry | None = None
    reused: bool = False
    of_ledger: bool = False
    """Whether a PARSE belongs to the ledger's statement."""


@dataclass(slots=True)
class Segment:
    """A segment as sent; never changed.

    ``pieces`` is None in the usual case: one user statement, behind the ledger's statement if the segment is
    ``keyed``, and nothing else.
    """

    pieces: list[Piece] | None = None
    entry: Entry | None = None
    """The prepared statement that was reused, in the usual case."""
    framed: bool = False
    keyed: bool = False
    ledger: Entry | None = None
    """The ledger's prepared statement that was reused, in the usual case."""

    def expected(self) -> int:
        """Return the number of CommandCompletes that the server must send."""
        if self.pieces is None:
            return 1 + self.keyed
        return sum(1 for piece in self.pieces if piece.kind not in (PieceKind.CLOSE, PieceKind.PARSE))

    def listed(self) -> list[Piece]:
        """Return the list of pieces, also in the usual case."""
        if self.pieces is not None:
            return self.pieces
        user = Piece(PieceKind.USER, self.entry, self.entry is not None)
        return [Piece(PieceKind.LEDGER, self.ledger, self.ledger is not None), user] if self.keyed else [user]


@dataclass(slots=True)
class Answer:
    """The answer to a segment, up to its Sync or up to the end of the connection."""

    results: list[PGresult] = field(default_factory=list)
    """The results of the user's statements, in order."""
    error: PGresult | None = None
    fault: ServerError | None = None
    statement: int | None = None
    """The index of the user's statement that failed."""
    completed: int = 0
    commit_tag: str | None = None
    parsed: list[Entry] = field(default_factory=list)
    unparsed: list[Entry] = field(default_factory=list)
    spoiled: Entry | None = None
    """The reused statement that failed."""
    at_ledger: bool = False
    """Whether the ledger's statement failed."""
    unreplicated: bool = False
    """Whether the segment was committed, but the wait for its synchronous standby was broken off."""
    protocol_mismatch: bool = False
    """Whether there is no error, but the results are not those that the segment must have. Without a Sync
    this means that the connection ended; with a Sync, the connection can no longer be trusted."""


def plain_success(segment: Segment, results: Sequence[PGresult]) -> bool:
    """Return whether this is the usual case: one statement, which succeeded (so the ledger's did, too)."""
    return (
        segment.pieces is None and len(results) == (2 if segment.keyed else 1) and results[-1].status in _GOOD
    )


def fault_of(result: PGresult, reused: bool) -> ServerError:
    """Return the error in ``result`` in the form that `pgha._core.outcome` takes."""
    state = result.error_field(_SQLSTATE) or b""
    severity = result.error_field(_SEVERITY) or b""
    return ServerError(state.decode("ascii", "replace"), severity.decode("ascii", "replace"), reused)


def read_answer(segment: Segment, results: Sequence[PGresult]) -> Answer:
    """Assign the results of a segment to its pieces; fewer results than pieces mean a lost connection.

    A Sync is behind the results only if the server warned that the commit is not replicated.
    """
    answer = Answer()
    if results and results[-1].status == PIPELINE_SYNC:
        answer.unreplicated = True
        results = results[:-1]
    pieces = segment.listed()
    index = -1
    for number, piece in enumerate(pieces):
        if piece.kind is PieceKind.USER:
            index += 1
        result = results[number] if number < len(results) else None
        if result is None or result.status in (FATAL_ERROR, PIPELINE_ABORTED):
            _failed(answer, piece, result, index)
        else:
            _succeeded(answer, piece, result)
    if len(results) > len(pieces) and answer.error is None:
        # The connection ended with an error after the last statement: at the Sync, or behind the Sync.
        _late_error(answer, results[len(pieces) :])
    answer.protocol_mismatch = answer.fault is None and not _fits(pieces, results)
    return answer


def _fits(pieces: Sequence[Piece], results: Sequence[PGresult]) -> bool:
    """Return whether there is exactly one result per piece and none was skipped, as there must be."""
    skipped = any(result.status == PIPELINE_ABORTED for result in results)
    return len(results) == len(pieces) and not skipped


def _succeeded(answer: Answer, piece: Piece, result: PGresult) -> None:
    if piece.kind is PieceKind.PARSE:
        assert piece.entry is not None
        answer.parsed.append(piece.entry)
    elif piece.kind is not PieceKind.CLOSE:
        answer.completed += 1
        if piece.kind is PieceKind.USER:
            answer.results.append(result)
        elif piece.kind is PieceKind.COMMIT:
            answer.commit_tag = (result.command_status or b"").decode("ascii", "replace")


def _failed(answer: Answer, piece: Piece, result: PGresult | None, index: int) -> None:
    if piece.kind is PieceKind.PARSE and piece.entry is not None:
        answer.unparsed.append(piece.entry)
    if result is None or result.status != FATAL_ERROR or answer.error is not None:
        return
    answer.error = result
    answer.fault = fault_of(result, piece.reused)
    # libpq's own error, at the end of the connection, takes the place of the next answer, whichever it is.
    answer.at_ledger = answer.fault.genuine and (piece.kind is PieceKind.LEDGER or piece.of_ledger)
    if piece.kind is PieceKind.USER:
        answer.statement = index
    elif piece.kind is PieceKind.PARSE and not piece.of_ledger:
        answer.statement = index + 1
    if piece.reused:
        answer.spoiled = piece.entry


def _late_error(answer: Answer, results: Sequence[PGresult]) -> None:
    for result in results:
        if result.status == FATAL_ERROR:
            answer.error = result
            answer.fault = fault_of(result, False)
            return
