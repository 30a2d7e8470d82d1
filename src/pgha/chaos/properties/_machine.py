"""State machines for Hypothesis whose rules are async, on trio and on asyncio."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

from hypothesis import currently_in_test_context, reporting
from hypothesis import settings as Settings
from hypothesis.control import current_build_context
from hypothesis.errors import Frozen, InvalidDefinition, StopTest, UnsatisfiedAssumption
from hypothesis.stateful import Invariant, Rule, RuleBasedStateMachine, run_state_machine_as_test
from hypothesis.strategies import DataObject

from pgha.chaos.properties._draws import Recording
from pgha.chaos.properties._life import Tasks, alive
from pgha.chaos.properties._loops import Backend
from pgha.chaos.properties._program import program
from pgha.chaos.properties._world import World

_CONTROL = (StopTest, UnsatisfiedAssumption, Frozen)


if TYPE_CHECKING:

    class _Machine:
        """Hypothesis's machine as type checkers shall see it: its teardown there is not async."""

        TestCase: ClassVar[Any]
        names_to_values: dict[str, Any]

        def _pretty_print(self, value: object) -> str: ...
        def _repr_step(self, rule: Rule, data: Any, result: Any) -> str: ...

else:
    _Machine = RuleBasedStateMachine


class AsyncRuleBasedStateMachine(_Machine):
    """Hypothesis's `RuleBasedStateMachine`, whose rules, initializers and invariants may be `async def`.

    Use `rule`, `initialize`, `invariant`, `precondition` of this package (Hypothesis's own work too, but
    their types do not know async functions), and its `Bundle`, `consumes`, `multiple` as ever. `setup` and
    `teardown` may be async as well. All of them run in one task of one loop, new for every example, in the
    thread of the test: what one enters, another may leave, and `st.data()` can be drawn from. The loop runs
    only while one of them does.

    `TestCase` runs it on `backend`; `run_async_state_machine_as_test` on any. A failure ends with a program
    that does it again; for that, and by hand, a machine is an async context manager:

        async with Machine() as state:
            await state.put(1)
    """

    backend: ClassVar[Backend] = "asyncio"
    backend_options: ClassVar[Mapping[str, Any] | Callable[[], Mapping[str, Any]]] = {}
    """What `anyio.run` takes for the backend, or a function that gives it anew for every example (as is right
    for a clock).
    """
    tasks: Tasks
    """Background tasks: they live until after the teardown."""
    _printed_as: ClassVar[type[AsyncRuleBasedStateMachine] | None] = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for base in cls.__mro__:
            for value in vars(base).values():
                for marked in getattr(value, "__dict__", {}).values():
                    if isinstance(marked, Rule | Invariant):
                        _drive(marked)

    def __init__(self) -> None:
        super().__init__()
        self._steps: list[str] = []
        self._drawn: dict[str, Recording] = {}
        self._awaited: set[str] = set()
        self._failure: BaseException | None = None
        self._world: World | None = None
        self._body: AbstractAsyncContextManager[Any] | None = None
        if currently_in_test_context():
            cls = type(self)
            options = cls.backend_options() if callable(cls.backend_options) else cls.backend_options
            self._world = World(self, self._own_teardown, cls.backend, dict(options))
            vars(self)["teardown"] = self._end_example  # what Hypothesis calls

    def setup(self) -> object:
        """Called before all else; may be `async def`. When it fails, there is no teardown."""

    def teardown(self) -> object:
        """Called at the end of every example, also of a failed one; may be `async def`. It runs cancelled, as
        any `finally` would, when a background task has failed or Ctrl-C was pressed.
        """

    def _own_teardown(self) -> object:
        return type(self).teardown(self)

    async def __aenter__(self) -> Self:
        self._world = None  # nobody drives it but the caller
        vars(self).pop("teardown", None)
        self._body = alive(self, self._own_teardown)
        await self._body.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._body is not None
        return await self._body.__aexit__(exc_type, exc, traceback)

    def _driven(self, function: Callable[..., object], arguments: dict[str, Any]) -> object:
        """Run a rule or an invariant in the world and note how it failed."""
        assert self._world is not None
        self._drawn = {
            name: Recording(value, self._pretty_print)
            for name, value in arguments.items()
            if isinstance(value, DataObject)
        }

        def work() -> object:
            result = function(self, **{**arguments, **self._drawn})
            if inspect.isawaitable(result):
                self._awaited.add(function.__name__)
            return result

        try:
            return self._world.run(work)
        except _CONTROL:
            raise
        except BaseException as error:
            self._failure = self._failure or error
            raise

    def _note_invariant(self, name: str) -> None:
        self._steps.append(self._as_awaited(name, f"state.{name}()"))

    def _repr_step(self, rule: Rule, data: Any, result: Any) -> str:
        # Hypothesis's own line, and the same for the program. It calls this for what it prints only.
        drawn = {name: f"Draws({', '.join(one.drawn)})" for name, one in self._drawn.items()}
        line = super()._repr_step(rule, {**data, **drawn}, result)
        self._steps.append(self._as_awaited(rule.function.__name__, line))
        return super()._repr_step(rule, data, result)

    def _as_awaited(self, name: str, line: str) -> str:
        if name not in self._awaited:
            return line
        return line.replace(f"state.{name}(", f"await state.{name}(", 1)

    def _end_example(self) -> None:
        assert self._world is not None
        try:
            self._world.close()
        except Exception as error:
            if self._failure is None:
                self._failure = error
                raise
            self._failure.add_note(f"and then, in the teardown: {error!r}")
        finally:
            if self._failure is not None and current_build_context().is_final:
                reporting.report(f"\nAs a program:\n\n{self._program()}")

    def _program(self) -> str:
        own = type(self)._printed_as
        cls = own or type(self)
        options = ""
        if cls.backend_options and (own is None or type(self).backend_options is cls.backend_options):
            called = "()" if callable(cls.backend_options) else ""
            options = f"{cls.__qualname__.rpartition('<locals>.')[2]}.backend_options{called}"
        return program(cls, self._steps, backend=type(self).backend, options=options)


def _drive(marked: Rule | Invariant) -> None:
    """Let the function run in its machine's world, if it has one.

    In place: these objects are where Hypothesis finds the function to call; the method of that name stays as
    it is, for programs to await.
    """
    function = marked.function
    for condition in marked.preconditions:
        if inspect.iscoroutinefunction(condition):
            raise InvalidDefinition(f"a precondition of {function.__qualname__} is async; it cannot be")
    if hasattr(function, "_pgha_driven"):
        return

    @functools.wraps(function)
    def driven(machine: Any, **arguments: Any) -> object:
        if not isinstance(machine, AsyncRuleBasedStateMachine) or machine._world is None:
            return function(machine, **arguments)
        try:
            return machine._driven(function, arguments)
        finally:
            if isinstance(marked, Invariant):
                machine._note_invariant(function.__name__)

    vars(driven)["_pgha_driven"] = True
    object.__setattr__(marked, "function", driven)


def run_async_state_machine_as_test(
    machine: type[AsyncRuleBasedStateMachine],
    *,
    backend: Backend | Literal["both"] | None = None,
    backend_options: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
    settings: Settings | None = None,
) -> None:
    """Run the machine as a test, on its own backend, on another, or on one after the other.

    `backend_options`: instead of the machine's. Not to be called in a running loop. Examples that failed on
    one backend are tried on the other too.
    """
    own = machine.backend if backend is None else backend
    for one in ("asyncio", "trio") if own == "both" else (own,):
        variant = _variant(machine, one, backend_options)
        run_state_machine_as_test(cast(Any, variant), settings=settings or machine.TestCase.settings)


def _variant(
    machine: type[AsyncRuleBasedStateMachine],
    backend: str,
    options: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None,
) -> type[AsyncRuleBasedStateMachine]:
    """The same machine on that backend, of the same name: Hypothesis keeps its examples by that."""
    values: dict[str, Any] = {"backend": backend, "_printed_as": machine}
    # The last one is how Python 3.13 finds the source, which is part of Hypothesis's key.
    for name in ("__qualname__", "__module__", "__firstlineno__"):
        if (value := getattr(machine, name, None)) is not None:
            values[name] = value
    if options is not None:
        values["backend_options"] = staticmethod(options) if callable(options) else options
    return types.new_class(machine.__name__, (machine,), exec_body=lambda space: space.update(values))
