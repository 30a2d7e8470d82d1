"""A cluster, opened and left as one scope."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from types import TracebackType

import anyio
from psycopg.rows import BaseRowFactory, TupleRow, tuple_row
from typing_extensions import TypeVar

from pgha._cluster.cluster import Cluster
from pgha._errors import ConfigError
from pgha._options import LedgerMode, Node, OnConnect, Options, Tuning, parse_nodes

Row = TypeVar("Row", default=TupleRow)


@asynccontextmanager
async def open_cluster(
    *nodes: str | Node,
    read_connections: int = 2,
    min_ready: int = 1,
    connect_timeout: float = 10.0,
    failover_timeout: float = 30.0,
    timeout: float | None = None,
    statement_timeout: float | None = None,
    ping_interval: float = 1.0,
    ping_timeout: float = 0.25,
    max_queued: int = 65536,
    close_timeout: float = 5.0,
    row_factory: BaseRowFactory[Row] | None = None,
    prepare_threshold: int | None = 3,
    on_connect: OnConnect | None = None,
    application_name: str = "pgha",
    ledger: LedgerMode = "explicit",
    _tuning: Tuning | None = None,
) -> AsyncGenerator[Cluster[Row], None]:
    """Open a cluster of nodes: ``async with pgha.open_cluster("host=db1", "host=db2") as cluster``.

    Entering waits until ``min_ready`` nodes answer (0: not at all), at most ``failover_timeout`` seconds;
    what no waiting mends (a bad password on every node, an unknown database, a bad conninfo) is raised at
    once, as `NoNodeAvailable` or `ConfigError`. A clean exit lets operations end for ``close_timeout``
    seconds, an exceptional one cancels them; both leave no task, socket or backend. An exception of the body
    comes out as itself, not in a group.

    Args:
        nodes: conninfo strings, URIs or `pgha.Node`; a multi-host URI is several nodes. read_connections:
        connections for reads a node; those for writes are opened at need, one more is the monitor's.
        min_ready: nodes that must answer before the body runs. connect_timeout: seconds for one attempt to
        connect. failover_timeout: seconds that an operation waits for a node before it raises
        `NoNodeAvailable`. timeout: seconds for an operation, unless it says otherwise; None is no limit.
        statement_timeout: PostgreSQL's setting of that name for every connection, in seconds. ping_interval:
        seconds between pings of a node at rest. ping_timeout: seconds after which a ping without an answer
        means that the node is down. max_queued: operations that may wait; then ``execute`` waits and
        ``submit`` raises `QueueFull`. close_timeout: seconds that a clean exit waits for operations.
        row_factory: one of ``psycopg.rows``; tuples by default. prepare_threshold: a statement is prepared
        after so many uses on a connection; None never. on_connect: SQL, several, or an async callable, run on
        each new lane, such as
            ``SET synchronous_commit = off``.
        application_name: shown in ``pg_stat_activity``.
        ledger: ``"auto"`` gives every write that has none a key of its own, on nodes where the ledger is
            installed (not CALL, DO and what commits by itself); ``"explicit"`` only what is given one.
    """
    options = Options(
        read_connections=read_connections,
        min_ready=min_ready,
        connect_timeout=connect_timeout,
        failover_timeout=failover_timeout,
        timeout=timeout,
        statement_timeout=statement_timeout,
        ping_interval=ping_interval,
        ping_timeout=ping_timeout,
        max_queued=max_queued,
        close_timeout=close_timeout,
        prepare_threshold=prepare_threshold,
        on_connect=on_connect,
        application_name=application_name,
        ledger=ledger,
        row_factory=row_factory or tuple_row,
        tuning=_tuning or Tuning(),
    )
    configs = parse_nodes(nodes)
    if min_ready > len(configs):
        raise ConfigError(f"min_ready is {min_ready}, and there are {len(configs)} nodes")
    cluster: Cluster[Row] = Cluster(configs, options)
    body = _Body()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cluster._serve)
        with body:
            try:
                await cluster._until_ready()
                yield cluster
                await cluster._drain()
            finally:
                await cluster._shut()
    body.raise_again()


class _Body:
    """Keeps an exception out of the task group around it, which would wrap it, and raises it behind."""

    def __init__(self) -> None:
        self._raised: BaseException | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._raised = raised
        return True

    def raise_again(self) -> None:
        raised, self._raised = self._raised, None
        if raised is not None:
            try:
                raise raised
            finally:
                del raised
