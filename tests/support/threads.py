"""Helpers of the tests of `pgha.blocking`, which run in threads and query servers in short event loops."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import anyio
import pytest

import pgha.blocking
from pgha.chaos import Node
from support.common import PATIENCE, no_backends, sockets, started, stopped, unique

T = TypeVar("T")
Backend = Literal["asyncio", "trio"]


def ask(function: Callable[..., Awaitable[T]], *arguments: object) -> T:
    """Run the coroutine function in a new event loop, and return its result."""

    async def call() -> T:
        return await function(*arguments)

    return anyio.run(call)


def wait_started(node: Node, text: str) -> int:
    """Wait until a backend runs a statement that contains `text`; return its process id."""
    return ask(started, node, text)


def wait_stopped(node: Node, text: str) -> None:
    """Wait until no backend runs a statement that contains `text`."""
    ask(stopped, node, text)


def soon(condition: Callable[[], bool], what: str = "", timeout: float = PATIENCE) -> None:
    """Poll `condition` until it is true; fail the test after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"not true within {timeout} s: {what or condition}")
        time.sleep(0.002)


CREW = "crew"


class Crew:
    """A group of threads. `join` raises the first error of a thread."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    def start(self, function: Callable[..., object], *arguments: object) -> threading.Thread:
        def run() -> None:
            try:
                function(*arguments)
            except BaseException as error:  # noqa: BLE001 - raised by `join`
                self.errors.append(error)

        thread = threading.Thread(target=run, name=CREW, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def join(self, timeout: float = 60.0) -> None:
        end = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        assert not [thread for thread in self._threads if thread.is_alive()], "a thread hangs"
        if self.errors:
            raise self.errors[0]


@contextmanager
def crew() -> Iterator[Crew]:
    """Yield a crew, and join its threads at the end. An error of the body takes precedence."""
    made = Crew()
    yield made
    made.join()


@contextmanager
def nothing_left(*nodes: Node) -> Iterator[str]:
    """Yield an application name; afterwards, fail if a thread, socket or backend is left.

    The cluster's thread and sockets must be gone at once. Backends have a deadline, since they end when they
    notice the loss. So have other threads except a crew's, since the event loop of `ask` does not wait for
    its worker threads.
    """
    before, linked, application = set(threading.enumerate()), sockets(*nodes), unique("app")
    yield application
    assert [one for one in threading.enumerate() if one.name.startswith("pgha") and one not in before] == []
    assert sockets(*nodes) <= linked
    for node in nodes:
        if node.running and not node.frozen:
            ask(no_backends, node, application)
    soon(lambda: {one for one in threading.enumerate() if one.name != CREW} <= before, "threads end")


@contextmanager
def cluster_of(*nodes: Node, **options: Any) -> Iterator[pgha.blocking.Cluster]:
    """Open a cluster of running servers, under their names, that must leave nothing behind."""
    with nothing_left(*nodes) as application:
        options.setdefault("application_name", application)
        named = [pgha.Node(node.dsn, node.name) for node in nodes]
        with pgha.blocking.open_cluster(*named, **options) as cluster:
            yield cluster


@contextmanager
def interrupted_when(condition: Callable[[], object], *, unseen: bool = False) -> Iterator[None]:
    """Send SIGINT to this program once ``condition`` has returned; the body must end by KeyboardInterrupt.

    With ``unseen``, another thread receives the signal, so that it interrupts no system call of this one.
    """

    def interrupt() -> None:
        try:
            condition()
        finally:
            if unseen:
                signal.raise_signal(signal.SIGINT)
            else:
                os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        thread.join()
