"""Rows as objects of a class: dataclass, attrs, pydantic, msgspec, or any class called with keywords."""

from __future__ import annotations

import builtins
import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import typing_extensions
from psycopg import DataError

from pgha._errors import ConfigError

M = TypeVar("M")
Record = dict[str, Any]
_WRAPPERS: tuple[Any, ...] = (typing.Annotated, typing_extensions.ReadOnly)


def make_models(model: type[M], records: Sequence[Record], columns: Sequence[str]) -> list[M]:
    """Return one ``model`` per record; a `psycopg.DataError` names the row (from 0) and column."""
    if not isinstance(model, type):
        raise ConfigError(f"into() takes a class, such as a dataclass, not {model!r}")
    # Only the class's own validator: a plain dataclass may inherit one that makes objects of its parent.
    if "__pydantic_validator__" in vars(model):
        return _each(model, records, _pydantic_maker(model), _told_by_pydantic)
    if hasattr(model, "__struct_fields__"):
        return _each(model, records, _msgspec_maker(model), _told_by_msgspec)
    fields = _fields(model)
    if fields is not None:
        _check_names(model, fields, columns)
    return _each(model, records, _checked_maker(model, fields or []), _told_by_class)


Teller = Callable[[type, Record, Exception], tuple[str | None, str]]
"""Returns the column that an error concerns, if it can be determined, and the reason."""


class _Mismatch(Exception):
    def __init__(self, column: str, reason: str) -> None:
        super().__init__(reason)
        self.column = column


def _each(model: type[M], records: Sequence[Record], make: Callable[[Record], M], tell: Teller) -> list[M]:
    made: list[M] = []
    try:
        for record in records:
            made.append(make(record))
    except Exception as error:
        # Any exception: the class's own checks may raise anything.
        column, reason = tell(model, records[len(made)], error)
        where = f"row {len(made)}" if column is None else f'row {len(made)}, column "{column}"'
        raise DataError(f"{where} does not fit {model.__name__}: {reason}") from error
    return made


# pydantic and msgspec check and convert by themselves.


def _pydantic_maker(model: Any) -> Callable[[Record], Any]:
    if dataclasses.is_dataclass(model) and isinstance(model, type):
        # A strict dataclass validates only its own instances, but its constructor accepts convertible values.
        make: Callable[..., Any] = model
        return lambda record: make(**record)
    validate: Callable[[Record], Any] = model.__pydantic_validator__.validate_python
    return validate


def _told_by_pydantic(model: type, record: Record, error: Exception) -> tuple[str | None, str]:
    errors = getattr(error, "errors", None)
    if errors is None:
        return None, str(error)
    first = errors(include_url=False)[0]
    place = [str(part) for part in first["loc"]]
    deeper = f" (at {'.'.join(place)})" if len(place) > 1 else ""
    return (place[0] if place else None), first["msg"] + deeper


def _msgspec_maker(model: Any) -> Callable[[Record], Any]:
    import msgspec

    return lambda record: msgspec.convert(record, model)


def _told_by_msgspec(model: type, record: Record, error: Exception) -> tuple[str | None, str]:
    # Split at the last occurrence: the message may quote a value that looks like a path.
    reason, found, place = str(error).rpartition(" - at `$.")
    if not found:
        return None, str(error)
    place = place.rstrip("`")
    column = place.split(".")[0].split("[")[0]
    return column, reason if place == column else f"{reason} (at {place})"


# All other classes: values are checked against the annotations, and nothing is converted.


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    """A parameter of the class, and the types allowed for it (None: any)."""

    name: str
    required: bool
    allowed: tuple[type, ...] | None


def _checked_maker(model: Callable[..., M], fields: Sequence[_Field]) -> Callable[[Record], M]:
    checks = [(one.name, one.allowed) for one in fields if one.allowed is not None]

    def make(record: Record) -> M:
        for name, allowed in checks:
            if name in record and not isinstance(record[name], allowed):
                raise _Mismatch(name, _expected(allowed, record[name]))
        return model(**record)

    return make


def _told_by_class(model: type, record: Record, error: Exception) -> tuple[str | None, str]:
    if isinstance(error, _Mismatch):
        return error.column, str(error)
    for one in error.args:
        if hasattr(one, "validator") and hasattr(one, "alias"):
            # The validators of attrs raise with a sentence and the attribute that they checked.
            return one.alias, str(error.args[0])
    return _failing_converter(model, record, error), str(error)


def _failing_converter(model: type, record: Record, error: Exception) -> str | None:
    """Return the field whose converter fails; attrs does not report it."""
    for one in getattr(model, "__attrs_attrs__", ()):
        if callable(one.converter) and one.alias in record:
            try:
                one.converter(record[one.alias])
            except type(error):
                return str(one.alias)
    return None


def _check_names(model: type, fields: Sequence[_Field], columns: Sequence[str]) -> None:
    """Compare column and field names, once for all rows, and also for a result without rows."""
    names = {one.name for one in fields}
    for column in columns:
        if column not in names:
            raise DataError(
                f'column "{column}" has no field in {model.__name__}: the fields are {sorted(names)}'
            )
    for one in fields:
        if one.required and one.name not in columns:
            raise DataError(f"{model.__name__}.{one.name} has no column: the columns are {list(columns)}")


def _expected(allowed: tuple[type, ...], value: object) -> str:
    words = " or ".join("None" if one is types.NoneType else one.__name__ for one in allowed)
    return f"expected {words}, got {'NULL' if value is None else type(value).__name__}"


def _fields(model: type) -> list[_Field] | None:
    """Return the class's parameters; None if it takes anything, or if they cannot be determined."""
    hints = dict(_hints(model))
    if typing.is_typeddict(model):
        usual: frozenset[str] = getattr(model, "__required_keys__", frozenset())
        return [_Field(name, _required(hint, name in usual), _allowed(hint)) for name, hint in hints.items()]
    try:
        # pydantic sets a signature on its dataclasses, which plain subclasses inherit.
        source = _init(model) if dataclasses.is_dataclass(model) else model
        parameters = [one for one in _signature(source).parameters.values() if one.name != "self"]
    except (TypeError, ValueError):
        return None
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return None
    # attrs: the name in ``__init__`` may differ, and a converter accepts more than the annotation says.
    attributes = getattr(model, "__attrs_attrs__", ())
    names = {one.alias: one.name for one in attributes}
    converted = {one.alias for one in attributes if one.converter is not None}
    return [
        _Field(
            one.name,
            one.default is one.empty,
            None if one.name in converted else _allowed(hints.get(names.get(one.name, one.name), Any)),
        )
        for one in parameters
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]


def _init(model: Any) -> Any:
    return model.__init__


def _hints(model: type) -> Iterator[tuple[str, Any]]:
    """Yield the annotations of the class and of its ``__init__``, as far as each can be evaluated."""
    init = _init(model)
    sources: list[tuple[Any, dict[str, Any]]] = [(init, getattr(init, "__globals__", {}))]
    sources += [(one, vars(sys.modules.get(one.__module__, typing))) for one in reversed(model.__mro__)]
    for source, names in sources:
        # The module's names win: a field may have the name of its type (``date: date | None = None``).
        parameters = {one.__name__: one for one in getattr(source, "__type_params__", ())}
        known = {**vars(model), **getattr(source, "__dict__", {}), **vars(builtins), **names, **parameters}
        for name, annotation in _own_annotations(source).items():
            holder = types.SimpleNamespace(__annotations__={name: annotation})
            try:
                yield name, typing.get_type_hints(holder, known, {}, include_extras=True)[name]
            except Exception:  # noqa: BLE001 - the name exists for type checkers only, and cannot be checked
                yield name, Any


def _signature(source: Callable[..., Any]) -> inspect.Signature:
    """Return the signature; an annotation whose name does not exist is no error (see `_own_annotations`)."""
    if sys.version_info >= (3, 14):
        from annotationlib import Format

        return inspect.signature(source, annotation_format=Format.FORWARDREF)
    return inspect.signature(source)


def _own_annotations(source: Any) -> dict[str, Any]:
    """Return the annotations of a class, without those of its bases, or of a function.

    From Python 3.14 on, annotations are computed when they are asked for, and are in no namespace before. A
    name that does not exist then becomes a `ForwardRef`, instead of failing the others.
    """
    if sys.version_info >= (3, 14):
        from annotationlib import Format

        return inspect.get_annotations(source, format=Format.FORWARDREF)
    return inspect.get_annotations(source)


def _required(hint: Any, usual: bool) -> bool:
    """Return whether a key of a TypedDict is required, if it ``usual``-ly is.

    The class itself does not know of `Required` and `NotRequired` in annotations that are strings.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Required, typing.NotRequired):
        return origin is typing.Required
    return _required(arguments[0], usual) if origin in _WRAPPERS else usual


def _allowed(hint: Any) -> tuple[type, ...] | None:
    """Return the classes that a hint allows, as far as one value shows its type."""
    if isinstance(hint, typing.NewType):
        return _allowed(hint.__supertype__)
    if isinstance(hint, dataclasses.InitVar):
        return _allowed(hint.type)
    if typing.is_typeddict(hint):
        return (dict,)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return tuple({type(one) for one in arguments})
    if origin in _WRAPPERS or origin in (typing.Required, typing.NotRequired):
        return _allowed(arguments[0])
    if origin in (typing.Union, types.UnionType):
        parts = [_allowed(one) for one in arguments]
        if any(part is None for part in parts):
            return None
        return tuple(one for part in parts if part for one in part)
    found = hint if origin is None else origin
    if not isinstance(found, type) or found is Any or getattr(found, "_is_protocol", False):
        return None
    # An int is accepted as a float, as type checkers do (PEP 484).
    return (float, int) if found is float else (found,)
