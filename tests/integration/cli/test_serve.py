"""Tests of `pgha demo --serve`: working DSNs, nodes that run until the command ends, and keys for faults."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
from support.terminal import COMMAND, PATIENCE, Terminal, left_over, own_folder
from typer.testing import CliRunner

from pgha.cli._app import app

LOOPS = pytest.mark.parametrize("loop", ["asyncio", "trio"])


def free_ports(count: int) -> int:
    """Return the first of `count` consecutive free ports, far from the ports of other workers."""
    for base in range(20_000 + os.getpid() * 16 % 10_000, 60_000, count):
        sockets: list[socket.socket] = []
        try:
            for port in range(base, base + count):
                sockets.append(socket.socket())
                sockets[-1].bind(("127.0.0.1", port))
        except OSError:
            continue
        else:
            return base
        finally:
            for one in sockets:
                one.close()
    raise AssertionError("no free ports")


class Serving:
    """The command in its own temporary folder, once its DSNs have been read."""

    def __init__(self, *arguments: str, nodes: int = 2) -> None:
        self.folder = own_folder()
        self.process = subprocess.Popen(
            [COMMAND, "demo", "--serve", "--nodes", str(nodes), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": self.folder},
        )
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline().rstrip("\n") for _ in range(nodes)]
        self.dsns = dict(line.split("\t") for line in lines if line)
        assert len(self.dsns) == nodes, lines
        self.below = psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def serving(*arguments: str, nodes: int = 2) -> Iterator[Serving]:
    """Run the command; afterwards, check that none of its processes and files is left."""
    served = Serving(*arguments, nodes=nodes)
    with served.process:
        try:
            yield served
            served.process.wait(PATIENCE)
            assert left_over(served) == []
        finally:
            served.process.kill()
            shutil.rmtree(served.folder, ignore_errors=True)


@pytest.mark.parametrize(
    ("loop", "number"),
    [
        ("asyncio", signal.SIGINT),
        ("trio", signal.SIGTERM),
        pytest.param("asyncio", signal.SIGTERM, marks=pytest.mark.thorough),
        pytest.param("trio", signal.SIGINT, marks=pytest.mark.thorough),
    ],
)
def test_the_dsns_work_until_a_signal_ends_it_as_it_should(loop: str, number: signal.Signals) -> None:
    with serving("--loop", loop, nodes=3) as served:
        assert list(served.dsns) == ["n1", "n2", "n3"]
        with psycopg.connect(served.dsns["n1"], autocommit=True) as connection:
            links = connection.execute("SELECT count(*) FROM pg_stat_replication").fetchone()
            assert links == (2,)
        for dsn in served.dsns.values():
            with psycopg.connect(dsn) as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)
        served.process.send_signal(number)
        rest, errors = served.process.communicate(timeout=PATIENCE)
        assert (served.process.returncode, rest) == (0, "")
        assert "pgha soak postgresql://postgres@127.0.0.1:" in errors
        assert "Traceback" not in errors


def test_the_ports_are_those_that_were_asked_for() -> None:
    base = free_ports(2)
    with serving("--port", str(base)) as served:
        for number, dsn in enumerate(served.dsns.values()):
            assert f"port={base + number} " in dsn
            psycopg.connect(dsn).close()
        served.process.send_signal(signal.SIGINT)


def test_a_reader_that_leaves_ends_it() -> None:
    with serving() as served:
        assert served.process.stdout is not None
        served.process.stdout.close()
        assert served.process.wait(PATIENCE) == 128 + signal.SIGPIPE


def test_a_signal_while_it_starts_is_no_intended_end() -> None:
    folder = own_folder()
    process = subprocess.Popen(
        [COMMAND, "demo", "--serve"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": folder},
    )
    with process:
        assert process.stderr is not None
        assert "Starting" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output) == (128 + signal.SIGINT, "")
    assert os.listdir(folder) == []
    os.rmdir(folder)


@pytest.mark.parametrize("serve", [["--serve"], []])
def test_a_taken_port_is_told_in_one_line(serve: list[str]) -> None:
    base = free_ports(3)
    with socket.create_server(("127.0.0.1", base + 1)):
        done = CliRunner().invoke(app, ["demo", *serve, "--port", str(base)])
    assert done.exit_code == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"pgha demo: port {base + 1} of 127.0.0.1 is taken: choose another --port")
    assert len(done.stderr.splitlines()) == (2 if serve else 1)


def test_without_servers_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHA_BINDIR", "/nowhere")
    done = CliRunner().invoke(app, ["demo", "--serve"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("pgha demo: PGHA_BINDIR=/nowhere holds no PostgreSQL")


@pytest.mark.parametrize(
    "wrong",
    [
        ("--serve", "--json"),
        ("--serve", "--seconds", "15"),
        ("--serve", "--seed", "1"),
        ("--serve", "--plain"),
        ("--port", "80"),
        ("--port", "65534"),
    ],
)
def test_contradictions_are_told(wrong: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, ["demo", *wrong])
    assert done.exit_code == 2
    named = wrong[1] if wrong[0] == "--serve" else "--port"
    assert named in done.stderr.splitlines()[-1]


def answers(dsn: str) -> bool:
    try:
        psycopg.connect(dsn, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


@LOOPS
def test_keys_break_nodes_which_come_back(loop: str) -> None:
    with Terminal("demo", "--serve", "--nodes", "2", "--loop", loop, size=(100, 30)) as terminal:
        terminal.until("Keys:")
        dsns = [line.split(None, 1)[1] for line in terminal.text.splitlines() if line.startswith("n")]
        assert [answers(dsn) for dsn in dsns] == [True, True]
        terminal.press("2kk")
        terminal.until("n2 is chosen", "kill n2 for 3 s", "n2 is already away")
        terminal.press("\x1b[Ar")
        terminal.until("n1 is chosen", "restart n1", "n1 is back", "n2 is back after ")
        (away,) = re.findall(r"n2 is back after (\d+\.\d) s", terminal.text)
        assert float(away) >= 3.0
        assert [answers(dsn) for dsn in dsns] == [True, True]
        terminal.press("x")
        terminal.until("keys: 1-2 choose")
        terminal.press("q")
        assert terminal.end() == 0
        assert terminal.unchanged
    assert left_over(terminal) == []


def test_a_node_that_somebody_else_broke_is_told_and_can_be_started_again() -> None:
    with Terminal("demo", "--serve", "--nodes", "2", size=(100, 30)) as terminal:
        terminal.until("Keys:")
        dsns = [line.split(None, 1)[1] for line in terminal.text.splitlines() if line.startswith("n")]
        (pid_file,) = Path(terminal.folder).glob("pgha-n1-*/data/postmaster.pid")
        victim = psutil.Process(int(pid_file.read_text().split()[0]))
        victim.kill()
        while victim.status() != psutil.STATUS_ZOMBIE:  # until the command reaps its child
            time.sleep(0.005)
        terminal.press("f")
        terminal.until("n1 is not running, there is nothing to freeze")
        terminal.press("r")
        terminal.until("n1 is back")
        assert [answers(dsn) for dsn in dsns] == [True, True]
        terminal.press("\x03")
        assert terminal.end() == 0
        assert terminal.unchanged
    assert left_over(terminal) == []
