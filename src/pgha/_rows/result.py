"""What an operation gives: the rows, and what is known about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar, final, get_args, overload

from psycopg import DataError

from pgha._errors import ConfigError, RowsLost
from pgha._rows.columns import NO_COLUMNS, Columns, Duplicates, Raw, distinct
from pgha._rows.json import Bytea, Choices, NonFinite, Timestamps, to_json
from pgha._rows.models import make_models

Row = TypeVar("Row", covariant=True)
M = TypeVar("M")


@final
class Result(Sequence[Row], Generic[Row]):
    """The rows of one statement, complete and in memory, as a sequence that does not change.

    A statement that gives no rows (INSERT without RETURNING, say) is an empty sequence; its ``rowcount``
    tells how many rows it touched. Made by pgha alone.
    """

    __slots__ = (
        "_attempts", "_columns", "_command", "_latency", "_node", "_raw", "_replayed", "_rowcount",
        "_rows", "_scalar",
    )  # fmt: skip

    def __init__(
        self,
        rows: Sequence[Row],
        columns: Columns,
        rowcount: int,
        command: bytes,
        node: str,
        attempts: int,
        latency: float,
        raw: Raw = None,
        scalar: bool = False,
        replayed: bool = False,
    ) -> None:
        self._rows = rows
        self._columns = columns
        self._raw = raw
        self._scalar = scalar
        self._rowcount = rowcount
        self._command = command
        self._node = node
        self._attempts = attempts
        self._latency = latency
        self._replayed = replayed

    @classmethod
    def lost(cls, node: str, attempts: int, latency: float) -> Result[Any]:
        """For pgha: of a write that an earlier attempt had applied, whose answer nobody has."""
        return Result(_Lost(), NO_COLUMNS, -1, b"", node, attempts, latency, replayed=True)

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
        if self._replayed:
            return f"<Result replayed from {self._node}>"
        return f"<Result {self.command!r} of {len(self._rows)} rows from {self._node}>"

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in order; empty when the statement gives no rows, and when replayed."""
        return self._columns.names

    @property
    def rowcount(self) -> int:
        """Rows given or touched; -1 for statements that do not count (CREATE TABLE, say)."""
        if self._replayed:
            raise RowsLost(_LOST)
        return self._rowcount

    @property
    def command(self) -> str:
        """The server's command tag, such as ``INSERT 0 1``; empty when replayed."""
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
        """Whether an earlier attempt had applied the operation already, as the ledger says.

        Its rows, and their number, were lost with that attempt's connection: asking for them raises
        `pgha.RowsLost`. False without a key.
        """
        return self._replayed

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
        row: Any = self.one()
        return row if self._scalar else first_column(row, self._columns.names)

    def dicts(self, *, duplicates: Duplicates = "error") -> list[dict[str, Any]]:
        """The rows as dicts by column name, whose values are as psycopg loads them.

        Two columns of one name are a `psycopg.DataError`, or become ``id`` and ``id_2`` with
        ``duplicates="number"``. For rows that are tuples or dicts; others do not say what they hold.
        """
        _check("duplicates", duplicates, Duplicates)
        names = self._columns.names
        keys = distinct(names, duplicates)
        # A dict has lost one of two columns of one name.
        whole = not self._scalar and len(set(names)) == len(names)
        records: list[dict[str, Any]] = []
        for row in self._rows:
            if isinstance(row, dict) and whole:
                records.append(dict(row))
            elif isinstance(row, tuple) and len(row) == len(keys) and not self._scalar:
                records.append(dict(zip(keys, row, strict=True)))
            else:
                raise DataError(
                    f"the row factory made {type(row).__name__}, which does not hold every column: dicts() "
                    "and into() need tuples, or dicts of columns with different names"
                )
        return records

    def into(self, model: type[M]) -> list[M]:
        """The rows as objects of a class: a dataclass, or one of attrs, pydantic or msgspec.

        Columns are fields by name. A row that does not fit raises `psycopg.DataError` with the row (counted
        from 0), the column and the reason. pydantic and msgspec validate and convert in their own way; for
        other classes, values must be instances of what plain annotations say, since nothing is converted.
        """
        return make_models(model, self.dicts(), self._columns.names)

    def json(
        self,
        *,
        timestamps: Timestamps = "iso",
        bytea: Bytea = "base64",
        non_finite: NonFinite = "error",
        duplicates: Duplicates = "error",
    ) -> str:
        """The rows as JSON: one array with one object a row, whatever the row factory made of them.

        Made from what the server sent, so nothing is lost on the way: numbers keep all their digits, ``json``
        and ``jsonb`` are embedded as they are, arrays are arrays, ``"char"`` is 0 to 255. A composite type is
        an object once it was registered (``psycopg.types.composite.register_composite(info, cluster)``). All
        other types (ranges, intervals, inet, tsvector, enums, arrays of types that psycopg does not know) are
        strings, as PostgreSQL writes them.

        psycopg cannot load infinite timestamps, years before 1 and after 9999: the operation fails with its
        `psycopg.DataError` before there is a result, unless such columns are loaded as text
        (``cluster.adapters.register_loader("timestamptz", TextLoader)``).

        Args:
            timestamps: ``"iso"`` writes date, timestamp and timestamptz as ISO 8601, ``"epoch"`` as seconds
                since 1970 (without a time zone: taken as UTC), exact to the microsecond.
            bytea: ``"base64"`` or ``"hex"``.
            non_finite: NaN and the infinities, which JSON lacks, of numbers and timestamps: a
                `psycopg.DataError` that names the column, or with ``"string"`` strings.
            duplicates: as in `dicts`.
        """
        _check("timestamps", timestamps, Timestamps)
        _check("bytea", bytea, Bytea)
        _check("non_finite", non_finite, NonFinite)
        _check("duplicates", duplicates, Duplicates)
        columns, count = self._columns, len(self._rows)
        keys = distinct(columns.names, duplicates)
        if not count:
            return "[]"
        how = Choices(timestamps, bytea, non_finite)
        return to_json(columns, keys, self._raw, count, how)


_LOST = (
    "the write was applied by an earlier attempt, and its rows were lost with the connection: ask for them"
    " with fetch, or let the statement's own key find them"
)


class _Lost(Sequence[Any]):
    """Rows that nobody has any more."""

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        raise RowsLost(_LOST)

    def __len__(self) -> int:
        raise RowsLost(_LOST)

    def __iter__(self) -> Iterator[Any]:
        raise RowsLost(_LOST)


def _check(name: str, given: object, allowed: Any) -> None:
    words = get_args(allowed)
    if given not in words:
        raise ConfigError(f"{name} is {' or '.join(map(repr, words))}, not {given!r}")


def first_column(row: Any, columns: tuple[str, ...]) -> Any:
    """The value of the first column, whatever kind of row the row factory made."""
    if isinstance(row, dict):
        return row[columns[0]]
    if isinstance(row, Sequence) and not isinstance(row, (str, bytes)):
        return row[0]
    if len(columns) == 1 and not hasattr(row, columns[0]):
        return row
    return getattr(row, columns[0])
