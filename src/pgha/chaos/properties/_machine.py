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
        """Hypothesis's machine for type checkers: without `teardown`, which is not async there."""

        TestCase: ClassVar[Any]
        names_to_values: dict[str, Any]

        def _pretty_print(self, value: object) -> str: ...
        def _repr_step(self, rule: Rule, data: Any, result: Any) -> str: ...

else:
    _Machine = RuleBasedStateMachine


class AsyncRuleBasedStateMachine(_Machine):
    """Hypothesis's `RuleBasedStateMachine` with rules, initializers and invariants that may be `async def`.

    Use the decorators `rule`, `initialize`, `invariant` and `precondition` of this package (Hypothesis's own
    work too, but their types do not allow async functions), and `Bundle`, `consumes` and `multiple` as usual.
    `setup` and `teardown` may be async as well. All of them run in one task of one loop, in the thread of the
    test; every example has a new loop. So one rule may leave a context that another one entered, and
    `st.data()` can be drawn from. The loop runs only while one of these methods runs.

    `TestCase` runs the machine on `backend`; `run_async_state_machine_as_test` runs it on any backend. A
    failure ends with a program that performs the same steps again. That program uses the machine as an async
    context manager: entering calls `setup`, leaving calls `teardown`. Cancellation reaches the steps as in
    any async function, and `teardown` still runs, cancelled.

    Example::

        class Counter(AsyncRuleBasedStateMachine):
            @rule(number=st.integers())
            async def put(self, number):
                await anyio.sleep(0)

        TestCounter = Counter.TestCase
    """

    backend: ClassVar[Backend] = "asyncio"
    """The event loop that `TestCase` runs the machine on."""
    backend_options: ClassVar[Mapping[str, Any] | Callable[[], Mapping[str, Any]]] = {}
    """The options of `anyio.run` for the backend, or a function that returns new ones for every example (a
    clock, for instance, must not be shared).
    """
    tasks: Tasks
    """The background tasks, which live until after the teardown."""
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
            vars(self)["teardown"] = self._end_example  # Hypothesis calls this one

    def setup(self) -> object:
        """Prepare the machine before anything else; may be overridden, also by `async def`.

        If the setup fails, there is no teardown.

        Returns:
            Nothing, or an awaitable.
        """

    def teardown(self) -> object:
        """Clean up at the end of every example, even of a failed one; may be overridden, also by `async def`.

        After a failed background task or a Ctrl-C, the teardown runs cancelled, as any `finally` would.

        Returns:
            Nothing, or an awaitable.
        """

    def _own_teardown(self) -> object:
        return type(self).teardown(self)

    async def __aenter__(self) -> Self:
        self._world = None  # only the caller drives the machine
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
        """Run a rule or an invariant in the world, and record its failure."""
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
        # Hypothesis prints this line, and the program repeats it. This is called only for printed steps.
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
    """Let the function run in its machine's world, if the machine has one.

    The change is made in place: Hypothesis takes the function to call from these objects. The method with
    that name stays unchanged, for programs to await.
    """
    function = marked.function
    for condition in marked.preconditions:
        if inspect.iscoroutinefunction(condition):
            raise InvalidDefinition(
                f"a precondition of {function.__qualname__} is async: make it synchronous"
            )
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
    """Run a machine as a test, on its own backend, on another one, or on both in turn.

    Do not call this function in a running event loop. Examples that failed on one backend are tried on the
    other too.

    Args:
        machine: The machine's class.
        backend: The event loop, `asyncio`, `trio` or `both`; None: the machine's own.
        backend_options: The options of `anyio.run` for the backend, or a function that returns new ones for
            every example; None: the machine's own.
        settings: Hypothesis's settings; None: those of the machine's `TestCase`.

    Raises:
        RuntimeError: If an event loop is running. Otherwise, the failure of the machine is raised.
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
    """Return the same machine on that backend, with the same name.

    Hypothesis keeps its examples by that name.
    """
    values: dict[str, Any] = {"backend": backend, "_printed_as": machine}
    # By the last name, Python 3.13 finds the source, which is part of Hypothesis's key.
    for name in ("__qualname__", "__module__", "__firstlineno__"):
        if (value := getattr(machine, name, None)) is not None:
            values[name] = value
    if options is not None:
        values["backend_options"] = staticmethod(options) if callable(options) else options
    return types.new_class(machine.__name__, (machine,), exec_body=lambda space: space.update(values))
