"""The face for threads: what `pgha.Cluster` has, each call waiting for its answer."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Generic, Literal, final, overload
from uuid import UUID

import anyio
from psycopg.adapt import AdaptersMap
from psycopg.rows import BaseRowFactory, TupleRow, tuple_row
from typing_extensions import TypeVar

from pgha._cluster.cluster import Cluster as AsyncCluster
from pgha._cluster.opening import open_cluster as open_async_cluster
from pgha._errors import CommitInDoubt, ConfigError, QueueFull
from pgha._operation.request_maker import DEFAULT, BatchItem, OnSend, RequestMaker, Seconds
from pgha._options import LedgerMode, OnConnect, Tuning, seconds
from pgha._options import Node as NodeArgument
from pgha._rows.result import Result
from pgha._types import NodeStatus, Outcome, ReadRoute, Statistics, WriteRoute, nearest
from pgha._wire.compiler import AnyParams, AnyQuery, Compiler
from pgha.blocking._events import Events
from pgha.blocking._group import Group
from pgha.blocking._host import Host
from pgha.blocking._ledger import Ledger
from pgha.blocking._operation import Operation

R = TypeVar("R")
Row = TypeVar("Row", default=TupleRow)


@final
class Cluster(Generic[Row]):
    """Live connections to every node, for any number of threads; see `open_cluster`.

    What is the same as in `pgha.Cluster` is described there. An interrupt (Ctrl-C) of a call cancels its
    operation, on the server too, and comes out at once; the cluster stays usable.
    """

    def __init__(self, host: Host, cluster: AsyncCluster[Row]) -> None:
        self._host = host
        self._cluster = cluster
        self._most = cluster._options.max_queued
        self._makers: list[RequestMaker] = []

    def _new_maker(self) -> RequestMaker:
        cluster = self._cluster
        return RequestMaker(cluster._options, Compiler(cluster.adapters), cluster._nodes.__contains__)

    def _make(self, make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Compile in the calling thread.

        There its errors are raised at once, what it gave may be changed once it is submitted, and the loop is
        spared the work. A psycopg transformer serves one thread at a time, so each has one for the moment.
        """
        makers = self._makers
        try:
            maker = makers.pop()
        except IndexError:
            maker = self._new_maker()
        try:
            return make(maker, *arguments, **options)
        finally:
            makers.append(maker)

    @property
    def adapters(self) -> AdaptersMap:
        """This cluster's own psycopg adapters: register dumpers and loaders here, before the first use."""
        return self._cluster.adapters

    @property
    def connection(self) -> None:
        """None. With `adapters` it makes a cluster one of psycopg's adaptation contexts, as in
        ``register_composite(info, cluster)``."""
        return None

    # Reads

    @overload
    def fetch(
        self, query: AnyQuery, params: AnyParams | None = None, *, route: ReadRoute = ...,
        timeout: Seconds = ..., statement_timeout: Seconds = ..., row_factory: None = None,
        on_send: OnSend | None = None,
    ) -> Result[Row]: ...  # fmt: skip
    @overload
    def fetch(
        self, query: AnyQuery, params: AnyParams | None = None, *, route: ReadRoute = ...,
        timeout: Seconds = ..., statement_timeout: Seconds = ..., row_factory: BaseRowFactory[R],
        on_send: OnSend | None = None,
    ) -> Result[R]: ...  # fmt: skip
    def fetch(
        self, query: AnyQuery, params: AnyParams | None = None, *, route: ReadRoute = nearest(),
        timeout: Seconds = DEFAULT, statement_timeout: Seconds = DEFAULT, row_factory: Any = None,
        on_send: OnSend | None = None,
    ) -> Result[Any]:  # fmt: skip
        """Run a read-only operation, and run it again elsewhere when its node fails: `pgha.Cluster.fetch`.

        ``timeout`` counts from the call.
        """
        result: Result[Any] = self._host.call(
            self._make(
                RequestMaker.single, query, params, read=True, route=route, timeout=timeout,
                statement_timeout=statement_timeout, row_factory=row_factory, on_send=on_send,
            )
        )  # fmt: skip
        return result

    @overload
    def fetch_one(
        self, query: AnyQuery, params: AnyParams | None = None, *, route: ReadRoute = ...,
        timeout: Seconds = ..., statement_timeout: Seconds = ..., row_factory: None = None,
        on_send: OnSend | None = None,
    ) -> Row | None: ...  # fmt: skip
    @overload
    def fetch_one(
        self, query: AnyQuery, params: AnyParams | None = None, *, route: ReadRoute = ...,
        timeout: Seconds = ..., statement_timeout: Seconds = ..., row_factory: BaseRowFactory[R],
        on_send: OnSend | None = None,
    ) -> R | None: ...  # fmt: skip
    def fetch_one(
        self, query: AnyQuery, params: AnyParams | None = None, *, row_factory: Any = None, **options: Any
    ) -> Any:
        """The first row of `fetch`, or None when there is none."""
        result = self.fetch(query, params, row_factory=row_factory, **options)
        return result[0] if result else None

    def fetch_value(
        self, query: AnyQuery, params: AnyParams | None = None, *, route: ReadRoute = nearest(),
        timeout: Seconds = DEFAULT, statement_timeout: Seconds = DEFAULT, on_send: OnSend | None = None,
    ) -> Any:  # fmt: skip
        """The first column of the first row of `fetch`, or None when there is no row."""
        result = self.fetch(
            query, params, route=route, timeout=timeout, statement_timeout=statement_timeout,
            row_factory=tuple_row, on_send=on_send,
        )  # fmt: skip
        return result[0][0] if result else None

    # Writes

    @overload
    def execute(
        self, query: AnyQuery, params: AnyParams | None = None, *, idempotent: bool = False,
        idempotency_key: UUID | None = None, route: WriteRoute = ..., timeout: Seconds = ...,
        statement_timeout: Seconds = ..., row_factory: None = None, on_send: OnSend | None = None,
    ) -> Result[Row]: ...  # fmt: skip
    @overload
    def execute(
        self, query: AnyQuery, params: AnyParams | None = None, *, idempotent: bool = False,
        idempotency_key: UUID | None = None, route: WriteRoute = ..., timeout: Seconds = ...,
        statement_timeout: Seconds = ..., row_factory: BaseRowFactory[R], on_send: OnSend | None = None,
    ) -> Result[R]: ...  # fmt: skip
    def execute(
        self, query: AnyQuery, params: AnyParams | None = None, *, idempotent: bool = False,
        idempotency_key: UUID | None = None, route: WriteRoute = nearest(), timeout: Seconds = DEFAULT,
        statement_timeout: Seconds = DEFAULT, row_factory: Any = None, on_send: OnSend | None = None,
    ) -> Result[Any]:  # fmt: skip
        """Run anything that may write, as a transaction of its own: `pgha.Cluster.execute`.

        After an interrupt, what became of it is told by a `pgha.OperationResolved` event.
        """
        result: Result[Any] = self._host.call(
            self._make(
                RequestMaker.single, query, params, read=False, idempotent=idempotent, route=route,
                timeout=timeout, statement_timeout=statement_timeout, row_factory=row_factory,
                on_send=on_send, idempotency_key=idempotency_key,
            )
        )  # fmt: skip
        return result

    def execute_batch(
        self, statements: Sequence[BatchItem], *, idempotent: bool = False,
        idempotency_key: UUID | None = None, route: WriteRoute = nearest(), timeout: Seconds = DEFAULT,
        statement_timeout: Seconds = DEFAULT, row_factory: Any = None, on_send: OnSend | None = None,
    ) -> list[Result[Any]]:  # fmt: skip
        """Run several statements as one transaction, in one round trip: `pgha.Cluster.execute_batch`."""
        results: list[Result[Any]] = self._host.call(
            self._make(
                RequestMaker.batch, statements, idempotent=idempotent, route=route, timeout=timeout,
                statement_timeout=statement_timeout, row_factory=row_factory, on_send=on_send,
                idempotency_key=idempotency_key,
            )
        )  # fmt: skip
        return results

    # Operations

    def submit(
        self, query: AnyQuery, params: AnyParams | None = None, *, read: bool = False,
        idempotent: bool = False, idempotency_key: UUID | None = None,
        route: ReadRoute | WriteRoute = nearest(), timeout: Seconds = DEFAULT,
        statement_timeout: Seconds = DEFAULT, row_factory: Any = None, on_send: OnSend | None = None,
    ) -> Operation[Result[Any]]:  # fmt: skip
        """Start an operation and return at once; it belongs to the cluster, and goes on by itself.

        With ``read=True`` it is what `fetch` does, else what `execute` does. Never waits, so it may be called
        in the cluster's own thread. Bad arguments, and `QueueFull` when ``max_queued`` operations wait
        already, are raised here; what else goes wrong, `ClusterClosed` too, is the operation's outcome.
        """
        request = self._make(
            RequestMaker.single, query, params, read=read, idempotent=idempotent, route=route,
            timeout=timeout, statement_timeout=statement_timeout, row_factory=row_factory, on_send=on_send,
            idempotency_key=idempotency_key,
        )  # fmt: skip
        if self._host.waiting >= self._most:
            raise QueueFull(f"{self._host.waiting} operations are waiting already (max_queued)")
        operation: Operation[Any] = Operation(self._host, request)
        operation.start()
        return operation

    def group(self) -> AbstractContextManager[Group]:
        """A scope of operations: ``g.submit`` starts them, leaving waits for all.

        Failures that nobody retrieved come out as an ExceptionGroup. When the body raises, or the wait is
        interrupted, what is not done is cancelled, and that exception comes out as itself.
        """
        return Group.opened(self._host, self.submit)

    # Keys

    @property
    def ledger(self) -> Ledger:
        """The table that makes keyed writes exactly once: to install, look at, prune and remove it."""
        return Ledger(self._host, self._cluster)

    def resolve(self, error: CommitInDoubt, timeout: float | None = None) -> Outcome:
        """Learn what became of a write that ended with ``error``: `pgha.CommitInDoubt.resolve`.

        At most ``timeout`` seconds (None: no limit), then ``in doubt``, and it may be called again. An
        interrupt changes nothing. Never raises for what servers do; `pgha.ClusterClosed` once the cluster is
        left, `pgha.ConfigError` for an error of another cluster, whose own is to be asked.
        """
        if not isinstance(error, CommitInDoubt):
            raise ConfigError(f"resolve() takes a CommitInDoubt, not {error!r}")
        if timeout is not None:
            seconds("timeout", timeout)
        return self._host.run(partial(self._resolve, error, timeout))

    async def _resolve(self, error: CommitInDoubt, timeout: float | None) -> Outcome:
        # From another process it comes without what could be asked, and is nobody's.
        if error._resolve is not None and not self._host.doubted_here(error):
            raise ConfigError("this CommitInDoubt is of another cluster: ask the one that raised it")
        return await error.resolve(timeout)

    # Nodes

    @property
    def nodes(self) -> Mapping[str, NodeStatus]:
        """Every node by name, as it is at this moment."""
        return self._host.ask(lambda: self._cluster.nodes)

    def add_node(self, node: str | NodeArgument) -> None:
        """Begin to use one more node; it is used as soon as it answers, which is not waited for."""
        self._host.ask(lambda: self._cluster.add_node(node))

    def remove_node(self, name: str, *, timeout: float = 5.0) -> None:
        """Stop using a node: nothing new is sent, and what is in flight may end within ``timeout`` seconds.

        When interrupted, the node is dropped at once.
        """
        self._host.run(partial(self._cluster.remove_node, name, timeout=timeout))

    def wait_ready(self, count: int | None = None, timeout: float | None = None) -> None:
        """Wait until ``count`` nodes (all, when None) answer and can be read from.

        At most ``timeout`` seconds: then `NoNodeAvailable` says which do not, and why.
        """
        if timeout is not None:
            seconds("timeout", timeout)
        self._host.run(partial(self._wait_ready, count, timeout))

    async def _wait_ready(self, count: int | None, timeout: float | None) -> None:
        with anyio.move_on_after(timeout) as scope:
            await self._cluster.wait_ready(count)
        if scope.cancelled_caught:
            wanted = len(self._cluster._nodes) if count is None else count
            raise self._cluster._dispatcher.no_node(f"{wanted} nodes were to be ready within {timeout:g} s")

    # Looking in

    @contextmanager
    def events(self, *, buffer: int = 1024) -> Generator[Events, None, None]:
        """``with cluster.events() as events: for event in events: ...``

        A reader slower than its ``buffer`` loses events, which `pgha.Statistics.events_dropped` counts.
        """
        events = Events(self._host, partial(self._cluster.events, buffer=buffer))
        try:
            yield events.opened()
        finally:
            events.close()

    def statistics(self) -> Statistics:
        """A frozen snapshot of the counters."""
        return self._host.ask(self._cluster.statistics)


@contextmanager
def open_cluster(
    *nodes: str | NodeArgument,
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
    backend: Literal["asyncio", "trio"] = "asyncio",
    backend_options: dict[str, Any] | None = None,
    _tuning: Tuning | None = None,
) -> Generator[Cluster[Row], None, None]:
    """Open a cluster of nodes: ``with pgha.blocking.open_cluster("host=db1", "host=db2") as cluster``.

    Everything is as in `pgha.open_cluster`, the errors on entering included; ``cluster`` may be handed to any
    thread. Once the body has ended, new calls of other threads raise `pgha.ClusterClosed`, and operations
    that were started may end for ``close_timeout`` seconds; an exceptional exit cancels them. An interrupt
    (Ctrl-C) while it enters or drains cancels, and comes out within a second or so. All of them leave no
    thread, socket or backend.

    Args:
        nodes: conninfo strings, URIs or `pgha.Node`; a multi-host URI is several nodes.
        read_connections: as in `pgha.open_cluster`, like all that is not listed here.
        max_queued: operations that may wait; then ``execute`` waits and ``submit`` raises `pgha.QueueFull`.
        on_connect: as there; a callable is an async one, and runs in the cluster's thread.
        backend: the event loop of the cluster's thread, ``asyncio`` or ``trio``.
        backend_options: passed on to `anyio.run`.
    """
    opening = partial(
        open_async_cluster, *nodes, read_connections=read_connections, min_ready=min_ready,
        connect_timeout=connect_timeout,
        failover_timeout=failover_timeout, timeout=timeout, statement_timeout=statement_timeout,
        ping_interval=ping_interval, ping_timeout=ping_timeout, max_queued=max_queued,
        close_timeout=close_timeout, row_factory=row_factory, prepare_threshold=prepare_threshold,
        on_connect=on_connect, application_name=application_name, ledger=ledger, _tuning=_tuning,
    )  # fmt: skip
    host = Host(opening, backend, backend_options)
    error: BaseException | None = None
    try:
        try:
            yield Cluster(host, host.open())
        except BaseException as raised:
            error = raised
            raise
    finally:
        # Reached also by an interrupt right behind the body.
        host.close(error)
        del error
