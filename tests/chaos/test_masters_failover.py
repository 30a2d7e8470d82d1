"""Three masters that replicate to each other, killed and frozen under readers and writers."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from typing import Any

import anyio
import pytest
from support.common import cluster_of, eventually

import pgha
from pgha.chaos import Node, masters

pytestmark = pytest.mark.anyio

READERS = 20
GAP = 2.0
"""The longest pause of all reads together, in seconds; generous, because the machine is shared."""


class Answers:
    """The times of the answers, and the nodes that gave them."""

    def __init__(self) -> None:
        self.turns: Counter[int] = Counter()
        self.node = ""
        self.gap = 0.0
        self._last = time.monotonic()

    def came(self, reader: int, node: str) -> None:
        now = time.monotonic()
        self.gap, self._last = max(self.gap, now - self._last), now
        self.turns[reader] += 1
        self.node = node

    async def all_went_on(self) -> None:
        before = self.turns.copy()
        await eventually(
            lambda: all(self.turns[i] >= before[i] + 3 for i in range(READERS)), 30, "every reader goes on"
        )


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_readers(fault: str) -> None:
    """Readers get no error; after a freeze they go on with the other nodes."""
    async with masters(3) as nodes:
        await nodes.create("CREATE TABLE item (id int PRIMARY KEY, name text)")
        await nodes[0].execute("INSERT INTO item SELECT i, 'item ' || i FROM generate_series(0, 99) AS i")
        await nodes.wait_replicated()
        async with cluster_of(*nodes, min_ready=3) as cluster:
            answers, done = Answers(), anyio.Event()

            async def read(number: int) -> None:
                for turn in itertools.count(number):
                    if done.is_set():
                        return
                    key = turn % 100
                    result = await cluster.fetch("SELECT id, name FROM item WHERE id = %s", [key])
                    assert list(result) == [(key, f"item {key}")]
                    answers.came(number, result.node)

            with anyio.fail_after(90):
                async with anyio.create_task_group() as group:
                    for number in range(READERS):
                        group.start_soon(read, number)
                    for _ in range(3):
                        await answers.all_went_on()
                        victim = nodes[answers.node]
                        answers.gap = 0.0
                        await (victim.kill() if fault == "kill" else victim.freeze())
                        await answers.all_went_on()
                        assert answers.gap < GAP
                        await eventually(lambda: cluster.nodes[victim.name].state == "down")  # noqa: B023
                        assert answers.node != victim.name
                        await (victim.start() if fault == "kill" else victim.thaw())
                        await eventually(lambda: cluster.nodes[victim.name].state == "up")  # noqa: B023
                    done.set()
            assert cluster.statistics().failed == 0


TABLE = """
CREATE TABLE written (
    key text, port int DEFAULT inet_server_port(), times int NOT NULL DEFAULT 1, PRIMARY KEY (key, port)
)
"""
WRITE = (
    "INSERT INTO written (key) VALUES (%s) ON CONFLICT (key, port) DO UPDATE SET times = written.times + 1"
)


async def test_idempotent_writers() -> None:
    """Kills and freezes of the writers' node lose no write; none is applied more often than attempted."""
    async with masters(3) as nodes:
        await nodes.create(TABLE)
        attempts: dict[str, int] = {}
        acknowledged: dict[str, str] = {}
        last = ""
        async with cluster_of(*nodes, min_ready=3) as cluster:
            done = anyio.Event()

            async def write(number: int) -> None:
                nonlocal last
                for turn in itertools.count():
                    if done.is_set():
                        return
                    key = f"{number}-{turn}"

                    def sent(what: pgha.SendInfo, key: str = key) -> None:
                        attempts[key] = what.attempt

                    result: pgha.Result[Any] = await cluster.execute(
                        WRITE, [key], idempotent=True, on_send=sent
                    )
                    assert result.attempts == attempts[key]
                    acknowledged[key] = last = result.node

            async def more() -> None:
                before = len(acknowledged)
                await eventually(lambda: len(acknowledged) >= before + 100, 30, "writes go on")

            async def hurt(victim: Node, fault: str) -> None:
                await (victim.kill() if fault == "kill" else victim.freeze())
                await more()
                assert last != victim.name
                await (victim.start() if fault == "kill" else victim.thaw())
                await eventually(lambda: cluster.nodes[victim.name].state == "up")
                await more()

            with anyio.fail_after(120):
                async with anyio.create_task_group() as group:
                    for number in range(10):
                        group.start_soon(write, number)
                    await more()
                    for fault in ("kill", "freeze", "kill", "freeze"):
                        await hurt(nodes[last], fault)
                    done.set()
            assert cluster.statistics().failed == 0
        await nodes.wait_replicated(60)
        held = await nodes.execute("SELECT key, port, times FROM written")
        for name, rows in held.items():
            assert set(acknowledged) <= {row[0] for row in rows}, f"writes are lost on {name}"
        times: Counter[str] = Counter()
        seen = {(key, port): count for rows in held.values() for key, port, count in rows}
        for (key, _), count in seen.items():
            times[key] += count
        assert all(count <= attempts[key] for key, count in times.items())
