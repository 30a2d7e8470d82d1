"""Nodes in containers: users see no difference from local nodes, and nothing of them is left afterwards."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import psutil
import psycopg
import pytest
import trustme
from support.common import demand_engine, eventually

from pgha.chaos import (
    ChaosError,
    ContainerNode,
    LocalNode,
    Node,
    StopMode,
    build_image,
    masters,
    standalone,
)

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

pytestmark = [pytest.mark.anyio, pytest.mark.thorough]
DEBIAN = Path("/usr/lib/postgresql/15/bin")
needs_debian = pytest.mark.skipif(not DEBIAN.exists(), reason="Debian's PostgreSQL 15 is not installed")
NOWHERE = "127.0.0.1:1/nothing:1"
"""An image that is not on this machine and whose registry refuses connections."""


@pytest.fixture(scope="module")
def engine() -> Iterator[DockerClient]:
    demand_engine()
    from pgha.chaos._containers.engine import connected

    with connected() as client:
        yield client


def containers(engine: DockerClient, place: Path) -> list[Container]:
    found = engine.containers.list(all=True, filters={"label": "pgha.chaos"}, ignore_removed=True)
    return [c for c in found if any(m["Source"].startswith(str(place)) for m in c.attrs["Mounts"])]


def left(engine: DockerClient, place: Path) -> list[str]:
    """Return all leftovers of nodes below `place`: containers, processes, folders, this program's wardens."""
    found = [f"{c.name}: {c.status}" for c in containers(engine, place)]
    found += [str(path) for path in place.iterdir()]
    for process in psutil.process_iter(["pid", "cmdline", "cwd"]):
        words = " ".join([*(process.info["cmdline"] or ()), process.info["cwd"] or ""])
        if place.name in words:
            found.append(f"{process.info['pid']}: {words}")
    return found + [str(child) for child in psutil.Process().children() if is_warden(child)]


def is_warden(process: psutil.Process) -> bool:
    try:
        return any("warden.py" in word for word in process.cmdline())
    except psutil.NoSuchProcess:  # the process ended meanwhile, or is a zombie
        return False


@pytest.fixture
def place(
    monkeypatch: pytest.MonkeyPatch, engine: DockerClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Return the folder for the nodes of one test; the test fails if its end finds anything left there."""
    tmp_path_factory.getbasetemp()  # pytest creates its folder on first use: that must not happen in ours
    folder = Path(tempfile.mkdtemp(prefix="pgha-test-"))
    folder.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert left(engine, folder) == []
    folder.rmdir()


def container_of(engine: DockerClient, node: Node) -> Container:
    return engine.containers.get(node.datadir.parent.name)


def content(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def count(node: Node) -> int:
    return int((await node.execute("SELECT count(*) FROM item"))[0][0])


# --- one node -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fast", "smart", "immediate"])
async def test_restart_keeps_data_and_port(engine: DockerClient, place: Path, mode: StopMode) -> None:
    async with standalone(kind="container") as nodes:
        node = nodes[0]
        assert (node.kind, node.running, node.frozen) == ("container", True, False)
        await node.execute("CREATE TABLE item (id int); INSERT INTO item VALUES (1)")
        port, pid, container = node.port, node.pid, container_of(engine, node)
        await node.stop(mode)
        assert (node.running, node.pid) == (False, None)
        with pytest.raises(psycopg.OperationalError, match="refused"):
            await node.execute("SELECT 1")
        await node.stop(mode)  # a second stop does nothing
        await node.start()
        assert (node.port, await count(node)) == (port, 1)
        assert node.pid not in (None, pid)
        assert container_of(engine, node).id == container.id
        assert ("not properly shut down" in await node.logs()) == (mode == "immediate")
        with pytest.raises(ChaosError, match="already running"):
            await node.start()
        await node.restart(mode)
        assert await count(node) == 1


async def test_what_the_container_may(engine: DockerClient, place: Path) -> None:
    async with standalone(kind="container") as nodes:
        container = container_of(engine, nodes[0])
        host = container.attrs["HostConfig"]
        assert (host["NetworkMode"], host["CapDrop"], host["Privileged"]) == ("host", ["ALL"], False)
        assert container.labels["pgha.chaos"] == "n1"
        assert nodes[0].pid is not None
        assert psutil.Process(nodes[0].pid).uids().real != 0
        listening = [c.laddr for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        assert {at.ip for at in listening if at and at.port == nodes[0].port} == {"127.0.0.1"}
        assert content(place) == [place / str(container.name)]


async def test_kill_takes_all_and_loses_nothing_committed(engine: DockerClient, place: Path) -> None:
    async with standalone(kind="container") as nodes:
        node = nodes[0]
        await node.execute("CREATE TABLE item (id int); INSERT INTO item VALUES (1)")
        for frozen in (False, True):
            assert node.pid is not None
            processes = psutil.Process(node.pid).children(recursive=True)
            assert len(processes) >= 4
            if frozen:
                await node.pause()
            await node.kill()
            assert not any(process.is_running() for process in processes)
            assert (node.running, node.frozen) == (False, False)
            assert container_of(engine, node).status == "exited"
            await node.kill()  # a second kill does nothing
            await node.start()
            assert await count(node) == 1


async def test_a_server_that_died_by_itself_is_started_at_once(place: Path) -> None:
    """The engine notices the death a little later; a start before that would do nothing."""
    async with standalone(kind="container") as nodes:
        node = nodes[0]
        for _ in range(5):
            assert node.pid is not None
            os.kill(node.pid, signal.SIGKILL)
            await eventually(lambda: not node.running)
            await node.start()
            assert await node.execute("SELECT 1") == [(1,)]


async def test_a_container_that_somebody_removed_is_made_again(engine: DockerClient, place: Path) -> None:
    async with standalone(kind="container") as nodes:
        node = nodes[0]
        await node.execute("CREATE TABLE item (id int); INSERT INTO item VALUES (1)")
        container_of(engine, node).remove(force=True)
        await eventually(lambda: not node.running)
        await node.start()
        assert await count(node) == 1


async def test_a_paused_node_stands_still_until_unpaused(engine: DockerClient, place: Path) -> None:
    async with standalone(kind="container") as nodes:
        node = nodes[0]
        done = anyio.Event()

        async def query() -> None:
            await node.execute("SELECT pg_sleep(0.05)")
            done.set()

        async with anyio.create_task_group() as group:
            await node.pause()
            await node.freeze()  # a second freeze does nothing
            assert node.frozen and node.running
            assert container_of(engine, node).status == "paused"
            group.start_soon(query)
            await anyio.sleep(0.3)
            assert not done.is_set()
            with pytest.raises(ChaosError, match="frozen"):
                await node.stop()
            for act in (node.kill_backend, node.freeze_backend, node.thaw_backend):
                with pytest.raises(ChaosError, match="n1 is paused, and so are its backends"):
                    await act(2)
            with pytest.raises(ChaosError, match=r"accepted no connection within 0.1 s"):
                await node.wait_ready(timeout=0.1)
            await node.unpause()
            with anyio.fail_after(10):
                await done.wait()
        assert not node.frozen
        await node.thaw()  # thawing a node that is not frozen does nothing
        await node.kill()
        await node.thaw()
        with pytest.raises(ChaosError, match="nothing to freeze"):
            await node.pause()


async def test_backends_are_frozen_and_killed_alone(place: Path) -> None:
    async with standalone(kind="container") as nodes:
        node = nodes[0]
        with psycopg.connect(node.dsn, autocommit=True) as client:
            backend = client.info.backend_pid
            await node.freeze_backend(backend)
            with anyio.fail_after(10):
                assert await node.execute("SELECT 1") == [(1,)]
            client.pgconn.send_query(b"SELECT 1")
            await anyio.sleep(0.2)
            client.pgconn.consume_input()
            assert client.pgconn.is_busy()
            await node.thaw_backend(backend)
            assert client.pgconn.get_result() is not None
            assert client.pgconn.get_result() is None
            await node.freeze_backend(backend)
            await node.thaw()  # also thaws backends that were frozen one by one
            await node.kill_backend(backend)
            await node.wait_ready()
            with pytest.raises(psycopg.OperationalError):
                client.execute("SELECT 1")
        assert "was terminated by signal 9" in await node.logs()
        for foreign in (1, node.pid or 0, os.getpid()):
            with pytest.raises(ChaosError, match="not a backend of n1"):
                await node.kill_backend(foreign)


async def test_options(place: Path) -> None:
    password = "s'e\\c r\n\u00e9t"
    async with ContainerNode("alone", version=16, password=password, settings={"work_mem": "5MB"}) as node:
        assert repr(node) == "<ContainerNode alone down>"
        await node.start()
        rows = await node.execute(
            "SELECT current_setting('server_version_num')::int / 10000, current_setting('work_mem')"
        )
        assert (rows, node.version) == ([(16, "5MB")], 16)
        rows = await node.execute("SELECT system_identifier FROM pg_control_system()")
        assert rows == [(node.system_identifier,)]
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(node.dsn, password="wrong")
    with pytest.raises(ChaosError, match="closed"):
        await node.start()
    with pytest.raises(ChaosError, match="entered before"):
        async with node:
            pass


@needs_debian
async def test_tls_with_debians_15(place: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    tls = (tmp_path / "cert.pem", tmp_path / "key.pem")
    async with standalone(version=15, tls=tls, kind="container") as nodes:
        with psycopg.connect(
            nodes[0].dsn, sslmode="verify-full", sslrootcert=str(tmp_path / "ca.pem")
        ) as client:
            assert client.pgconn.ssl_in_use
            assert client.info.server_version // 10_000 == 15


async def test_a_server_that_refuses_to_start_says_why(place: Path) -> None:
    async with ContainerNode("n1", settings={"shared_buffers": "lots"}) as node:
        with pytest.raises(
            ChaosError, match=r'(?s)not running; the end of its log:.*"shared_buffers": "lots"'
        ):
            await node.start()


@pytest.fixture
def tag(engine: DockerClient) -> Iterator[str]:
    name = f"pgha-test:{os.getpid()}"
    yield name
    if engine.images.list(name):
        engine.images.remove(name, force=True)


async def test_bad_images(engine: DockerClient, place: Path, tag: str) -> None:
    async with ContainerNode("n1", image=NOWHERE) as node:
        with pytest.raises(
            ChaosError, match=f"make a container of the image {NOWHERE} for n1: No such image"
        ):
            await node.start()
    build_image(16, tag)
    async with ContainerNode("n1", version=18, image=tag) as node:
        with pytest.raises(ChaosError, match=r"(?s)n1 is not running.*unrecognized configuration parameter"):
            await node.start()


def take(port: int) -> socket.socket:
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken.bind(("127.0.0.1", port))
    taken.listen()
    return taken


async def test_a_taken_port_is_replaced_before_anybody_knows_it_only(
    engine: DockerClient, place: Path
) -> None:
    async with ContainerNode("n1") as node:
        with take(node.port) as taken:
            await node.start()
            assert node.port != taken.getsockname()[1]
        assert len(containers(engine, place)) == 1
        await node.stop()
        with take(node.port), pytest.raises(ChaosError, match=rf"port {node.port} of n1 is taken"):
            await node.start()
        await node.start()


async def test_what_local_programs_make_of_its_data_it_runs(place: Path) -> None:
    """A container runs on data that local programs have made, so that replicas work in containers, too."""
    async with ContainerNode("n1") as node, LocalNode("n2") as other:
        await other.start()
        await other.execute("CREATE TABLE item (id int); INSERT INTO item VALUES (1)")
        await other.stop()

        def copy(data: Path) -> None:
            shutil.rmtree(data)
            subprocess.run(["cp", "-a", other.datadir, data], check=True)

        await anyio.to_thread.run_sync(node._server.replace_data, copy)
        assert node.system_identifier == other.system_identifier
        await node.start()
        assert await count(node) == 1
        await other.start()


async def test_masters_in_containers(place: Path) -> None:
    async with masters(2, kind="container") as nodes:
        await nodes.create("CREATE TABLE item (id int PRIMARY KEY)")
        await nodes["n1"].execute("INSERT INTO item VALUES (1)")
        await nodes["n2"].execute("INSERT INTO item VALUES (2)")
        await nodes.wait_replicated()
        assert [await count(node) for node in nodes] == [2, 2]
        await nodes["n2"].kill()
        await nodes["n1"].execute("INSERT INTO item VALUES (3)")
        await nodes["n2"].start()
        await nodes.wait_replicated(timeout=20)
        await nodes["n1"].pause()
        await nodes["n2"].execute("INSERT INTO item VALUES (4)")
        await nodes["n1"].unpause()
        await nodes.wait_replicated(timeout=20)
        assert [await count(node) for node in nodes] == [4, 4]


# --- nothing is left behind ---------------------------------------------------------------------------


async def test_cancellation_and_errors_leave_nothing(engine: DockerClient, place: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with standalone(2, kind="container") as nodes:
            await nodes[1].pause()
            _ = 1 / 0
    assert left(engine, place) == []
    for delay in (0.0, 0.2, 0.4, 0.6, 0.9):
        with anyio.move_on_after(delay):
            async with standalone(2, kind="container"):
                await anyio.sleep_forever()
        assert left(engine, place) == []


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_native_cancel_at_any_time_leaves_nothing(engine: DockerClient, place: Path) -> None:
    async def use() -> None:
        async with standalone(2, kind="container"):
            await anyio.sleep_forever()

    for delay in (0.0, 0.2, 0.4, 0.6, 0.9):
        task = asyncio.create_task(use())
        await asyncio.sleep(delay)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    # A native cancel breaks through the shield; the threads that were left behind finish the removal.
    await eventually(lambda: not left(engine, place), 30)


PROGRAM = """
    import sys
    import anyio, pgha.chaos

    async def main():
        async with pgha.chaos.standalone(2, kind="container") as nodes:
            await nodes[1].pause()
            print("up", flush=True)
            await anyio.sleep_forever()

    anyio.run(main, backend=sys.argv[1])
"""


@contextmanager
def program(place: Path, backend: str) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", textwrap.dedent(PROGRAM), backend]
    environment = os.environ | {"TMPDIR": str(place)}
    with subprocess.Popen(
        words, text=True, start_new_session=True, stdout=subprocess.PIPE, env=environment
    ) as process:
        yield process
        process.kill()


async def test_a_program_that_dies_leaves_nothing(
    engine: DockerClient, place: Path, anyio_backend_name: str
) -> None:
    with program(place, anyio_backend_name) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert sorted(c.status for c in containers(engine, place)) == ["paused", "running"]
        process.kill()
        process.wait(30)
        await eventually(lambda: not left(engine, place), 30)


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_program_that_dies_at_any_moment_of_its_start_leaves_nothing(
    engine: DockerClient, place: Path, anyio_backend_name: str
) -> None:
    chance = random.Random(7)
    for _ in range(6):
        with program(place, anyio_backend_name) as process:
            # Kills come after the first folder: within the next second, containers are made and started.
            await eventually(lambda: bool(content(place)), 30)
            await anyio.sleep(chance.uniform(0.0, 1.2))
            process.kill()
            process.wait(30)
            await eventually(lambda: not left(engine, place), 30)
