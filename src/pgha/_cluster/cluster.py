"""The face of pgha: a cluster of nodes, opened and left as one scope."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import Any, Generic, final, overload
from uuid import UUID

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint_if_cancelled
from anyio.streams.memory import MemoryObjectReceiveStream
from psycopg.adapt import AdaptersMap
from psycopg.rows import BaseRowFactory, TupleRow, tuple_row
from typing_extensions import TypeVar

from pgha._cluster.group import Group
from pgha._dispatch.dispatcher import Dispatcher
from pgha._errors import ClusterClosed, ConfigError, QueueFull
from pgha._ledger.admin import Ledger
from pgha._ledger.host import LedgerOperations
from pgha._node.node import ManagedNode
from pgha._operation.operation import Operation, Request
from pgha._operation.request_maker import DEFAULT, BatchItem, OnSend, RequestMaker, Seconds
from pgha._options import Node as NodeArgument
from pgha._options import NodeConfig, Options, parse_nodes
from pgha._rows.result import Result
from pgha._types import Event, NodeStatus, ReadRoute, Statistics, WriteRoute, nearest
from pgha._wire.compiler import AnyParams, AnyQuery, Compiler, own_adapters
from pgha._wire.loops import uninterrupted

R = TypeVar("R")
Row = TypeVar("Row", default=TupleRow)


@final
class Cluster(Generic[Row]):
    """Live connections to every node, and everything that can be asked of them; see `open_cluster`."""

    def __init__(self, configs: Sequence[NodeConfig], options: Options) -> None:
        self._options = options
        self._clock = time.monotonic
        self._adapters = own_adapters()
        self._nodes: dict[str, ManagedNode] = {}
        self._dispatcher = Dispatcher(options, self._nodes, self._clock)
        self._maker = RequestMaker(options, Compiler(self._adapters), self._nodes.__contains__)
        self._tasks: TaskGroup | None = None
        self._service = anyio.CancelScope(shield=True)
        for config in configs:
            self._nodes[config.name] = self._make_node(config)

    def _make_node(self, config: NodeConfig) -> ManagedNode:
        return ManagedNode(config, self._options, self._adapters, self._dispatcher, self._clock)

    @property
    def adapters(self) -> AdaptersMap:
        """This cluster's own psycopg adapters: register dumpers and loaders here, before the first use."""
        return self._adapters

    @property
    def connection(self) -> None:
        """None. With `adapters` it makes a cluster one of psycopg's adaptation contexts, as in
        ``register_composite(info, cluster)``."""
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
        """Run a read-only operation, and run it again elsewhere when its node fails.

        The server refuses accidental writes to tables and sequences (25006). ``timeout`` (seconds, on the
        client) ends it with `OperationTimeout`; ``statement_timeout`` (seconds, on the server) with
        `psycopg.errors.QueryCanceled`. Leaving by cancellation cancels it on the server.
        """
        request = self._maker.single(
            query, params, read=True, route=route, timeout=timeout,
            statement_timeout=statement_timeout, row_factory=row_factory, on_send=on_send,
        )  # fmt: skip
        started = self._clock()
        if self._dispatcher.full:
            await self._wait_for_capacity(request)
        operation: Operation[Result[Any]] = self._begin(request, started)
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
        self, query: AnyQuery, params: AnyParams | None = None, *, row_factory: Any = None, **options: Any
    ) -> Any:
        """The first row of `fetch`, or None when there is none."""
        result = await self.fetch(query, params, row_factory=row_factory, **options)
        return result[0] if result else None

    async def fetch_value(
        self, query: AnyQuery, params: AnyParams | None = None, *, route: ReadRoute = nearest(),
        timeout: Seconds = DEFAULT, statement_timeout: Seconds = DEFAULT, on_send: OnSend | None = None,
    ) -> Any:  # fmt: skip
        """The first column of the first row of `fetch`, or None when there is no row."""
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
        """Run anything that may write, as a transaction of its own; it returns rows too.

        It is run again only on proof that it was not applied, or when declared ``idempotent``, or with a
        ``idempotency_key`` (`new_idempotency_key`, or a UUID of your own): then the ledger (`Cluster.ledger`)
        keeps it from being applied twice, and tells whether it was, so that it is `CommitInDoubt` only when
        its deadline comes first. Without a key, that is raised where proof is missing. A key goes with these
        statements and parameters: used again with the same, the write is not applied again
        (`Result.replayed`); with others it is `IdempotencyKeyReused`.

        Past its ``timeout`` (seconds) it is cancelled on the server:
        `OperationTimeout` if it certainly was not applied, else `CommitInDoubt`. Leaving by cancellation
        cancels it on the server; what became of it is then told by an `OperationResolved` event.
        """
        await checkpoint_if_cancelled()
        request = self._maker.single(
            query, params, read=False, idempotent=idempotent, route=route, timeout=timeout,
            statement_timeout=statement_timeout, row_factory=row_factory, on_send=on_send,
            idempotency_key=idempotency_key,
        )  # fmt: skip
        started = self._clock()
        if self._dispatcher.full:
            await self._wait_for_capacity(request)
        operation: Operation[Result[Any]] = self._begin(request, started)
        return await operation

    async def execute_batch(
        self, statements: Sequence[BatchItem], *, idempotent: bool = False,
        idempotency_key: UUID | None = None, route: WriteRoute = nearest(), timeout: Seconds = DEFAULT,
        statement_timeout: Seconds = DEFAULT, row_factory: Any = None, on_send: OnSend | None = None,
    ) -> list[Result[Any]]:  # fmt: skip
        """Run several statements as one transaction, in one round trip; one `Result` for each.

        A statement is a query, or a pair of query and parameters. All are applied, or none; an error's
        `error_info` tells the index of the statement that failed. ``statement_timeout`` holds for each of
        them.
        """
        await checkpoint_if_cancelled()
        request = self._maker.batch(
            statements, idempotent=idempotent, route=route, timeout=timeout,
            statement_timeout=statement_timeout, row_factory=row_factory, on_send=on_send,
            idempotency_key=idempotency_key,
        )  # fmt: skip
        started = self._clock()
        if self._dispatcher.full:
            await self._wait_for_capacity(request)
        operation: Operation[list[Result[Any]]] = self._begin(request, started)
        return await operation

    # Operations

    def submit(
        self, query: AnyQuery, params: AnyParams | None = None, *, read: bool = False,
        idempotent: bool = False, idempotency_key: UUID | None = None,
        route: ReadRoute | WriteRoute = nearest(), timeout: Seconds = DEFAULT,
        statement_timeout: Seconds = DEFAULT, row_factory: Any = None, on_send: OnSend | None = None,
    ) -> Operation[Result[Any]]:  # fmt: skip
        """Start an operation and return at once; it belongs to the cluster, and goes on by itself.

        With ``read=True`` it is what `fetch` does, else what `execute` does. Raises `QueueFull` when
        ``max_queued`` operations wait already.
        """
        request = self._maker.single(
            query, params, read=read, idempotent=idempotent, route=route, timeout=timeout,
            statement_timeout=statement_timeout, row_factory=row_factory, on_send=on_send,
            idempotency_key=idempotency_key,
        )  # fmt: skip
        if self._dispatcher.full:
            raise QueueFull(
                f"{self._dispatcher.queued} operations are waiting already (max_queued): await some of them"
            )
        return self._begin(request, self._clock())

    def group(self) -> AbstractAsyncContextManager[Group]:
        """A scope of operations: ``g.submit`` starts them, leaving awaits all.

        Failures that nobody awaited come out as an ExceptionGroup. When the body raises or is cancelled,
        what is not done is cancelled, and the body's exception comes out as itself.
        """
        return Group.opened(self.submit)

    def _begin(self, request: Request, started: float) -> Operation[Any]:
        operation: Operation[Any] = Operation(self._dispatcher, request, started)
        self._dispatcher.start(operation)
        return operation

    async def _wait_for_capacity(self, request: Request) -> None:
        with anyio.move_on_after(request.timeout) as scope:
            await self._dispatcher.wait_for_capacity()
        if scope.cancelled_caught:
            raise QueueFull(f"the queue stayed full for {request.timeout:g} s, and nothing was sent")

    @property
    def ledger(self) -> Ledger:
        """The table that makes keyed writes exactly once: to install, look at, prune and remove it."""
        return Ledger(
            LedgerOperations(self._dispatcher, self._maker, self._nodes, self._options, self._clock)
        )

    # Nodes

    @property
    def nodes(self) -> Mapping[str, NodeStatus]:
        """Every node by name, as it is at this moment."""
        return MappingProxyType({name: node.status() for name, node in self._nodes.items()})

    def add_node(self, node: str | NodeArgument) -> None:
        """Begin to use one more node; returns at once, the node is used as soon as it answers."""
        if self._tasks is None or self._dispatcher.closed:
            raise ClusterClosed("the cluster is closed")
        configs = parse_nodes([node])
        for config in configs:
            if config.name in self._nodes:
                raise ConfigError(f"a node is called {config.name!r} already")
        for config in configs:
            added = self._nodes[config.name] = self._make_node(config)
            self._tasks.start_soon(added.run)
        self._dispatcher.reroute()

    async def remove_node(self, name: str, *, timeout: float = 5.0) -> None:
        """Stop using a node: nothing new is sent, and what is in flight may end within ``timeout`` seconds.

        When cancelled, the node is dropped at once.
        """
        node = self._nodes.get(name)
        if node is None or node.leaving:
            raise ConfigError(f"no node is called {name!r}: see Cluster.nodes for the names")
        node.leaving = True
        self._dispatcher.reroute()
        try:
            with anyio.move_on_after(timeout):
                await node.drained()
        finally:
            with anyio.CancelScope(shield=True):
                await self._dismiss([node])
            if self._nodes.get(name) is node:
                del self._nodes[name]
            self._dispatcher.forget(node)

    async def _dismiss(self, nodes: Sequence[ManagedNode]) -> None:
        """End nodes, and the backends of what is in flight on them, in bounded time."""
        with anyio.move_on_after(self._options.tuning.drain_timeout + 0.2):
            async with anyio.create_task_group() as tasks:
                for node in nodes:
                    tasks.start_soon(node.drain)
        for node in nodes:
            node.stop()
        for node in nodes:
            await node.gone()

    async def wait_ready(self, count: int | None = None) -> None:
        """Wait until ``count`` nodes (all, when None) answer and can be read from.

        Has no bound of its own: put it into a cancel scope. Raises `ClusterClosed` when the cluster is left.
        """
        if count is not None and count > len(self._nodes):
            raise ConfigError(f"{count} nodes cannot be ready: there are {len(self._nodes)}")
        while self._ready < (len(self._nodes) if count is None else count):
            await self._dispatcher.change()

    # Looking in

    def events(self, *, buffer: int = 1024) -> AbstractAsyncContextManager[MemoryObjectReceiveStream[Event]]:
        """``async with cluster.events() as events: async for event in events: ...``

        A reader slower than its ``buffer`` loses events, which `Statistics.events_dropped` counts: the
        cluster never waits for it.
        """
        return self._dispatcher.tracker.events.subscribe(buffer)

    def statistics(self) -> Statistics:
        """A frozen snapshot of the counters."""
        dispatcher, tracker = self._dispatcher, self._dispatcher.tracker
        counters = tracker.counters
        return Statistics(
            **{name: getattr(counters, name) for name in counters.__slots__},
            events_dropped=tracker.events.dropped,
            queued=dispatcher.queued,
            in_flight=sum(node.in_flight for node in self._nodes.values()),
        )

    # Opening and closing

    @uninterrupted
    async def _serve(self) -> None:
        """Run every node, out of reach of the scopes around the cluster: the body is cancelled first, and
        the nodes outlive it, so that what it leaves behind can be cancelled on the servers."""
        with self._service:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._dispatcher.times.run)
                for node in tuple(self._nodes.values()):
                    tasks.start_soon(node.run)

    async def _until_ready(self) -> None:
        wanted, wait = self._options.min_ready, self._options.failover_timeout
        with anyio.move_on_after(wait) as scope:
            while self._ready < wanted:
                rejecting = sum(node.rejects for node in self._nodes.values())
                if len(self._nodes) - rejecting < wanted:
                    raise self._dispatcher.no_node("every node rejected the connection")
                await self._dispatcher.change()
        if scope.cancelled_caught:
            raise self._dispatcher.no_node(
                f"{self._ready} of {len(self._nodes)} nodes became ready within {wait:g} s"
                f" (min_ready={wanted})"
            )

    @property
    def _ready(self) -> int:
        return sum(node.ready for node in self._nodes.values())

    async def _drain(self) -> None:
        with anyio.move_on_after(self._options.close_timeout):
            await self._dispatcher.tracker.idle()

    async def _shut(self) -> None:
        try:
            with anyio.CancelScope(shield=True):
                self._dispatcher.closed = True
                for operation in tuple(self._dispatcher.tracker.open):
                    self._dispatcher.give_up(operation, "cancelled")
                await self._dismiss(tuple(self._nodes.values()))
        finally:
            self._dispatcher.fail_all()
            self._dispatcher.tracker.events.close()
            self._tasks = None
            self._service.cancel()
