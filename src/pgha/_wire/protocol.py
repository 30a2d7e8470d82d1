"""The interface between a lane and its connection, so that a test can put another connection there."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

from psycopg.pq.abc import PGresult

from pgha._core.statements import Entry, StatementCache
from pgha._rows.result import Result
from pgha._wire.compiler import Statement
from pgha._wire.link import Extras, LedgerPart, Received
from pgha._wire.segment import Segment


class PipelinedConnection(Protocol):
    """A pipelined connection: whole segments in, whole answers out; `pgha._wire.link.Link` is the real one.

    Only `cancel` waits. No method calls back.
    """

    fd: int
    """The descriptor that is readable when something has arrived."""
    pid: int
    tls: bool
    turned_writable: bool
    """Whether a statement ended the read-only mode of this connection for reads."""
    listened: bool
    """Whether a statement has made the session listen for notifications."""

    @property
    def cache(self) -> StatementCache:
        """The prepared statements of the connection."""
        ...

    @property
    def unreplicated(self) -> bool:
        """Whether the server warned that the head's commit no longer waits for its standby."""
        ...

    def send(
        self, statements: Sequence[Statement], extras: Extras = ..., ledger: LedgerPart | None = None
    ) -> Segment:
        """Take a whole segment, which the next `flush` writes.

        Raises:
            SendFailed: The connection must be finished once everything that still arrives was received.
        """
        ...

    def flush(self) -> bool:
        """Write to the socket, and return whether the kernel has taken everything.

        Raises:
            psycopg.OperationalError: The connection is broken.
        """
        ...

    def readable(self) -> bool:
        """Return whether the socket holds anything unread, the end of the connection included."""
        ...

    def receive(self, expected: int, limit: int) -> Received:
        """Read what has arrived, without waiting: at most ``limit`` answers of the ``expected`` ones."""
        ...

    def load(
        self, pgresult: PGresult, entry: Entry | None, row_factory: Callable[[Any], Any], node: str,
        attempts: int, latency: float,
    ) -> Result[Any]:  # fmt: skip
        """Return the rows of a result; raise what a loader or the row factory raises."""
        ...

    def many(self, pgresult: PGresult) -> bool:
        """Return whether a result is so large that it should be loaded in parts."""
        ...

    def load_in_parts(
        self, pgresult: PGresult, entry: Entry | None, row_factory: Callable[[Any], Any], node: str,
        attempts: int, latency: float,
    ) -> Generator[None, None, Result[Any]]:  # fmt: skip
        """Do what `load` does, in parts; yield between two of them."""
        ...

    async def cancel(self) -> None:
        """Ask the server to cancel what the connection runs.

        Raises:
            psycopg.Error: The request was refused, or may or may not arrive.
        """
        ...

    def unfinished(self) -> list[PGresult]:
        """Return the head's results that came without its Sync."""
        ...

    def clean(self) -> bool:
        """Return whether the session is unchanged since the lane opened; only with nothing in flight."""
        ...

    def settings_kept(self) -> bool:
        """Return whether none of the settings that the server reports was changed."""
        ...

    def closing_notice(self) -> str:
        """Return the server's last notice if it is about the end of the connection, else an empty text."""
        ...

    def ended_by_order(self) -> bool:
        """Return whether an administrator ended the connection, by the server's last notice."""
        ...

    def ended_by_crash(self) -> bool:
        """Return whether the server ends all connections after a crash, by its last notice."""
        ...

    def read_only(self) -> bool:
        """Return whether the server reports that the connection's transactions are read-only by default."""
        ...

    def moved(self) -> int:
        """Return the bytes carried so far, both ways."""
        ...

    def unsent(self) -> int:
        """Return the number of bytes written that the other kernel has not confirmed."""
        ...

    def finish(self) -> None:
        """Close the connection, without waiting."""
        ...
