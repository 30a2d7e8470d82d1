"""Tests of the monitor on a connection in memory: what it asks for, and how long it waits for an answer."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from psycopg import pq

from pgha._node.monitor import Monitor, PingFailed
from pgha._options import NodeConfig, Options
from pgha._wire import PGconn

pytestmark = pytest.mark.anyio

PING_TIMEOUT = 0.25


class Silent:
    """A connection whose server was frozen in the middle of an answer: the rest never comes."""

    status = pq.ConnStatus.OK

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        self._far.send(b"D")  # never taken, so that no test really waits for more
        self.socket = self._near.fileno()
        self.queries: list[bytes] = []

    def send_query(self, query: bytes) -> None:
        self.queries.append(query)

    def is_busy(self) -> bool:
        return True

    def consume_input(self) -> None:
        pass

    def close(self) -> None:
        self._near.close()
        self._far.close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    connection = Silent()
    yield connection
    connection.close()


class Steps:
    """A clock that goes on by 10 ms whenever it is read."""

    def __init__(self) -> None:
        self._steps = itertools.count()
        self.now = 0.0

    def __call__(self) -> float:
        self.now = next(self._steps) * 0.01
        return self.now


def monitor(clock: Callable[[], float]) -> Monitor:
    options = Options(ping_timeout=PING_TIMEOUT, ledger="auto")
    return Monitor(NodeConfig("n1", {}), options, cast(Any, None), clock)


@pytest.mark.parametrize("busy_with", ["ping", "ledger", "inspection", "termination"])
async def test_a_freeze_is_noticed_after_the_ping_timeout_whatever_was_asked(
    silent: Silent, busy_with: str
) -> None:
    clock = Steps()
    one = monitor(clock)
    one.inspect(4711, lambda doing: pytest.fail(f"{doing} of a frozen server"))
    one.terminate(4712)
    ask = {
        "ping": one._ping,
        "ledger": one._check_ledger,
        "inspection": one._inspect_backends,
        "termination": one._end_backends,
    }[busy_with]
    with pytest.raises(PingFailed):
        await ask(cast(PGconn, silent))
    assert len(silent.queries) == 1
    assert PING_TIMEOUT <= clock.now < 2 * PING_TIMEOUT
