"""A primary with standbys: streaming, promoted, taken back, cut off, and always removed afterwards."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.to_thread
import psutil
import psycopg
import pytest
import trustme
from support.common import both_versions, demand_engine, eventually, loop_aside, within
from support.replicated import everywhere, fill, ids, put, waits

from pgha.chaos import ChaosError, Node
from pgha.chaos._topologies.replicas import Replicas, replicas

pytestmark = pytest.mark.anyio
DEBIAN = Path("/usr/lib/postgresql/15/bin")


def children() -> set[psutil.Process]:
    """Return the running child processes of this program; ended ones that were not reaped do not count."""
    found = psutil.Process().children(recursive=True)
    return {one for one in found if one.is_running() and one.status() != psutil.STATUS_ZOMBIE}


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder for one test's nodes; it must be empty at the end, and no program may run on."""
    tmp_path_factory.getbasetemp()  # pytest creates its own folder elsewhere
    folder = Path(tempfile.mkdtemp(prefix="pgha-test-replicas-"))
    folder.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before = children()
    try:
        yield folder
        assert list(folder.iterdir()) == []
        assert children() - before == set()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def filled(standbys: int = 1, **options: Any) -> AsyncGenerator[Replicas]:
    """Run replicas that all have a table t with row 1."""
    async with replicas(standbys, **options) as nodes:
        await fill(nodes)
        yield nodes


def names(nodes: tuple[Node, ...]) -> list[str]:
    return [node.name for node in nodes]


# --- streaming ----------------------------------------------------------------------------------------


@both_versions
async def test_rows_arrive(version: int) -> None:
    steps: list[tuple[str, str]] = []
    async with replicas(2, version=version, progress=lambda *step: steps.append(step)) as nodes:
        assert [node.version for node in nodes] == [version] * 3
        assert (nodes.primary, nodes.standbys, nodes.strays) == (nodes[0], nodes[1:], ())
        for node in nodes:
            mine = [step for name, step in steps if name == node.name]
            assert mine == ["starting", "started", "linked"]
        await nodes.primary.execute("CREATE TABLE t (id int); INSERT INTO t SELECT generate_series(1, 1000)")
        await nodes.wait_replicated()
        for node in nodes:
            assert len(await ids(node)) == 1000
        for node in nodes.standbys:
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction) as caught:
                await put(node, 1)
            assert caught.value.sqlstate == "25006"
        streaming = "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming' ORDER BY 1"
        assert await nodes.primary.execute(streaming) == [("n2",), ("n3",)]
        known = await nodes.execute("SELECT system_identifier FROM pg_control_system()")
        assert list(known.values()) == [[(node.system_identifier,)] for node in nodes]
        assert len({node.system_identifier for node in nodes}) == 1, "they are copies"
        assert len({node.port for node in nodes}) == 3


async def test_with_a_password() -> None:
    """The copies must not set the password again: that would be a write that the primary does not have."""
    async with filled(password="it's \\ a\nsecr\u00e9t") as nodes:
        await everywhere(nodes, [1])
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(nodes["n2"].dsn, password="wrong")
        await nodes["n1"].kill()
        await nodes.promote("n2")
        await nodes.rejoin("n1")
        await everywhere(nodes, [1])


# --- failover -----------------------------------------------------------------------------------------

HOWS = [
    ("rewind", 18),
    pytest.param("basebackup", 18, marks=pytest.mark.thorough),
    pytest.param("rewind", 16, marks=pytest.mark.thorough),
]


@pytest.mark.parametrize(("how", "version"), HOWS)
async def test_failover_and_back(how: Literal["rewind", "basebackup"], version: int) -> None:
    """The failover is done twice, so that the node that was taken back becomes the primary again."""
    async with filled(2, version=version) as nodes:
        n1, n2, n3 = nodes
        await n1.kill()
        await nodes.promote("n2")
        assert (nodes.primary, nodes.standbys, nodes.strays) == (n2, (n3,), (n1,))
        await put(n2, 2)
        await nodes.wait_replicated()
        assert await ids(n3) == [1, 2], "it follows the new primary"
        assert await nodes.rejoin(n1, how=how) == how
        assert (nodes.standbys, nodes.strays) == ((n1, n3), ())
        await everywhere(nodes, [1, 2])
        assert n1.system_identifier == n2.system_identifier
        await n2.kill()
        await nodes.promote(n1)
        await put(n1, 3)
        assert n2 in nodes.strays
        for stray in nodes.strays:
            # n3 is a stray, too, if it got a record (of running transactions, say) that n1 had not.
            if stray.running:
                await stray.stop()
            assert await nodes.rejoin(stray, how=how) == how
        assert nodes.strays == ()
        await everywhere(nodes, [1, 2, 3])


@pytest.mark.parametrize("how", ["rewind", pytest.param("basebackup", marks=pytest.mark.thorough)])
async def test_an_asynchronous_failover_loses_the_tail(how: Literal["rewind", "basebackup"]) -> None:
    """n2 lags and is promoted: writes that n1 acknowledged and n3 has are lost, in the end on all nodes."""
    async with filled(2) as nodes:
        n1, n2, n3 = nodes
        await nodes.disconnect(n2)
        await put(n1, 2)
        await nodes.wait_replicated()
        assert (await ids(n3), await ids(n2)) == ([1, 2], [1])
        await n1.kill()
        await nodes.promote(n2)
        await put(n2, 3)
        assert (nodes.primary, nodes.standbys) == (n2, ())
        assert nodes.strays == (n1, n3), "n3 is ahead of the new primary, and cannot follow it"
        assert await ids(n3) == [1, 2], "but can be read from"
        with pytest.raises(ChaosError, match="n3 does not follow n2: take it back by 'rejoin'"):
            await nodes.promote(n3)
        await n3.stop() if how == "rewind" else await n3.kill()
        for node in (n1, n3):
            assert await nodes.rejoin(node, how=how) == how
        await everywhere(nodes, [1, 3])


async def test_a_killed_standby_that_was_ahead_is_rewound() -> None:
    """The standby recovers as a standby first: as a primary it would write on the timeline that it left."""
    async with filled(2) as nodes:
        n1, n2, n3 = nodes
        await nodes.disconnect(n2)
        await put(n1, 2)
        await nodes.wait_replicated()
        await n3.kill()
        await n1.kill()
        await nodes.promote(n2)
        assert nodes.standbys == (n3,), "how far it is cannot be asked now"
        await put(n2, 3)
        for node in (n3, n1):
            assert await nodes.rejoin(node, how="rewind") == "rewind"
        await everywhere(nodes, [1, 3])


async def test_two_primaries() -> None:
    """The old primary takes writes that reach no other node, and loses them when it is taken back."""
    async with filled(2) as nodes:
        n1, n2, _ = nodes
        await nodes.promote(n2)
        await put(n1, 2)
        await put(n2, 3)
        await nodes.wait_replicated()
        assert [await ids(node) for node in nodes] == [[1, 2], [1, 3], [1, 3]]
        assert nodes.strays == (n1,)
        with pytest.raises(ChaosError, match="n1 is running: stop or kill it"):
            await nodes.rejoin(n1)
        await n1.stop()
        assert await nodes.rejoin(n1) == "rewind"
        await everywhere(nodes, [1, 3])


async def test_a_standby_that_does_not_follow() -> None:
    """The promotion is done, and its error says what is missing; a second call does only the rest."""
    async with filled(2) as nodes:
        _, n2, n3 = nodes
        rows = await n3.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'startup'")
        await n3.freeze_backend(rows[0][0])
        with pytest.raises(ChaosError, match=r"n2 is the primary, but not followed after .* s: n3: "):
            await nodes.promote(n2, timeout=4)
        assert nodes.primary is n2
        await put(n2, 2)
        await n3.thaw_backend(rows[0][0])
        await nodes.promote(n2)
        assert nodes.standbys == (n3,)
        await nodes.wait_replicated()
        assert await ids(n3) == [1, 2]
        with pytest.raises(ChaosError, match="n2 is the primary, not a standby"):
            await nodes.promote(n2)


async def test_a_disconnected_standby_that_is_ahead_is_a_stray() -> None:
    async with filled(2) as nodes:
        n1, n2, n3 = nodes
        await nodes.disconnect(n2)
        await put(n1, 2)
        await nodes.wait_replicated()
        await nodes.disconnect(n3)
        await nodes.promote(n2)
        assert nodes.strays == (n1, n3)
        await n3.stop()
        await nodes.rejoin(n3)
        await nodes.disconnect(n3)
        await put(n2, 3)
        await nodes.reconnect(n3)
        assert await ids(n3) == [1, 3]


async def test_a_standby_that_turns_out_to_be_ahead() -> None:
    async with filled(2) as nodes:
        n1, n2, n3 = nodes
        await nodes.disconnect(n2)
        await put(n1, 2)
        await nodes.wait_replicated()
        await nodes.disconnect(n3)
        await n3.stop()
        await n1.kill()
        await nodes.promote(n2)
        assert names(nodes.strays) == ["n1"]
        await n3.start()
        with pytest.raises(ChaosError, match="n3 is ahead of n2: stop it, then 'rejoin' it"):
            await nodes.reconnect(n3)
        assert names(nodes.strays) == ["n1", "n3"]


async def test_promoted_by_hand_or_by_a_cancelled_call() -> None:
    async with filled(2) as nodes:
        await nodes["n3"].execute("SELECT pg_promote()")
        assert nodes.primary.name == "n1", "the kit watches nobody"
        await nodes.promote("n3")
        assert nodes.primary.name == "n3"
        await put(nodes["n3"], 2)
        await nodes.wait_replicated()
        assert await ids(nodes["n2"]) == [1, 2]


async def test_a_frozen_standby_follows_when_it_is_thawed() -> None:
    async with filled(2) as nodes:
        await nodes["n3"].freeze()
        await nodes["n1"].kill()
        await nodes.promote("n2")
        await put(nodes["n2"], 2)
        await nodes["n3"].thaw()
        await nodes.wait_replicated()
        assert await ids(nodes["n3"]) == [1, 2]


async def test_a_rewind_that_fails() -> None:
    """Without the node's own WAL, pg_rewind fails, and cannot be repeated.

    pg_rewind does not know what to undo, and a second run would not know what the first one did.
    """
    async with filled() as nodes:
        n1, n2 = nodes
        await n1.kill()
        await nodes.promote(n2)
        await put(n2, 2)
        for path in (n1.datadir / "pg_wal").glob("0*"):
            path.unlink()
        with pytest.raises(ChaosError, match="pg_rewind failed with status 1"):
            await nodes.rejoin(n1, how="rewind")
        with pytest.raises(ChaosError, match="half rewound: take it back by 'basebackup'"):
            await nodes.rejoin(n1, how="rewind")
        assert await nodes.rejoin(n1) == "basebackup"
        await everywhere(nodes, [1, 2])
        await n2.kill()
        await nodes.promote(n1)
        for path in (n2.datadir / "pg_wal").glob("0*"):
            path.unlink()
        assert await nodes.rejoin(n2) == "basebackup", "at once"
        await everywhere(nodes, [1, 2])


@pytest.mark.skipif(not DEBIAN.exists(), reason="Debian's PostgreSQL 15 is not installed")
@loop_aside
async def test_tls_with_debians_15(tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    tls = (tmp_path / "cert.pem", tmp_path / "key.pem")
    hba = ["hostssl all,replication all 127.0.0.1/32 trust"]
    async with filled(2, version=15, tls=tls, hba=hba) as nodes:
        n1, n2, _ = nodes
        streams = "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_replication USING (pid)"
        assert await n1.execute(streams) == [(True,)]
        await n1.kill()
        await nodes.promote(n2)
        await put(n2, 2)
        assert await nodes.rejoin(n1, how="rewind") == "rewind"
        await everywhere(nodes, [1, 2])


@pytest.mark.thorough
async def test_in_containers() -> None:
    await anyio.to_thread.run_sync(demand_engine)
    async with filled(2, kind="container", synchronous=1) as nodes:
        n1, n2, n3 = nodes
        assert {node.kind for node in nodes} == {"container"}
        await n3.freeze()
        await n1.kill()
        await nodes.promote(n2)
        await n3.thaw()
        await put(n2, 2)
        await nodes.wait_replicated()
        assert await ids(n3) == [1, 2], "it heard of its new primary"
        assert await nodes.rejoin(n1) == "rewind"
        await everywhere(nodes, [1, 2])
        await n3.kill()
        await put(n2, 3)
        assert await nodes.rejoin(n3, how="basebackup") == "basebackup"
        await everywhere(nodes, [1, 2, 3])


# --- synchronous --------------------------------------------------------------------------------------


@both_versions
async def test_a_commit_waits_for_its_standby(version: int) -> None:
    async with filled(synchronous=1, version=version) as nodes:
        n1, n2 = nodes
        await n2.freeze()
        async with anyio.create_task_group() as group:
            group.start_soon(put, n1, 2)
            await eventually(functools.partial(waits, n1))
            assert await ids(n1) == [1], "not to be seen before it is acknowledged"
            await n2.thaw()
        assert await ids(n1) == [1, 2]
        await n1.kill()
        await nodes.promote(n2)
        assert await ids(n2) == [1, 2], "what was acknowledged is there"
        await put(n2, 3)
        await nodes.rejoin(n1)
        await n1.freeze()
        async with anyio.create_task_group() as group:
            group.start_soon(put, n2, 4)
            await eventually(functools.partial(waits, n2), what="synchronous again")
            await n1.thaw()
        await everywhere(nodes, [1, 2, 3, 4])


async def test_set_synchronous() -> None:
    async with filled(2) as nodes:
        n1, n2, n3 = nodes

        async def states() -> dict[str, str]:
            rows = await nodes.primary.execute("SELECT application_name, sync_state FROM pg_stat_replication")
            return dict(rows)

        assert await states() == {"n2": "async", "n3": "async"}
        await nodes.set_synchronous(1)
        assert await states() == {"n2": "sync", "n3": "potential"}
        await nodes.set_synchronous(1, ["n3", "n2"])
        assert await states() == {"n2": "potential", "n3": "sync"}
        await nodes.set_synchronous(2)
        assert await states() == {"n2": "sync", "n3": "sync"}
        await n1.kill()
        await nodes.promote(n2)
        assert await states() == {"n3": "sync"}, "no more than there are"
        await put(n2, 2)
        await nodes.rejoin(n1)
        assert await states() == {"n1": "sync", "n3": "sync"}
        await nodes.set_synchronous(0)
        assert await states() == {"n1": "async", "n3": "async"}
        await n1.kill()
        await n3.kill()
        await put(n2, 3)
        await nodes.set_synchronous(1)
        async with anyio.create_task_group() as group:
            group.start_soon(put, n2, 4)
            await eventually(functools.partial(waits, n2))
            await n3.start()


# --- lagging ------------------------------------------------------------------------------------------


async def test_a_standby_disconnected_for_too_long() -> None:
    async with filled(settings={"wal_keep_size": "0", "max_wal_size": "2MB", "min_wal_size": "2MB"}) as nodes:
        n1, n2 = nodes
        await nodes.disconnect(n2)
        for _ in range(4):
            await n1.execute("INSERT INTO t SELECT 2 FROM generate_series(1, 20000)")
            await n1.execute("CHECKPOINT")
        with pytest.raises(ChaosError, match=r"n2: .* has already been removed"):
            await nodes.reconnect(n2, timeout=4)
        await n2.stop()
        assert await nodes.rejoin(n2, how="basebackup") == "basebackup"
        assert len(await ids(n2)) == 80001


async def test_replay_that_stands_still() -> None:
    async with filled() as nodes:
        n1, n2 = nodes
        await nodes.set_synchronous(1)
        await nodes.pause_replay(n2)
        await put(n1, 2)
        assert await ids(n2) == [1], "it has the row, but does not show it"
        with pytest.raises(ChaosError, match=r"not replicated after 2 s: n2: \d+ bytes behind"):
            await nodes.wait_replicated(2)
        await nodes.resume_replay(n2)
        await everywhere(nodes, [1, 2])
        await nodes.pause_replay(n2)
        await put(n1, 3)
        await n1.kill()
        await nodes.promote(n2)
        assert await ids(n2) == [1, 2, 3]


# --- errors -------------------------------------------------------------------------------------------


async def refused(what: str, **options: Any) -> None:
    with pytest.raises(ChaosError, match=what):
        async with replicas(**options):
            pass


async def test_options_are_checked_early() -> None:
    await refused("at least one standby, not 0", standbys=0)
    await refused("2 synchronous standbys of 1: ask for 0 to 1", synchronous=2)
    await refused("-1 synchronous standbys of 1", synchronous=-1)
    await refused("'Primary_ConnInfo' belongs to the topology", settings={"Primary_ConnInfo": ""})
    await refused("belongs to the kit", settings={"port": "1"})
    await refused("reject standbys: add 'host replication", hba=["host all all 127.0.0.1/32 trust"])
    await refused("2 nodes need 2 ports, not 1", ports=[1])


# --- removal in every case ----------------------------------------------------------------------------


async def test_left_with_frozen_and_dead_nodes() -> None:
    with pytest.raises(ZeroDivisionError):
        async with filled(2) as nodes:
            await nodes["n1"].freeze()
            await nodes["n2"].kill()
            await nodes["n3"].freeze()
            raise ZeroDivisionError


def moments(*seconds: float) -> list[Any]:
    """Return a parameter per moment, of which the quick run takes every other one."""
    return [
        pytest.param(moment, marks=[pytest.mark.thorough] if number % 2 else [])
        for number, moment in enumerate(seconds)
    ]


@pytest.mark.parametrize("moment", moments(0.0, 0.05, 0.2, 0.4, 0.6, 0.8))
async def test_cancelled_while_starting(moment: float) -> None:
    """A cancel at any moment of the start leaves nothing; the fixture checks this."""
    with anyio.move_on_after(moment):
        async with replicas(2, synchronous=1):
            pass


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("moment", moments(0.05, 0.2, 0.4, 0.6, 0.8))
async def test_cancelled_natively_while_starting(moment: float) -> None:
    async def start() -> None:
        async with replicas(2, synchronous=1):
            await anyio.sleep_forever()  # a fast machine may have started all nodes by then

    task = asyncio.create_task(start())
    await asyncio.sleep(moment)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


PROGRAM = """
import anyio, sys
from pgha.chaos._topologies.replicas import replicas

def progress(node, step):
    print(node, step, flush=True)

async def main():
    async with replicas(2, progress=progress):
        print("up", flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


def kill_when(line: str, place: Path) -> list[str]:
    """Run PROGRAM, and kill it as soon as it prints `line`; return the names of its folders."""
    environment = os.environ | {"TMPDIR": str(place)}
    words = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert any(said.strip() == line for said in program.stdout)
        os.kill(program.pid, signal.SIGKILL)
        return [folder.name for folder in place.iterdir()]


def processes_of(folders: list[str]) -> list[str]:
    """Return the processes in folders of these names, without the warden, which knows the names, too."""
    lines = [" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]
    return [line for line in lines if any(folder in line for folder in folders) and "warden" not in line]


@loop_aside
@pytest.mark.parametrize("line", ["n1 started", "up"])
async def test_a_program_that_is_killed(line: str, place: Path) -> None:
    """A killed program leaves nothing, even while it copies the primary."""
    with within(60):
        folders = await anyio.to_thread.run_sync(kill_when, line, place)
    assert len(folders) == 3
    await eventually(lambda: not processes_of(folders) and not os.listdir(place), 30)
