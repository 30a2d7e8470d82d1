"""Tests of rows as objects: every kind of class, and errors with the row, the column and the reason."""

from __future__ import annotations

import abc
import dataclasses
import datetime
import decimal
import enum
import ipaddress
import uuid
from collections.abc import Callable, Hashable, Sequence
from dataclasses import InitVar, dataclass, field
from datetime import date, time
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ForwardRef,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    Protocol,
    Required,
    SupportsInt,
    TypedDict,
    TypeVar,
)

import attrs
import msgspec
import psycopg
import pydantic
import pydantic.dataclasses
import pytest

import pgha
from pgha._rows.models import make_models

if TYPE_CHECKING:
    from fractions import Fraction

M = TypeVar("M")
T = TypeVar("T")


def made(model: type[M], *records: dict[str, Any]) -> list[M]:
    return make_models(model, records, list(records[0]))


def refused(model: type[Any], *records: dict[str, Any]) -> str:
    """Return the message of the error, which must be psycopg's DataError, not a subclass."""
    with pytest.raises(psycopg.DataError) as caught:
        made(model, *records)
    assert type(caught.value) is psycopg.DataError
    return str(caught.value)


# Dataclasses


@dataclass
class Item:
    id: int
    name: str | None
    price: float = 1.5
    tags: list[str] = field(default_factory=list)


@dataclass
class Heir(Item):
    more: decimal.Decimal = decimal.Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    name: str = "none"
    id: int


def test_dataclasses() -> None:
    assert made(Item, {"id": 1, "name": None}) == [Item(1, None, 1.5, [])]
    first, second = made(Item, {"name": "a", "id": 1}, {"name": "b", "id": 2})
    assert (first, second) == (Item(1, "a"), Item(2, "b"))
    assert first.tags is not second.tags
    assert made(Sealed, {"id": 1}) == [Sealed(id=1)]
    heir = Heir(1, "a", 2.0, ["x"], decimal.Decimal("1.50"))
    assert made(Heir, dataclasses.asdict(heir)) == [heir]
    assert "more" in refused(Heir, {"id": 1, "name": "a", "more": 1.5})


def test_no_rows() -> None:
    """Errors that do not depend on a row are raised without rows, too."""
    assert make_models(Item, [], ["id", "name"]) == []
    for columns in (["id"], ["id", "name", "color"]):
        with pytest.raises(psycopg.DataError, match=r"color|Item\.name"):
            make_models(Item, [], columns)


def test_columns_without_a_field_and_fields_without_a_column() -> None:
    words = refused(Item, {"id": 1, "name": "a", "color": "red"})
    assert '"color"' in words and "Item" in words and "price" in words
    words = refused(Item, {"id": 1, "price": 2.0})
    assert "Item.name" in words and "price" in words


@pytest.mark.parametrize(
    ("record", "column", "reason"),
    [
        ({"id": None, "name": "a"}, "id", "expected int, got NULL"),
        ({"id": "1", "name": "a"}, "id", "expected int, got str"),
        ({"id": 1, "name": 5}, "name", "expected str or None, got int"),
        ({"id": 1, "name": "a", "price": decimal.Decimal(1)}, "price", "Decimal"),
        ({"id": 1, "name": "a", "tags": "x"}, "tags", "expected list, got str"),
    ],
)
def test_row_and_column_and_reason(record: dict[str, Any], column: str, reason: str) -> None:
    good = {"id": 1, "name": "a", "price": 1.0, "tags": []}
    words = refused(Item, good, good, {**good, **record})
    assert words.startswith(f'row 2, column "{column}"')
    assert "Item" in words and reason in words


class Color(enum.Enum):
    RED = "red"


class Named(Protocol):
    name: str


class Document(TypedDict):
    a: int


UserId = NewType("UserId", int)


@dataclass
class Wide(Generic[T]):
    a: Any = None
    b: int | list[int] | None = None
    c: Annotated[int | None, "a comment"] = None
    d: Sequence[str] = ()
    e: SupportsInt = 0
    f: Hashable = 0
    g: Callable[[], None] | None = None
    h: T | None = None
    i: Named | None = None
    j: Literal[1, 2] = 1
    k: tuple[int, ...] = ()
    l: dict[str, Any] = field(default_factory=dict)  # noqa: E741
    m: datetime.date | None = None
    n: float = 0
    o: type[int] = int
    p: Color = Color.RED
    q: object = None
    r: UserId = UserId(0)


def test_annotations_that_are_met() -> None:
    when = datetime.datetime(2020, 1, 1)
    for name, value in [
        ("a", object()), ("b", 1), ("b", [1]), ("b", None), ("c", None), ("c", 1), ("d", ["x"]),
        ("d", ("x",)),
        ("e", decimal.Decimal(1)), ("f", "x"), ("g", print), ("h", "anything"), ("i", "anything"), ("j", 2),
        ("k", (1, 2)), ("l", {"x": 1}), ("m", when), ("m", when.date()), ("n", 1), ("n", 1.5), ("o", int),
        ("p", Color.RED), ("q", None), ("q", 1), ("r", 5),
    ]:  # fmt: skip
        (found,) = made(Wide, {name: value})
        assert getattr(found, name) is value


def test_annotations_that_are_not_met() -> None:
    for name, value in [
        ("b", "x"), ("c", "x"), ("d", 1), ("f", []), ("g", 1), ("k", [1]), ("l", [1]), ("m", "2020-01-01"),
        ("n", "1"), ("n", None), ("o", 1), ("p", "red"),
    ]:  # fmt: skip
        assert f'row 0, column "{name}"' in refused(Wide, {name: value})


def test_null_for_a_new_type() -> None:
    """Check a NewType as its base type: typed programs name their keys ``NewType("UserId", int)``."""
    assert 'column "r"' in refused(Wide, {"r": None})
    assert 'column "r"' in refused(Wide, {"r": "1"})


def test_null_for_a_literal() -> None:
    assert 'column "j"' in refused(Wide, {"j": None})


@dataclass
class WithDocument:
    id: int
    doc: Document
    other: Document | None = None


def test_a_typed_dict_as_a_field() -> None:
    """Accept a TypedDict, the natural annotation of a json column."""
    assert made(WithDocument, {"id": 1, "doc": {"a": 1}}) == [WithDocument(1, {"a": 1})]
    assert made(WithDocument, {"id": 1, "doc": {"a": 1}, "other": None})[0].other is None
    assert 'column "doc"' in refused(WithDocument, {"id": 1, "doc": None})


@dataclass
class HalfKnown:
    id: int
    share: Fraction
    name: str


def test_an_annotation_for_type_checkers_alone() -> None:
    """One name that is missing at run time does not disable the checks of the other fields."""
    (found,) = made(HalfKnown, {"id": 1, "share": 5, "name": "a"})
    assert dataclasses.astuple(found) == (1, 5, "a")
    assert 'column "id"' in refused(HalfKnown, {"id": None, "share": 5, "name": "a"})
    assert 'column "name"' in refused(HalfKnown, {"id": 1, "share": 5, "name": None})


@dataclass
class Shadowed:
    """A class whose fields have the names of their own types."""

    date: Optional[date] = None  # noqa: UP045 - a written-out union would be another way through
    time: time | None = None


class ShadowedPair(NamedTuple):
    date: date
    time: time | None = None


def test_a_field_that_is_called_as_its_type() -> None:
    """The default of a field is a class attribute, and must not be taken for the annotated type."""
    day, noon = datetime.date(2020, 1, 2), datetime.time(12)
    models: tuple[type[Any], ...] = (Shadowed, ShadowedPair)
    for model in models:
        (found,) = made(model, {"date": day, "time": noon})
        assert (found.date, found.time) == (day, noon)
        assert 'column "date"' in refused(model, {"date": "2020-01-02"})
        assert 'column "time"' in refused(model, {"date": day, "time": "12:00"})
    assert 'column "date"' in refused(ShadowedPair, {"date": None})


def test_a_local_class() -> None:
    @dataclass
    class Local:
        id: int

    assert made(Local, {"id": 1}) == [Local(1)]
    assert 'column "id"' in refused(Local, {"id": None})


@pytest.mark.parametrize("hint", ["decimal.Nothing", "int[str]"])
def test_annotations_that_cannot_be_evaluated(hint: str) -> None:
    """Accept types that only stubs make generic (TypeError) or only type checkers see (AttributeError)."""
    broken: Any = dataclasses.make_dataclass("Broken", [("id", int), ("a", hint)])
    broken.__module__ = __name__
    (found,) = made(broken, {"id": 1, "a": 2})
    assert found.a == 2


class Reading(TypedDict, total=False):
    id: Required[int]
    day: date


class LaterReading(Reading):
    share: NotRequired[Annotated[float, "a comment"]]


class Dated(NamedTuple):
    id: int
    day: date | None = None


class GenericPair(NamedTuple, Generic[T]):
    id: int
    day: date | None = None
    value: T | None = None


@dataclass
class GenericBase(Generic[T]):
    id: int
    day: date | None = None
    value: T | None = None


@dataclass
class Filled(GenericBase[str]):
    share: Fraction | None = None


class Written:
    """A class whose annotations are those of its own ``__init__``."""

    def __init__(self, id: int, day: date | None = None, share: Fraction | None = None) -> None:
        self.id, self.day, self.share = id, day, share


ANNOTATED: list[type[Any]] = [Reading, LaterReading, Dated, GenericPair, GenericBase, Filled, Written]


@pytest.fixture(params=["in the namespace", "computed"])
def annotated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have annotations in the class's namespace, or computed when asked for, as in Python 3.14."""
    if request.param == "in the namespace":
        return
    computed: dict[Any, dict[str, Any]] = {}
    for one in {base for model in ANNOTATED for base in model.__mro__ if base.__module__ == __name__}:
        computed[one] = vars(one).get("__annotations__", {})
        monkeypatch.setattr(one, "__annotations__", {})
    computed[Written.__init__] = Written.__init__.__annotations__
    monkeypatch.setattr(Written.__init__, "__annotations__", {})
    monkeypatch.setattr("inspect.get_annotations", lambda source, **_: dict(computed.get(source, {})))


@pytest.mark.usefixtures("annotated")
@pytest.mark.parametrize("model", ANNOTATED)
def test_annotations_of_every_kind_of_class(model: type[Any]) -> None:
    assert len(made(model, {"id": 1, "day": datetime.date(2020, 1, 2)})) == 1
    assert 'column "id"' in refused(model, {"id": None})
    assert 'column "day"' in refused(model, {"id": 1, "day": "2020-01-02"})
    assert '"color"' in refused(model, {"id": 1, "color": "red"})
    assert f"{model.__name__}.id has no column" in refused(model, {"day": datetime.date(2020, 1, 2)})
    if model in (LaterReading, Filled, Written):
        assert len(made(model, {"id": 1, "share": 0.5})) == 1


def test_references_that_python_left_open() -> None:
    """Python 3.14 gives a name that it cannot find as a `ForwardRef`, at any depth of an annotation."""

    class Open:
        def __init__(self, id: int, day: Any = None, share: Any = None) -> None:
            pass

    Open.__init__.__annotations__ = {
        "id": ForwardRef("int"),
        "day": ForwardRef("date | None"),
        "share": list[ForwardRef("Fraction")],  # type: ignore[misc]
    }
    assert len(made(Open, {"id": 1, "day": None, "share": 0.5})) == 1
    assert 'column "id"' in refused(Open, {"id": "1"})
    assert 'column "day"' in refused(Open, {"id": 1, "day": "2020-01-02"})


@dataclass
class Checked:
    id: int
    extra: InitVar[str]
    seen: str = field(init=False, default="")

    def __post_init__(self, extra: str) -> None:
        self.seen = extra
        if self.id < 0:
            raise ValueError("below zero")
        if self.id == 0:
            raise KeyError("nothing")


def test_post_init() -> None:
    (found,) = made(Checked, {"id": 1, "extra": "x"})
    assert (found.id, found.seen) == (1, "x")
    good = {"id": 1, "extra": "x"}
    words = refused(Checked, good, {"id": -1, "extra": "x"})
    assert words.startswith("row 1") and "Checked" in words and "below zero" in words
    assert "nothing" in refused(Checked, {"id": 0, "extra": "x"})
    assert '"seen"' in refused(Checked, {**good, "seen": "y"})
    assert "extra" in refused(Checked, {"id": 1})


def test_the_cause_is_kept() -> None:
    with pytest.raises(psycopg.DataError) as caught:
        made(Checked, {"id": -1, "extra": "x"})
    assert isinstance(caught.value.__cause__, ValueError)


@dataclass
class Raising:
    error: BaseException

    def __post_init__(self) -> None:
        raise self.error


class Mine(Exception):
    pass


@pytest.mark.parametrize("kind", [AssertionError, RuntimeError, Mine, NotImplementedError])
def test_other_exceptions_name_the_row(kind: type[Exception]) -> None:
    """For any exception of a class's own checks, the error or one of its notes names the row."""
    error = kind("its words")
    with pytest.raises(Exception, match="its words") as caught:
        make_models(Raising, [{"error": error}], ["error"])
    words = [str(caught.value), *getattr(caught.value, "__notes__", [])]
    assert any("row 0" in one for one in words)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_error_passes(kind: type[BaseException]) -> None:
    with pytest.raises(kind):
        made(Raising, {"error": kind()})


# attrs


def positive(_: Any, attribute: attrs.Attribute[int], value: int) -> None:
    if value <= 0:
        raise ValueError(f"{attribute.name} is not above zero")


@attrs.define
class Crate:
    id: int
    _code: str = "none"
    weight: float = attrs.field(converter=float, default=0.0)
    kind: str = attrs.field(alias="sort", default="a", validator=attrs.validators.in_(["a", "b"]))
    parts: list[str] = attrs.field(factory=list, validator=attrs.validators.instance_of(list))
    count: int = attrs.field(default=1, validator=positive)


@attrs.frozen(kw_only=True)
class Guarded:
    _secret: Any = attrs.field(default="", validator=attrs.validators.instance_of(str))
    level: int = attrs.field(default=1, validator=attrs.validators.gt(0))


@attrs.define
class Optionals:
    count: int | None = attrs.field(converter=attrs.converters.optional(int), default=None)


def test_attrs() -> None:
    assert made(Crate, {"id": 1}) == [Crate(1)]
    found = made(Crate, {"id": 1, "code": "x", "weight": "2.5", "sort": "b"})
    assert found == [Crate(1, code="x", weight="2.5", sort="b")]
    assert found[0].weight == 2.5
    assert made(Optionals, {"count": "5"}, {"count": None}) == [Optionals(5), Optionals(None)]


def test_attrs_refuses() -> None:
    for column in ("_code", "kind"):
        assert f'"{column}"' in refused(Crate, {"id": 1, column: "a"})
    assert 'row 0, column "id"' in refused(Crate, {"id": None})
    assert 'column "code"' in refused(Crate, {"id": 1, "code": 5})
    assert "Crate.id" in refused(Crate, {"code": "a"})


def test_attrs_validators() -> None:
    good = {"id": 1, "parts": [], "count": 1}
    words = refused(Crate, good, {**good, "count": 0})
    assert words.startswith("row 1") and "count is not above zero" in words


def test_a_private_attribute_is_called_as_its_column() -> None:
    """Report the column ``secret``, although attrs' validators know the attribute ``_secret``."""
    assert 'row 0, column "secret"' in refused(Guarded, {"secret": 5})


def test_an_alias_is_called_as_its_column() -> None:
    assert 'row 0, column "sort"' in refused(Crate, {"id": 1, "sort": "z"})


def test_a_validator_of_attrs_speaks_for_itself() -> None:
    """The validators in_ and instance_of raise an error with four arguments; the first is the message."""
    for words in (refused(Crate, {"id": 1, "sort": "z"}), refused(Guarded, {"secret": 5})):
        assert "must be" in words
        assert "Attribute(" not in words


def test_a_validator_that_says_only_a_sentence() -> None:
    """The validators gt, max_len and most others name their attribute only in the message."""
    assert "'level' must be > 0" in refused(Guarded, {"level": 0})


def test_a_converter_that_fails_names_the_column() -> None:
    words = refused(Crate, {"id": 1, "weight": "1"}, {"id": 1, "weight": "heavy"})
    assert words.startswith('row 1, column "weight"') and "heavy" in words


# pydantic


class Inner(pydantic.BaseModel):
    a: int


class Shop(pydantic.BaseModel):
    id: int
    name: str = pydantic.Field(alias="theName", default="none")
    inner: Inner | None = None
    many: list[int] = []

    @pydantic.model_validator(mode="after")
    def check(self) -> Shop:
        if self.id < 0:
            raise ValueError("below zero")
        return self


@pydantic.dataclasses.dataclass
class Validated:
    id: int
    name: str | None = None


@dataclass
class Beyond(Validated):
    more: int = 0


def test_pydantic() -> None:
    assert made(Shop, {"id": "5", "theName": "x"}) == [Shop(id=5, theName="x")]
    assert made(Shop, {"id": 1, "inner": {"a": 1}, "unknown": 1}) == [Shop(id=1, inner=Inner(a=1))]
    assert made(Validated, {"id": "5"}) == [Validated(5)]
    assert make_models(Shop, [], ["anything"]) == []


@pytest.mark.parametrize(
    ("record", "column"),
    [
        ({"id": "x"}, "id"),
        ({"id": None}, "id"),
        ({"id": 1, "theName": 5}, "theName"),
        ({"id": 1, "inner": {"a": "x"}}, "inner"),
        ({"id": 1, "many": [1, "x"]}, "many"),
        ({"theName": "x"}, "id"),
    ],
)
def test_pydantic_refuses(record: dict[str, Any], column: str) -> None:
    with pytest.raises(psycopg.DataError) as caught:
        made(Shop, {"id": 1}, record)
    assert str(caught.value).startswith(f'row 1, column "{column}" does not fit Shop: ')
    assert isinstance(caught.value.__cause__, pydantic.ValidationError)


def test_the_place_in_a_document_is_told() -> None:
    """Report the place inside a json column, since the column alone does not show what to correct."""
    assert "many[1]" in refused(Shop, {"id": 1, "many": [1, "x"]}).replace(".1", "[1]")


def test_pydantic_checks_of_the_whole() -> None:
    words = refused(Shop, {"id": -1})
    assert words.startswith("row 0 does not fit Shop") and "below zero" in words
    assert 'column "id"' in refused(Validated, {"id": "x"})


def test_a_dataclass_made_of_a_validated_one() -> None:
    """Return objects of the subclass, although the inherited validator makes objects of the parent."""
    (found,) = made(Beyond, {"id": 1, "name": "a", "more": 2})
    assert type(found) is Beyond
    assert (found.id, found.more) == (1, 2)


@pydantic.dataclasses.dataclass(config=pydantic.ConfigDict(strict=True))
class Strict:
    id: int


def test_a_strict_dataclass_of_pydantic() -> None:
    assert made(Strict, {"id": 1}) == [Strict(1)]
    assert 'column "id"' in refused(Strict, {"id": "1"})


# msgspec


class Part(msgspec.Struct):
    numbers: list[int]


class Machine(msgspec.Struct):
    id: int
    price: decimal.Decimal | None = None
    at: datetime.datetime | None = None
    day: datetime.date | None = None
    time: datetime.time | None = None
    key: uuid.UUID | None = None
    data: bytes | None = None
    share: float | None = None
    address: ipaddress.IPv4Address | None = None
    part: Part | None = None


class Sort(enum.Enum):
    A = "a"


class Sorted(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    item_sort: Sort
    item_size: int = 0

    def __post_init__(self) -> None:
        if self.item_size < 0:
            raise ValueError("below zero")


def test_msgspec() -> None:
    record: dict[str, Any] = {
        "id": 1,
        "price": decimal.Decimal("1.50"),
        "at": datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
        "day": datetime.date(2020, 1, 2),
        "time": datetime.time(3),
        "key": uuid.UUID(int=1),
        "data": b"\x00\xff",
        "share": 1.5,
        "address": ipaddress.IPv4Address("10.0.0.1"),
        "part": {"numbers": [1]},
    }
    (found,) = made(Machine, record)
    assert found == Machine(**{**record, "part": Part([1])})
    assert made(Sorted, {"itemSort": "a"}) == [Sorted(Sort.A)]


@pytest.mark.parametrize(
    ("record", "column"),
    [
        ({"id": "x"}, "id"),
        ({"id": None}, "id"),
        ({"id": 1, "part": {"numbers": [1, "x"]}}, "part"),
        ({"id": 1, "part": {}}, "part"),
        ({"id": 1, "part": 5}, "part"),
    ],
)
def test_msgspec_refuses(record: dict[str, Any], column: str) -> None:
    with pytest.raises(psycopg.DataError) as caught:
        made(Machine, {"id": 1}, record)
    assert str(caught.value).startswith(f'row 1, column "{column}" does not fit Machine: ')
    assert isinstance(caught.value.__cause__, msgspec.ValidationError)


def test_msgspec_names_what_is_missing_or_too_much() -> None:
    assert "row 0" in (words := refused(Machine, {"price": None})) and "`id`" in words
    assert "`color`" in refused(Sorted, {"itemSort": "a", "color": "red"})
    assert "`itemSort`" in refused(Sorted, {"itemSize": 1})
    assert "below zero" in refused(Sorted, {"itemSort": "a", "itemSize": -1})


def test_a_value_does_not_pass_for_a_column() -> None:
    """Do not take a value for a column: msgspec quotes the value in its message, before the path."""
    words = refused(Sorted, {"itemSort": "x - at `$.evil`"})
    assert words.startswith('row 0, column "itemSort"')


# Others


class Pair(NamedTuple):
    id: int
    name: str = "none"


class Plain:
    def __init__(self, id: int, name: str = "none") -> None:
        self.id, self.name = id, name


class Open:
    def __init__(self, **values: Any) -> None:
        self.values = values


class Abstract(abc.ABC):
    @abc.abstractmethod
    def nothing(self) -> None: ...


def test_other_classes() -> None:
    assert made(Pair, {"id": 1}) == [Pair(1)]
    assert 'row 0, column "id"' in refused(Pair, {"id": None})
    (plain,) = made(Plain, {"id": 1, "name": "a"})
    assert (plain.id, plain.name) == (1, "a")
    assert '"color"' in refused(Plain, {"id": 1, "color": "red"})
    assert "Plain.id" in refused(Plain, {"name": "a"})
    assert made(Open, {"self_": 1, "a b": 2})[0].values == {"self_": 1, "a b": 2}
    assert made(dict, {"id": 1}) == [{"id": 1}]
    assert "row 0" in refused(Open, {"self": 1})
    assert "Abstract" in refused(Abstract, {"id": 1})
    assert "object" in refused(object, {"id": 1})
    assert "row 0 does not fit int" in refused(int, {"id": 1})


def test_the_annotations_of_a_plain_init() -> None:
    """The annotations of ``__init__`` are the types that the class accepts."""
    assert 'row 0, column "id"' in refused(Plain, {"id": None, "name": "a"})
    assert 'row 0, column "name"' in refused(Plain, {"id": 1, "name": 5})


def test_a_typed_dict_as_the_model() -> None:
    """Check a record against the TypedDict; never return one with missing, extra or NULL values."""
    assert made(Document, {"a": 1}) == [{"a": 1}]
    for record in ({"b": 1}, {"a": None}, {"a": 1, "b": 2}):
        with pytest.raises(psycopg.Error):
            made(Document, record)


@pytest.mark.parametrize(
    "wrong", [list[int], Wide[int], lambda **values: values, "Item", None, Item(1, None)]
)
def test_what_is_no_class(wrong: Any) -> None:
    with pytest.raises(pgha.ConfigError, match="takes a class"):
        make_models(wrong, [{"id": 1}], ["id"])
