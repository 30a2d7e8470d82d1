"""Tests of JSON made of a server's text, with texts in the format of PostgreSQL's output functions."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg.adapt import AdaptersMap
from psycopg.types import TypeInfo
from psycopg.types.composite import CompositeInfo

from pgha._rows.columns import Columns, distinct
from pgha._rows.json import Choices, to_json

quick = settings(deadline=None, max_examples=200)
BUILT_IN = psycopg.adapters.types
Column = tuple[str | int, Sequence[str | None]]
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


class Number(str):
    """A number, as the digits in the JSON."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Number) and str(self) == str(other)


def exact(written: str) -> Any:
    """Parse JSON strictly: no NaN, no duplicate keys, and numbers as their digits."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    def refuse(word: str) -> Any:
        raise AssertionError(word)

    return json.loads(
        written, parse_int=Number, parse_float=Number, parse_constant=refuse, object_pairs_hook=unique
    )


def made(*columns: Column, types: Any = BUILT_IN, **choices: Any) -> list[list[Any]]:
    """Convert columns to JSON, parse the JSON, and return the values of each column."""
    names = [f"c{number}" for number in range(len(columns))]
    oids = tuple(kind if isinstance(kind, int) else types[kind].oid for kind, _ in columns)
    count = len(columns[0][1])
    raw = [
        None if value is None else value.encode()
        for row in zip(*[values for _, values in columns], strict=True)
        for value in row
    ]
    written = to_json(Columns(tuple(names), oids, types), names, raw, count, Choices(**choices))
    rows = exact(written)
    assert [list(row) for row in rows] == [names] * count
    return [[row[name] for row in rows] for name in names]


def one(kind: str | int, value: str | None, *, types: Any = BUILT_IN, **choices: Any) -> Any:
    return made((kind, [value]), types=types, **choices)[0][0]


def array_oid(kind: str) -> int:
    info = BUILT_IN[kind]
    assert info is not None
    return int(info.array_oid)


def array_out(value: Any, delimiter: str = ",") -> str:
    """Return the text that PostgreSQL's array_out writes."""
    if value is None:
        return "NULL"
    if isinstance(value, list):
        return "{" + delimiter.join(array_out(part, delimiter) for part in value) + "}"
    quoted = not value or value.upper() == "NULL" or any(c in '"\\{} \t\n\r\v\f' + delimiter for c in value)
    shown = str(value)
    return '"' + shown.replace("\\", "\\\\").replace('"', '\\"') + '"' if quoted else shown


def record_out(values: Sequence[str | None]) -> str:
    """Return the text that PostgreSQL's record_out writes."""
    parts = []
    for value in values:
        if value is None:
            parts.append("")
        elif not value or any(c in '"\\(), \t\n\r\v\f' for c in value):
            parts.append('"' + value.replace("\\", "\\\\").replace('"', '""') + '"')
        else:
            parts.append(value)
    return f"({','.join(parts)})"


# Single values


@quick
@given(st.lists(st.none() | text, min_size=1, max_size=20))
@example(["\x01\x1f\x7f\x80", "\u2028\u2029", "\U0001f600", '"\\/\b\f\n\r\t', "null", ""])
def test_any_text(values: list[str | None]) -> None:
    for kind in ("text", "varchar", "inet", 4_000_000_000):
        assert made((kind, values)) == [values]


@quick
@given(text.filter(bool))
def test_any_name(name: str) -> None:
    oid = BUILT_IN["int4"].oid
    written = to_json(Columns((name, "other"), (oid, oid), BUILT_IN), [name, "_"], [b"1", b"2"], 1, Choices())
    assert json.loads(written) == [{name: 1, "_": 2}]


@quick
@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_numerics_keep_their_digits(value: Decimal) -> None:
    shown = f"{value:f}"
    assert one("numeric", shown) == Number(shown)


@quick
@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**63), 2**63 - 1))
def test_numbers(real: float, whole: int) -> None:
    assert float(one("float8", repr(real))) == real
    assert one("int8", str(whole)) == Number(str(whole))


def test_numbers_as_postgresql_writes_them() -> None:
    for shown in (
        "0",
        "-0",
        "1e+20",
        "1e-07",
        "1.7976931348623157e+308",
        "5e-324",
        "-2.5",
        "0.000000000000001",
    ):
        assert one("float8", shown) == Number(shown)
    shown = "1" * 1000 + "." + "0" * 1000
    assert one("numeric", shown) == Number(shown)


@pytest.mark.parametrize("kind", ["numeric", "float4", "float8", "date", "timestamp", "timestamptz"])
@pytest.mark.parametrize("timestamps", ["iso", "epoch"])
def test_not_finite(kind: str, timestamps: str) -> None:
    words = ["infinity", "-infinity"] if kind[0] in "dt" else ["NaN", "Infinity", "-Infinity"]
    good = "2020-01-01" if kind[0] in "dt" else "1.5"
    for word in words:
        for values in ([word], [good, None, word]):
            with pytest.raises(psycopg.DataError, match='column "c1"') as caught:
                made(("int4", ["1"] * len(values)), (kind, values), timestamps=timestamps)
            assert word in str(caught.value) and 'non_finite="string"' in str(caught.value)
        values = [None, good, word, good]
        (found,) = made((kind, values), timestamps=timestamps, non_finite="string")
        assert (found[0], found[2]) == (None, word)
        assert found[1] == found[3] != good or found[1] in (good, Number(good))
        # The same is true inside of arrays.
        array = array_out([good, word, None])
        with pytest.raises(psycopg.DataError, match='column "c0"'):
            one(array_oid(kind), array, timestamps=timestamps)
        assert one(array_oid(kind), array, timestamps=timestamps, non_finite="string")[1:] == [word, None]


def test_words_that_are_no_numbers_elsewhere() -> None:
    """Only numbers, dates and timestamps have a NaN or an infinity."""
    for word in ("NaN", "Infinity", "infinity"):
        assert one("text", word) == one("interval", word) == word
        assert one("daterange", f"[{word},)") == f"[{word},)"


def test_booleans_and_nulls() -> None:
    assert made(("bool", ["t", "f", None])) == [[True, False, None]]
    for kind in ("bool", "int4", "json", "bytea", '"char"', "timestamptz", "text", "_int4", 99_999_999):
        kind = array_oid("int4") if kind == "_int4" else kind
        assert made((kind, [None, None])) == [[None, None]]


def test_nulls_stay_where_they_are() -> None:
    values = [None, "1", None, None, "2", "3", None]
    numbers = [None if one is None else Number(one) for one in values]
    assert made(("int4", values), ("text", values[::-1])) == [numbers, values[::-1]]


@pytest.mark.parametrize("kind", ["json", "jsonb"])
def test_json_is_embedded(kind: str) -> None:
    for value in (
        '{"a": [1.50, null], "b": {"c": "\\u00e9\\ud83d\\ude00"}}',
        "null",
        "1e400",
        '"x"',
        " [ 1 ]\n",
    ):
        assert one(kind, value) == exact(value)
        assert one(array_oid(kind), array_out([value, None, value])) == [exact(value), None, exact(value)]
    written = to_json(Columns(("a",), (BUILT_IN[kind].oid,), BUILT_IN), ["a"], [b"1e400"], 1, Choices())
    assert written == '[{"a":1e400}]'


def escape_out(value: bytes) -> str:
    """Return the text of a bytea with ``bytea_output = escape``."""
    return "".join(
        "\\\\" if byte == 0x5C else chr(byte) if 0x20 <= byte <= 0x7E else f"\\{byte:03o}" for byte in value
    )


@quick
@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5))
@example([b"\\x41", b"\\", b"\\101", b"x", b"\\\\x", bytes(range(256))])
def test_bytea(values: list[bytes]) -> None:
    for written in ([f"\\x{value.hex()}" for value in values], list(map(escape_out, values))):
        assert [base64.b64decode(found, validate=True) for found in made(("bytea", written))[0]] == values
        assert [bytes.fromhex(found) for found in made(("bytea", written), bytea="hex")[0]] == values
        nested = one(array_oid("bytea"), array_out([*written, None]))
        assert nested == [*(base64.b64encode(value).decode() for value in values), None]


def char_out(value: int) -> str:
    """Return the text of a "char", in the format since PostgreSQL 16."""
    return "" if value == 0 else f"\\{value:03o}" if value > 127 else chr(value)


def test_char() -> None:
    every = list(map(char_out, range(256)))
    numbers = [Number(number) for number in range(256)]
    assert made(('"char"', every)) == [numbers]
    assert one(array_oid('"char"'), array_out([*every, None])) == [*numbers, None]


# Arrays


def shaped(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draw arrays of PostgreSQL: up to 6 dimensions, with parts of equal length in each."""

    def nest(lengths: list[int]) -> st.SearchStrategy[Any]:
        if not lengths:
            return leaves
        return st.lists(nest(lengths[1:]), min_size=lengths[0], max_size=lengths[0])

    return st.lists(st.integers(1, 2), min_size=1, max_size=4).flatmap(nest) | st.just([])


texts_and_nulls = st.none() | text | st.sampled_from(["NULL", "null", "", "{}", "a,b", '"', "\\", " ", "{a}"])


@quick
@given(st.lists(shaped(texts_and_nulls), min_size=1, max_size=4))
def test_arrays_of_any_text(arrays: list[Any]) -> None:
    assert made((array_oid("text"), [*map(array_out, arrays), None])) == [[*arrays, None]]


@quick
@given(shaped(st.none() | st.integers(-5, 5).map(str)))
def test_arrays_of_numbers(array: Any) -> None:
    def numbers(value: Any) -> Any:
        if isinstance(value, list):
            return [numbers(part) for part in value]
        return None if value is None else Number(value)

    assert one(array_oid("int4"), array_out(array)) == numbers(array)


def test_bounds_of_arrays() -> None:
    assert one(array_oid("int4"), "[0:1]={5,6}") == [Number(5), Number(6)]
    assert one(array_oid("int4"), "[-1:0][2:2]={{5},{NULL}}") == [[Number(5)], [None]]


def test_arrays_of_boxes() -> None:
    """Box is the only type whose delimiter is not a comma."""
    assert one(array_oid("box"), "{(2,2),(1,1);(4,4),(3,3)}") == ["(2,2),(1,1)", "(4,4),(3,3)"]


def test_arrays_of_arrays_of_numbers() -> None:
    """An int2vector becomes a string, and an array of int2vector an array."""
    assert one("int2vector", "1 2") == "1 2"
    assert one(array_oid("int2vector"), '{"1 2","3"}') == ["1 2", "3"]


@pytest.mark.parametrize("kind", ["bool", "date", "timestamptz", "uuid", "interval", "int4range", "record"])
def test_arrays_of(kind: str) -> None:
    """Each element of an array is converted like a single value."""
    value = {
        "bool": "t",
        "date": "2020-01-02",
        "timestamptz": "2020-01-02 03:04:05+00",
        "uuid": "00000000-0000-0000-0000-000000000001",
        "interval": "1 mon -2 days",
        "int4range": "[1,5)",
        "record": '(1,"a b")',
    }[kind]
    assert one(array_oid(kind), array_out([value, None])) == [one(kind, value), None]


# Types that users define

OID, ARRAY = 4_000_000_001, 4_000_000_002


def types_with(*infos: TypeInfo) -> Any:
    adapters = AdaptersMap(psycopg.adapters)
    for info in infos:
        info.register(adapters)
    return adapters.types


def composite(oid: int, **fields: int | str) -> CompositeInfo:
    types = [BUILT_IN[kind].oid if isinstance(kind, str) else kind for kind in fields.values()]
    return CompositeInfo(f"c{oid}", oid, oid + 1, field_names=list(fields), field_types=types)


def test_unknown_types_are_text() -> None:
    assert one(OID, "(1,)") == "(1,)"
    assert one(ARRAY, "{a,b}") == "{a,b}"
    assert one(ARRAY, "{a,b}", types=types_with(TypeInfo("mood", OID, ARRAY))) == ["a", "b"]


def test_registered_later() -> None:
    """Types registered later count, although `Columns` are kept with a prepared statement."""
    adapters = AdaptersMap(psycopg.adapters)
    columns = Columns(("a",), (ARRAY,), adapters.types)
    assert to_json(columns, ["a"], [b"{x}"], 1, Choices()) == '[{"a":"{x}"}]'
    TypeInfo("mood", OID, ARRAY).register(adapters)
    assert to_json(columns, ["a"], [b"{x}"], 1, Choices()) == '[{"a":["x"]}]'


@quick
@given(st.lists(st.tuples(st.none() | text, st.none() | st.integers().map(str)), min_size=1, max_size=5))
def test_composites(rows: list[tuple[str | None, str | None]]) -> None:
    info = composite(OID, **{'the "name"': "text", "n": "numeric"})
    expected = [{'the "name"': name, "n": None if n is None else Number(n)} for name, n in rows]
    types = types_with(info)
    written = list(map(record_out, rows))
    assert made((OID, [*written, None]), types=types) == [[*expected, None]]
    assert one(ARRAY, array_out([*written, None]), types=types) == [*expected, None]


@quick
@given(st.none() | text)
def test_a_composite_of_one(value: str | None) -> None:
    """The text of a NULL in a composite with one field looks like that of no fields."""
    types = types_with(composite(OID, only="text"))
    rows = [record_out([value]), None, record_out([value])]
    assert made((OID, rows), types=types) == [[{"only": value}, None, {"only": value}]]


def test_a_composite_of_nothing() -> None:
    types = types_with(composite(OID))
    assert made((OID, ["()", None, "()"]), types=types) == [[{}, None, {}]]
    assert one(ARRAY, '{"()",NULL}', types=types) == [{}, None]


def test_composites_in_composites() -> None:
    inner, outer = (
        composite(OID + 10, a="int4", b=array_oid("text")),
        composite(OID, id="int4", inner=OID + 10, many=OID + 11, char='"char"', at="timestamptz"),
    )
    types = types_with(inner, outer)
    first = record_out(["1", array_out(["x,y", None])])
    value = record_out(["7", first, array_out([first, None]), "", "2020-01-02 03:04:05+00"])
    found = {"a": Number(1), "b": ["x,y", None]}
    assert one(OID, value, types=types, timestamps="epoch") == {
        "id": Number(7),
        "inner": found,
        "many": [found, None],
        "char": Number(0),
        "at": Number(1577934245),
    }
    nothing = dict.fromkeys(("id", "inner", "many", "char", "at"))
    assert one(OID, record_out([None] * 5), types=types) == nothing


def test_a_composite_that_changed() -> None:
    types = types_with(composite(OID, a="int4", b="int4"))
    for value in ("(1)", "(1,2,3)", "()"):
        with pytest.raises(psycopg.DataError, match=r'column "c0".*2 fields'):
            one(OID, value, types=types)


def test_errors_inside_name_the_column_of_the_result() -> None:
    types = types_with(composite(OID, a="float8"))
    with pytest.raises(psycopg.DataError, match='column "c0": NaN'):
        one(ARRAY, '{"(NaN)"}', types=types)


# Names


names = st.lists(st.sampled_from(["a", "b", "a_2", "a_3", "a_2_2", ""]) | text, max_size=10)


@quick
@given(names)
def test_numbered_names(given_names: list[str]) -> None:
    keys = distinct(given_names, "number")
    assert len(set(keys)) == len(keys) == len(given_names)
    for index, (name, key) in enumerate(zip(given_names, keys, strict=True)):
        if name not in given_names[:index]:
            assert key == name  # the first column with a name keeps the name of the query
        else:
            stem, _, number = key.rpartition("_")
            assert stem == name and int(number) >= 2


@quick
@given(names)
def test_duplicates_are_an_error(given_names: list[str]) -> None:
    if len(set(given_names)) == len(given_names):
        assert distinct(given_names, "error") == given_names
    else:
        twice = next(name for i, name in enumerate(given_names) if name in given_names[:i])
        with pytest.raises(psycopg.DataError) as caught:
            distinct(given_names, "error")
        assert f'"{twice}"' in str(caught.value)


def test_numbering_goes_on() -> None:
    assert distinct(["id"] * 4, "number") == ["id", "id_2", "id_3", "id_4"]
    assert distinct(["id", "id", "id_2", "id"], "number") == ["id", "id_3", "id_2", "id_4"]
