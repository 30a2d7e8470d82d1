"""Operations under other conditions: uvloop, a long line, slow statements, slow commits, a full queue."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import anyio

import pgha
from bench.loads import Load
from bench.measure import Measurement, Sampler, Setting
from bench.peers import AsyncContestant, Client
from bench.peers._client import COMMIT_TIME, POOL
from bench.peers.with_asyncpg import ASYNCPG_BARE_UVLOOP, ASYNCPG_POOL, ASYNCPG_POOL_UVLOOP
from bench.peers.with_pgha import BACKENDS, ON_UVLOOP, SELECT_BY_KEY
from bench.peers.with_psycopg import PSYCOPG_POOL
from bench.proxy import line
from bench.report import Metric
from bench.rows import Pick, rate_row

_POOLS = [ASYNCPG_POOL, PSYCOPG_POOL]
_ONE_WAY = 0.005
"""Seconds that the long line takes in each direction."""
_SLOW = 0.02
"""Seconds that a slow statement takes on the server."""
_FULL = 50
"""The number of operations that fill the queue, of 1000 tasks."""


def condition_rows() -> list[Measurement]:
    """Return the rows in the order of the table."""
    return [
        _on_uvloop(1, [ASYNCPG_POOL_UVLOOP, ASYNCPG_BARE_UVLOOP]),
        _on_uvloop(100, [ASYNCPG_POOL_UVLOOP]),
        _on_a_line("select", 1, _select),
        _on_a_line("select", 100, _select),
        _on_a_line("insert", 100, _insert),
        _slow_statements(),
        _slow_commits(),
        *(_full_queue(backend) for backend in BACKENDS),
    ]


def _select(client: Client) -> Callable[[int], Awaitable[object]]:
    return client.select


def _insert(client: Client) -> Callable[[int], Awaitable[object]]:
    return client.insert


def _on_uvloop(tasks: int, peers: Sequence[AsyncContestant]) -> Measurement:
    title = f"on uvloop: select by key, {tasks} task{'s' if tasks > 1 else ''}"
    return rate_row(f"uvloop-{tasks}", title, tasks, _select, peers, ours=[ON_UVLOOP])


def _on_a_line(what: str, tasks: int, pick: Pick) -> Measurement:
    title = f"round trip of {2000 * _ONE_WAY:g} ms: {what}, {tasks} task{'s' if tasks > 1 else ''}"
    row = rate_row(f"line-{what}-{tasks}", title, tasks, pick, _POOLS, {one.name: 0.9 for one in _POOLS})
    return replace(row, contestants={name: _behind_a_line(one) for name, one in row.contestants.items()})


def _behind_a_line(sampler: Sampler) -> Sampler:
    def sample(setting: Setting) -> Sequence[float]:
        with line(setting.dsn, _ONE_WAY) as entrance:
            return sampler(replace(setting, entrance=entrance))

    return sample


def _slow_statements() -> Measurement:
    def pick(client: Client) -> Callable[[int], Awaitable[object]]:
        return lambda key: client.run(f"SELECT pg_sleep({_SLOW})")

    title = f"statements of {1000 * _SLOW:g} ms, 60 tasks (each pool: {POOL} connections)"
    return rate_row("slow-60", title, 60, pick, _POOLS, {one.name: 0.9 for one in _POOLS})


def _slow_commits() -> Measurement:
    def pick(client: Client) -> Callable[[int], Awaitable[object]]:
        return lambda key: client.run("INSERT INTO slow_commit VALUES (1)")

    title = f"commits of {1000 * COMMIT_TIME:g} ms, 40 tasks (each pool: {POOL} connections)"
    return rate_row("commit-40", title, 40, pick, _POOLS, {one.name: 0.9 for one in _POOLS})


def _full_queue(backend: str) -> Measurement:
    peer = "room for all"
    metric = Metric(
        f"a queue of {_FULL}, 1,000 tasks ({backend}): select by key",
        "operations per second",
        targets={peer: 0.5},
    )
    contestants = {"pgha full queue": _queue(backend, _FULL), peer: _queue(backend, 65536)}
    return Measurement(f"queue-{backend}", [metric], contestants)


def _queue(backend: str, size: int) -> Sampler:
    async def measure(setting: Setting) -> Sequence[float]:
        async with pgha.open_cluster(setting.dsn, max_queued=size) as cluster:
            return [await Load(1000, setting.seconds).run(lambda key: cluster.fetch(SELECT_BY_KEY, [key]))]

    return lambda setting: anyio.run(functools.partial(measure, setting), backend=backend)
