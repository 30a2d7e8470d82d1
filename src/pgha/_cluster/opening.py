"""`open_cluster`: open and close a cluster as one scope."""

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
    failover_timeout: float = 60.0,
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

    Entering waits until ``min_ready`` nodes answer. Errors that waiting cannot remedy are raised at once: a
    bad conninfo, or a wrong password or unknown database on too many nodes.

    A clean exit waits ``close_timeout`` seconds for running operations. An exception in the body, or
    cancellation of the body, cancels the operations on the servers. Neither leaves a task, socket or backend
    behind. The body's exception is raised unchanged, not in an exception group. Cancelling while the cluster
    opens closes the connections.

    Example::

        async with pgha.open_cluster("host=db1", "host=db2") as cluster:
            await cluster.execute("INSERT INTO item VALUES (1, %s)", ["tea"])
            print(await cluster.fetch_value("SELECT count(*) FROM item"))

    Args:
        *nodes: Conninfo strings, URIs or `Node` objects; a multi-host URI is several nodes.
        read_connections: Read connections per node; the default is 2. Write connections are opened on demand.
            One more connection per node is used for health checks.
        min_ready: Number of nodes that must answer before the body runs; the default is 1. With 0 the body
            runs at once.
        connect_timeout: Seconds per connection attempt; the default is 10.
        failover_timeout: Seconds that an operation waits for a usable node before it raises
            `NoNodeAvailable`; the default is 60, since a failover manager needs its time (Patroni
            with its defaults 20 to 35 seconds). Entering waits as long for ``min_ready`` nodes.
        timeout: Default time limit of operations in seconds, enforced by the client; None (the default) is no
            limit.
        statement_timeout: PostgreSQL's statement_timeout for every connection, in seconds; None (the default)
            is the server's own setting.
        ping_interval: Seconds between health checks of a node at rest; the default is 1.
        ping_timeout: Seconds after which an unanswered health check means that the node is down; the default
            is 0.25.
        max_queued: Number of operations of one kind (reads or writes, each pinned node by itself) that may
            wait; the default is 65536. Beyond that,
            ``execute`` waits and ``submit`` raises `QueueFull`.
        close_timeout: Seconds that a clean exit waits for operations to end; the default is 5.
        row_factory: One of psycopg's row factories, used by every operation without its own; None (the
            default) is tuples.
        prepare_threshold: Number of uses on a connection after which a statement is prepared; the default is
            3, None never prepares.
        on_connect: SQL, a list of SQL, or an async callable, run on each new read or write connection, such
            as ``SET synchronous_commit = off``. The callable receives a `SetupConnection`. A ``LISTEN`` has
            no use: notifications are dropped. Write connections keep ``client_min_messages = warning``.
        application_name: The connections' name in ``pg_stat_activity``; the default is ``pgha``. A conninfo's
            own application_name wins.
        ledger: ``"explicit"`` (the default) uses the ledger for writes with an ``idempotency_key`` only.
            ``"auto"`` assigns a key to every write without one, on nodes with an installed ledger. ``CALL``,
            ``DO`` and statements that commit by themselves get no automatic key.

    Returns:
        An async context manager whose value is a `Cluster`.

    Raises:
        ConfigError: An argument cannot be used.
        NoNodeAvailable: Fewer than ``min_ready`` nodes answered within ``failover_timeout`` seconds, or too
            many nodes rejected the connection.
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
        raise ConfigError(
            f"min_ready is {min_ready}, and there are {len(configs)} nodes: lower min_ready or add nodes"
        )
    cluster: Cluster[Row] = Cluster(configs, options)
    body = _Body()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cluster._serve)
        with body:
            try:
                await cluster._until_ready()
                cluster._log_opened()
                yield cluster
                await cluster._drain()
            finally:
                await cluster._shut()
    body.raise_again()


class _Body:
    """Keep an exception out of the surrounding task group, which would wrap it, and raise it afterwards."""

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
