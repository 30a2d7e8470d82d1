"""Errors and gaps that 20 reading tasks see when a node is killed, and when a node is frozen."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import anyio

from bench.loads import keys
from bench.measure import Measurement, Sampler, Setting
from bench.peers.multihost import MULTIHOSTS, PATIENCE, Multihost, Reader
from bench.report import Metric
from pgha.chaos import Node, Nodes

Fault = Literal["kill", "freeze"]

_TASKS = 20
_PAUSE = 0.01
"""Seconds between two operations of a task, so that no client is kept busy by the load alone."""
_BEFORE, _AFTER = 0.7, 1.0
"""Seconds of load before and after the fault."""
_HOLD: dict[Fault, float] = {"kill": 2.0, "freeze": 3.0}
"""Seconds until the node is started or thawed again."""


@dataclass(slots=True)
class Seen:
    """The results that the tasks saw; times are in seconds."""

    clock: Callable[[], float] = time.perf_counter
    errors: int = 0
    gap: float = 0.0
    """The longest time without a success of any task."""
    longest: float = 0.0
    """The longest time that a call took, successful or not."""
    _last: float = field(init=False)

    def __post_init__(self) -> None:
        self._last = self.clock()

    def succeeded(self) -> None:
        self.over()
        self._last = self.clock()

    def over(self) -> None:
        """Note the end of a gap: a success, or the end of the load."""
        self.gap = max(self.gap, self.clock() - self._last)


def failover_rows() -> list[Measurement]:
    """Return a row per fault."""
    return [_row("kill", "killed, started again after 2 s"), _row("freeze", "frozen for 3 s")]


def _row(fault: Fault, words: str) -> Measurement:
    title = f"a node {words}, under {_TASKS} tasks: "
    metrics = [
        Metric(f"{title}errors shown", "errors", better="less", at_most=0),
        Metric(f"{title}longest time without any success", "milliseconds", better="less"),
        Metric(f"{title}longest call", "milliseconds", better="less"),
    ]

    def sampler(contestant: Multihost) -> Sampler:
        def sample(setting: Setting) -> Sequence[float]:
            call = functools.partial(_struck, contestant, setting.nodes, fault)
            return anyio.run(call, backend=contestant.backend)

        return sample

    contestants = {one.name: sampler(one) for one in MULTIHOSTS}
    return Measurement(f"failover-{fault}", metrics, contestants, servers=3)


async def _struck(contestant: Multihost, nodes: Nodes, fault: Fault) -> Sequence[float]:
    """Do one run, and return the errors, the longest gap and the longest call (in milliseconds).

    The nodes are healthy again afterwards.
    """
    async with contestant.open(nodes.dsns) as reader:
        seen = Seen()
        stop = anyio.Event()
        async with anyio.create_task_group() as tasks:
            for number in range(_TASKS):
                tasks.start_soon(_read, reader, number, seen, stop)
            await anyio.sleep(_BEFORE)
            victim = await _used(reader, nodes)
            await _strike(victim, fault)
            await anyio.sleep(_AFTER)
            seen.over()
            stop.set()
    return [seen.errors, 1000 * seen.gap, 1000 * seen.longest]


async def _strike(victim: Node, fault: Fault) -> None:
    if fault == "kill":
        await victim.kill()
        try:
            await anyio.sleep(_HOLD[fault])
        finally:
            with anyio.CancelScope(shield=True):
                await victim.start()
    else:
        await victim.freeze()
        try:
            await anyio.sleep(_HOLD[fault])
        finally:
            with anyio.CancelScope(shield=True):
                await victim.thaw()


async def _used(reader: Reader, nodes: Nodes) -> Node:
    port = await reader.port()
    return next(node for node in nodes if node.port == port)


async def _read(reader: Reader, seed: int, seen: Seen, stop: anyio.Event) -> None:
    """Read until `stop` is set. An error ends a call, not the task."""
    for key in keys(seed):
        if stop.is_set():
            return
        began = time.perf_counter()
        try:
            with anyio.fail_after(PATIENCE):
                await reader.select(key)
        except Exception:  # noqa: BLE001 - every error that reaches a caller is counted
            seen.errors += 1
        else:
            seen.succeeded()
        seen.longest = max(seen.longest, time.perf_counter() - began)
        await anyio.sleep(_PAUSE)
