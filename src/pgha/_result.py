"""What an operation gives: the rows, and what is known about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar, final, overload

from psycopg import DataError

Row = TypeVar("Row", covariant=True)


@final
class Result(Sequence[Row], Generic[Row]):
    """The rows of one statement, complete and in memory, as a sequence that does not change.

    A statement that gives no rows (INSERT without RETURNING, say) is an empty sequence; its ``rowcount``
    tells how many rows it touched. Made by pgha alone.
    """

    __slots__ = ("_attempts", "_columns", "_command", "_latency", "_node", "_rowcount", "_rows")

    def __init__(
        self,
        rows: Sequence[Row],
        columns: tuple[str, ...],
        rowcount: int,
        command: bytes,
        node: str,
        attempts: int,
        latency: float,
    ) -> None:
        self._rows = rows
        self._columns = columns
        self._rowcount = rowcount
        self._command = command
        self._node = node
        self._attempts = attempts
        self._latency = latency

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def __eq__(self, other: object) -> bool:
        """Equal to another result or list with the same rows."""
        if isinstance(other, Result):
            return list(self._rows) == list(other._rows)
        return list(self._rows) == other if isinstance(other, list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Result {self.command!r} of {len(self._rows)} rows from {self._node}>"

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in order; empty when the statement gives no rows."""
        return self._columns

    @property
    def rowcount(self) -> int:
        """Rows given or touched; -1 for statements that do not count (CREATE TABLE, say)."""
        return self._rowcount

    @property
    def command(self) -> str:
        """The server's command tag, such as ``INSERT 0 1``."""
        return self._command.decode("utf-8", "replace")

    @property
    def node(self) -> str:
        """Name of the node that answered."""
        return self._node

    @property
    def attempts(self) -> int:
        """How many times the operation was handed to a node; 1 when nothing went wrong."""
        return self._attempts

    @property
    def latency(self) -> float:
        """Seconds from the operation's start to its answer, waiting and repetitions included."""
        return self._latency

    @property
    def replayed(self) -> bool:
        """Whether an earlier attempt had applied the operation already. False without a ledger."""
        return False

    def one(self) -> Row:
        """The only row; `psycopg.DataError` when there is none, or more than one."""
        if len(self._rows) != 1:
            raise DataError(f"expected one row, got {len(self._rows)}")
        return self._rows[0]

    def one_or_none(self) -> Row | None:
        """The only row, or None when there is none; `psycopg.DataError` when there are more."""
        if len(self._rows) > 1:
            raise DataError(f"expected one row at most, got {len(self._rows)}")
        return self._rows[0] if self._rows else None

    def value(self) -> Any:
        """The first column of the only row; `psycopg.DataError` when there is not exactly one row."""
        return first_column(self.one(), self._columns)


def first_column(row: Any, columns: tuple[str, ...]) -> Any:
    """The value of the first column, whatever kind of row the row factory made."""
    if isinstance(row, dict):
        return row[columns[0]]
    if isinstance(row, Sequence) and not isinstance(row, (str, bytes)):
        return row[0]
    if len(columns) == 1 and not hasattr(row, columns[0]):
        return row
    return getattr(row, columns[0])
