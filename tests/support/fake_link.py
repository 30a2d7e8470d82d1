"""A connection in memory for lanes: a test plays the server, segment by segment, and no socket is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

from pgha._core.statements import Entry, StatementCache
from pgha._rows.columns import NO_COLUMNS
from pgha._rows.result import Result
from pgha._wire.compiler import Statement
from pgha._wire.link import NO_EXTRAS, Extras, LedgerPart, Received
from pgha._wire.segment import Piece, PieceKind, Segment


class FakeResult:
    """The result of a statement that succeeded, which the loader turns into one row: the statement's text."""

    status = ExecStatus.COMMAND_OK
    command_status = b"INSERT 0 1"
    ntuples = 100

    def get_value(self, row: int, column: int) -> bytes | None:
        return None

    def __init__(self, text: str) -> None:
        self.text = text


class FakeError:
    """An error as the server reports it."""

    status = ExecStatus.FATAL_ERROR
    ntuples = 0
    error_message = b"ERROR:  made up"

    def __init__(self, sqlstate: str, severity: str = "ERROR") -> None:
        self._fields = {"SQLSTATE": sqlstate, "SEVERITY_NONLOCALIZED": severity, "MESSAGE_PRIMARY": "made up"}

    def get_error_message(self, encoding: str = "utf-8") -> str:
        return self.error_message.decode(encoding)

    def error_field(self, code: Any) -> bytes | None:
        found = self._fields.get(code.name)
        return None if found is None else found.encode()


@dataclass(eq=False)
class FakeLink:
    """A `pgha._wire.protocol.PipelinedConnection` whose server is the test.

    `sent` holds what was handed over, `written` what was flushed. `answer` queues an answer for the lane.
    """

    pid: int = 1
    tls: bool = False
    listened: bool = False
    turned_writable: bool = False
    sent: list[list[str]] = field(default_factory=list)
    """The texts of the pieces of each segment that has its Sync."""
    answered: int = 0
    handed: list[str] = field(default_factory=list)
    """The order of calls: the text of each statement, and ``Sync``."""
    written: int = 0
    cancels: int = 0
    finished: bool = False
    unreplicated: bool = False
    kept: bool = True
    parts: int = 1
    """The number of parts in which a result is loaded."""
    on_piece: Callable[[], object] | None = None
    """Called between any two pieces that the real connection hands to libpq."""
    on_load: Callable[[], object] | None = None
    on_flush: Callable[[], object] | None = None
    """Called before anything is written."""
    on_received: Callable[[], object] | None = None
    """Called when the lane has taken the answers, before it handles them."""
    answers: list[list[Any]] = field(default_factory=list)
    ended: BaseException | None = None
    cache: StatementCache = field(default_factory=lambda: StatementCache(None, 1))

    def __post_init__(self) -> None:
        self.fd, self._other = os.pipe()

    # The test's side

    def answer(self, *results: Any) -> None:
        """Have the lane find these results for the oldest segment that has none; by default, success."""
        pieces = self.sent[self.answered]
        self.answered += 1
        self.answers.append(list(results) or [FakeResult(text) for text in pieces])

    @property
    def unanswered(self) -> int:
        """How many segments were written and have no answer."""
        return self.written - self.answered

    def end(self, reason: str = "the connection was closed") -> None:
        """Have the lane find that the connection ended."""
        self.ended = psycopg.OperationalError(reason)

    # The lane's side

    def send(
        self, statements: Sequence[Statement], extras: Extras = NO_EXTRAS, ledger: LedgerPart | None = None
    ) -> Segment:
        pieces, texts = [], []
        if ledger is not None:
            texts.append("ledger")
            self._hand("ledger")
            pieces.append(Piece(PieceKind.LEDGER))
        for one in statements:
            texts.append(one.query.decode())
            self._hand(texts[-1])
            pieces.append(Piece(PieceKind.USER))
        self._hand("Sync")
        self.sent.append(texts)
        return Segment(pieces, framed=extras.framed)

    def _hand(self, what: str) -> None:
        self.handed.append(what)
        if self.on_piece is not None:
            self.on_piece()

    def flush(self) -> bool:
        if self.on_flush is not None:
            self.on_flush()
        self.written = len(self.sent)
        return True

    def readable(self) -> bool:
        return bool(self.answers) or self.ended is not None

    def receive(self, expected: int, limit: int) -> Received:
        count = min(expected, limit)
        found, self.answers = self.answers[:count], self.answers[count:]
        received = Received(found, more=bool(self.answers), broken=None if self.answers else self.ended)
        if self.on_received is not None:
            self.on_received()
        return received

    def load(
        self, pgresult: PGresult, entry: Entry | None, row_factory: Callable[[Any], Any], node: str,
        attempts: int, latency: float,
    ) -> Result[Any]:  # fmt: skip
        if self.on_load is not None:
            self.on_load()
        assert isinstance(pgresult, FakeResult)
        return Result((pgresult.text,), NO_COLUMNS, 1, b"SELECT 1", node, attempts, latency)

    def many(self, pgresult: PGresult) -> bool:
        return self.parts > 1

    def load_in_parts(
        self, pgresult: PGresult, entry: Entry | None, row_factory: Callable[[Any], Any], node: str,
        attempts: int, latency: float,
    ) -> Generator[None, None, Result[Any]]:  # fmt: skip
        for _ in range(self.parts - 1):
            yield
        return self.load(pgresult, entry, row_factory, node, attempts, latency)

    async def cancel(self) -> None:
        self.cancels += 1

    def unfinished(self) -> list[PGresult]:
        return []

    def clean(self) -> bool:
        return self.kept

    def settings_kept(self) -> bool:
        return self.kept

    def closing_notice(self) -> str:
        return ""

    def ended_by_order(self) -> bool:
        return False

    def ended_by_crash(self) -> bool:
        return False

    def read_only(self) -> bool:
        return False

    def moved(self) -> int:
        return self.written

    def unsent(self) -> int:
        return 0

    def finish(self) -> None:
        if not self.finished:
            self.finished = True
            os.close(self.fd)
            os.close(self._other)
