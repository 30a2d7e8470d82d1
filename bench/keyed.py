"""The cost of an idempotency key: processor time of the server, rate, and round trips (none)."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

import anyio

import pgha
from bench.loads import Load
from bench.measure import Measurement, Sampler, Setting
from bench.peers import INSERT
from bench.report import Metric
from pgha.chaos import Wire, proxied

_APPLICATION = "bench-keyed"
_QUERY = f"{INSERT}(%s)"
_PLAIN = "plain insert"
_TASKS = 100
_LINE = 0.005
"""Seconds one way."""
_TICK = 1 / os.sysconf("SC_CLK_TCK")
_Insert = Callable[[int], Awaitable[object]]


def keyed_rows() -> list[Measurement]:
    """Return a row per event loop."""
    return [_row(backend) for backend in ("asyncio", "trio")]


def _row(backend: str) -> Measurement:
    titles = [
        (
            f"insert with a key ({backend}), {_TASKS} tasks: processor time of the server",
            "microseconds per insert",
        ),
        (f"insert with a key ({backend}), {_TASKS} tasks", "operations per second"),
        (
            f"insert with a key ({backend}), 1 task, round trip of {2000 * _LINE:g} ms",
            "milliseconds per insert",
        ),
    ]
    metrics = [
        Metric(*titles[0], better="less", targets={_PLAIN: 1 / 1.5}),
        Metric(*titles[1]),
        Metric(*titles[2], better="less", targets={_PLAIN: 0.9}),
    ]
    contestants = {"pgha keyed insert": _sampler(backend, True), _PLAIN: _sampler(backend, False)}
    return Measurement(f"keyed-{backend}", metrics, contestants)


def _sampler(backend: str, keyed: bool) -> Sampler:
    async def measure(setting: Setting) -> Sequence[float]:
        async with _opened(setting.dsn, keyed) as (cluster, insert):
            await Load(_TASKS, min(0.3, setting.seconds)).run(insert)
            pids = await _writers(cluster)
            before, count = _spent(pids), 0

            async def counted(key: int) -> None:
                nonlocal count
                await insert(key)
                count += 1

            rate = await Load(_TASKS, setting.seconds).run(counted)
            spent = (_spent(pids) - before) / count
        return [spent * 1e6, rate, await _on_a_line(setting, keyed) * 1e3]

    return lambda setting: anyio.run(functools.partial(measure, setting), backend=backend)


@asynccontextmanager
async def _opened(dsn: str, keyed: bool) -> AsyncGenerator[tuple[pgha.Cluster, _Insert]]:
    async with pgha.open_cluster(dsn, application_name=_APPLICATION) as cluster:
        await cluster.ledger.install()

        async def with_key(key: int) -> None:
            await cluster.execute(_QUERY, [key], idempotency_key=pgha.new_idempotency_key())

        async def plain(key: int) -> None:
            await cluster.execute(_QUERY, [key])

        yield cluster, with_key if keyed else plain


async def _writers(cluster: pgha.Cluster) -> list[int]:
    """Return the process ids of the cluster's connections for writes; its other connections are idle."""
    rows = await cluster.fetch(
        "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND query LIKE 'INSERT%%'",
        [_APPLICATION],
    )
    return [row[0] for row in rows]


def _spent(pids: Iterable[int]) -> float:
    """Return the seconds of processor time of the processes, including the kernel's time for them."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:  # noqa: PTH123 - not a regular file
            fields = stat.read().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total * _TICK


async def _on_a_line(setting: Setting, keyed: bool) -> float:
    """Return the seconds per insert with a long round trip, so that an additional round trip would show."""
    async with proxied([setting.nodes[0]]) as proxies, _opened(proxies[0].dsn, keyed) as (_, insert):
        await Load(1, 0.1).run(insert)
        proxies[0].set(up=Wire(latency=_LINE), down=Wire(latency=_LINE))
        began, count = time.perf_counter(), 0
        while time.perf_counter() < began + setting.seconds / 2:
            await insert(count)
            count += 1
        return (time.perf_counter() - began) / count
