"""`Result`: the rows of one statement, and facts about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar, final, get_args, overload

from psycopg import DataError

from pgha._errors import ConfigError, RowsLost
from pgha._rows.columns import (
    NO_COLUMNS,
    Bytea,
    Columns,
    Duplicates,
    NonFinite,
    Raw,
    Timestamps,
    distinct,
)  # fmt: skip

Row = TypeVar("Row", covariant=True)
M = TypeVar("M")


@final
class Result(Sequence[Row], Generic[Row]):
    """The rows of one statement, complete and in memory: an immutable sequence, made by pgha only.

    A statement without rows (INSERT without RETURNING, say) gives an empty sequence; ``rowcount`` is the
    number of rows it changed.

    Example::

        result = await cluster.fetch("SELECT id, name FROM item ORDER BY id")
        for item_id, name in result:
            print(item_id, name)
        print(result.columns, result.node, result.json())
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
        """Internal: make the result of a replayed write, whose answer was lost."""
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
        """Compare with another result or a list by their rows."""
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
        """Column names in order; empty if the statement gives no rows, and for a replayed write."""
        return self._columns.names

    @property
    def rowcount(self) -> int:
        """Number of rows returned or changed; -1 for statements without a count (CREATE TABLE, say).

        Raises `RowsLost` for a replayed write.
        """
        if self._replayed:
            raise RowsLost(_LOST)
        return self._rowcount

    @property
    def command(self) -> str:
        """The server's command tag, such as ``INSERT 0 1``; empty for a replayed write."""
        return self._command.decode("utf-8", "replace")

    @property
    def node(self) -> str:
        """Name of the node that answered."""
        return self._node

    @property
    def attempts(self) -> int:
        """Number of attempts, which is how many times the operation was handed to a node; normally 1."""
        return self._attempts

    @property
    def latency(self) -> float:
        """Seconds from the operation's start to its answer, waiting and retries included."""
        return self._latency

    @property
    def replayed(self) -> bool:
        """Whether the ledger showed that an earlier attempt had applied the write.

        The rows and their number were lost with that attempt's answer: requesting them raises `RowsLost`.
        Always false without an idempotency key.
        """
        return self._replayed

    def one(self) -> Row:
        """Return the only row.

        Returns:
            The row.

        Raises:
            psycopg.DataError: There is no row, or more than one.
            RowsLost: The result is that of a replayed write.
        """
        if len(self._rows) != 1:
            raise DataError(f"expected exactly one row, got {len(self._rows)}")
        return self._rows[0]

    def one_or_none(self) -> Row | None:
        """Return the only row, or None if there is no row.

        Returns:
            The row, or None.

        Raises:
            psycopg.DataError: There is more than one row.
            RowsLost: The result is that of a replayed write.
        """
        if len(self._rows) > 1:
            raise DataError(f"expected at most one row, got {len(self._rows)}")
        return self._rows[0] if self._rows else None

    def value(self) -> Any:
        """Return the first column of the only row.

        Returns:
            The value.

        Raises:
            psycopg.DataError: There is no row, or more than one.
            RowsLost: The result is that of a replayed write.
        """
        row: Any = self.one()
        return row if self._scalar else first_column(row, self._columns.names)

    def dicts(self, *, duplicates: Duplicates = "error") -> list[dict[str, Any]]:
        """Return the rows as dicts by column name.

        The values are those that psycopg loaded. The rows must be tuples or dicts: other row types do not
        tell their columns.

        Args:
            duplicates: ``"error"`` (the default) raises `psycopg.DataError` for two columns of the same name.
                ``"number"`` renames the second one, from ``id`` to ``id_2``.

        Returns:
            One new dict per row.

        Raises:
            psycopg.DataError: Two columns have the same name, or the row factory made other objects than
                tuples or dicts.
            RowsLost: The result is that of a replayed write.
            ConfigError: ``duplicates`` is neither ``"error"`` nor ``"number"``.
        """
        _check("duplicates", duplicates, Duplicates)
        names = self._columns.names
        keys = distinct(names, duplicates)
        # A dict cannot contain two columns of the same name.
        whole = not self._scalar and len(set(names)) == len(names)
        records: list[dict[str, Any]] = []
        for row in self._rows:
            if isinstance(row, dict) and whole:
                records.append(dict(row))
            elif isinstance(row, tuple) and len(row) == len(keys) and not self._scalar:
                records.append(dict(zip(keys, row, strict=True)))
            else:
                raise DataError(
                    f"the row factory made {type(row).__name__}, which does not contain every column: use row"
                    " factories for tuples, or for dicts with distinct column names, with dicts() and into()"
                )
        return records

    def into(self, model: type[M]) -> list[M]:
        """Return the rows as objects of a class: a dataclass, or a class of attrs, pydantic or msgspec.

        Columns and fields match by name. pydantic and msgspec validate and convert in their own way. For
        other classes, values must be instances of their annotated types; nothing is converted.

        Args:
            model: The class.

        Returns:
            One object per row.

        Raises:
            psycopg.DataError: A row does not fit. The message contains the row (counted from 0), the column
                and the reason.
            RowsLost: The result is that of a replayed write.
            ConfigError: ``model`` is not a class.
        """
        # Here and in `json`: what few programs use is imported by those, not by `import pgha`.
        from pgha._rows.models import make_models

        return make_models(model, self.dicts(), self._columns.names)

    def json(
        self,
        *,
        timestamps: Timestamps = "iso",
        bytea: Bytea = "base64",
        non_finite: NonFinite = "error",
        duplicates: Duplicates = "error",
    ) -> str:
        """Return the rows as JSON: one array with one object per row, independent of the row factory.

        The text is made from the server's values, so nothing is lost: numbers keep all their digits, ``json``
        and ``jsonb`` are embedded unchanged, arrays are arrays, ``"char"`` is 0 to 255. A composite type
        becomes an object if it is registered (``psycopg.types.composite.register_composite(info, cluster)``).
        All other types (ranges, intervals, inet, tsvector, enums, arrays of types unknown to psycopg) become
        strings, as PostgreSQL writes them.

        psycopg cannot load infinite timestamps, and years before 1 or after 9999. The operation then fails
        with psycopg's `psycopg.DataError` before there is a result. To avoid the error, load such columns as
        text (``cluster.adapters.register_loader("timestamptz", TextLoader)``).

        Args:
            timestamps: ``"iso"`` (the default) writes date, timestamp and timestamptz as ISO 8601.
                ``"epoch"`` writes seconds since 1970, exact to the microsecond; a value without a time zone
                is taken as UTC.
            bytea: ``"base64"`` (the default) or ``"hex"``.
            non_finite: ``"error"`` (the default) raises `psycopg.DataError` for NaN and infinity in numbers
                and timestamps, which JSON lacks. ``"string"`` writes them as strings.
            duplicates: As for `dicts`.

        Returns:
            The JSON text.

        Raises:
            psycopg.DataError: A value has no JSON form, or two columns have the same name. The message names
                the column.
            RowsLost: The result is that of a replayed write.
            ConfigError: An argument is not one of the values above.
        """
        from pgha._rows.json import Choices, to_json

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
    "the write was applied by an earlier attempt, and its rows were lost with the connection: read them"
    " with fetch"
)


class _Lost(Sequence[Any]):
    """Rows that were lost with the answer of an earlier attempt."""

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
        raise ConfigError(f"{name} must be {' or '.join(map(repr, words))}, not {given!r}")


def first_column(row: Any, columns: tuple[str, ...]) -> Any:
    """Return the value of the first column, for any kind of row."""
    if isinstance(row, dict):
        return row[columns[0]]
    if isinstance(row, Sequence) and not isinstance(row, (str, bytes)):
        return row[0]
    if len(columns) == 1 and not hasattr(row, columns[0]):
        return row
    return getattr(row, columns[0])
