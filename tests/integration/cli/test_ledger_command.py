"""Tests of `pgha ledger`: each subcommand on running servers, run twice, without privileges, and misused."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path

import anyio
import anyio.to_thread
import psutil
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.common import eventually
from support.keyed import keys_of
from support.servers import standalone
from support.terminal import Terminal, left_over
from typer.testing import CliRunner

import pgha
from pgha.chaos import Node, masters, replicas
from pgha.cli import _ledger, _run
from pgha.cli._app import app
from pgha.cli._ledger import Asked, age, table

COMMAND = Path(sys.executable).with_name("pgha")
SECRET = "s3cr3tQZ"
both_loops = pytest.mark.parametrize("loop", ["asyncio", "trio"])


@pytest.fixture
def anyio_backend() -> str:
    """Return the loop of the tests themselves; the command has a loop of its own."""
    return "asyncio"


@pytest.fixture(autouse=True)
def without_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command run in a thread, which cannot handle signals; the tests of signals start a process."""

    async def until_it_ends(body: Callable[[], Awaitable[int]]) -> int:
        return await body()

    monkeypatch.setattr(_run, "_until_signalled", until_it_ends)


async def ledger(*arguments: str, code: int = 0) -> tuple[str, str]:
    """Run the command in a thread; return its output, and its error message without its name."""
    ended = await anyio.to_thread.run_sync(CliRunner().invoke, app, ["ledger", *arguments])
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    assert ended.exit_code == code, ended.stdout + ended.stderr
    assert SECRET not in ended.stdout + ended.stderr
    if code == 1:
        assert ended.stderr.count("\n") <= 1, "one line"
    return ended.stdout, ended.stderr.removeprefix("pgha ledger: ")


async def as_role(node: Node, role: str) -> str:
    await node.execute(f"CREATE ROLE {role} LOGIN")
    return psycopg.conninfo.make_conninfo(node.dsn, user=role)


# Messages


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7d", 604800), ("36h", 129600), ("90m", 5400), ("3600s", 3600), ("3600", 3600), ("1w", 604800)],
)
def test_an_age(text: str, seconds: float) -> None:
    assert age(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "7x", "d", "-7d", "1h30m", "nan", "1e9", "59m", "0", "36501d", "9" * 400]
)
def test_no_age(text: str) -> None:
    with pytest.raises(ValueError, match=r"length of time|too short|too long"):
        age(text)


@given(st.integers(0, 10**13), st.integers(0, 10**8 - 1), st.text(alphabet="abc.:", min_size=1, max_size=20))
def test_a_table_fits_80_columns(size: int, keys: int, node: str) -> None:
    at = datetime(2026, 1, 2, 3, 4, 5).astimezone()
    lines = table([pgha.LedgerStatus(node, "primary", True, "", True, keys, keys // 100, at, at, size)])
    assert max(map(len, lines)) <= 80


# On servers


@pytest.mark.anyio
async def test_masters_from_the_first_to_the_last() -> None:
    async with masters(2) as nodes:
        dsns = [node.dsn for node in nodes]
        out, _ = await ledger("status", *dsns, code=1)
        assert out.count("not installed") == 2
        for _ in range(2):
            out, _ = await ledger("install", *dsns)
            assert out.count("primary") == 2
        found = json.loads((await ledger("status", *dsns, "--json"))[0])
        assert [one["installed"] for one in found["nodes"]] == [True, True]
        async with pgha.open_cluster(*dsns) as cluster:
            await cluster.execute("CREATE TABLE t (id int)", idempotency_key=pgha.new_idempotency_key())
        for node in nodes:
            await node.execute(
                "INSERT INTO pgha.ledger SELECT system_identifier, gen_random_uuid(), '\\x00',"
                " now() - interval '8 days' FROM pg_control_system(), generate_series(1, 100)"
            )
        out, _ = await ledger("prune", *dsns)
        assert out.count("100 keys deleted") == 2
        found = json.loads((await ledger("prune", *dsns, "--older-than", "1h", "--json"))[0])
        assert [one["deleted"] for one in found["nodes"]] == [0, 0]
        _, error = await ledger("uninstall", *dsns, "--yes", code=1)
        assert "1 keys were used within the last hour" in error
        out, _ = await ledger("uninstall", *dsns, "--yes", "--force")
        assert out.count("removed") == 2
        out, _ = await ledger("uninstall", *dsns, "--yes")
        assert out.count("there was none") == 2


@pytest.mark.anyio
@both_loops
async def test_a_primary_and_its_standby(loop: str) -> None:
    async with replicas(1) as nodes:
        dsns = [node.dsn for node in nodes]
        out, _ = await ledger("install", *dsns, "--loop", loop)
        assert "standby" not in out
        await nodes.wait_replicated()
        out, _ = await ledger("status", *dsns, "--loop", loop)
        assert out.count("standby") == 1 and "!" not in out
        out, _ = await ledger("prune", *dsns, "--loop", loop)
        assert out.count("0 keys deleted") == 1
        (standby,) = nodes.standbys
        await ledger("status", standby.dsn, "--loop", loop)
        for act in (["install"], ["prune"], ["uninstall", "--yes"]):
            _, error = await ledger(*act, standby.dsn, "--loop", loop, code=1)
            assert error.startswith("none of the nodes (") and "accepts writes" in error


@pytest.mark.anyio
async def test_a_role_without_rights() -> None:
    async with standalone() as nodes:
        node = nodes[0]
        dsn = await as_role(node, "poor")
        _, error = await ledger("install", dsn, code=1)
        assert "the role may not create the ledger" in error and "--grant" in error
        await ledger("install", node.dsn)
        out, _ = await ledger("status", dsn, code=1)
        assert "! the role lacks" in out
        for act in ("prune", "uninstall"):
            _, error = await ledger(act, dsn, *(["--yes"] if act == "uninstall" else []), code=1)
            assert "the role may not" in error
        await ledger("install", node.dsn, "--grant", "poor")
        out, _ = await ledger("status", dsn)
        assert "!" not in out
        await ledger("prune", dsn)
        _, error = await ledger("install", node.dsn, "--grant", "nobody", code=1)
        assert 'role "nobody" does not exist' in error


@pytest.mark.anyio
async def test_another_layout_is_left_as_it_is() -> None:
    async with standalone() as nodes:
        node = nodes[0]
        await node.execute(
            "CREATE SCHEMA pgha; CREATE TABLE pgha.ledger (system_identifier bigint, key uuid, fp bytea);"
            " INSERT INTO pgha.ledger VALUES (1, gen_random_uuid(), '')"
        )
        out, _ = await ledger("status", node.dsn, code=1)
        assert "another layout" in out
        for arguments in (["install"], ["prune"], ["uninstall", "--yes"]):
            _, error = await ledger(arguments[0], node.dsn, *arguments[1:], code=1)
            assert "another layout" in error
        assert await keys_of(node) == 1
        await ledger("uninstall", node.dsn, "--yes", "--force")
        await ledger("install", node.dsn)


@pytest.mark.anyio
async def test_a_transaction_in_the_way_is_named() -> None:
    async with standalone() as nodes:
        node = nodes[0]
        await ledger("install", node.dsn)
        with psycopg.connect(node.dsn) as other:
            other.execute(
                "INSERT INTO pgha.ledger VALUES (1, gen_random_uuid(), '', now() - interval '1 day')"
            )
            _, error = await ledger("prune", node.dsn, "--older-than", "1h", code=1)
            assert "0 keys deleted; older transactions still hold the ledger" in error
            assert f"(process {other.info.backend_pid})" in error
            other.rollback()


# Misuse


@pytest.mark.anyio
async def test_a_dead_node_and_a_wrong_password() -> None:
    async with standalone(password=SECRET) as nodes:
        node = nodes[0]
        dead = f"host=127.0.0.1 port=1 dbname=x password={SECRET}"
        _, error = await ledger("install", node.dsn, dead, code=1)
        assert "127.0.0.1:1 is down" in error and "nothing was done" in error
        out, _ = await ledger("status", node.dsn, dead, code=1)
        assert "! the node is down" in out and "! not installed" in out
        await ledger("install", node.dsn)
        out, error = await ledger("prune", dead, node.dsn, code=1)
        assert out == f"127.0.0.1:{node.port}: 0 keys deleted\n"
        assert error.startswith("127.0.0.1:1: 0 keys deleted; the node is down: ")
        wrong = psycopg.conninfo.make_conninfo(node.dsn, password=SECRET + "x")
        _, error = await ledger("install", wrong, code=1)
        assert "password authentication failed" in error


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status"], "Missing argument"),
        (["status", f"hst=db password={SECRET}"], "bad conninfo"),
        (["prune", "host=db", "--older-than", "5m"], "too short"),
        (["prune", "host=db", "--older-than", "soon"], "not a length of time"),
        (["uninstall", "host=db"], "not a terminal: pass --yes to confirm"),
        (["remove", "host=db"], "No such command"),
    ],
)
async def test_bad_arguments(arguments: list[str], said: str) -> None:
    _, error = await ledger(*arguments, code=2)
    assert said in error


@pytest.mark.anyio
async def test_at_a_terminal_it_asks() -> None:
    async with standalone() as nodes:
        node = nodes[0]
        await ledger("install", node.dsn)
        for keys, code, said in [
            ("\x04", 1, "pgha ledger: nothing was removed"),
            ("\x03", 130, "^C"),
            ("y\n", 0, "removed"),
        ]:
            assert (await keys_of(node)) == 0
            shown, ended = await anyio.to_thread.run_sync(answered, node.dsn, keys)
            assert f"Remove the ledger from 127.0.0.1:{node.port}, and delete all keys? [y/N]" in shown
            assert (shown.endswith(said), ended) == (True, code), shown
        assert await node.execute("SELECT to_regclass('pgha.ledger') IS NULL") == [(True,)]


@pytest.mark.parametrize("answer", ["n", "", "yesterday"])
def test_no_answer_but_yes_removes_it(
    answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = pty.openpty()
    with open(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        os.write(ours, f"{answer}\n".encode())
        assert _ledger.run(Asked("uninstall", ("host=db",))) == 1
    os.close(ours)
    question = "Remove the ledger from db:5432, and delete all keys? [y/N] "
    assert capsys.readouterr() == ("", f"{question}pgha ledger: nothing was removed\n")


def answered(dsn: str, keys: str) -> tuple[str, int]:
    """Answer the question of an uninstall with `keys`; return the text on the terminal and the exit code."""
    with Terminal("ledger", "uninstall", dsn) as terminal:
        terminal.until("[y/N]")
        terminal.press(keys)
        code = terminal.end()
    assert left_over(terminal) == []
    return terminal.text.rstrip(), code


@pytest.mark.anyio
async def test_a_reader_who_has_left_and_a_full_disk() -> None:
    async with standalone() as nodes:
        reading, writing = os.pipe()
        os.close(reading)
        asked = [str(COMMAND), "ledger", "status", nodes[0].dsn]
        ended = await anyio.run_process(asked, stdout=writing, stderr=subprocess.PIPE, check=False)
        os.close(writing)
        assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, b"")
        full = os.open("/dev/full", os.O_WRONLY)
        ended = await anyio.run_process(asked, stdout=full, stderr=subprocess.PIPE, check=False)
        os.close(full)
        said = b"pgha ledger: the output cannot be written: No space left on device\n"
        assert (ended.returncode, ended.stderr) == (1, said)


@pytest.mark.anyio
@both_loops
async def test_a_signal_in_the_middle(loop: str) -> None:
    async with standalone() as nodes:
        node = nodes[0]
        await node.freeze()
        process = subprocess.Popen(  # noqa: ASYNC220 - only started here, not awaited
            [COMMAND, "ledger", "status", node.dsn, "--loop", loop], stderr=subprocess.PIPE, text=True
        )  # fmt: skip
        try:
            asked = psutil.Process(process.pid)
            # The command has connected and waits for the frozen node, which answers much later or never.
            await eventually(lambda: any(one.raddr for one in asked.net_connections()), 120)
            process.send_signal(signal.SIGINT)
            began = time.monotonic()
            _, error = await anyio.to_thread.run_sync(process.communicate)
        finally:
            process.kill()
            await node.thaw()
        assert time.monotonic() - began < 8
        assert (process.returncode, error) == (130, "")
