"""Strategies that make valid values and shrink well; state machines with async rules, on both event loops."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import threading
import time
import unittest
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import pytest
import trio.testing
from hypothesis import HealthCheck, Phase, assume, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import InvalidDefinition

from pgha.chaos import (
    ALL_FAULTS,
    NODE_FAULTS,
    ChaosError,
    FaultKind,
    Injector,
    Nodes,
    Schedule,
    Step,
    Workload,
)
from pgha.chaos.properties import (
    AsyncRuleBasedStateMachine,
    Backend,
    Bundle,
    consumes,
    faults,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_async_state_machine_as_test,
    schedules,
    steps,
    workloads,
)

QUICK = settings(
    max_examples=30,
    stateful_step_count=8,
    database=None,
    print_blob=False,  # Hypothesis turns it on in CI, and would print the blob after the program
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> Backend:
    found: Backend = request.param
    return found


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Fail if a loop is not closed or a coroutine not awaited: the warnings for both are errors here."""
    yield
    gc.collect()
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    assert not trio.lowlevel.in_trio_run()


def run(machine: type[AsyncRuleBasedStateMachine], backend: Backend, **options: Any) -> None:
    run_async_state_machine_as_test(machine, backend=backend, settings=QUICK, **options)


def failure(
    machine: type[AsyncRuleBasedStateMachine], backend: Backend, kind: type[BaseException] = AssertionError
) -> tuple[BaseException, str]:
    """Return the machine's failure and the text that is printed with it."""
    with pytest.raises(kind) as caught:
        run_async_state_machine_as_test(machine, backend=backend, settings=settings(QUICK, max_examples=1000))
    return caught.value, "\n".join(getattr(caught.value, "__notes__", []))


def calls(text: str) -> list[str]:
    """Return the statements of the printed program that call rules."""
    return [line.strip() for line in text.splitlines() if "await state." in line]


# --- strategies -----------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.data(), st.integers(1, 4), st.sampled_from([ALL_FAULTS, NODE_FAULTS, ("freeze", "cut")]))
def test_schedules_are_valid(data: st.DataObject, nodes: int, kinds: tuple[FaultKind, ...]) -> None:
    spare = data.draw(st.integers(0, nodes - 1))
    schedule = data.draw(schedules(nodes=nodes, seconds=2.0, kinds=kinds, spare=spare, max_steps=6, hold=0.5))
    assert schedule.conflicts(nodes=nodes, spare=spare) == []
    assert len(schedule.steps) <= 6
    assert all(step.at <= 2 and step.hold <= 0.5 and step.kind in kinds for step in schedule.steps)
    assert eval(repr(schedule), {"Schedule": Schedule, "Step": Step}) == schedule


def shortest(condition: Callable[[Schedule], bool], **options: Any) -> Schedule:
    return find(schedules(**options), condition, settings=settings(database=None, max_examples=5000))


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (lambda s: s.steps, [Step(0.0, "kill", 0, 0.05)]),
        (lambda s: any(step.kind == "mute" for step in s.steps), [Step(0.0, "mute", 0, 0.05)]),
        (lambda s: any(step.hold > 0.5 for step in s.steps), [Step(0.0, "kill", 0, 0.51)]),
        (lambda s: any(step.node and step.at > 1 for step in s.steps), [Step(1.01, "kill", 1, 0.05)]),
        (
            lambda s: len({step.node for step in s.steps}) == 2,
            [Step(0.0, "kill", 0, 0.05), Step(0.0, "kill", 1, 0.05)],
        ),
    ],
)
def test_schedules_shrink(condition: Callable[[Schedule], bool], expected: list[Step]) -> None:
    assert list(shortest(condition).steps) == expected


def test_a_spared_node_forces_one_after_the_other() -> None:
    found = shortest(lambda s: len({step.node for step in s.steps}) == 2, nodes=2, spare=1, kinds=["freeze"])
    assert [(step.node, step.at) for step in found.steps] == [(0, 0.0), (1, 0.15)]


def test_kinds_are_simple_first() -> None:
    assert find(faults(["cut", "freeze", "kill"]), lambda kind: True) == "kill"
    assert find(faults(["mute", "crash"]), lambda kind: True) == "crash"


def test_nothing_can_be_done() -> None:
    with pytest.raises(ChaosError, match="no fault is possible"):
        schedules(nodes=2, spare=2)


@given(st.from_type(Schedule), st.from_type(Step), st.from_type(Workload), steps(), workloads())
def test_types_are_known(a: Schedule, b: Step, c: Workload, d: Step, e: Workload) -> None:
    assert a.conflicts(nodes=3, spare=1) == []
    assert b.node < 3
    assert c.writers >= 1
    assert eval(repr(e), {"Workload": Workload}) == e


@pytest.mark.parametrize(
    "imports",
    [
        "import hypothesis, pgha.chaos",
        "import pgha.chaos, hypothesis, _pgha_hypothesis; _pgha_hypothesis.register()",
    ],
)
def test_types_are_known_whatever_is_imported_first(imports: str) -> None:
    code = f"{imports}; print(hypothesis.strategies.from_type(pgha.chaos.Schedule).example())"
    command = [sys.executable, "-W", "ignore", "-c", code]
    assert "Schedule(" in subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_hypothesis_does_not_import_the_kit() -> None:
    code = "import sys, _pgha_hypothesis; _pgha_hypothesis.register(); print('pgha' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout == "False\n"
    code = "import sys, pgha.chaos; print('hypothesis' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout == "False\n"


# --- machines that find something -----------------------------------------------------------------------


class Box:
    """A box that claims to hold at most `limit` things."""

    def __init__(self, limit: int) -> None:
        self.limit, self.things = limit, list[int]()

    async def put(self, thing: int) -> bool:
        if len(self.things) >= self.limit:
            return False
        await anyio.lowlevel.checkpoint()  # the planted race: a wait between the check and the change
        self.things.append(thing)
        return True

    async def take(self) -> int | None:
        await anyio.lowlevel.checkpoint()
        return self.things.pop() if self.things else None


class Racing(AsyncRuleBasedStateMachine):
    async def setup(self) -> None:
        self.box = Box(1)

    @rule(thing=st.integers())
    async def put(self, thing: int) -> None:
        await self.box.put(thing)

    @rule()
    async def take(self) -> None:
        await self.box.take()

    @rule(things=st.lists(st.integers(), max_size=6))
    async def put_at_once(self, things: list[int]) -> None:
        async with anyio.create_task_group() as group:
            for thing in things:
                group.start_soon(self.box.put, thing)

    @invariant()
    async def is_bounded(self) -> None:
        await anyio.lowlevel.checkpoint()
        assert len(self.box.things) <= self.box.limit


def test_a_race_is_found_and_shrunk(backend: Backend) -> None:
    _, text = failure(Racing, backend)
    assert "state.put_at_once(things=[0, 0])" in text  # printed by Hypothesis itself
    assert calls(text) == [
        "await state.is_bounded()",
        "await state.put_at_once(things=[0, 0])",
        "await state.is_bounded()",
    ]


class Drawing(AsyncRuleBasedStateMachine):
    """Bundles and draws, all in async rules."""

    small, large = Bundle("small"), Bundle("large")

    @initialize(target=small, schedule=schedules(max_steps=1))
    async def begin(self, schedule: Schedule) -> object:
        await anyio.lowlevel.checkpoint()
        return multiple(["first", schedule], ["second", schedule])

    @rule(targets=(small, large), value=consumes(small))
    async def grow(self, value: list[object]) -> list[object]:
        await anyio.lowlevel.checkpoint()
        return [*value, len(value)]

    @rule(value=large, data=st.data())
    async def check(self, value: list[object], data: st.DataObject) -> None:
        await anyio.lowlevel.checkpoint()
        number = data.draw(st.integers(0, 100), label="number")
        step = data.draw(st.just(Step(0.5, "freeze", 1)))
        assert len(value) < 3 or number < 7 or step.node != 1


def program_of(text: str) -> str:
    return text.partition("As a program:")[2].strip()


@pytest.mark.parametrize(
    ("machine", "backend"),
    [
        (Racing, "asyncio"),
        (Racing, "trio"),
        (Drawing, "asyncio"),
        pytest.param(Drawing, "trio", marks=pytest.mark.thorough),
    ],
)
def test_the_printed_program_fails_in_the_same_way(
    machine: type[AsyncRuleBasedStateMachine], backend: Backend
) -> None:
    error, text = failure(machine, backend)
    program = program_of(text)
    assert f"anyio.run(main, backend={backend!r})" in program
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd="/")
    assert found.returncode == 1, found.stderr
    assert type(error).__name__ in found.stderr
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    assert frame is not None
    assert f"line {frame.tb_lineno}, in {frame.tb_frame.f_code.co_name}" in found.stderr


def test_bundles_and_draws_shrink(backend: Backend) -> None:
    _, text = failure(Drawing, backend)
    assert calls(text) == [
        "small_0, small_1 = await state.begin(schedule=Schedule(steps=()))",
        "small_2 = large_0 = await state.grow(value=small_1)",
        "await state.check(data=Draws(7, Step(at=0.5, kind='freeze', node=1, hold=0.5, amount=0.0)),"
        " value=large_0)",
    ]
    assert "from pgha.chaos import Schedule, Step" not in program_of(text)  # each schedule takes one line
    assert "from pgha.chaos import Step" in program_of(text)


def test_a_machine_of_a_function_is_printed_too(backend: Backend) -> None:
    class Local(AsyncRuleBasedStateMachine):
        @rule()
        async def fail(self) -> None:
            raise AssertionError

    _, text = failure(Local, backend)
    assert "# Local is " in program_of(text)
    compile(program_of(text), "program", "exec")
    names: dict[str, Any] = {"Local": Local}
    with pytest.raises(AssertionError):
        exec(program_of(text), names)


def test_as_a_test_case(backend: Backend) -> None:
    class OnIt(Racing):
        pass

    OnIt.backend = backend
    OnIt.TestCase.settings = QUICK
    result = unittest.TestResult()
    OnIt.TestCase().run(result)
    assert len(result.failures) == 1
    assert f"backend={backend!r}" in result.failures[0][1]


def test_both_backends() -> None:
    seen = set()

    class Looking(AsyncRuleBasedStateMachine):
        @rule()
        async def look(self) -> None:
            import sniffio

            seen.add(sniffio.current_async_library())

    run_async_state_machine_as_test(Looking, backend="both", settings=QUICK)
    assert seen == {"asyncio", "trio"}


# --- the life of a machine -----------------------------------------------------------------------------


def test_a_life(backend: Backend) -> None:
    """A machine has one task and one thread.

    Its background tasks end, and the teardown leaves the contexts that the setup entered.
    """
    events: list[str] = []

    class Whole(AsyncRuleBasedStateMachine):
        async def setup(self) -> None:
            events.append("setup")
            self.task, self.thread = anyio.get_current_task().id, threading.get_ident()
            self.stack = AsyncExitStack()
            self.group = await self.stack.enter_async_context(anyio.create_task_group())
            self.scope = self.stack.enter_context(anyio.CancelScope())
            self.group.start_soon(anyio.sleep_forever)
            self.tasks.start_soon(self.beside)
            assert await self.tasks.start(self.starting) == "started"

        async def beside(self) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                events.append("beside ended")

        async def starting(self, *, task_status: anyio.abc.TaskStatus[str]) -> None:
            task_status.started("started")
            await anyio.sleep_forever()

        def same(self) -> bool:
            return (anyio.get_current_task().id, threading.get_ident()) == (self.task, self.thread)

        @rule()
        async def asynchronous(self) -> None:
            await anyio.lowlevel.checkpoint()
            assert self.same()

        @rule()
        def synchronous(self) -> None:
            assert self.same()
            self.tasks.start_soon(anyio.sleep, 0)

        @invariant()
        async def always(self) -> None:
            assert self.same()

        async def teardown(self) -> None:
            assert self.same()
            await anyio.lowlevel.checkpoint()
            self.group.cancel_scope.cancel()
            await self.stack.aclose()
            events.append("teardown")

    run(Whole, backend)
    assert events == ["setup", "teardown", "beside ended"] * (len(events) // 3)
    assert len(events) >= 3 * 30


def test_the_teardown_runs_on_failure(backend: Backend) -> None:
    events: list[str] = []

    class Failing(AsyncRuleBasedStateMachine):
        async def setup(self) -> None:
            events.append("setup")

        @rule(number=st.integers())
        async def fail(self, number: int) -> None:
            assert number < 100

        async def teardown(self) -> None:
            await anyio.lowlevel.checkpoint()
            events.append("teardown")

    _, text = failure(Failing, backend)
    assert calls(text) == ["await state.fail(number=100)"]
    assert events == ["setup", "teardown"] * (len(events) // 2)


def test_the_first_failure_counts(backend: Backend) -> None:
    class Twice(AsyncRuleBasedStateMachine):
        failed = False

        @rule()
        async def fail(self) -> None:
            self.failed = True
            raise AssertionError("first")

        async def teardown(self) -> None:
            if self.failed:
                raise ValueError("second")

    error, text = failure(Twice, backend)
    assert str(error) == "first"
    assert "and then, in the teardown: ValueError('second')" in text


def test_a_teardown_that_fails(backend: Backend) -> None:
    class Last(AsyncRuleBasedStateMachine):
        count = 0

        @rule()
        async def go(self) -> None:
            self.count += 1

        async def teardown(self) -> None:
            assert self.count < 2

    _, text = failure(Last, backend)
    assert calls(text) == ["await state.go()"] * 2


def test_a_setup_that_fails(backend: Backend) -> None:
    class Never(AsyncRuleBasedStateMachine):
        async def setup(self) -> None:
            self.tasks.start_soon(anyio.sleep_forever)
            await anyio.lowlevel.checkpoint()
            raise LookupError("no server")

        @rule()
        async def go(self) -> None:
            raise AssertionError("never")

        async def teardown(self) -> None:
            raise AssertionError("not set up")

    failure(Never, backend, LookupError)


def test_an_assumption_and_draws_in_groups(backend: Backend) -> None:
    """The exceptions by which Hypothesis ends an example get through, also out of task groups."""
    tried: list[int] = []

    class Assuming(AsyncRuleBasedStateMachine):
        @rule(number=st.integers(0, 1000))
        async def directly(self, number: int) -> None:
            await anyio.lowlevel.checkpoint()
            assume(number % 8)
            tried.append(number)

        @rule(number=st.integers(0, 1000), data=st.data())
        async def in_a_group(self, number: int, data: st.DataObject) -> None:
            async def draw() -> None:
                await anyio.lowlevel.checkpoint()
                tried.append(1 + 8 * data.draw(st.integers(0, 10)))
                assume(number % 8)

            async with anyio.create_task_group() as group:
                group.start_soon(draw)

    run(Assuming, backend)
    assert tried
    assert all(number % 8 for number in tried)


def test_a_background_failure_interrupts_the_rule(backend: Backend) -> None:
    torn_down: list[bool] = []

    class Behind(AsyncRuleBasedStateMachine):
        async def setup(self) -> None:
            self.hurt = anyio.Event()
            self.tasks.start_soon(self.fail)

        async def fail(self) -> None:
            await self.hurt.wait()
            raise AssertionError("behind")

        @rule()
        async def wait(self) -> None:
            self.hurt.set()
            await anyio.sleep_forever()

        async def teardown(self) -> None:
            torn_down.append(True)

    error, text = failure(Behind, backend)
    assert str(error) == "behind"
    assert calls(text) == ["await state.wait()"]
    assert torn_down


def test_a_background_failure_after_the_rule(backend: Backend) -> None:
    """A failure that comes after its rule has ended is raised by the next rule, or by the teardown."""

    class Later(AsyncRuleBasedStateMachine):
        @rule()
        def lay(self) -> None:
            self.tasks.start_soon(self.hatch)

        async def hatch(self) -> None:
            await anyio.lowlevel.checkpoint()
            raise AssertionError("hatched")

    error, text = failure(Later, backend)
    assert str(error) == "hatched"
    assert text.count("state.lay()") >= 1


@pytest.mark.parametrize("interval", [0.0, 0.0001])
def test_the_world_stands_still_between_rules(backend: Backend, interval: float) -> None:
    class Still(AsyncRuleBasedStateMachine):
        ticks = 0
        seen: int | None = None

        async def setup(self) -> None:
            self.tasks.start_soon(self.tick)

        async def tick(self) -> None:
            while True:
                self.ticks += 1
                await anyio.sleep(interval)

        def stood(self) -> bool:
            """Whether the ticks stood still between the rules while real time went by."""
            before = self.ticks
            time.sleep(0.001)
            assert self.ticks == before
            return True

        @precondition(stood)
        @rule()
        async def go(self) -> None:
            before = self.ticks
            with anyio.fail_after(30):
                while self.ticks < before + 3:
                    await anyio.lowlevel.checkpoint()

    run(Still, backend)


def clocked() -> dict[str, Any]:
    return {"clock": trio.testing.MockClock(autojump_threshold=0)}


def test_a_clock_that_jumps() -> None:
    """An hour passes in no time; between the rules no time passes, although all tasks are idle there."""

    class Clocked(AsyncRuleBasedStateMachine):
        backend: ClassVar[Backend] = "trio"
        backend_options = staticmethod(clocked)
        rang = 0

        async def setup(self) -> None:
            assert trio.current_time() == 0
            self.tasks.start_soon(self.ring)
            self.now = 0.0

        async def ring(self) -> None:
            while True:
                await trio.sleep(3600)
                self.rang += 1

        @invariant()
        async def has_not_moved(self) -> None:
            assert trio.current_time() == self.now
            assert self.rang == self.now // 3600

        @rule(minutes=st.integers(1, 300))
        async def wait(self, minutes: int) -> None:
            await trio.sleep(60 * minutes + 1)
            self.now = trio.current_time()

    run_async_state_machine_as_test(Clocked, settings=QUICK)


class Timed(AsyncRuleBasedStateMachine):
    backend: ClassVar[Backend] = "trio"
    backend_options = staticmethod(clocked)

    @rule(hours=st.integers(0, 1000))
    async def wait(self, hours: int) -> None:
        await anyio.sleep(3600 * hours)
        assert trio.current_time() < 36000


def test_the_program_has_the_clock_too() -> None:
    _, text = failure(Timed, "trio")
    program = program_of(text)
    assert "anyio.run(main, backend='trio', backend_options=Timed.backend_options())" in program
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "AssertionError" in found.stderr


def test_a_cancellation_that_escapes(backend: Backend) -> None:
    """A cancellation that escapes from an open scope or an awaited task is a failure like any other."""

    class Escaping(AsyncRuleBasedStateMachine):
        async def setup(self) -> None:
            self.scope = anyio.CancelScope()
            self.scope.__enter__()

        @rule()
        async def wait(self) -> None:
            if backend == "asyncio":
                task = asyncio.ensure_future(asyncio.sleep(60))
                task.cancel()
                await task
            else:
                self.scope.cancel()
                await anyio.sleep(60)

        async def teardown(self) -> None:
            self.scope.__exit__(None, None, None)

    error, text = failure(Escaping, backend, RuntimeError)
    assert "cancelled by a scope that it did not open" in str(error)
    assert calls(text) == ["await state.wait()"]


def test_an_error_that_asyncio_would_only_log() -> None:
    class Stray(AsyncRuleBasedStateMachine):
        @rule()
        async def go(self) -> None:
            def fail() -> None:
                raise AssertionError("stray")

            asyncio.get_running_loop().call_soon(fail)
            await asyncio.sleep(0)

    error, text = failure(Stray, "asyncio")
    assert str(error) == "stray"
    assert calls(text) == ["await state.go()"]


def test_sync_machines_keep_their_ways(backend: Backend) -> None:
    class Plain(AsyncRuleBasedStateMachine):
        count = 0

        @rule()
        def go(self) -> None:
            self.count += 1
            assert self.count < 3

    _, text = failure(Plain, backend)
    assert text.count("        state.go()") == 3


@pytest.mark.anyio
async def test_not_in_a_running_loop() -> None:
    with pytest.raises(RuntimeError, match="has a loop of its own"):
        run(Racing, "trio")


@pytest.mark.anyio
async def test_a_machine_by_hand() -> None:
    async with Racing() as state:
        await state.put(1)
        await state.take()
        await state.put_at_once([1])
        await state.is_bounded()
    with pytest.raises(AssertionError):
        async with Racing() as state:
            await state.put_at_once([1, 2])
            await state.is_bounded()


def test_preconditions_cannot_be_async() -> None:
    async def ready(machine: object) -> bool:
        return True

    with pytest.raises(InvalidDefinition, match=r"a precondition of .*go is async"):

        class Bad(AsyncRuleBasedStateMachine):
            @precondition(ready)  # type: ignore[arg-type]
            @rule()
            async def go(self) -> None:
                """Never run."""


def test_an_unknown_backend() -> None:
    with pytest.raises(ValueError, match="'asyncio' or 'trio', not 'curio'"):
        run(Racing, "curio")  # type: ignore[arg-type]


INTERRUPTED = """
import anyio, gc, sys
from hypothesis import settings
from pgha.chaos.properties import AsyncRuleBasedStateMachine, rule, run_async_state_machine_as_test

# Python drops an interrupt that it raises in a callback of the collector, and Hypothesis has one.
gc.disable()

class Long(AsyncRuleBasedStateMachine):
    async def setup(self):
        await self.tasks.start(self.beside)

    async def beside(self, task_status):
        task_status.started()
        try:
            await anyio.sleep_forever()
        finally:
            print("beside ended", flush=True)

    @rule()
    async def wait(self):
        print("waiting", flush=True)
        await anyio.sleep(60)

    async def teardown(self):
        print("teardown", flush=True)

run_async_state_machine_as_test(Long, backend=sys.argv[1], settings=settings(database=None))
"""


def test_ctrl_c(backend: Backend) -> None:
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", INTERRUPTED, backend]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert out.startswith("teardown\nbeside ended\n")  # Hypothesis prints its seed after that
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert process.returncode == -signal.SIGINT


# --- with real servers ----------------------------------------------------------------------------------


class Real(AsyncRuleBasedStateMachine):
    """A server and the faults of a schedule: acknowledged rows are in the table afterwards."""

    nodes: Nodes

    async def setup(self) -> None:
        from support.servers import standalone  # imported here because the printed programs do not find it

        self.stack = AsyncExitStack()
        self.nodes = await self.stack.enter_async_context(standalone(1))
        await self.nodes[0].execute("CREATE TABLE item (id int)")
        self.count = 0

    @rule(schedule=schedules(nodes=1, spare=0, seconds=0.2, hold=0.1, kinds=NODE_FAULTS, max_steps=2))
    async def harm(self, schedule: Schedule) -> None:
        await Injector(self.nodes).run(schedule)

    @rule()
    async def write(self) -> None:
        await self.nodes[0].execute("INSERT INTO item VALUES (1)")
        self.count += 1

    @invariant()
    async def is_kept(self) -> None:
        assert await self.nodes[0].execute("SELECT count(*) FROM item") == [(self.count,)]

    async def teardown(self) -> None:
        await self.stack.aclose()


def test_a_machine_of_servers(backend: Backend) -> None:
    run_async_state_machine_as_test(
        Real, backend=backend, settings=settings(QUICK, max_examples=3, stateful_step_count=5)
    )
