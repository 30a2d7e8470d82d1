"""`Cluster`: the public methods for operations, nodes, events and statistics."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, final, overload
from uuid import UUID

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint_if_cancelled
from psycopg.adapt import AdaptersMap
from psycopg.rows import BaseRowFactory, TupleRow, tuple_row
from typing_extensions import TypeVar

from pgha._cluster.group import Group
from pgha._dispatch.dispatcher import Dispatcher
from pgha._errors import ClusterClosed, ConfigError
from pgha._ledger.admin import Ledger
from pgha._ledger.host import LedgerOperations
from pgha._node.node import ManagedNode
from pgha._operation.key import hash_in_thread
from pgha._operation.operation import Operation, Request
from pgha._operation.request_maker import DEFAULT, BatchItem, OnSend, RequestMaker, Seconds
from pgha._options import Node as NodeArgument
from pgha._options import NodeConfig, Options, parse_nodes
from pgha._rows.result import Result
from pgha._telemetry.log import cluster_logger, say
from pgha._types import Event, NodeStatus, ReadRoute, Statistics, WriteRoute, nearest
from pgha._wire.compiler import AnyParams, AnyQuery, Compiler, own_adapters
from pgha._wire.interrupts import uninterrupted

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream

R = TypeVar("R")
Row = TypeVar("Row", default=TupleRow)


@final
class Cluster(Generic[Row]):
    """An open cluster: live connections to every node, and the operations on them; see `open_cluster`.

    Every operation is a transaction of its own. All tasks of the event loop may use the cluster at the same
    time.

    Example::

        async with pgha.open_cluster("host=db1", "host=db2") as cluster:
            rows = await cluster.fetch("SELECT name FROM item WHERE id < %s", [10])
            await cluster.execute("UPDATE item SET price = %s WHERE id = %s", [9, 1])
    """

    def __init__(self, configs: Sequence[NodeConfig], options: Options) -> None:
        self._options = options
        self._clock = options.sources.clock
        self._adapters = own_adapters()
        self._nodes: dict[str, ManagedNode] = {}
        self._dispatcher = Dispatcher(options, self._nodes)
        self._maker = RequestMaker(options, Compiler(self._adapters), self._nodes.__contains__)
        self._tasks: TaskGroup | None = None
        self._service = anyio.CancelScope(shield=True)
        for config in configs:
            self._nodes[config.name] = self._make_node(config)

    def _make_node(self, config: NodeConfig) -> ManagedNode:
        for name in ("password", "sslpassword"):
            self._dispatcher.log.keep_secret(config.params.get(name))
        return ManagedNode(config, self._options, self._adapters, self._dispatcher, self._clock)

    @property
    def adapters(self) -> AdaptersMap:
        """The cluster's own psycopg adapters. Register dumpers and loaders here, before the first use."""
        return self._adapters

    @property
    def connection(self) -> None:
        """Always None, as psycopg's protocol for adaptation contexts requires.

        With `adapters`, this attribute makes a cluster an adaptation context, as in
        ``register_composite(info, cluster)``.
        """
        return None

    # Reads

    @overload
    async def fetch(
        self, query: AnyQuery, params: AnyParams | None = None, *, route: ReadRoute = ...,
        timeout: Seconds = ..., statement_timeout: Seconds = ..., row_factory: None = None,
        on_send: OnSend | None = None,
    ) -> Result[Row]: ...  # fmt: skip
    @overload
    async def fetch(
        self, query: AnyQuery, params: AnyParams | None = None, *, route: ReadRoute = ...,
        timeout: Seconds = ..., statement_timeout: Seconds = ..., row_factory: BaseRowFactory[R],
        on_send: OnSend | None = None,
    ) -> Result[R]: ...  # fmt: skip
    async def fetch(
        self, query: AnyQuery, params: AnyParams | None = None, *, route: ReadRoute = nearest(),
        timeout: Seconds = DEFAULT, statement_timeout: Seconds = DEFAULT, row_factory: Any = None,
        on_send: OnSend | None = None,
    ) -> Result[Any]:  # fmt: skip
        """Run a read-only statement; if its node fails, run the statement again on another node.

        The server rejects accidental writes to tables and sequences (SQLSTATE 25006).

        Leaving the call by cancellation cancels the statement on the server.

        Args:
            query: SQL with psycopg's placeholders (``%s`` or ``%(name)s``), as text, bytes, `psycopg.sql`
                objects or a template string.
            params: Parameters, a sequence or a mapping; None if there are none.
            route: The node to use: `nearest` (the default), `primary`, `pin` or `fastest`.
            timeout: Seconds until the operation ends with `OperationTimeout`, counted from the call, waiting
                and retries included. None is no limit; the default is the cluster's ``timeout``.
            statement_timeout: PostgreSQL's statement_timeout in seconds (0.001 to 2147483), enforced by the
                server. None is no limit; the default is the cluster's ``statement_timeout``.
            row_factory: One of psycopg's row factories, such as ``psycopg.rows.dict_row``; None (the default)
                is the cluster's.
            on_send: Callable that receives a `SendInfo` each time the operation is about to be sent to a
                node. The callable must be quick. An exception in the callable fails the operation before it
                is sent.

        Returns:
            The rows.

        Raises:
            NoNodeAvailable: No suitable node became available within ``failover_timeout`` seconds.
            OperationTimeout: ``timeout`` passed.
            ConfigError: An argument cannot be used, or the route names an unknown node.
            SessionRequired: The statement would change the shared session.
            psycopg.NotSupportedError: The statement may commit by itself (``CALL``, ``VACUUM``), so it is not
                a read.
            ClusterClosed: The cluster is closed.
            QueueFull: The queue was full until ``timeout`` passed.
            psycopg.OperationalError: The connection was lost, and the retries are used up.
            psycopg.Error: The server reported an SQL error, as psycopg's own class:
                `psycopg.errors.ReadOnlySqlTransaction` for a write, `psycopg.errors.QueryCanceled` when
                ``statement_timeout`` passed.
        """
        request = self._maker.single(
            query, params, read=True, route=route, timeout=timeout,
            statement_timeout=statement_timeout, row_factory=row_factory, on_send=on_send,
        )  # fmt: skip
        started = self._clock()
        operation: Operation[Result[Any]] = Operation(self._dispatcher, request, started)
        self._dispatcher.start(operation)
        return await operation

    @overload
    async def fetch_one(
        self, query: AnyQuery, params: AnyParams | None = None, *, route: ReadRoute = ...,
        timeout: Seconds = ..., statement_timeout: Seconds = ..., row_factory: None = None,
        on_send: OnSend | None = None,
    ) -> Row | None: ...  # fmt: skip
    @overload
    async def fetch_one(
        self, query: AnyQuery, params: AnyParams | None = None, *, route: ReadRoute = ...,
        timeout: Seconds = ..., statement_timeout: Seconds = ..., row_factory: BaseRowFactory[R],
        on_send: OnSend | None = None,
    ) -> R | None: ...  # fmt: skip
    async def fetch_one(
        self, query: AnyQuery, params: AnyParams | None = None, *, route: ReadRoute = nearest(),
        timeout: Seconds = DEFAULT, statement_timeout: Seconds = DEFAULT, row_factory: Any = None,
        on_send: OnSend | None = None,
    ) -> Any:  # fmt: skip
        """Run `fetch` and return the first row.

        Cancellation works as for `fetch`.

        Args:
            query: SQL, as for `fetch`.
            params: Parameters, as for `fetch`.
            route: As for `fetch`.
            timeout: Seconds, as for `fetch`.
            statement_timeout: Seconds, as for `fetch`.
            row_factory: As for `fetch`.
            on_send: As for `fetch`.

        Returns:
            The first row, or None if there is no row.

        Raises:
            psycopg.Error: As for `fetch`.
        """
        result = await self.fetch(
            query, params, route=route, timeout=timeout, statement_timeout=statement_timeout,
            row_factory=row_factory, on_send=on_send,
        )  # fmt: skip
        return result[0] if result else None

    async def fetch_value(
        self, query: AnyQuery, params: AnyParams | None = None, *, route: ReadRoute = nearest(),
        timeout: Seconds = DEFAULT, statement_timeout: Seconds = DEFAULT, on_send: OnSend | None = None,
    ) -> Any:  # fmt: skip
        """Run `fetch` and return the first column of the first row.

        Cancellation works as for `fetch`.

        Args:
            query: SQL, as for `fetch`.
            params: Parameters, as for `fetch`.
            route: As for `fetch`.
            timeout: Seconds, as for `fetch`.
            statement_timeout: Seconds, as for `fetch`.
            on_send: As for `fetch`.

        Returns:
            The value, or None if there is no row.

        Raises:
            psycopg.Error: As for `fetch`.
        """
        result = await self.fetch(
            query, params, route=route, timeout=timeout, statement_timeout=statement_timeout,
            row_factory=tuple_row, on_send=on_send,
        )  # fmt: skip
        return result[0][0] if result else None

    # Writes

    @overload
    async def execute(
        self, query: AnyQuery, params: AnyParams | None = None, *, idempotent: bool = False,
        idempotency_key: UUID | None = None, route: WriteRoute = ..., timeout: Seconds = ...,
        statement_timeout: Seconds = ..., row_factory: None = None, on_send: OnSend | None = None,
    ) -> Result[Row]: ...  # fmt: skip
    @overload
    async def execute(
        self, query: AnyQuery, params: AnyParams | None = None, *, idempotent: bool = False,
        idempotency_key: UUID | None = None, route: WriteRoute = ..., timeout: Seconds = ...,
        statement_timeout: Seconds = ..., row_factory: BaseRowFactory[R], on_send: OnSend | None = None,
    ) -> Result[R]: ...  # fmt: skip
    async def execute(
        self, query: AnyQuery, params: AnyParams | None = None, *, idempotent: bool = False,
        idempotency_key: UUID | None = None, route: WriteRoute = nearest(), timeout: Seconds = DEFAULT,
        statement_timeout: Seconds = DEFAULT, row_factory: Any = None, on_send: OnSend | None = None,
    ) -> Result[Any]:  # fmt: skip
        """Run a statement that may write, as a transaction of its own; rows are returned too.

        The write is retried in three cases only: it certainly was not applied, it is ``idempotent``, or it
        has an ``idempotency_key``. Otherwise, missing proof raises `CommitInDoubt`. With a key, the ledger
        prevents a second application and records the first one, so `CommitInDoubt` is raised only if the
        deadline passes first. The deadline is ``timeout``, or ``failover_timeout`` without one.

        A key belongs to one statement and its parameters. A second call with the same key, statement and
        parameters does not apply the write again (`Result.replayed`). A second call with the same key for
        another write raises `IdempotencyKeyReused`.

        When ``timeout`` passes, the write is cancelled on the server, and pgha waits at most 0.1 seconds for
        proof of the outcome.

        Leaving the call by cancellation cancels the write on the server. An `OperationResolved` event then
        reports the outcome.

        Args:
            query: SQL with psycopg's placeholders (``%s`` or ``%(name)s``), as text, bytes, `psycopg.sql`
                objects or a template string.
            params: Parameters, a sequence or a mapping; None if there are none.
            idempotent: Whether the write may be applied more than once. If true, the write is retried on any
                node.
            idempotency_key: UUID that makes the write apply exactly once by means of the ledger
                (`Cluster.ledger`): `new_idempotency_key`, or a UUID of your own. None (the default) is no
                key, unless the cluster was opened with ``ledger="auto"``.
            route: The node to use: `nearest` (the default), `primary` or `pin`.
            timeout: Seconds until the operation is cancelled on the server, counted from the call, waiting
                and retries included. None is no limit; the default is the cluster's ``timeout``.
            statement_timeout: PostgreSQL's statement_timeout in seconds (0.001 to 2147483), enforced by the
                server. None is no limit; the default is the cluster's ``statement_timeout``.
            row_factory: One of psycopg's row factories, such as ``psycopg.rows.dict_row``; None (the default)
                is the cluster's.
            on_send: Callable that receives a `SendInfo` each time the operation is about to be sent to a
                node. The callable must be quick. An exception in the callable fails the operation before it
                is sent.

        Returns:
            The rows and the row count.

        Raises:
            CommitInDoubt: Nothing proves whether the write was applied.
            NoNodeAvailable: No suitable node became available within ``failover_timeout`` seconds. The write
                was not applied.
            OperationTimeout: ``timeout`` passed, and the write certainly was not applied.
            IdempotencyKeyReused: The key was used for another write, or was resolved as not applied.
            LedgerError: A key was given, and the ledger cannot be used.
            ConfigError: An argument cannot be used, or the route names an unknown node.
            SessionRequired: The statement would change the shared session.
            ClusterClosed: The cluster is closed.
            QueueFull: The queue was full until ``timeout`` passed.
            psycopg.OperationalError: The connection was lost, the write was not applied, and the retries are
                used up.
            psycopg.Error: The server reported an SQL error, as psycopg's own class. The write was not applied
                (a ``CALL`` may have committed in parts).
            psycopg.NotSupportedError: The statement commits by itself (``VACUUM``, say), and cannot have a
                key or a ``statement_timeout`` of its own.
        """
        await checkpoint_if_cancelled()
        request = self._maker.single(
            query, params, read=False, idempotent=idempotent, route=route, timeout=timeout,
            statement_timeout=statement_timeout, row_factory=row_factory, on_send=on_send,
            idempotency_key=idempotency_key, hash_later=True,
        )  # fmt: skip
        started = self._clock()
        if request.keyed is not None and request.keyed.unhashed is not None:
            await hash_in_thread(request.keyed, request.timeout)
        operation: Operation[Result[Any]] = Operation(self._dispatcher, request, started)
        self._dispatcher.start(operation)
        return await operation

    async def execute_batch(
        self, statements: Sequence[BatchItem], *, idempotent: bool = False,
        idempotency_key: UUID | None = None, route: WriteRoute = nearest(), timeout: Seconds = DEFAULT,
        statement_timeout: Seconds = DEFAULT, row_factory: Any = None, on_send: OnSend | None = None,
    ) -> list[Result[Any]]:  # fmt: skip
        """Run several statements as one transaction, in one round trip.

        All statements are applied, or none. For an error, `error_info` returns the index of the failed
        statement.

        Cancellation works as for `execute`.

        Args:
            statements: The statements, at least one: each is a query, or a pair of query and parameters.
            idempotent: As for `execute`.
            idempotency_key: As for `execute`; one key for the whole batch.
            route: As for `execute`.
            timeout: Seconds for the whole batch, as for `execute`.
            statement_timeout: Seconds for each statement, as for `execute`.
            row_factory: As for `execute`.
            on_send: As for `execute`.

        Returns:
            One result per statement, in order.

        Raises:
            psycopg.Error: As for `execute`.
            ConfigError: ``statements`` is not a list of statements, or is empty.
        """
        await checkpoint_if_cancelled()
        request = self._maker.batch(
            statements, idempotent=idempotent, route=route, timeout=timeout,
            statement_timeout=statement_timeout, row_factory=row_factory, on_send=on_send,
            idempotency_key=idempotency_key, hash_later=True,
        )  # fmt: skip
        started = self._clock()
        if request.keyed is not None and request.keyed.unhashed is not None:
            await hash_in_thread(request.keyed, request.timeout)
        operation: Operation[list[Result[Any]]] = self._begin(request, started)
        return await operation

    # Operations

    def submit(
        self, query: AnyQuery, params: AnyParams | None = None, *, read: bool = False,
        idempotent: bool = False, idempotency_key: UUID | None = None,
        route: ReadRoute | WriteRoute = nearest(), timeout: Seconds = DEFAULT,
        statement_timeout: Seconds = DEFAULT, row_factory: Any = None, on_send: OnSend | None = None,
    ) -> Operation[Result[Any]]:  # fmt: skip
        """Start an operation and return at once.

        The operation belongs to the cluster and continues by itself. With ``read=True`` it behaves like
        `fetch`, otherwise like `execute`. Awaiting the returned operation raises the errors of those methods.

        With a key, the call also computes the fingerprint of the statement and its parameters, about a
        millisecond per megabyte. `execute` does so in a worker thread, from 1 MiB on.

        Args:
            query: SQL, as for `fetch`.
            params: Parameters, as for `fetch`.
            read: Whether the operation is a read. The default is a write.
            idempotent: As for `execute`; for writes only.
            idempotency_key: As for `execute`; for writes only.
            route: As for `fetch`, or for a write as for `execute`.
            timeout: Seconds, as for `fetch`.
            statement_timeout: Seconds, as for `fetch`.
            row_factory: As for `fetch`.
            on_send: As for `fetch`.

        Returns:
            The operation, to be awaited, cancelled or observed.

        Raises:
            ConfigError: An argument cannot be used, or the route names an unknown node.
            SessionRequired: The statement would change the shared session.
            ClusterClosed: The cluster is closed.
            QueueFull: ``max_queued`` operations are waiting already.
        """
        request = self._maker.single(
            query, params, read=read, idempotent=idempotent, route=route, timeout=timeout,
            statement_timeout=statement_timeout, row_factory=row_factory, on_send=on_send,
            idempotency_key=idempotency_key,
        )  # fmt: skip
        self._dispatcher.admit(request)
        return self._begin(request, self._clock())

    def group(self) -> AbstractAsyncContextManager[Group]:
        """Return a scope for operations: ``g.submit`` starts them, and leaving the scope awaits all of them.

        If the body raises or is cancelled, the unfinished operations are cancelled, and the body's exception
        is raised unchanged.

        Returns:
            An async context manager whose value is a `Group`.

        Raises:
            ExceptionGroup: On leaving: operations failed whose errors the body did not retrieve.
        """
        return Group.opened(self.submit)

    def _begin(self, request: Request, started: float) -> Operation[Any]:
        operation: Operation[Any] = Operation(self._dispatcher, request, started)
        self._dispatcher.start(operation)
        return operation

    @property
    def ledger(self) -> Ledger:
        """The table of idempotency keys, to be installed, inspected, pruned and uninstalled."""
        return Ledger(
            LedgerOperations(self._dispatcher, self._maker, self._nodes, self._options, self._clock)
        )

    # Nodes

    @property
    def nodes(self) -> Mapping[str, NodeStatus]:
        """Every node by name, with its status at this moment."""
        return MappingProxyType({name: node.status() for name, node in tuple(self._nodes.items())})

    def add_node(self, node: str | NodeArgument) -> None:
        """Add a node to the cluster and return at once; the node is used as soon as it answers.

        Args:
            node: A conninfo string, a URI or a `Node`; a multi-host URI is several nodes.

        Raises:
            ConfigError: The node cannot be parsed, or its name is taken.
            ClusterClosed: The cluster is closed.
        """
        if self._tasks is None or self._dispatcher.closed:
            raise ClusterClosed("the cluster is closed")
        configs = parse_nodes([node])
        for config in configs:
            if config.name in self._nodes:
                raise ConfigError(
                    f"a node called {config.name!r} already exists: pass pgha.Node(conninfo, name=...)"
                )
        added = [self._make_node(config) for config in configs]
        self._dispatcher.door.enter(self._nodes.update, {one.name: one for one in added})
        for one in added:
            self._tasks.start_soon(one.run)
        self._dispatcher.reroute()

    async def remove_node(self, name: str, *, timeout: float = 5.0) -> None:
        """Stop using a node: send nothing new, wait for operations in flight, then close its connections.

        Backends that are still busy after ``timeout`` seconds are terminated; the usual rules for retries
        then apply. Operations pinned to the node fail with `NoNodeAvailable`.

        If the call is cancelled, the node is removed at once, without waiting.

        Args:
            name: The node's name, a key of `Cluster.nodes`.
            timeout: Seconds that operations in flight may take; the default is 5.

        Raises:
            ConfigError: There is no node of that name.
        """
        node = self._nodes.get(name)
        if node is None or node.leaving:
            raise ConfigError(f"no node is called {name!r}: Cluster.nodes lists the names")
        node.retire()
        self._dispatcher.reroute()
        try:
            with anyio.move_on_after(timeout):
                await node.drained()
        finally:
            with anyio.CancelScope(shield=True):
                await self._dismiss([node])
            self._dispatcher.door.enter(self._remove, node)

    def _remove(self, node: ManagedNode) -> None:
        if self._nodes.get(node.name) is node:
            del self._nodes[node.name]
        self._dispatcher.forget(node)

    async def _dismiss(self, nodes: Sequence[ManagedNode]) -> None:
        """Stop nodes, and terminate the backends of operations in flight on them, in bounded time."""
        with anyio.move_on_after(self._options.tuning.drain_timeout + 0.2):
            async with anyio.create_task_group() as tasks:
                for node in nodes:
                    tasks.start_soon(node.drain)
        for node in nodes:
            node.stop()
        for node in nodes:
            await node.gone()

    async def wait_ready(self, count: int | None = None) -> None:
        """Wait until ``count`` nodes answer and can be read from.

        The call has no time limit of its own: use a cancel scope. Cancellation changes nothing.

        Args:
            count: Number of nodes; None (the default) is all nodes.

        Raises:
            ConfigError: There are fewer nodes than ``count``.
            ClusterClosed: The cluster was closed.
        """
        if count is not None and count > len(self._nodes):
            raise ConfigError(f"{count} nodes cannot be ready: there are {len(self._nodes)}")
        while self._ready < (len(self._nodes) if count is None else count):
            await self._dispatcher.change()

    # Events and statistics

    def events(self, *, buffer: int = 1024) -> AbstractAsyncContextManager[MemoryObjectReceiveStream[Event]]:
        """Return a subscription to the cluster's events, to be used in ``async with``.

        The cluster never waits for a subscriber: an event is dropped if the subscriber's buffer is full.
        `Statistics.events_dropped` counts dropped events. Leaving the block ends the subscription, also by
        cancellation.

        Args:
            buffer: Number of events kept for a slow subscriber; a negative number is no limit.

        Returns:
            An async context manager whose value is an async iterator of `Event` objects. The iterator ends
            when the cluster is closed.
        """
        return self._dispatcher.tracker.events.subscribe(buffer)

    def statistics(self) -> Statistics:
        """Return the counters and gauges of this moment.

        Returns:
            A frozen snapshot.
        """
        dispatcher, tracker = self._dispatcher, self._dispatcher.tracker
        counters = tracker.counters
        return Statistics(
            **{name: getattr(counters, name) for name in counters.__slots__},
            events_dropped=tracker.events.dropped,
            queued=dispatcher.queued,
            in_flight=sum(node.in_flight for node in tuple(self._nodes.values())),
        )

    # Opening and closing

    @uninterrupted
    async def _serve(self) -> None:
        """Run every node, shielded from the cancel scopes around the cluster.

        The body is cancelled first, and the nodes outlive it, so that unfinished operations of the body can
        still be cancelled on the servers.
        """
        with self._service:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._dispatcher.times.run)
                tasks.start_soon(self._dispatcher.loop.serve_rests, self._dispatcher.rest)
                for node in tuple(self._nodes.values()):
                    tasks.start_soon(node.run)

    async def _until_ready(self) -> None:
        wanted, wait = self._options.min_ready, self._options.failover_timeout
        with anyio.move_on_after(wait) as scope:
            while self._ready < wanted:
                rejecting = sum(node.rejects for node in self._nodes.values())
                if len(self._nodes) - rejecting < wanted:
                    raise self._dispatcher.no_node(
                        f"{rejecting} of {len(self._nodes)} nodes rejected the login (min_ready={wanted})"
                    )
                await self._dispatcher.change()
        if scope.cancelled_caught:
            raise self._dispatcher.no_node(
                f"{self._ready} of {len(self._nodes)} nodes became ready within {wait:g} s"
                f" (min_ready={wanted})"
            )

    def _log_opened(self) -> None:
        say(
            cluster_logger, logging.INFO, "the cluster is open: %d of %d nodes are ready",
            self._ready, len(self._nodes),
        )  # fmt: skip

    def _log_closed(self) -> None:
        counters = self._dispatcher.tracker.counters
        say(
            cluster_logger, logging.INFO, "the cluster is closed: %d operations, %d failed, %d retries",
            counters.operations, counters.failed, counters.retried,
        )  # fmt: skip

    @property
    def _ready(self) -> int:
        return sum(node.ready for node in tuple(self._nodes.values()))

    async def _drain(self) -> None:
        with anyio.move_on_after(self._options.close_timeout):
            await self._dispatcher.tracker.idle()

    async def _shut(self) -> None:
        try:
            with anyio.CancelScope(shield=True):
                self._dispatcher.close()
                await self._dismiss(tuple(self._nodes.values()))
        finally:
            self._dispatcher.fail_all()
            self._dispatcher.tracker.events.close()
            self._tasks = None
            self._service.cancel()
            # At the end: trio may raise KeyboardInterrupt in a log handler, and a service that is not
            # cancelled would never end.
            self._dispatcher.log.close()
            self._log_closed()
