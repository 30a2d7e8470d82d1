"""The measurements on one server, and their targets."""

from __future__ import annotations

import functools
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TypeAlias

import anyio

from bench import memory
from bench.loads import Load
from bench.measure import Measurement, Sampler, Setting
from bench.peers import MANY, AsyncContestant, Client, with_pgbench, with_pgha, with_psycopg
from bench.peers.with_asyncpg import ASYNCPG_BARE, ASYNCPG_POOL
from bench.peers.with_pgha import OURS
from bench.peers.with_psqlpy import PSQLPY_POOL
from bench.peers.with_psycopg import PSYCOPG_BARE, PSYCOPG_POOL
from bench.report import Metric

Pick: TypeAlias = Callable[[Client], Callable[[int], Awaitable[object]]]
_Dumper: TypeAlias = Callable[[str], AbstractAsyncContextManager[Callable[[], Awaitable[str]]]]
_Threads: TypeAlias = Callable[[str], AbstractContextManager[Callable[[int], object]]]

_OPS = "operations per second"
_POOLS = [ASYNCPG_POOL, PSYCOPG_POOL, PSQLPY_POOL]
_THREADS = 20
_REOPENED = 4
"""The number of times that a single task's client is opened for a sample.

The processors on which the kernel puts client and server make a factor of three, and stay the same for as
long as the connection. So a sample covers several connections.
"""
_OPENED = 5
"""The number of times that each contestant opens its client in a round."""


def all_rows() -> list[Measurement]:
    """Return the rows in the order of the table."""
    return [
        _select(1, [*_POOLS, ASYNCPG_BARE], {"asyncpg pool": 1.5, "asyncpg bare": 0.9}),
        _select(10, _POOLS, {}),
        _hundred(),
        _select(1000, _POOLS, {}),
        rate_row("insert-100", "insert, 100 tasks", 100, lambda client: client.insert, _POOLS),
        rate_row(
            "batch", "five inserts in one transaction, 10 tasks", 10, lambda client: client.batch, _POOLS
        ),
        _large(),
        _json(),
        _blocking(),
        _connect(),
        _memory(),
    ]


def _select(tasks: int, peers: Iterable[AsyncContestant], targets: Mapping[str, float]) -> Measurement:
    title = f"select by key, {tasks:,} task{'s' if tasks > 1 else ''}"
    return rate_row(f"select-{tasks}", title, tasks, lambda client: client.select, peers, targets)


def _hundred() -> Measurement:
    """Return the row of 100 tasks, with pgbench. pgbench has no tasks: it keeps one connection busy."""
    row = _select(100, _POOLS, {"asyncpg pool": 4.0, "psycopg_pool": 4.0, with_pgbench.PREPARED: 0.7})
    more: dict[str, Sampler] = {
        with_pgbench.PREPARED: lambda s: [with_pgbench.pipelined(s.dsn, s.seconds, "prepared")],
        with_pgbench.EXTENDED: lambda s: [with_pgbench.pipelined(s.dsn, s.seconds, "extended")],
    }
    return Measurement(row.name, row.metrics, {**row.contestants, **more})


def rate_row(
    name: str,
    title: str,
    tasks: int,
    pick: Pick,
    peers: Iterable[AsyncContestant],
    targets: Mapping[str, float] | None = None,
    ours: Iterable[AsyncContestant] = OURS,
) -> Measurement:
    """Return the row of an operation: its rate with each contestant."""
    metric = Metric(title, _OPS, targets=targets or {})
    return Measurement(name, [metric], {one.name: sampler_of(one, tasks, pick) for one in [*ours, *peers]})


def sampler_of(contestant: AsyncContestant, tasks: int, pick: Pick, scale: int = 1) -> Sampler:
    """Return the measurement of a rate: operations per second, times ``scale``."""
    times = _REOPENED if tasks == scale == 1 else 1

    async def measure(setting: Setting) -> Sequence[float]:
        rates = []
        for _ in range(times):
            async with contestant.open(setting.dsn) as client:
                rates.append(await Load(tasks, setting.seconds / times).run(pick(client)))
        return [scale * statistics.fmean(rates)]

    return lambda setting: contestant.run(functools.partial(measure, setting))


def _large() -> Measurement:
    def pick(client: Client) -> Callable[[int], Awaitable[object]]:
        async def fetch(key: int) -> None:
            assert await client.rows() == MANY

        return fetch

    metric = Metric(
        f"{MANY:,} rows of 5 columns as tuples (asyncpg: records), 1 task",
        "rows per second",
        targets={PSYCOPG_BARE.name: 1.0},
    )
    contestants = [*OURS, PSYCOPG_BARE, ASYNCPG_BARE, PSQLPY_POOL]
    return Measurement("rows", [metric], {one.name: sampler_of(one, 1, pick, MANY) for one in contestants})


def _json() -> Measurement:
    peer = "psycopg, json.dumps"
    metric = Metric(
        f"{MANY:,} rows of 5 columns fetched and converted to JSON, 1 task",
        "rows per second",
        targets={peer: 1.0},
    )
    ours = {f"pgha {backend}": _dumps(with_pgha.to_json, backend) for backend in with_pgha.BACKENDS}
    return Measurement("json", [metric], {**ours, peer: _dumps(with_psycopg.to_json, "asyncio")})


def _dumps(opener: _Dumper, backend: str) -> Sampler:
    async def measure(setting: Setting) -> Sequence[float]:
        async with opener(setting.dsn) as dump:
            rows = json.loads(await dump())
            assert len(rows) == MANY
            assert rows[0].keys() == {"id", "name", "price", "created", "flag"}
            del rows
            return [MANY * await Load(1, setting.seconds).run(lambda key: dump())]

    return lambda setting: anyio.run(functools.partial(measure, setting), backend=backend)


def _blocking() -> Measurement:
    def sampler(opener: _Threads) -> Sampler:
        def sample(setting: Setting) -> Sequence[float]:
            with opener(setting.dsn) as select:
                return [Load(_THREADS, setting.seconds).run_threads(select)]

        return sample

    peer = "ConnectionPool"
    metric = Metric(f"select by key, {_THREADS} threads, no event loop", _OPS, targets={peer: 1.0})
    ours = {"pgha blocking": sampler(with_pgha.threads)}
    return Measurement("blocking", [metric], {**ours, peer: sampler(with_psycopg.threads)})


def _connect() -> Measurement:
    metric = Metric("from opening to the first answer", "milliseconds", better="less")
    contestants = [*OURS, *_POOLS, ASYNCPG_BARE, PSYCOPG_BARE]
    return Measurement("connect", [metric], {one.name: _opening(one) for one in contestants})


def _opening(contestant: AsyncContestant) -> Sampler:
    async def measure(setting: Setting) -> Sequence[float]:
        times = []
        for _ in range(_OPENED):
            began = time.perf_counter()
            async with contestant.open(setting.dsn) as client:
                await client.select(1)
                times.append(time.perf_counter() - began)
        return [1000 * statistics.median(times)]

    return lambda setting: contestant.run(functools.partial(measure, setting))


def _memory() -> Measurement:
    metrics = [
        Metric("memory of a node, its connections open (a pool of 10)", "KiB resident", better="less"),
        Metric("memory of a waiting select (submitted, or in its own task)", "bytes", better="less"),
        Metric("memory of a finished select, with its row", "bytes", better="less"),
    ]

    def sampler(name: str) -> Sampler:
        return lambda setting: memory.measured(name, setting.dsn)

    return Measurement("memory", metrics, {name: sampler(name) for name in memory.HOLDERS})
