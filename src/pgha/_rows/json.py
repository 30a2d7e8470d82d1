"""A result as JSON, made from the server's text: no value passes through Python, so none loses precision.

Each type has a function that makes JSON of a whole column at once. NULLs are removed before the call, and
inserted again afterwards. A value without a JSON form raises `Unfit`; the caller adds the column's name.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from json.encoder import encode_basestring
from typing import Any, TypeAlias

import psycopg
from psycopg import DataError
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.types import TypeInfo, TypesRegistry
from psycopg.types.array import register_array
from psycopg.types.composite import CompositeInfo, RecordLoader
from psycopg.types.string import TextLoader

from pgha._rows.columns import AS_TEXT, Bytea, Columns, NonFinite, Raw, Timestamps, texts
from pgha._rows.timestamps import NotIso, epoch, iso

Format: TypeAlias = Callable[[list[str]], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Choices:
    """The options of `Result.json` for values without an obvious JSON form."""

    timestamps: Timestamps = "iso"
    bytea: Bytea = "base64"
    non_finite: NonFinite = "error"


class Unfit(Exception):
    """Raised for a value that has no JSON form."""


def _oids(*names: str) -> frozenset[int]:
    return frozenset(psycopg.adapters.types[name].oid for name in names)


_NUMBERS = _oids("int2", "int4", "int8", "oid", "float4", "float8", "numeric")
_JSON = _oids("json", "jsonb")
_INSTANTS = _oids("date", "timestamp", "timestamptz")
_BOOL, _BYTEA, _CHAR = (psycopg.adapters.types[name].oid for name in ("bool", "bytea", '"char"'))
_NOT_FINITE = frozenset({"NaN", "Infinity", "-Infinity", "infinity", "-infinity"})
_BOOLS = {"t": "true", "f": "false"}


def to_json(columns: Columns, keys: Sequence[str], raw: Raw, count: int, how: Choices) -> str:
    """Return one array of ``count`` objects. Raises `psycopg.DataError`, which names the column."""
    if not keys:
        return f"[{','.join(['{}'] * count)}]"
    formats = [format_of(oid, columns.types, how) for oid in columns.oids]
    parts: list[str] = []
    for chunk in texts(raw, len(keys)):
        written: list[Iterable[str]] = []
        for name, write, column in zip(columns.names, formats, chunk, strict=True):
            try:
                written.append(with_nulls(write, column))
            except Unfit as error:
                raise DataError(f'column "{name}": {error}') from None
        parts.append(",".join(_objects(keys, written)))
    return f"[{','.join(parts)}]"


def _objects(keys: Sequence[str], columns: Sequence[Iterable[str]]) -> Iterable[str]:
    """Return one object per row of ``columns``, which has at least one column."""
    pieces: list[Iterable[str]] = []
    for key, column in zip(keys, columns, strict=True):
        pieces += repeat(f"{',' if pieces else '{'}{encode_basestring(key)}:"), column
    # map and zip run in C: no bytecode runs per row.
    return map("".join, zip(*pieces, repeat("}")))


def with_nulls(write: Format, column: list[str | None]) -> Iterable[str]:
    """Apply ``write`` to a column that may contain NULLs."""
    if None not in column:
        return write(column)  # type: ignore[arg-type]
    written = iter(write([text for text in column if text is not None]))
    return ["null" if text is None else next(written) for text in column]


def format_of(oid: int, types: TypesRegistry, how: Choices) -> Format:
    """Return the function that converts values of a type to JSON; unknown types become strings."""
    if oid in _NUMBERS:
        return partial(_numbers, how)
    if oid == _BOOL:
        return lambda texts: map(_BOOLS.__getitem__, texts)
    if oid in _JSON:
        return lambda texts: texts
    if oid in _INSTANTS:
        return partial(_instants, how)
    if oid == _BYTEA:
        return partial(_bytea, how)
    if oid == _CHAR:
        return lambda texts: map(_char, texts)
    info = types.get(oid)
    if info is None:
        return _strings
    if oid == info.array_oid:
        return partial(_arrays, array_reader(info), format_of(info.oid, types, how))
    if isinstance(info, CompositeInfo):
        return partial(_composites, info, [format_of(one, types, how) for one in info.field_types])
    return _strings


def _strings(texts: list[str]) -> Iterable[str]:
    return map(encode_basestring, texts)


def _numbers(how: Choices, texts: list[str]) -> Iterable[str]:
    # PostgreSQL writes finite numbers in JSON's own syntax (1.50, 1e+20, -0).
    return texts if _NOT_FINITE.isdisjoint(texts) else _strings_where_not_finite(how, texts)


def _strings_where_not_finite(how: Choices, texts: list[str]) -> list[str]:
    if how.non_finite == "error":
        value = next(text for text in texts if text in _NOT_FINITE)
        raise Unfit(f'{value} is not valid in JSON: pass non_finite="string" to write it as a string')
    return [f'"{text}"' if text in _NOT_FINITE else text for text in texts]


def _instants(how: Choices, texts: list[str]) -> Iterable[str]:
    write = epoch if how.timestamps == "epoch" else iso
    try:
        if _NOT_FINITE.isdisjoint(texts):
            return list(map(write, texts))
        safe = _strings_where_not_finite(how, texts)
        return [text if text[0] == '"' else write(text) for text in safe]
    except NotIso as error:
        raise Unfit(str(error)) from None


_ESCAPED = re.compile(rb"\\(\\|[0-7]{3})")


def _bytea(how: Choices, texts: list[str]) -> Iterable[str]:
    values = map(_bytes, texts)
    if how.bytea == "hex":
        return [f'"{value.hex()}"' for value in values]
    return [f'"{base64.b64encode(value).decode("ascii")}"' for value in values]


def _bytes(text: str) -> bytes:
    """Parse a bytea in either ``bytea_output`` format."""
    if text.startswith("\\x"):
        return bytes.fromhex(text[2:])
    return _ESCAPED.sub(_unescaped, text.encode("latin-1"))


def _unescaped(match: re.Match[bytes]) -> bytes:
    escaped = match[1]
    return escaped if escaped == b"\\" else bytes([int(escaped, 8)])


def _char(text: str) -> str:
    """Convert a byte; the server writes 128 to 255 in octal (since PostgreSQL 16), 0 as an empty text."""
    if len(text) == 4:
        return str(int(text[1:], 8))
    return str(ord(text)) if text else "0"


def array_reader(info: TypeInfo) -> Callable[[str], list[Any]]:
    """Return psycopg's own parser for arrays of this type; the elements stay text."""
    context = _Arrays(info)
    load = Transformer(context).get_loader(info.array_oid, TextLoader.format).load
    return lambda text: load(text.encode())


class _Arrays:
    def __init__(self, info: TypeInfo) -> None:
        self.connection = None
        self.adapters = AdaptersMap(AS_TEXT.adapters)
        register_array(info, self)


def _arrays(read: Callable[[str], list[Any]], write: Format, texts: list[str]) -> Iterable[str]:
    arrays = [read(text) for text in texts]
    # All elements of the column are converted in one call, then distributed to their arrays.
    written = iter(write([leaf for array in arrays for leaf in _leaves(array)]))
    return [_nested(array, written) for array in arrays]


def _leaves(array: list[Any]) -> Iterator[str]:
    for one in array:
        if isinstance(one, list):
            yield from _leaves(one)
        elif one is not None:
            yield one


def _nested(array: list[Any], written: Iterator[str]) -> str:
    parts = [
        _nested(one, written) if isinstance(one, list) else "null" if one is None else next(written)
        for one in array
    ]
    return f"[{','.join(parts)}]"


def _composites(info: CompositeInfo, fields: Sequence[Format], texts: list[str]) -> Iterable[str]:
    read = RecordLoader(info.oid, AS_TEXT).load
    # The parser returns no fields for a composite whose only field is NULL.
    nothing = (None,) if len(fields) == 1 else ()
    rows = [read(text.encode()) or nothing for text in texts]
    if any(len(row) != len(fields) for row in rows):
        raise Unfit(
            f"the type {info.name} was registered with {len(fields)} fields, and the server's type differs:"
            " register it again"
        )
    columns = [with_nulls(write, [row[i] for row in rows]) for i, write in enumerate(fields)]
    return _objects(info.field_names, columns) if columns else ["{}"] * len(rows)
