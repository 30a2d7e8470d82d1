"""What the tests of `pgha.blocking` share: they run in plain threads, and ask the servers by short loops."""

from __future__ import annotations

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
    """What the coroutine function gives."""

    async def call() -> T:
        return await function(*arguments)

    return anyio.run(call)


def wait_started(node: Node, text: str) -> int:
    """Until a backend runs ``text``; its process id."""
    return ask(started, node, text)


def wait_stopped(node: Node, text: str) -> None:
    """Until no backend runs ``text``."""
    ask(stopped, node, text)


def soon(condition: Callable[[], bool], what: str = "", timeout: float = PATIENCE) -> None:
    """Ask until it is so; fails after ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"did not come about in {timeout} s: {what or condition}")
        time.sleep(0.002)


CREW = "crew"


class Crew:
    """Threads; what one of them raises is raised by `join`."""

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
    """Joins them at the end; the error of the body comes first."""
    made = Crew()
    yield made
    made.join()


@contextmanager
def nothing_left(*nodes: Node) -> Iterator[str]:
    """Gives an application name; afterwards no thread, socket or backend may be left.

    The cluster's thread and sockets must be gone at once, backends within a deadline (they end when they
    notice), and so any other thread but a crew's: the workers of `ask` are not waited for by its loop.
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
    """A cluster of running servers, called as they are, that must leave nothing behind."""
    with nothing_left(*nodes) as application:
        options.setdefault("application_name", application)
        named = [pgha.Node(node.dsn, node.name) for node in nodes]
        with pgha.blocking.open_cluster(*named, **options) as cluster:
            yield cluster
