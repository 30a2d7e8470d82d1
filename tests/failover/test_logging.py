"""The log while servers fail: every state change of a node, and storms of errors as one line."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import textwrap
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
import psycopg
import pytest
from support.common import cluster_of, eventually, unique, within

import pgha
import pgha.blocking
from pgha.chaos import LocalNode, Node, standalone

pytestmark = pytest.mark.anyio
LOAD = 30


class Taken(logging.Handler):
    """A handler that keeps pgha's records of all levels, DEBUG included."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def lines(self) -> list[tuple[str, str, str]]:
        return [(one.name, one.levelname, one.getMessage()) for one in self.records]

    def texts(self, logger: str = "pgha") -> list[str]:
        return [one.getMessage() for one in self.records if one.name.startswith(logger)]

    def has(self, words: str) -> bool:
        return any(words in text for text in self.texts())


@contextmanager
def taken(handler: Taken | None = None) -> Iterator[Taken]:
    logger, handler = logging.getLogger("pgha"), handler or Taken()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield handler
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


@asynccontextmanager
async def writing(cluster: pgha.Cluster) -> AsyncGenerator[None]:
    """Keep ``LOAD`` operations busy on one node, each for so long that the node's end finds many in flight.

    Reads that wait would be spread over all nodes. Quick statements may all be answered before their
    connections are lost, and then nothing is run again.
    """
    done = False

    async def write() -> None:
        while not done:
            await cluster.execute("SELECT pg_sleep(0.5)", idempotent=True)

    async with anyio.create_task_group() as group:
        for _ in range(LOAD):
            group.start_soon(write)
        await anyio.sleep(0.3)
        yield
        done = True


async def test_a_node_is_killed_under_load_and_restarted() -> None:
    async with standalone(2) as nodes:
        with taken() as log, within(60):
            async with cluster_of(*nodes, min_ready=2) as cluster, writing(cluster):
                victim = nodes[(await cluster.execute("SELECT 1", idempotent=True)).node]
                log.records.clear()
                await victim.kill()
                await eventually(lambda: log.has("will be run again"))
                await anyio.sleep(1.5)
                failover = log.lines()
                await victim.start()
                await eventually(lambda: log.has(f"node {victim.name} is up again after "))
                retried = cluster.statistics().retried
    assert len(failover) <= 8, failover
    (down,) = [line for line in failover if " is down after " in line[2]]
    assert down[:2] == ("pgha.node", "WARNING")
    assert f"node {victim.name} is down after " in down[2]
    # The storm is one line, or two if it lies across the end of a window; no attempt is left out.
    storms = [line for line in log.lines() if "will be run again" in line[2]]
    assert {line[:2] for line in storms} == {("pgha.operation", "INFO")}
    assert len([line for line in failover if "will be run again" in line[2]]) <= 2
    counts = [re.match(r"node \w+: ([\d,]+) attempts? failed", line[2]) for line in storms]
    assert sum(int(found[1].replace(",", "")) for found in counts if found) == retried > 1
    lost = [line for line in failover if "lost, with " in line[2]]
    assert {line[:2] for line in lost} == {("pgha.connection", "INFO")} and len(lost) <= 2
    assert any("with 0 operations" not in line[2] for line in lost)
    assert ("pgha.node", "INFO") in [line[:2] for line in log.lines() if " is up again after " in line[2]]
    assert log.lines()[-1][:2] == ("pgha.cluster", "INFO")
    assert "the cluster is closed: " in log.lines()[-1][2]


async def test_writes_in_doubt() -> None:
    async with standalone() as nodes:
        with taken() as log, within(60):
            async with cluster_of(*nodes) as cluster:
                text = unique("sleep")
                slow = [cluster.submit(f"SELECT pg_sleep(3) /* {text} */") for _ in range(2)]
                await anyio.sleep(0.3)
                await nodes[0].freeze()
                await eventually(lambda: all(one.done for one in slow))
                for one in slow:
                    with pytest.raises(pgha.CommitInDoubt):
                        await one
                await nodes[0].thaw()
                await eventually(lambda: log.has("ended in doubt"))
                in_doubt = cluster.statistics().in_doubt
    (line,) = [line for line in log.lines() if "ended in doubt" in line[2]]
    assert line[:2] == ("pgha.operation", "WARNING")
    assert line[2] == f"node n1: {in_doubt} writes ended in doubt (no answer to a ping in 0.25 s)"


async def test_roles() -> None:
    async with standalone() as nodes:
        with taken() as log, within(60):
            async with cluster_of(*nodes) as cluster:
                await _set(nodes[0], "SET default_transaction_read_only = on")
                await eventually(lambda: cluster.nodes["n1"].read_only)
                await eventually(lambda: log.has("is read-only"))
                await _set(nodes[0], "RESET default_transaction_read_only")
                await eventually(lambda: log.has("not read-only"))
    roles = [line for line in log.lines() if "read-only" in line[2]]
    assert roles == [
        ("pgha.node", "WARNING", "node n1 is read-only: it takes no writes"),
        ("pgha.node", "INFO", "node n1 is not read-only any more (primary)"),
    ]


async def _set(node: Node, what: str) -> None:
    await node.execute(f"ALTER SYSTEM {what}")
    await node.execute("SELECT pg_reload_conf()")


async def test_a_quiet_life(server: LocalNode) -> None:
    """No operation writes a log line, neither a successful one nor one whose error its caller gets."""
    with taken() as log:
        async with cluster_of(server) as cluster:
            await eventually(lambda: log.has(f"node {server.name} is up (primary)"))
            for _ in range(50):
                await cluster.fetch("SELECT 1")
                with pytest.raises(psycopg.errors.DivisionByZero):
                    await cluster.execute("SELECT 1/0")
    assert [line[:2] for line in log.lines()] == [("pgha.node", "INFO"), *[("pgha.cluster", "INFO")] * 2]


async def test_a_handler_may_use_the_cluster(server: LocalNode) -> None:
    """A log handler runs at a safe point: operations that it submits are sent, and its errors do no harm."""
    operations: list[pgha.Operation[pgha.Result[object]]] = []

    class Using(Taken):
        cluster: pgha.Cluster | None = None

        def emit(self, record: logging.LogRecord) -> None:
            super().emit(record)
            if self.cluster is not None and len(operations) < 5:
                operations.append(self.cluster.submit("SELECT 7", read=True))
                raise LookupError("mine")

    with taken(Using()) as log, within():
        async with cluster_of(server) as cluster:
            assert isinstance(log, Using)
            pid = await cluster.fetch_value("SELECT pg_backend_pid()")
            log.cluster = cluster
            await server.execute("SELECT pg_terminate_backend(%s)", [pid])
            await eventually(lambda: bool(operations))
            assert [(await one).one() for one in operations] == [(7,)] * len(operations)
            assert await cluster.fetch_value("SELECT 1") == 1
            log.cluster = None


class Stop(BaseException):
    """A stand-in for the KeyboardInterrupt that trio raises in any code that runs."""


@pytest.mark.parametrize("words", ["the cluster is open", "the cluster is closed"])
async def test_an_interrupt_in_a_handler_ends_the_cluster(server: LocalNode, words: str) -> None:
    class Stopping(Taken):
        def emit(self, record: logging.LogRecord) -> None:
            super().emit(record)
            if words in record.getMessage():
                raise Stop

    with taken(Stopping()), within(), pytest.raises(Stop):
        async with cluster_of(server):
            pass


async def test_the_ledger(server: LocalNode) -> None:
    with taken() as log:
        async with cluster_of(server) as cluster:
            await cluster.ledger.install()
            await cluster.ledger.install()
            await cluster.ledger.prune()
            await cluster.ledger.uninstall()
    told = [line for line in log.lines() if line[0] == "pgha.ledger"]
    assert told == [
        ("pgha.ledger", "INFO", f"node {server.name}: {what}")
        for what in ("the ledger was installed", "0 keys were pruned", "the ledger was removed")
    ]


async def test_no_password(server: LocalNode) -> None:
    """No log line shows a password, even if a server repeats it."""
    secret = "pa55w0rd"
    node = pgha.Node(f"{server.dsn} password={secret}", "n1")
    with taken() as log, within():
        async with pgha.open_cluster(node) as cluster:
            text = f"DO $$ BEGIN RAISE EXCEPTION 'what of {secret}, please'; END $$"
            operation = cluster.submit(text)
            await operation.wait()
            del operation
            await eventually(lambda: log.has("its failure was not retrieved"))
        async with pgha.open_cluster(
            pgha.Node(f"{server.dsn} password={secret} options='-c {secret}=1'", "n2"), min_ready=0
        ):
            await eventually(lambda: log.has("node n2"))
    assert log.has("what of ***, please")
    assert not log.has(secret)


def test_the_thread_of_a_blocking_cluster(server: LocalNode, anyio_backend: str) -> None:
    with taken() as log, pgha.blocking.open_cluster(server.dsn, backend=anyio_backend):  # type: ignore[arg-type]
        pass
    told = [line for line in log.lines() if line[0] == "pgha.blocking"]
    assert [line[1] for line in told] == ["DEBUG", "DEBUG"]
    assert told[0][2] == f"the thread 'pgha {anyio_backend}' of a cluster has started"
    assert told[1][2] == f"the thread 'pgha {anyio_backend}' of a cluster has ended"


@pytest.mark.parametrize(("setup", "shown"), [("", False), ("import logging; logging.basicConfig()", True)])
def test_quiet_by_default(server: LocalNode, setup: str, shown: bool, anyio_backend: str) -> None:
    """A program that has not configured logging gets no output of pgha on stderr."""
    program = f"""
    import anyio, gc, pgha
    {setup}

    async def main():
        down = "host=127.0.0.1 port=1 dbname=none"
        async with pgha.open_cluster({server.dsn!r}, down, min_ready=1) as cluster:
            operation = cluster.submit("SELECT 1/0")
            await operation.wait()
            del operation
            gc.collect()
            while cluster.statistics().unretrieved == 0 or cluster.nodes["127.0.0.1:1"].state != "down":
                await anyio.sleep(0.01)

    anyio.run(main, backend={anyio_backend!r})
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "")
    if shown:
        assert (
            "ERROR:pgha.operation:an operation failed, and its failure was not retrieved: DivisionByZero"
            in done.stderr
        )
        assert "WARNING:pgha.node:node 127.0.0.1:1 is down: " in done.stderr
    else:
        assert done.stderr == ""
