"""Begin and end of `pgha.blocking`: leaving, interrupts, forks, faults. Nothing hangs, nothing is left."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from support.common import PATIENCE, PROVEN, no_backends, unique
from support.servers import standalone
from support.threads import (
    Backend,
    Crew,
    ask,
    cluster_of,
    crew,
    interrupted_when,
    nothing_left,
    soon,
    wait_started,
    wait_stopped,
)

import pgha.blocking
from pgha.blocking import _gate
from pgha.blocking._gate import Gate
from pgha.blocking._mailbox import Job
from pgha.chaos import LocalNode, Masters, masters

ABSENT = "host=127.0.0.1 port=1"


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param  # type: ignore[no-any-return]


# Entering and leaving


def test_an_exception_of_the_body_comes_out_as_itself(server: LocalNode, backend: Backend) -> None:
    text = unique("sleep")
    error = ZeroDivisionError("the body's own")
    options: Any = {"backend": backend, "close_timeout": 3 * PATIENCE}
    with pytest.raises(ZeroDivisionError) as caught, cluster_of(server, **options, _tuning=PROVEN) as cluster:
        operation = cluster.submit(f"SELECT pg_sleep(60) /* {text} */")
        wait_started(server, text)
        raised_at = time.monotonic()
        raise error
    # The operations were not drained.
    assert time.monotonic() - raised_at < PATIENCE
    assert caught.value is error
    with pytest.raises(pgha.OperationCancelled):
        operation.result(timeout=0)
    wait_stopped(server, text)


def test_a_clean_exit_drains(server: LocalNode, backend: Backend) -> None:
    with cluster_of(server, backend=backend) as cluster:
        operations = [cluster.submit("SELECT pg_sleep(0.1), %s::int", [i]) for i in range(10)]
    assert [one.result(timeout=0)[0][1] for one in operations] == list(range(10))


def test_a_clean_exit_does_not_drain_for_ever(server: LocalNode, backend: Backend) -> None:
    with cluster_of(server, backend=backend, close_timeout=0.1) as cluster:
        operation = cluster.submit("SELECT pg_sleep(60)")
    with pytest.raises((pgha.OperationCancelled, pgha.CommitInDoubt)):
        operation.result(timeout=0)


def test_leaving_does_not_wait_for_threads_that_go_on_asking(server: LocalNode, backend: Backend) -> None:
    began = threading.Event()

    def work(cluster: pgha.blocking.Cluster) -> None:
        # At every moment, one of these operations is running.
        running = deque(cluster.submit("SELECT pg_sleep(0.01)") for _ in range(4))
        began.set()
        with pytest.raises(pgha.ClusterClosed):
            while True:
                running.append(cluster.submit("SELECT pg_sleep(0.01)"))
                running.popleft().result()

    with crew() as threads, cluster_of(server, backend=backend, close_timeout=3 * PATIENCE) as cluster:
        threads.start(work, cluster)
        assert began.wait(PATIENCE)
        leaving_at = time.monotonic()
    assert time.monotonic() - leaving_at < PATIENCE


def test_what_cannot_be_opened(server: LocalNode, backend: Backend) -> None:
    with nothing_left(server):
        for arguments, options, expected in [
            ([], {}, pgha.ConfigError),
            ([server.dsn], {"read_connections": 0}, pgha.ConfigError),
            ([server.dsn], {"min_ready": 2}, pgha.ConfigError),
            ([server.dsn + " dbname=nowhere"], {}, pgha.NoNodeAvailable),
            ([ABSENT], {"failover_timeout": 0.05}, pgha.NoNodeAvailable),
        ]:
            with pytest.raises(expected):
                pgha.blocking.open_cluster(*arguments, backend=backend, **options).__enter__()  # type: ignore[arg-type]


def test_backends() -> None:
    with pytest.raises(pgha.ConfigError, match="'asyncio' or 'trio'"):
        pgha.blocking.open_cluster(ABSENT, backend="curio").__enter__()  # type: ignore[arg-type]
    options = {"debug": True}
    with pgha.blocking.open_cluster(ABSENT, min_ready=0, backend_options=options) as cluster:
        assert cluster._host.ask(lambda: asyncio.get_running_loop().get_debug())


def test_after_the_end(server: LocalNode, backend: Backend) -> None:
    with cluster_of(server, backend=backend) as cluster:
        assert cluster.fetch_value("SELECT 1") == 1
        group = cluster.group().__enter__()
    calls: list[Callable[[], object]] = [
        lambda: cluster.fetch("SELECT 1"),
        lambda: cluster.execute("SELECT 1"),
        lambda: cluster.execute_batch(["SELECT 1"]),
        lambda: cluster.submit("SELECT 1").result(timeout=PATIENCE),
        lambda: group.submit("SELECT 1").result(timeout=PATIENCE),
        lambda: cluster.add_node(ABSENT),
        lambda: cluster.remove_node(server.name),
        lambda: cluster.wait_ready(),
        lambda: cluster.events().__enter__(),
    ]
    for call in calls:
        with pytest.raises(pgha.ClusterClosed, match="closed"):
            call()
    # Statistics and nodes can still be read after the cluster has closed.
    assert cluster.statistics().succeeded == 1
    assert list(cluster.nodes) == [server.name]


def test_closing_races_with_calls(server: LocalNode, backend: Backend) -> None:
    """Whenever the cluster closes, each call ends with an answer or with an error that gives the reason."""
    kinds: list[Callable[[pgha.blocking.Cluster], object]] = [
        lambda cluster: cluster.fetch("SELECT 1"),
        lambda cluster: cluster.execute("SELECT 1"),
        lambda cluster: cluster.submit("SELECT 1").result(),
        lambda cluster: cluster.statistics(),
        lambda cluster: cluster.wait_ready(),
        lambda cluster: cluster.nodes,
        lambda cluster: cluster.events().__enter__(),
    ]

    def work(cluster: pgha.blocking.Cluster, call: Callable[[pgha.blocking.Cluster], object]) -> None:
        after = 0
        while after < 20:
            try:
                call(cluster)
            except (pgha.ClusterClosed, pgha.OperationCancelled):
                after += 1
            else:
                after += over.is_set()

    for turn in range(0, 10, 2):
        over = threading.Event()
        with nothing_left(server) as application, crew() as threads:
            with pgha.blocking.open_cluster(
                server.dsn, backend=backend, application_name=application
            ) as cluster:
                for call in kinds * 2:
                    threads.start(work, cluster, call)
                soon(lambda: cluster.statistics().succeeded > 20 + turn * 7)  # noqa: B023
            # Threads whose calls never raise would otherwise keep the processor from all other threads.
            over.set()


def test_inside_a_program_with_a_loop(server: LocalNode, backend: Backend) -> None:
    async def program(application: str) -> None:
        with pgha.blocking.open_cluster(server.dsn, backend=backend, application_name=application) as cluster:
            assert cluster.fetch_value("SELECT 1") == 1
            many = [asyncio.to_thread(cluster.fetch_value, "SELECT %s::int", [i]) for i in range(20)]
            assert await asyncio.gather(*many) == list(range(20))

    # The calls come from threads of that program, and from the thread that runs the loop.
    with nothing_left(server) as application, crew() as threads:
        threads.start(asyncio.run, program(application))


def test_several_at_once(server: LocalNode) -> None:
    with cluster_of(server, backend="asyncio") as one:
        # A connection of the first that opens later would be taken for one that the second has left.
        soon(lambda: one.nodes[server.name].read_connections == 2)
        with cluster_of(server, backend="trio") as other:
            assert one.fetch_value("SELECT 1") == other.fetch_value("SELECT 1") == 1


@pytest.mark.parametrize("read", [True, False])
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, BaseException, ValueError])
def test_whatever_a_row_factory_raises(
    server: LocalNode, backend: Backend, read: bool, kind: type[BaseException]
) -> None:
    """An exception from a row factory reaches only the factory's own caller."""

    def raising(cursor: object) -> Any:
        raise kind("from a row factory")

    with cluster_of(server, backend=backend) as cluster, cluster.group() as group:
        beside = [group.submit("SELECT %s::int", [i], read=read) for i in range(20)]
        mine = cluster.submit("SELECT 1", read=read, row_factory=raising)
        beside += [group.submit("SELECT %s::int", [i], read=read) for i in range(20, 40)]
        with pytest.raises(kind, match="from a row factory"):
            mine.result(timeout=PATIENCE)
        assert [one.result(timeout=PATIENCE).value() for one in beside] == list(range(40))
        assert cluster.fetch_value("SELECT 1") == 1


@pytest.mark.parametrize("propagates", [True, False])
# asyncio leaves half-run coroutines behind when an exception from a callback ends the loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_ends_the_thread(server: LocalNode, backend: Backend, propagates: bool) -> None:
    """A cluster whose thread has ended reports the loss, and no caller waits for ever."""

    async def exits() -> None:
        raise SystemExit("in the cluster's thread")

    ended = []

    def call(cluster: pgha.blocking.Cluster) -> None:
        # The error is about the end of the cluster or of the connection.
        with pytest.raises(psycopg.Error):
            cluster.fetch("SELECT pg_sleep(2)")
        ended.append(True)

    def body(cluster: pgha.blocking.Cluster, threads: Crew) -> None:
        for _ in range(2):
            threads.start(call, cluster)
        soon(lambda: cluster.statistics().in_flight == 2)
        cluster._host.post(Job(lambda: cluster._host._tasks.start_soon(exits), lambda: None))
        soon(lambda: len(ended) == 2)
        try:
            cluster.fetch("SELECT 1")
        except pgha.ClusterClosed as error:
            assert "failed" in str(error)
            if propagates:
                raise

    with nothing_left(server) as application, crew() as threads, pytest.raises(BaseException) as caught:
        options: Any = {"application_name": application, "backend": backend}
        with pgha.blocking.open_cluster(server.dsn, **options) as cluster:
            body(cluster, threads)
    if propagates:
        assert isinstance(caught.value, pgha.ClusterClosed)
        assert "in the cluster's thread" in caught.value.__notes__[0]
    else:
        assert isinstance(caught.value, (SystemExit, BaseExceptionGroup))
        assert "in the cluster's thread" in repr(caught.value)


# State that interrupts leave behind


def test_a_lock_of_concurrent_futures_is_held(server: LocalNode, backend: Backend) -> None:
    """The cluster's thread does not wait for a future's lock that an interrupt left held.

    An interrupt in `concurrent.futures.wait` can leave the lock in this state.
    """
    with cluster_of(server, backend=backend) as cluster:
        operation = cluster.submit("SELECT pg_sleep(0.2)", read=True)
        called = Gate()
        operation.add_done_callback(lambda one: called.open())
        with operation._condition:
            assert called.wait(PATIENCE)
            assert operation.result(PATIENCE).rowcount == 1
            assert cluster.fetch_value("SELECT 2") == 2
        assert concurrent.futures.wait([operation], PATIENCE).done == {operation}


def test_a_group_that_was_not_told(server: LocalNode, backend: Backend) -> None:
    """A group notices failures of operations that it was not told about.

    An interrupt in the middle of `Group.submit` leaves a group in this state.
    """
    with (
        cluster_of(server, backend=backend) as cluster,
        pytest.raises(ExceptionGroup) as caught,
        cluster.group() as group,
    ):
        for query in ("SELECT 1", "SELECT 1/0"):
            group._running[cluster.submit(query)] = None
    (error,) = caught.value.exceptions
    assert isinstance(error, psycopg.errors.DivisionByZero)


def test_a_subscription_that_nobody_got(
    server: LocalNode, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subscription ends when an interrupt in `Cluster.events` keeps it from its caller.

    The subscription had already been requested when the interrupt came.
    """

    def interrupted(gate: Gate, timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    with cluster_of(server, backend=backend) as cluster:
        with monkeypatch.context() as patched:
            patched.setattr(Gate, "wait", interrupted)
            with pytest.raises(KeyboardInterrupt), cluster.events():
                pass
        cluster.fetch_value("SELECT 1")
        soon(lambda: not cluster._cluster._dispatcher.tracker.events.has_subscribers)


def test_a_subscription_that_was_not_ended(
    server: LocalNode, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subscription ends even when an interrupt comes just before the call that ends it."""
    with cluster_of(server, backend=backend) as cluster:
        cancel, calls = cluster._host.cancel, itertools.count()

        def interrupted(task: Any) -> None:
            if next(calls) == 0:
                raise KeyboardInterrupt
            cancel(task)

        monkeypatch.setattr(cluster._host, "cancel", interrupted)
        with pytest.raises(KeyboardInterrupt), cluster.events():
            pass
        soon(lambda: not cluster._cluster._dispatcher.tracker.events.has_subscribers)


# Interrupts


@pytest.mark.parametrize("name", ["fetch", "execute", "execute_batch"])
def test_an_interrupted_call_is_cancelled(server: LocalNode, backend: Backend, name: str) -> None:
    """An interrupted call is cancelled, and the cluster stays usable."""
    text = unique("sleep")
    statement: Any = f"SELECT pg_sleep(60) /* {text} */"
    with cluster_of(server, backend=backend) as cluster:
        began = time.monotonic()
        with interrupted_when(lambda: wait_started(server, text)):
            getattr(cluster, name)([statement] if name == "execute_batch" else statement)
        assert time.monotonic() - began < PATIENCE
        wait_stopped(server, text)
        assert cluster.fetch_value("SELECT 1") == 1
        soon(lambda: cluster.statistics().in_flight == 0)
        assert cluster.statistics().cancelled == 1
        assert cluster.statistics().unretrieved == 0


def test_other_waits_are_interrupted(server: LocalNode, backend: Backend) -> None:
    text = unique("sleep")
    with cluster_of(server, backend=backend, _tuning=PROVEN) as cluster:
        operation = cluster.submit(f"SELECT pg_sleep(60) /* {text} */")
        with interrupted_when(lambda: wait_started(server, text)):
            operation.result()
        # An interrupted `result()` does not cancel the operation: the caller may still want the operation.
        assert not operation.done()
        with interrupted_when(lambda: time.sleep(0.05)), cluster.group() as group:
            sleeping = group.submit("SELECT pg_sleep(60)")
        with pytest.raises(pgha.OperationCancelled):
            sleeping.result(timeout=PATIENCE)
        with interrupted_when(lambda: time.sleep(0.05)), cluster.events() as events:
            for _ in events:
                pass
        cluster.add_node(ABSENT)
        with interrupted_when(lambda: time.sleep(0.05)):
            cluster.wait_ready()
        assert cluster.fetch_value("SELECT 1") == 1
        operation.cancel()


def test_a_signal_that_wakes_no_wait(
    server: LocalNode, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal that another thread receives interrupts a wait too.

    It does not wake the waiting thread. Nor does a signal that arrives right before the wait.
    """
    monkeypatch.setattr(_gate, "_LONGEST_WAIT", 0.05)
    text = unique("sleep")
    statement = f"SELECT pg_sleep(60) /* {text} */"
    with cluster_of(server, backend=backend, _tuning=PROVEN) as cluster:
        with interrupted_when(lambda: wait_started(server, text), unseen=True):
            cluster.fetch(statement)
        wait_stopped(server, text)
        operation = cluster.submit(statement)
        for timeout in (None, PATIENCE):
            with interrupted_when(lambda: wait_started(server, text), unseen=True):
                operation.result(timeout)
        operation.cancel()
        with interrupted_when(lambda: time.sleep(0.05), unseen=True), cluster.events() as events:
            for _ in events:
                pass
        cluster.add_node(ABSENT)
        with interrupted_when(lambda: time.sleep(0.05), unseen=True):
            cluster.wait_ready()
        assert cluster.fetch_value("SELECT 1") == 1
    with (
        interrupted_when(lambda: time.sleep(0.5), unseen=True),
        pgha.blocking.open_cluster(ABSENT, backend=backend),
    ):
        pass


PROGRAM = """
import gc, signal, sys, threading, time
import pgha.blocking

def say(word):
    print(word, flush=True)

def main():
    backend, dsn, application = sys.argv[1:]
    BEFORE
    with pgha.blocking.open_cluster(dsn, application_name=application, backend=backend, close_timeout=60,
                                    failover_timeout=60) as cluster:
        BODY

others = []
try:
    main()
except BaseException as error:
    if not isinstance(error, KeyboardInterrupt):
        import traceback
        traceback.print_exc()
    print(type(error).__name__, flush=True)
    for one in others:
        one.join(5)
    assert [one.name for one in threading.enumerate()] == ["MainThread"], threading.enumerate()
gc.collect()
"""

BODIES = {
    "waiting": """
        threading.Timer(0.1, say, ["ready"]).start()
        cluster.fetch("SELECT pg_sleep(60)")
    """,
    "idle": """
        cluster.execute("SELECT 1")
        say("ready")
        time.sleep(60)
    """,
    "draining": """
        cluster.submit("SELECT pg_sleep(60)")
        say("ready")
    """,
    "under load": """
        def load():
            try:
                while True:
                    cluster.fetch("SELECT 1")
            except pgha.Error:
                pass
        others.extend(threading.Thread(target=load, daemon=True) for _ in range(10))
        for one in others:
            one.start()
        threading.Timer(0.2, say, ["ready"]).start()
        while True:
            cluster.execute("SELECT 1")
    """,
}


@contextmanager
def program(
    backend: str, dsn: str, application: str, body: str, before: str = ""
) -> Iterator[subprocess.Popen[str]]:
    indented = textwrap.indent(textwrap.dedent(body), " " * 8).strip()
    text = PROGRAM.replace("BODY", indented).replace("BEFORE", before)
    command = [sys.executable, "-W", "error", "-c", text]
    with subprocess.Popen(
        [*command, backend, dsn, application], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def interrupt(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    said, complaints = process.communicate(timeout=2 * PATIENCE)
    assert complaints == ""
    assert said.split()[-1:] == ["KeyboardInterrupt"]
    assert process.returncode == 0


@pytest.mark.parametrize("body", BODIES)
def test_a_program_that_is_interrupted(server: LocalNode, backend: Backend, body: str) -> None:
    application = unique("app")
    with program(backend, server.dsn, application, BODIES[body]) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        interrupt(process)
    ask(no_backends, server, application)


def test_a_program_that_is_interrupted_while_it_waits_for_nodes(backend: Backend) -> None:
    before = 'threading.Timer(0.3, say, ["ready"]).start()'
    with program(backend, ABSENT, unique("app"), "pass", before) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        interrupt(process)


STORM = """
        counted = {"done": 0, "interrupted": 0}
        def load():
            while counted["done"] < 2000:
                assert cluster.fetch_value("SELECT 7") == 7
                other[0] += 1
        other, armed = [0], [False]
        thread = threading.Thread(target=load)
        thread.start()
        def interrupt(*_):
            if armed[0]:
                armed[0] = False
                raise KeyboardInterrupt
        signal.signal(signal.SIGINT, interrupt)
        # An interrupt in a __del__ is lost, as Python has it.
        def unraisable(what):
            if not isinstance(what.exc_value, KeyboardInterrupt):
                sys.__unraisablehook__(what)
        sys.unraisablehook = unraisable
        say("ready")
        while counted["done"] < 2000:
            try:
                armed[0] = True
                assert cluster.fetch_value("SELECT %s::int", [counted["done"]]) == counted["done"]
                assert cluster.submit("SELECT 5").result().value() == 5
                armed[0] = False
                counted["done"] += 1
            except KeyboardInterrupt:
                counted["interrupted"] += 1
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        thread.join()
        assert other[0] > 0
        say(counted["interrupted"])
"""


def test_interrupts_at_any_moment_lose_no_wake_up(server: LocalNode, backend: Backend) -> None:
    """Interrupts at any moment lose no wake-up.

    An interrupt in the middle of posting is included: the loop must be woken for calls posted by other
    threads as well.
    """
    application = unique("app")
    with program(backend, server.dsn, application, STORM) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        end = time.monotonic() + 60
        for number in itertools.count():
            if process.poll() is not None or time.monotonic() > end:
                break
            process.send_signal(signal.SIGINT)
            time.sleep(0.001 + number % 7 * 0.0003)
        said, complaints = process.communicate(timeout=2 * PATIENCE)
        assert complaints == ""
        assert int(said.split()[-1]) > 50
        assert process.returncode == 0
    ask(no_backends, server, application)


# Forks


def forked(child: Callable[[], object]) -> None:
    """Run ``child`` in a forked process, which must end in time and without an error."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child()
            code = 0
        except BaseException as error:  # noqa: BLE001 - reported by the exit code
            sys.stderr.write(f"{error!r}\n")
        finally:
            os._exit(code)
    end = time.monotonic() + PATIENCE
    while (found := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            pytest.fail("the child hangs")
        time.sleep(0.005)
    assert os.waitstatus_to_exitcode(found[1]) == 0


def test_a_child_of_a_fork(server: LocalNode, backend: Backend) -> None:
    with cluster_of(server, backend=backend) as cluster:
        assert cluster.fetch_value("SELECT 1") == 1
        pids = {cluster.fetch_value("SELECT pg_backend_pid()") for _ in range(10)}
        pending = cluster.submit("SELECT pg_sleep(60)")
        done = cluster.submit("SELECT 1")
        done.result()
        context, group = cluster.events(), cluster.group()
        events, grouped = context.__enter__(), group.__enter__()
        grouped.submit("SELECT pg_sleep(60)")

        def child() -> None:
            calls: list[Callable[[], object]] = [
                lambda: cluster.fetch("SELECT 1"),
                lambda: cluster.execute("SELECT 1"),
                lambda: cluster.submit("SELECT 1").result(),
                lambda: pending.result(),
                lambda: cluster.statistics(),
                lambda: cluster.nodes,
                lambda: cluster.add_node(ABSENT),
                lambda: cluster.wait_ready(),
                lambda: next(events),
                lambda: group.__exit__(None, None, None),
            ]
            for call in calls:
                with pytest.raises(pgha.ClusterClosed, match="another process"):
                    call()
            assert done.result().value() == 1
            pending.cancel()
            context.__exit__(None, None, None)
            with pgha.blocking.open_cluster(server.dsn, backend=backend) as own:
                assert own.fetch_value("SELECT 2") == 2

        forked(child)
        assert pids & {cluster.fetch_value("SELECT pg_backend_pid()") for _ in range(10)}
        assert cluster.statistics().connections_lost == 0
        for operation in (pending, *grouped._running):
            assert not operation.done()
            operation.cancel()
        with pytest.raises(ExceptionGroup):
            group.__exit__(None, None, None)
        context.__exit__(None, None, None)


def test_a_fork_under_load(server: LocalNode, backend: Backend) -> None:
    with cluster_of(server, backend=backend) as cluster:
        over = threading.Event()

        def work() -> None:
            while not over.is_set():
                assert cluster.fetch_value("SELECT 3") == 3

        def child() -> None:
            with pytest.raises(pgha.ClusterClosed):
                cluster.fetch("SELECT 1")

        with crew() as threads:
            for _ in range(10):
                threads.start(work)
            try:
                for _ in range(20):
                    forked(child)
            finally:
                over.set()
        assert cluster.statistics().failed == 0
        assert cluster.statistics().connections_lost == 0


LEAVES = """
        cluster.fetch("SELECT 1")
        import os
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            HOW
        else:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            cluster.fetch("SELECT 1")
            assert cluster.statistics().connections_lost == 0
            say("parent")
"""


@pytest.mark.parametrize("how", ["pass", "raise KeyboardInterrupt"])
def test_a_child_that_leaves_the_block(server: LocalNode, backend: Backend, how: str) -> None:
    """A child that leaves the block, by its end or by an exception, and exits does not affect the parent."""
    application = unique("app")
    with program(backend, server.dsn, application, LEAVES.replace("HOW", how)) as process:
        said, complaints = process.communicate(timeout=2 * PATIENCE)
    assert complaints == ""
    assert said.split() == [*how.split()[1:], "parent"]
    assert process.returncode == 0
    ask(no_backends, server, application)


def _in_child(dsn: str, backend: Backend, cluster: pgha.blocking.Cluster, told: Any) -> None:
    try:
        cluster.fetch("SELECT 1")
    except pgha.ClusterClosed as error:
        told.put(str(error))
    with pgha.blocking.open_cluster(dsn, backend=backend) as own:
        told.put(own.fetch_value("SELECT 4"))


def test_multiprocessing(server: LocalNode, backend: Backend) -> None:
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()
    with cluster_of(server, backend=backend) as cluster:
        cluster.fetch("SELECT 1")
        process = context.Process(target=_in_child, args=(server.dsn, backend, cluster, told))
        process.start()
        process.join(PATIENCE)
        assert process.exitcode == 0
        assert "another process" in told.get()
        assert told.get() == 4
        assert cluster.fetch_value("SELECT 1") == 1
    told.close()


# Nodes that fail


@contextmanager
def running_masters(count: int) -> Iterator[tuple[BlockingPortal, Masters]]:
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(masters(count)) as nodes:
        yield portal, nodes


def test_twenty_threads_do_not_notice_that_a_node_is_killed(backend: Backend) -> None:
    with running_masters(2) as (portal, nodes):
        portal.call(nodes.create, "CREATE TABLE t (id text PRIMARY KEY, node text)")
        with cluster_of(*nodes, backend=backend, min_ready=2) as cluster:
            over = threading.Event()
            acknowledged: list[tuple[str, str]] = []
            answered: list[str] = []

            def write(number: int) -> None:
                for turn in itertools.count():
                    if over.is_set():
                        return
                    key = f"{number}-{turn}"
                    insert = "INSERT INTO t VALUES (%s) ON CONFLICT DO NOTHING"
                    acknowledged.append((cluster.execute(insert, [key], idempotent=True).node, key))

            def read(number: int) -> None:
                for turn in itertools.count():
                    if over.is_set():
                        return
                    result = cluster.fetch("SELECT %s::text", [f"{number}-{turn}"])
                    assert result.value() == f"{number}-{turn}"
                    answered.append(result.node)

            def more() -> None:
                written, read = len(acknowledged) + 200, len(answered) + 200

                def enough() -> bool:
                    return len(acknowledged) > written and len(answered) > read

                soon(lambda: enough() or bool(threads.errors), timeout=30)

            with crew() as threads:
                try:
                    for number in range(10):
                        threads.start(write, number)
                        threads.start(read, number)
                    more()
                    for _ in range(2):
                        victim = nodes[acknowledged[-1][0]]
                        portal.call(victim.kill)
                        more()
                        # Each thread may have had one answer in hand at the kill, and record that answer only
                        # now.
                        newest = [name for name, _ in acknowledged[-100:]] + answered[-100:]
                        assert newest.count(victim.name) <= 20
                        portal.call(victim.start)
                        soon(lambda name=victim.name: cluster.nodes[name].state == "up")  # type: ignore[misc]
                        more()
                finally:
                    over.set()
            assert cluster.statistics().failed == 0
            assert cluster.statistics().connections_lost > 0
        portal.call(nodes.wait_replicated)
        there = {row[0] for row in portal.call(nodes[0].execute, "SELECT id FROM t")}
        assert there >= {key for _, key in acknowledged}


def test_interrupted_while_every_node_is_frozen(backend: Backend) -> None:
    """Leaving the cluster takes a bounded time, too."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(standalone(2)) as nodes:
        with pytest.raises(KeyboardInterrupt), nothing_left(*nodes) as application:
            dsns = [node.dsn for node in nodes]
            with pgha.blocking.open_cluster(*dsns, application_name=application, backend=backend) as cluster:
                cluster.execute("SELECT 1")
                for node in nodes:
                    portal.call(node.freeze)
                began = time.monotonic()
                with interrupted_when(lambda: time.sleep(0.2)):
                    cluster.execute("SELECT 1")
                assert time.monotonic() - began < PATIENCE / 2
                raise KeyboardInterrupt
        assert time.monotonic() - began < PATIENCE / 2
