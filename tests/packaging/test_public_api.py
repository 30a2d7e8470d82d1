"""Check that the names in `pgha.__all__` exist, are documented and name `pgha`, and that no others show."""

import enum
import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import pytest

import pgha
import pgha.blocking

Check = Callable[[types.ModuleType], list[str]]


def _promised(module: types.ModuleType) -> list[str]:
    return list(getattr(module, "__all__", []))


def _defined(module: types.ModuleType) -> dict[str, object]:
    """Return the promised classes and functions; constants and type aliases have no docstrings."""
    found = {name: getattr(module, name, None) for name in _promised(module)}
    return {
        name: value for name, value in found.items() if inspect.isclass(value) or inspect.isroutine(value)
    }


def every_promise_is_kept(module: types.ModuleType) -> list[str]:
    """Every name in `__all__` exists, once."""
    names = _promised(module)
    return [name for name in set(names) if not hasattr(module, name) or names.count(name) > 1]


def everything_is_documented(module: types.ModuleType) -> list[str]:
    """Every public class and function has a docstring that was not generated."""
    return [name for name, value in _defined(module).items() if not _written(value)]


def _written(value: object) -> bool:
    text = (value.__doc__ or "").strip()
    # dataclass and NamedTuple generate the signature as a docstring, Enum (3.11) a fixed sentence.
    generated = (
        text.startswith(f"{getattr(value, '__name__', '')}(") or text == (enum.Enum.__doc__ or "").strip()
    )
    return bool(text) and not generated


def everything_names_the_public_place(module: types.ModuleType) -> list[str]:
    """Errors and reprs show `pgha.X`, never a private module."""
    return [
        f"{name} ({value.__module__})"
        for name, value in _defined(module).items()
        if value.__module__ != module.__name__
    ]


def nothing_else_shows(module: types.ModuleType) -> list[str]:
    """`dir()` has only the promised names and the submodules, no other imported names."""
    return [
        name
        for name in dir(module)
        if not name.startswith("_")
        if name not in _promised(module) and not _is_submodule(module, name)
    ]


def _is_submodule(module: types.ModuleType, name: str) -> bool:
    value = getattr(module, name)
    return isinstance(value, types.ModuleType) and value.__name__ == f"{module.__name__}.{name}"


def nothing_private_is_promised(module: types.ModuleType) -> list[str]:
    """`__all__` contains only public names."""
    return [name for name in _promised(module) if name.startswith("_")]


CHECKS: list[Check] = [
    every_promise_is_kept,
    everything_is_documented,
    everything_names_the_public_place,
    nothing_else_shows,
    nothing_private_is_promised,
]


@pytest.mark.parametrize("module", [pgha, pgha.blocking], ids=lambda module: module.__name__)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_public_face(check: Check, module: types.ModuleType) -> None:
    assert check(module) == [], check.__doc__


def _face(**names: object) -> types.ModuleType:
    face = types.ModuleType("face")
    for name, value in names.items():
        setattr(face, name, value)
    return face


def documented() -> None:
    """Return None; this docstring is written by hand."""


def undocumented() -> None: ...


@dataclass
class Signature:
    field: int


class Pair(NamedTuple):
    field: int


class Colour(enum.Enum):
    RED = 1


documented.__module__ = "face"


@pytest.mark.parametrize(
    ("check", "face"),
    [
        (every_promise_is_kept, _face(__all__=["missing"])),
        (every_promise_is_kept, _face(__all__=["documented", "documented"], documented=documented)),
        (everything_is_documented, _face(__all__=["undocumented"], undocumented=undocumented)),
        (everything_is_documented, _face(__all__=["Signature"], Signature=Signature)),
        (everything_is_documented, _face(__all__=["Pair"], Pair=Pair)),
        (everything_is_documented, _face(__all__=["Colour"], Colour=Colour)),
        (everything_names_the_public_place, _face(__all__=["undocumented"], undocumented=undocumented)),
        (everything_names_the_public_place, _face(__all__=["Pair"], Pair=Pair)),
        (nothing_else_shows, _face(__all__=[], documented=documented)),
        (nothing_else_shows, _face(enum=enum)),
        (nothing_private_is_promised, _face(__all__=["_x"], _x=1)),
    ],
)
def test_the_check_catches(check: Check, face: types.ModuleType) -> None:
    assert check(face)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_check_allows(check: Check) -> None:
    submodule = types.ModuleType("face.submodule")
    face = _face(
        __all__=["documented", "LIMIT"], documented=documented, LIMIT=1, submodule=submodule, _private=enum
    )
    assert check(face) == []
    assert check(_face()) == []
