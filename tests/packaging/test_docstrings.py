"""Check that the documentation of the public API is complete and that its examples are valid Python."""

from __future__ import annotations

import enum
import inspect
import re
import textwrap
import types
import typing
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import pytest

import pgha
import pgha.blocking
import pgha.chaos

MODULES = [pgha, pgha.blocking, pgha.chaos]
"""The public modules. Add new public modules here."""

EXCEPTIONS_WITH_EXAMPLES = {"CommitInDoubt", "NoNodeAvailable", "QueueFull"}
WIDTH = 80
INTERNAL = "Internal: "
"""The prefix of docstrings of methods that only pgha calls; the documentation omits them."""

BAD_START = re.compile(r"(What|Who|It|Of|Where|Whoever|Whatever)\b", re.IGNORECASE)
BAD_WORDS = re.compile(r"\b(somebody|nobody|he)\b", re.IGNORECASE)
ASYNCHRONOUS = ("AsyncContextManager", "AsyncGenerator", "AsyncIterator")


@dataclass(frozen=True)
class Documented:
    """One public object: a class, a function, a method or a property."""

    name: str
    value: object

    @property
    def text(self) -> str:
        return inspect.getdoc(self.value) or ""

    @property
    def function(self) -> Callable[..., object] | None:
        """Return the undecorated function of a function or method; None for classes and properties."""
        return inspect.unwrap(self.value) if inspect.isroutine(self.value) else None


def public(module: types.ModuleType) -> Iterator[Documented]:
    """Yield the module, the classes and functions of ``__all__``, and the public members of the classes."""
    yield Documented(module.__name__, module)
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value):
            yield Documented(name, value)
            for member, found in members(value).items():
                documented = Documented(f"{name}.{member}", found)
                if not documented.text.startswith(INTERNAL):
                    yield documented
        elif inspect.isroutine(value):
            yield Documented(name, value)


def members(of: type) -> dict[str, object]:
    """Return public methods and properties of a class and its bases in the same package, by name."""
    package = of.__module__.split(".")[0]
    found: dict[str, object] = {}
    for base in reversed(of.__mro__):
        if base.__module__.split(".")[0] == package:
            for name, value in vars(base).items():
                member = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
                if not name.startswith("_") and (inspect.isroutine(member) or isinstance(member, property)):
                    found[name] = member
    return found


def sections(text: str) -> dict[str, str]:
    """Return the google-style sections of a docstring by name, with their indentation removed."""
    found = re.split(r"^(\w+)::?\n", text, flags=re.MULTILINE)
    pairs = zip(found[1::2], found[2::2], strict=True)
    return {
        name: textwrap.dedent(re.split(r"^(?=\S)", body.lstrip("\n"), maxsplit=1, flags=re.MULTILINE)[0])
        for name, body in pairs
    }


def examples(text: str) -> list[str]:
    """Return the code of every ``::`` block of a docstring."""
    found: list[str] = []
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if not line.rstrip().endswith("::"):
            continue
        outer = len(line) - len(line.lstrip())
        block: list[str] = []
        for following in lines[number + 1 :]:
            if following.strip() and len(following) - len(following.lstrip()) <= outer:
                break
            block.append(following)
        found.append(textwrap.dedent("\n".join(block)).strip("\n"))
    return found


# The checks: each takes a public object and returns what is wrong, or None


def has_a_plain_first_line(one: Documented) -> str | None:
    """The first line exists, and is plain English."""
    first = one.text.split("\n")[0]
    if not first:
        return "no docstring"
    if BAD_START.match(first):
        return f"begins with {first.split()[0]!r}"
    found = BAD_WORDS.search(first)
    return None if found is None else f"says {found[0]!r}"


def has_no_colon_that_napoleon_misreads(one: Documented) -> str | None:
    """Napoleon takes the text before a colon for a type, in a property's first line and in ``Returns:``."""
    first = [one.text.split("\n")[0]] if isinstance(one.value, property) else []
    returns = sections(one.text).get("Returns", "").split("\n")[:1] if one.function is not None else []
    for line in [*first, *returns]:
        if ":" in re.sub(r"`+[^`]*`+", "", line):
            return f"has a colon in {line!r}"
    return None


def lists_every_parameter(one: Documented) -> str | None:
    """``Args:`` has an entry for every parameter."""
    if one.function is None:
        return None
    wanted = set(parameters(one.function))
    listed = re.findall(r"^\*{0,2}(\w+)(?: \(.*?\))?: \S", sections(one.text).get("Args", ""), re.MULTILINE)
    missing, superfluous = wanted - set(listed), set(listed) - wanted
    if missing:
        return f"Args: lacks {', '.join(sorted(missing))}"
    return f"Args: has no parameter {', '.join(sorted(superfluous))}" if superfluous else None


def parameters(function: Callable[..., object]) -> list[str]:
    """Return names of the public parameters; an overloaded function may take its overloads' ``**options``."""
    signatures = [inspect.signature(function)]
    overloads = typing.get_overloads(function)
    names: list[str] = []
    for signature in [*signatures, *map(inspect.signature, overloads)]:
        for name, parameter in signature.parameters.items():
            passed_on = parameter.kind is parameter.VAR_KEYWORD and overloads
            if name not in ("self", "cls") and not name.startswith("_") and not passed_on:
                names.append(name)
    return names


def describes_the_result(one: Documented) -> str | None:
    """``Returns:`` (or ``Yields:``) stands there exactly when the function returns something."""
    if one.function is None:
        return None
    annotation = one.function.__annotations__.get("return", "None")
    nothing = annotation in ("None", None, "NoReturn", "Never", typing.NoReturn, typing.Never)
    described = bool({"Returns", "Yields"} & set(sections(one.text)))
    if nothing:
        return "Returns: describes None" if described else None
    return None if described else f"no Returns: for {annotation}"


def mentions_cancellation(one: Documented) -> str | None:
    """Every function that waits in an event loop documents cancellation."""
    function = one.function
    if function is None or not waits(function):
        return None
    return None if re.search("cancel", one.text, re.IGNORECASE) else "does not mention cancellation"


def waits(function: Callable[..., object]) -> bool:
    """Return whether a function is a coroutine function, or returns an async context manager or iterator."""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return True
    return any(word in str(function.__annotations__.get("return")) for word in ASYNCHRONOUS)


def has_examples_that_fit(one: Documented) -> str | None:
    """No line of an example is cut off on the rendered page."""
    lines = [line for code in examples(one.text) for line in code.split("\n")]
    longest = max(lines, key=len, default="")
    return f"{longest!r} has more than {WIDTH} characters" if len(longest) > WIDTH else None


def has_an_example(one: Documented) -> str | None:
    """Every public class has an example, except enumerations and most exceptions; all events share one."""
    if not inspect.isclass(one.value):
        return None
    if issubclass(one.value, enum.Enum):
        return None
    if issubclass(one.value, BaseException) and one.name not in EXCEPTIONS_WITH_EXAMPLES:
        return None
    if issubclass(one.value, pgha.Event) and one.value is not pgha.Event:
        return None
    return None if any(examples(one.text)) else "no example"


def has_examples_that_compile(one: Documented) -> str | None:
    """Every ``::`` block is valid Python, at the top level or inside of a coroutine function."""
    for code in examples(one.text):
        try:
            compile(f"async def example():\n{textwrap.indent(code, '    ')}\n", one.name, "exec")
        except SyntaxError as error:
            return f"an example does not compile: {error.msg}"
    return None


CHECKS: list[Callable[[Documented], str | None]] = [
    has_a_plain_first_line,
    has_no_colon_that_napoleon_misreads,
    lists_every_parameter,
    describes_the_result,
    mentions_cancellation,
    has_an_example,
    has_examples_that_compile,
    has_examples_that_fit,
]


def problems(module: types.ModuleType, check: Callable[[Documented], str | None]) -> list[str]:
    found = [(one.name, check(one)) for one in public(module)]
    return [f"{name}: {problem}" for name, problem in found if problem is not None]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_documentation(check: Callable[[Documented], str | None], module: types.ModuleType) -> None:
    assert problems(module, check) == [], check.__doc__


@pytest.mark.parametrize("module", [pgha, pgha.blocking], ids=lambda module: module.__name__)
def test_what_is_checked(module: types.ModuleType) -> None:
    names = {one.name for one in public(module)}
    assert {"open_cluster", "Cluster", "Cluster.fetch", "Cluster.nodes", "Operation.cancel"} <= names
    assert not any("._" in name for name in names)
    assert "Operation.set_result" not in names, "inherited from the standard library"


def test_blocking_calls_mention_interrupts() -> None:
    """A method of `pgha.blocking` mentions interrupts if its asynchronous counterpart waits."""
    asynchronous = {one.name for one in public(pgha) if one.function is not None and waits(one.function)}
    found = {one.name: one.text for one in public(pgha.blocking)}
    shared = asynchronous & set(found)
    assert {"open_cluster", "Cluster.fetch", "Cluster.events", "Ledger.prune"} <= shared
    assert [name for name in sorted(shared) if "interrupt" not in found[name].lower()] == []


# Bad input, which the checks must find


class Bad:
    """A class without code in its example.

    Example::

    And more text.
    """

    def starts_badly(self) -> None:
        """What this does."""

    def starts_with_it(self) -> None:
        """It returns."""

    def names_a_person(self) -> None:
        """Wait until somebody answers."""

    @property
    def colon(self) -> int:
        """A number: it has a colon."""
        return 1

    def undocumented(self) -> None: ...

    def lacks_args(self, first: int, second: int) -> None:
        """Add.

        Args:
            first: A number.
        """

    def lacks_args_in_a_section(self, first: int) -> None:
        """Add the first: a number.

        Raises:
            first: Not a parameter.
        """

    def lists_too_much(self, first: int) -> None:
        """Add.

        Args:
            first: A number.
            second: A number that does not exist.
        """

    def has_an_empty_entry(self, first: int) -> None:
        """Add.

        Args:
            first:
        """

    def lacks_returns(self) -> int:
        """Return a number."""
        return 1

    def returns_a_colon(self) -> int:
        """Return a number.

        Returns:
            A number: one.
        """
        return 1

    def returns_nothing(self) -> None:
        """Do something.

        Returns:
            Nothing.
        """

    async def waits(self) -> None:
        """Wait for ever."""

    def opens(self) -> AbstractAsyncContextManager[int]:
        """Return a scope.

        Returns:
            The scope.
        """
        raise NotImplementedError

    @asynccontextmanager
    async def generates(self) -> AsyncIterator[int]:
        """Open a scope.

        Returns:
            The scope.
        """
        yield 1


class Broken:
    """A class.

    Example::

        rows = await cluster.fetch("SELECT 1"
    """


class Wide:
    """A class.

    Example::

        rows = await cluster.fetch("SELECT id, name, price, weight FROM item ORDER BY id")
    """


class Good:
    """A class.

    Example::

        async with pgha.open_cluster("host=db1") as cluster:
            rows = await cluster.fetch("SELECT 1")
    """

    async def wait(self, *nodes: str, timeout: float | None = None, _private: int = 0) -> int:
        """Wait for an answer; cancelling changes nothing.

        Args:
            *nodes: Names of nodes. A sentence
                that continues: on the next line.
            timeout: Seconds.

        Returns:
            The answer.
        """
        return 1

    def internal(self, first: int) -> int:
        """Internal: not documented."""
        return first


class Worse(Bad):
    """A class whose methods come from its base."""


class Unhappy(Exception):
    """An exception without an example."""


def face(**names: object) -> types.ModuleType:
    module = types.ModuleType("face", "A module.")
    module.__all__ = list(names)  # type: ignore[attr-defined]
    for name, value in names.items():
        setattr(module, name, value)
    return module


@pytest.mark.parametrize(
    ("check", "problem"),
    [
        (has_a_plain_first_line, "Bad.starts_badly: begins with 'What'"),
        (has_a_plain_first_line, "Bad.starts_with_it: begins with 'It'"),
        (has_a_plain_first_line, "Bad.names_a_person: says 'somebody'"),
        (has_a_plain_first_line, "Bad.undocumented: no docstring"),
        (has_no_colon_that_napoleon_misreads, "Bad.colon: has a colon in 'A number: it has a colon.'"),
        (has_no_colon_that_napoleon_misreads, "Bad.returns_a_colon: has a colon in 'A number: one.'"),
        (lists_every_parameter, "Bad.lacks_args: Args: lacks second"),
        (lists_every_parameter, "Bad.lacks_args_in_a_section: Args: lacks first"),
        (lists_every_parameter, "Bad.lists_too_much: Args: has no parameter second"),
        (lists_every_parameter, "Bad.has_an_empty_entry: Args: lacks first"),
        (describes_the_result, "Bad.lacks_returns: no Returns: for int"),
        (describes_the_result, "Bad.returns_nothing: Returns: describes None"),
        (mentions_cancellation, "Bad.waits: does not mention cancellation"),
        (mentions_cancellation, "Bad.opens: does not mention cancellation"),
        (mentions_cancellation, "Bad.generates: does not mention cancellation"),
        (has_an_example, "Bad: no example"),
    ],
)
def test_the_check_catches(check: Callable[[Documented], str | None], problem: str) -> None:
    assert problem in problems(face(Bad=Bad), check)


def test_a_broken_example_is_caught() -> None:
    (problem,) = problems(face(Broken=Broken), has_examples_that_compile)
    assert problem.startswith("Broken: an example does not compile")


def test_a_wide_example_is_caught() -> None:
    (problem,) = problems(face(Wide=Wide), has_examples_that_fit)
    assert problem.endswith("has more than 80 characters")


def test_inherited_methods_are_checked() -> None:
    assert "Worse.lacks_args: Args: lacks second" in problems(face(Worse=Worse), lists_every_parameter)


def test_exceptions_with_and_without_examples() -> None:
    assert problems(face(Unhappy=Unhappy), has_an_example) == []
    assert problems(face(QueueFull=Unhappy), has_an_example) == ["QueueFull: no example"]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_check_allows(check: Callable[[Documented], str | None]) -> None:
    assert problems(face(Good=Good, LIMIT=1), check) == []
