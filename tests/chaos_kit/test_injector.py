"""The injector: every fault takes effect and is healed, on servers and on proxies, whatever comes between."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio
import psycopg
import pytest
import sniffio
from anyio.lowlevel import checkpoint
from support.common import eventually, started
from support.servers import standalone

from pgha.chaos import ChaosError, Done, FaultKind, Injector, Nodes, Schedule, Step
from pgha.chaos._faults.acts import ProxyLike
from pgha.chaos._faults.kinds import NODE_FAULTS, TRAITS, WIRE_FAULTS
from pgha.chaos._proxy.direction import Wire
from pgha.chaos._proxy.group import proxied
from pgha.chaos._servers.protocol import Node
from pgha.chaos._servers.runner import NoBackend
from pgha.chaos._servers.sql import execute

pytestmark = pytest.mark.anyio
NEEDS_A_CLIENT = ("kill_backend", "terminate", "freeze_backend")


class FakeNode:
    """A node that does each command at once, and fails if told to."""

    def __init__(self, name: str) -> None:
        self.name, self.running, self.frozen = name, True, False
        self.failing: dict[str, int] = {}
        self.slow: dict[str, float] = {}
        self.calls: list[str] = []
        self.clients: list[tuple[int]] = []
        self.leaving: set[int] = set()
        """Clients that are gone when the fault strikes them."""

    async def _call(self, name: str, **state: bool) -> None:
        await checkpoint()
        self.calls.append(name)
        if name in self.slow:
            await anyio.sleep(self.slow[name])
            if not self.running:
                raise ChaosError(f"{self.name} went down")
        if self.failing.get(name, 0):
            self.failing[name] -= 1
            raise ChaosError(f"{name} fails")
        for key, value in state.items():
            setattr(self, key, value)

    async def start(self, *, timeout: float = 60.0) -> None:
        await self._call("start", running=True)

    async def stop(self, mode: str = "fast", *, timeout: float = 60.0) -> None:
        await self._call(f"stop {mode}", running=False)

    async def kill(self) -> None:
        await self._call("kill", running=False, frozen=False)

    async def freeze(self) -> None:
        await self._call("freeze", frozen=True)

    async def thaw(self) -> None:
        await self._call("thaw", frozen=False)

    async def kill_backend(self, pid: int) -> None:
        await self._call(f"kill {pid}")
        self._check_client(pid)

    async def freeze_backend(self, pid: int) -> None:
        await self._call(f"freeze {pid}")
        self._check_client(pid)

    def _check_client(self, pid: int) -> None:
        if pid in self.leaving:
            self.clients.remove((pid,))
            raise NoBackend(f"{pid} is no backend of {self.name}")

    async def wait_ready(self, timeout: float = 30.0) -> None:
        await self._call("ready")

    async def execute(self, sql: str, params: Any = None, *, timeout: float = 10.0) -> list[tuple[int]]:
        await self._call("terminate" if "terminate" in sql else "list")
        return self.clients


class FakeLine:
    """A proxy that records each call."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[object] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: self.calls.append((name, *args, *options.values()))


def fakes(count: int = 3) -> tuple[list[FakeNode], list[FakeLine]]:
    names = [f"n{i}" for i in range(1, count + 1)]
    return [FakeNode(name) for name in names], [FakeLine(name) for name in names]


def injector_of(nodes: list[FakeNode], lines: list[FakeLine] | None = None, spare: int = 0) -> Injector:
    return Injector(cast("list[Node]", nodes), cast("list[ProxyLike] | None", lines), spare=spare)


async def answers(node: Node) -> bool:
    try:
        return await node.execute("SELECT 1") == [(1,)]
    except psycopg.OperationalError:
        return False


@asynccontextmanager
async def client_of(node: Node) -> AsyncGenerator[list[BaseException]]:
    """Run a client that waits in a statement; yield the list of the errors that ended it."""
    ends: list[BaseException] = []

    async def wait() -> None:
        try:
            await node.execute("SELECT pg_sleep(60) /* client */", timeout=100)
        except (psycopg.OperationalError, TimeoutError) as error:
            ends.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await started(cast(Any, node), "/* client */")
        await eventually(partial(_is_the_oldest_client, node), what="those who asked have left")
        yield ends
        tasks.cancel_scope.cancel()


async def _is_the_oldest_client(node: Node) -> bool:
    """Whether the test's client is the oldest: an earlier client may linger, and would be struck instead."""
    rows = await node.execute(
        "SELECT query FROM pg_stat_activity WHERE backend_type = 'client backend'"
        " AND pid <> pg_backend_pid() ORDER BY backend_start, pid LIMIT 1"
    )
    return bool(rows) and "/* client */" in rows[0][0]


async def assert_well(nodes: Nodes) -> None:
    for node in nodes:
        assert node.running
        assert not node.frozen
        assert await node.execute("SELECT 1") == [(1,)]


@pytest.fixture
async def nodes() -> AsyncIterator[Nodes]:
    async with standalone(2) as found:
        yield found


# --- real servers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NODE_FAULTS)
async def test_a_fault_of_a_node(kind: FaultKind, nodes: Nodes) -> None:
    injector = Injector(nodes)
    async with client_of(nodes[1]) as ends:
        before = time.monotonic()
        done = await injector.run(Schedule((Step(0.02, kind, 1, 0.1),)))
        after = time.monotonic()
        await assert_well(nodes)
        # The fault ends the client, unless its server or process only stood still.
        survives = kind in ("freeze", "freeze_backend")
        await eventually(lambda: bool(ends) != survives, what="the end of the client")
    assert [(one.kind, one.node, one.skipped) for one in done] == [(kind, "n2", "")]
    assert before <= done[0].at <= done[0].until <= after
    assert injector.done == done


@pytest.mark.parametrize("kind", NODE_FAULTS)
async def test_struck_and_healed_by_name(kind: FaultKind, nodes: Nodes) -> None:
    injector = Injector(nodes)
    async with client_of(nodes["n2"]):
        await injector.strike(kind, "n2")
        assert await answers(nodes["n1"])
        down = kind in ("kill", "restart", "crash")
        assert (nodes["n2"].running, nodes["n2"].frozen) == (not down, kind == "freeze")
        await injector.heal("n2")
    await assert_well(nodes)
    assert injector.done[0].until < math.inf


async def test_cancelled_in_the_middle(nodes: Nodes) -> None:
    injector = Injector(nodes)
    schedule = Schedule((Step(0.0, "freeze", 0, 600.0), Step(0.0, "kill", 1, 600.0), Step(500.0, "kill", 0)))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(injector.run, schedule)
        await eventually(lambda: nodes[0].frozen and not nodes[1].running)
        tasks.cancel_scope.cancel()
    await assert_well(nodes)
    assert {one.kind for one in injector.done} == {"freeze", "kill"}
    assert all(one.until < math.inf and not one.skipped for one in injector.done)


async def test_cancelled_while_it_acts(nodes: Nodes) -> None:
    """A cancelled shutdown must not end after the healing."""
    injector = Injector(nodes)
    schedule = Schedule(tuple(Step(0.0, "restart", node, 0.0) for node in range(2)))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(injector.run, schedule)
        await eventually(lambda: len(injector.done) == 2)
        tasks.cancel_scope.cancel()
    await assert_well(nodes)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio has scopes only
async def test_cancelled_natively(nodes: Nodes) -> None:
    injector = Injector(nodes)
    schedule = Schedule((Step(0.0, "freeze", 0, 600.0), Step(0.0, "kill", 1, 600.0)))
    task = asyncio.create_task(injector.run(schedule))
    await eventually(lambda: nodes[0].frozen and not nodes[1].running)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await assert_well(nodes)


PROGRAM = """
import anyio, psycopg

async def under_test(dsns):
    print(len(dsns), "servers")
    before = [psycopg.connect(dsn) for dsn in dsns]
    while not all(one.closed for one in before):
        await anyio.sleep(0.01)
        for one in before:
            try:
                one.execute("SELECT 1")
            except psycopg.OperationalError:
                one.close()
    print("both were struck")
"""


@pytest.mark.parametrize(
    "kinds", [("crash", "terminate"), pytest.param(("terminate", "crash"), marks=pytest.mark.thorough)]
)
async def test_a_script_does_it_again(kinds: tuple[FaultKind, FaultKind], tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    schedule = Schedule((Step(0.2, kinds[0], 0, 0.1), Step(0.3, kinds[1], 1)))
    text = schedule.script(program="program:under_test", backend=sniffio.current_async_library())
    command = [sys.executable, "-W", "error", "-c", text]
    done = await anyio.run_process(command, cwd=tmp_path, stderr=None)
    lines = done.stdout.decode().splitlines()
    assert [line for line in lines if not line.startswith("Done(")] == ["2 servers", "both were struck"]
    assert sorted(line.split("'")[1] for line in lines if line.startswith("Done(")) == ["crash", "terminate"]


async def test_a_busy_schedule_leaves_all_well(nodes: Nodes) -> None:
    steps = [Step(0.1 * i, kind, i % 2, 0.15) for i, kind in enumerate(NODE_FAULTS * 2)]
    async with proxied(nodes) as proxies:
        lines = [Step(0.1 * i, kind, i % 2, 0.05) for i, kind in enumerate(WIRE_FAULTS)]
        done = await Injector(nodes, proxies).run(Schedule((*steps, *lines)))
        await assert_well(nodes)
        for proxy in proxies:
            assert proxy.up == proxy.down == Wire()
            assert await execute(proxy.dsn, "SELECT 1") == [(1,)]
    assert len(done) == len(steps) + len(lines)
    assert all(one.skipped == "" for one in done if one.kind in WIRE_FAULTS)
    reasons = {one.skipped for one in done if one.skipped}
    assert all("lasts on" in reason or "no client" in reason for reason in reasons), reasons


@pytest.mark.parametrize("kind", WIRE_FAULTS)
async def test_a_fault_of_a_line(kind: FaultKind, server: Node) -> None:
    """The fault takes effect, and healing removes it; its effects on clients are tested with the proxy."""
    async with proxied([server]) as proxies:
        injector = Injector([server], proxies)
        for amount in (0.0, *TRAITS[kind].amounts):
            await injector.strike(kind, "shared", amount)
            await injector.heal("shared")
            assert proxies[0].up == proxies[0].down == Wire()
            assert await execute(proxies[0].dsn, "SELECT 1") == [(1,)]


# --- choice of targets, and faults that are skipped -----------------------------------------------------


async def test_what_is_done_to_lines() -> None:
    nodes, lines = fakes(1)
    injector = injector_of(nodes, lines)
    wire = Wire(latency=0.5)
    for kind, amount, call in [
        ("latency", 0.5, ("set", wire, wire)),
        ("slice", 0.0, ("set", Wire(chunk=1), Wire(chunk=1))),
        ("drop_up", 0.0, ("drop", "up")),
        ("drop_down", 0.0, ("drop", "down")),
        ("drop_both", 0.0, ("drop",)),
        ("refuse", 0.0, ("refuse",)),
        ("mute", 0.0, ("mute",)),
    ]:
        await injector.strike(cast(FaultKind, kind), 0, amount)
        assert lines[0].calls[0] == call
        await injector.heal(0)
        assert lines[0].calls[-1] == ("heal",)
        lines[0].calls.clear()


async def test_one_fault_a_layer() -> None:
    nodes, lines = fakes()
    injector = injector_of(nodes, lines)
    await injector.strike("freeze", "n1")
    await injector.strike("drop_up", "n1")
    with pytest.raises(ChaosError, match="freeze lasts on n1"):
        await injector.strike("kill", "n1")
    with pytest.raises(ChaosError, match="drop_up lasts on n1"):
        await injector.strike("reset", "n1")
    await injector.heal("n1")
    assert [(one.kind, one.skipped) for one in injector.done] == [
        ("freeze", ""),
        ("drop_up", ""),
        ("kill", "freeze lasts on n1"),
        ("reset", "drop_up lasts on n1"),
    ]
    assert all(one.at <= one.until < math.inf for one in injector.done)


async def test_what_is_over_at_once_is_no_obstacle() -> None:
    nodes, lines = fakes()
    nodes[0].clients = [(7,), (9,)]
    injector = injector_of(nodes, lines)
    for kind in ("reset", "close", "terminate", "kill_backend", "terminate", "kill_backend"):
        await injector.strike(kind, 0, 1)
    await injector.heal()
    assert [one.skipped for one in injector.done] == [""] * 6
    assert nodes[0].calls.count("kill 9") == 2


@pytest.mark.parametrize(("kind", "blow"), [("kill_backend", "kill"), ("freeze_backend", "freeze")])
async def test_a_client_who_leaves_just_then(kind: FaultKind, blow: str) -> None:
    """If a client leaves just then, the next one is struck; without a next one the fault fails."""
    nodes, _ = fakes()
    nodes[0].clients, nodes[0].leaving = [(7,), (9,)], {7}
    injector = injector_of(nodes)
    await injector.strike(kind, 0)
    await injector.heal()
    assert [call for call in nodes[0].calls if call.startswith(blow)] == [f"{blow} 7", f"{blow} 9"]
    nodes[0].leaving = {9}
    with pytest.raises(ChaosError, match="no client is connected"):
        await injector.strike(kind, 0)


async def test_a_short_fault_is_done_before_the_next() -> None:
    """A short fault completes first: otherwise the next one would take the server away from it."""
    nodes, _ = fakes()
    nodes[0].clients = [(7,)]
    nodes[0].slow = {"kill 7": 0.05}
    done = await injector_of(nodes).run(Schedule((Step(0, "kill_backend", 0), Step(0.01, "kill", 0, 0.2))))
    assert [(one.kind, one.skipped) for one in done] == [("kill_backend", ""), ("kill", "")]
    assert nodes[0].calls[:4] == ["list", "kill 7", "ready", "kill"]


async def test_steps_that_are_late_keep_their_order() -> None:
    nodes, _ = fakes(9)
    steps = [Step(0.001 * number, "freeze", number, 0.0) for number in range(9)]
    injector = injector_of(nodes)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(injector.run, Schedule(tuple(steps)))
        await checkpoint()
        time.sleep(0.02)  # noqa: ASYNC251 - all are due when the loop goes on
    assert [one.node for one in injector.done] == [node.name for node in nodes]


async def test_a_step_that_ends_late_does_not_hinder_the_next() -> None:
    nodes, lines = fakes(1)
    injector = injector_of(nodes, lines)
    steps = [Step(0.01 * number, "freeze", 0, 0.005) for number in range(3)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(injector.run, Schedule(tuple(steps)))
        for _ in range(5):
            await checkpoint()  # the first one completes meanwhile
        time.sleep(0.05)  # noqa: ASYNC251 - all should be over when the loop goes on
    assert [one.skipped for one in injector.done] == [""] * 3
    assert nodes[0].calls[:6] == ["freeze", "thaw", "ready", "freeze", "thaw", "ready"]


async def test_some_are_spared() -> None:
    nodes, lines = fakes()
    injector = injector_of(nodes, lines, spare=2)
    done = await injector.run(
        Schedule((Step(0, "freeze", 0), Step(0.01, "slice", 0), Step(0.02, "kill", 1), Step(0.03, "mute", 2)))
    )
    assert [one.skipped for one in done] == ["", "", *["2 of 3 nodes are spared"] * 2]


@pytest.mark.parametrize("kind", NEEDS_A_CLIENT)
async def test_nobody_is_connected(kind: FaultKind) -> None:
    nodes, _ = fakes()
    done = await injector_of(nodes).run(Schedule((Step(0, kind, 0),)))
    assert [one.skipped for one in done] == ["no client is connected"]


@pytest.mark.parametrize(
    ("state", "reason"), [({"running": False}, "n1 is down"), ({"frozen": True}, "n1 is frozen")]
)
async def test_somebody_else_broke_it(state: dict[str, bool], reason: str) -> None:
    nodes, _ = fakes()
    for name, value in state.items():
        setattr(nodes[0], name, value)
    done = await injector_of(nodes).run(Schedule((Step(0, "freeze", 0, 0.01),)))
    assert [one.skipped for one in done] == [reason]
    assert (nodes[0].running, nodes[0].frozen) == (True, False)  # healed despite the failure


async def test_a_fault_that_fails_is_skipped_and_mended() -> None:
    nodes, _ = fakes()
    nodes[0].failing = {"stop fast": 1}
    done = await injector_of(nodes).run(Schedule((Step(0, "restart", 0), Step(0.05, "kill", 0, 0.0))))
    assert [(one.kind, one.skipped) for one in done] == [("restart", "stop fast fails"), ("kill", "")]
    assert nodes[0].calls[:4] == ["stop fast", "kill", "start", "kill"]


async def test_healing_is_tried_again() -> None:
    nodes, _ = fakes()
    nodes[0].failing = {"start": 1}
    done = await injector_of(nodes).run(Schedule((Step(0, "kill", 0, 0.0), Step(0.05, "freeze", 0, 0.0))))
    assert [one.skipped for one in done] == ["", "kill lasts on n1: start fails"]
    assert nodes[0].running
    assert all(one.until < math.inf for one in done)


async def test_healing_that_cannot_be_had() -> None:
    nodes, lines = fakes()
    nodes[0].failing = {"start": 100}
    injector = injector_of(nodes, lines)
    with pytest.raises(ChaosError, match="n1 could not be healed: kill: start fails"):
        await injector.run(Schedule((Step(0, "kill", 0, 0.0), Step(0, "freeze", 1), Step(0, "mute", 0))))
    assert not nodes[1].frozen
    assert lines[0].calls[-1] == ("heal",)
    nodes[0].failing.clear()
    await injector.heal()
    assert nodes[0].running


@pytest.mark.parametrize(
    ("step", "text"),
    [(Step(0, "kill", 3), "no node 3"), (Step(0, "mute", 0), "needs a proxy before n1")],
)
async def test_a_schedule_for_others(step: Step, text: str) -> None:
    nodes, _ = fakes()
    injector = injector_of(nodes)
    with pytest.raises(ChaosError, match=text):
        await injector.run(Schedule((Step(0, "kill", 1), step)))
    assert injector.done == []
    assert nodes[1].calls == []


async def test_unknown_names() -> None:
    nodes, lines = fakes()
    injector = injector_of(nodes, lines)
    with pytest.raises(ChaosError, match="no node 'n9'"):
        await injector.strike("kill", "n9")
    with pytest.raises(ChaosError, match="not a kind of fault"):
        await injector.strike(cast(FaultKind, "crush"), "n1")
    with pytest.raises(ChaosError, match="no node 'n9'"):
        await injector.heal("n9")


async def test_what_lasts_is_seen_while_it_lasts() -> None:
    nodes, _ = fakes()
    injector = injector_of(nodes)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(injector.run, Schedule((Step(0, "freeze", 0, 600),)))
        await eventually(lambda: nodes[0].frozen)
        assert injector.done == [Done("freeze", "n1", injector.done[0].at, math.inf)]
        await injector.heal("n1")
        assert injector.done[0].until < math.inf
        with anyio.fail_after(30):
            await injector.strike("kill", "n1")
        tasks.cancel_scope.cancel()
    assert nodes[0].running
