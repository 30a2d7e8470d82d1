"""Run every async test on both loops, and lend one server per module to tests that break none."""

from __future__ import annotations

import math
import os
import pickle
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import anyio
import hypothesis
import pytest
from support import servers

from pgha._core import routing
from pgha.chaos import LocalNode

if TYPE_CHECKING:
    from support.in_memory import InMemory
    from support.tally import Tally

if "TMPDIR" not in os.environ and os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free > 4 << 30:
    # Tests start hundreds of servers with 30 MB each; in memory, this is several times as fast.
    os.environ["TMPDIR"] = tempfile.tempdir = "/dev/shm"

# Timing checks would measure the machine, which runs several programs per core, instead of the code.
hypothesis.settings.register_profile(
    "pgha", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("pgha")

for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    # A shell lets background programs ignore these signals; tests and the programs they start send them.
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _usual)


def _tally() -> Tally | None:
    """Return the counts of the chaos suite in this process, or None if the suite did not run."""
    suite = sys.modules.get("support.tally")
    return None if suite is None else suite.TALLY


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a worker of pytest-xdist, pass the counts of the chaos suite to the main process."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None and (tally := _tally()) is not None:
        output["tally"] = pickle.dumps(tally)


class _Workers:
    """Hooks of pytest-xdist for the main process, to which the workers report."""

    def pytest_testnodedown(self, node: Any, error: object) -> None:
        if found := getattr(node, "workeroutput", {}).get("tally"):
            from support.tally import TALLY

            TALLY.add(pickle.loads(found))


def pytest_configure(config: pytest.Config) -> None:
    if config.pluginmanager.hasplugin("dsession"):
        config.pluginmanager.register(_Workers())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the counts of the chaos suite, if the suite ran."""
    tally = _tally()
    if tally is not None and (lines := tally.lines()):
        terminalreporter.section("chaos")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """Restore the handlers of signals: a command that a test runs in this process sets its own.

    With its handler of SIGINT left behind, the next test that interrupts itself would end the worker.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def no_choice_by_latency(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In tests of failover, move operations because of failures only.

    On a loaded machine, a ping may take milliseconds longer on one node than on another, and `nearest` would
    move between two statements of a test. `tests/unit/core/test_routing.py` tests the choice by latency.
    """
    if "failover" in request.path.parts:
        monkeypatch.setattr(routing, "NEARER_BY", math.inf)


@pytest.fixture(scope="session", autouse=True)
def borrowed_servers() -> Iterator[None]:
    """Remove the servers of `support.servers` when the worker ends."""
    yield
    anyio.run(servers.remove_all)


@pytest.fixture(scope="module", autouse=True)
def no_borrowed_servers(request: pytest.FixtureRequest) -> None:
    """Remove idle servers before the kit's own tests, which count this program's servers and processes."""
    if "chaos_kit" in request.path.parts:
        anyio.run(servers.remove_all)


@pytest.fixture(scope="module")
def server() -> Iterator[LocalNode]:
    """Lend a running server to all tests of the module, which must leave the server unchanged."""
    node = anyio.run(servers.borrow, "shared", None, servers.QUIET)
    try:
        yield node
    finally:
        anyio.run(servers.give_back, node)


@pytest.fixture
def make_world() -> Iterator[Callable[..., InMemory]]:
    """Make a dispatcher with nodes in memory; to be called inside an event loop."""
    from support.in_memory import InMemory

    made: list[InMemory] = []

    def make(names: str = "a", **options: Any) -> InMemory:
        world = InMemory(names, **options)
        made.append(world)
        return world

    yield make
    for world in made:
        for operation in tuple(world.dispatcher.tracker.open):
            operation.retrieve()
        world.close()


@pytest.fixture(autouse=True)
def no_defect(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test if a node was restarted because of a defect of pgha, which users may never notice."""
    yield
    defects = [
        record.getMessage() for record in caplog.get_records("call") if "defect" in record.getMessage()
    ]
    assert defects == []
