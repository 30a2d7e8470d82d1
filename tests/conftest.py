"""Both loops for every async test, and one server a module for those that break none."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

import anyio
import pytest

from pgha.chaos import LocalNode

if "TMPDIR" not in os.environ and os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free > 4 << 30:
    # Hundreds of servers come and go, 30 MB each: in memory they do so several times as fast.
    os.environ["TMPDIR"] = tempfile.tempdir = "/dev/shm"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the chaos suite did, if it ran."""
    suite = sys.modules.get("support.tally")
    if suite is not None and (lines := suite.TALLY.lines()):
        terminalreporter.section("chaos")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def _start(node: LocalNode) -> None:
    await node.__aenter__()
    await node.start()


@pytest.fixture(scope="module")
def server() -> Iterator[LocalNode]:
    """A running server, for all tests of the module: they must leave it as it was.

    Not for the whole session: other modules count this program's servers.
    """
    node = LocalNode("shared", settings={"log_min_messages": "fatal"})
    try:
        anyio.run(_start, node)
        yield node
    finally:
        anyio.run(node.close)


@pytest.fixture(autouse=True)
def no_defect(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A node that had to be restarted because pgha itself failed may go unnoticed by its users, not by us."""
    yield
    defects = [
        record.getMessage() for record in caplog.get_records("call") if "defect" in record.getMessage()
    ]
    assert defects == []
