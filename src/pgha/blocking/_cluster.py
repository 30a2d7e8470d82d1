"""`Cluster` and `open_cluster` for threads: the methods of `pgha.Cluster`, each waiting for its answer."""

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
    """An open cluster for any number of threads; see `open_cluster`.

    The methods behave as those of `pgha.Cluster`. An interrupt (KeyboardInterrupt) of a call is raised at
    once and cancels the operation, on the server too; the cluster stays usable.

    Example::

        with pgha.blocking.open_cluster("host=db1", "host=db2") as cluster:
            rows = cluster.fetch("SELECT name FROM item WHERE id < %s", [10])
            cluster.execute("UPDATE item SET price = %s WHERE id = %s", [9, 1])
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
        """Compile the operation in the calling thread.

        Errors are raised there at once, arguments may be changed after submitting, and the loop is spared the
        work. A psycopg transformer serves one thread at a time, so each thread borrows one.
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
        """The cluster's own psycopg adapters. Register dumpers and loaders here, before the first use."""
        return self._cluster.adapters

    @property
    def connection(self) -> None:
        """Always None, as psycopg's protocol for adaptation contexts requires.

        With `adapters`, this attribute makes a cluster an adaptation context, as in
        ``register_composite(info, cluster)``.
        """
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
        """Run a read-only statement; if its node fails, run the statement again on another node.

        Works as `pgha.Cluster.fetch`. An interrupt (KeyboardInterrupt) is raised at once and cancels the
        operation, on the server too.

        Args:
            query: SQL with psycopg's placeholders (``%s`` or ``%(name)s``), as text, bytes, `psycopg.sql`
                objects or a template string.
            params: Parameters, a sequence or a mapping; None if there are none.
            route: The node to use: `pgha.nearest` (the default), `pgha.primary`, `pgha.pin` or
                `pgha.fastest`.
            timeout: Seconds until the operation ends with `pgha.OperationTimeout`, counted from the call,
                waiting and retries included. None is no limit; the default is the cluster's ``timeout``.
            statement_timeout: PostgreSQL's statement_timeout in seconds (0.001 to 2147483), enforced by the
                server. None is no limit; the default is the cluster's ``statement_timeout``.
            row_factory: One of psycopg's row factories, such as ``psycopg.rows.dict_row``; None (the default)
                is the cluster's.
            on_send: Callable that receives a `pgha.SendInfo` each time the operation is about to be sent to a
                node. The callable runs in the cluster's thread and must be quick. An exception in the
                callable fails the operation before it is sent.

        Returns:
            The rows.

        Raises:
            pgha.NoNodeAvailable: No suitable node became available within ``failover_timeout`` seconds.
            pgha.OperationTimeout: ``timeout`` passed.
            pgha.ConfigError: An argument cannot be used, or the route names an unknown node.
            pgha.SessionRequired: The statement would change the shared session.
            psycopg.NotSupportedError: The statement may commit by itself (``CALL``, ``VACUUM``), so it is not
                a read.
            pgha.ClusterClosed: The cluster is closed.
            pgha.QueueFull: The queue was full until ``timeout`` passed.
            psycopg.OperationalError: The connection was lost, and the retries are used up.
            psycopg.Error: The server reported an SQL error, as psycopg's own class:
                `psycopg.errors.ReadOnlySqlTransaction` for a write, `psycopg.errors.QueryCanceled` when
                ``statement_timeout`` passed.
            WouldDeadlock: The call was made in the cluster's own thread.
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
        self, query: AnyQuery, params: AnyParams | None = None, *, route: ReadRoute = nearest(),
        timeout: Seconds = DEFAULT, statement_timeout: Seconds = DEFAULT, row_factory: Any = None,
        on_send: OnSend | None = None,
    ) -> Any:  # fmt: skip
        """Run `fetch` and return the first row; an interrupt works as for `fetch`.

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
        result = self.fetch(
            query, params, route=route, timeout=timeout, statement_timeout=statement_timeout,
            row_factory=row_factory, on_send=on_send,
        )  # fmt: skip
        return result[0] if result else None

    def fetch_value(
        self, query: AnyQuery, params: AnyParams | None = None, *, route: ReadRoute = nearest(),
        timeout: Seconds = DEFAULT, statement_timeout: Seconds = DEFAULT, on_send: OnSend | None = None,
    ) -> Any:  # fmt: skip
        """Run `fetch` and return the first column of the first row; an interrupt works as for `fetch`.

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
        """Run a statement that may write, as a transaction of its own; rows are returned too.

        Works as `pgha.Cluster.execute`. An interrupt (KeyboardInterrupt) is raised at once and cancels the
        operation, on the server too. A `pgha.OperationResolved` event then reports the outcome.

        Args:
            query: SQL with psycopg's placeholders (``%s`` or ``%(name)s``), as text, bytes, `psycopg.sql`
                objects or a template string.
            params: Parameters, a sequence or a mapping; None if there are none.
            idempotent: Whether the write may be applied more than once. If true, the write is retried on any
                node.
            idempotency_key: UUID that makes the write apply exactly once by means of the ledger
                (`Cluster.ledger`): `pgha.new_idempotency_key`, or a UUID of your own. None (the default) is
                no key, unless the cluster was opened with ``ledger="auto"``.
            route: The node to use: `pgha.nearest` (the default), `pgha.primary` or `pgha.pin`.
            timeout: Seconds until the operation is cancelled on the server, counted from the call, waiting
                and retries included. None is no limit; the default is the cluster's ``timeout``.
            statement_timeout: PostgreSQL's statement_timeout in seconds (0.001 to 2147483), enforced by the
                server. None is no limit; the default is the cluster's ``statement_timeout``.
            row_factory: One of psycopg's row factories, such as ``psycopg.rows.dict_row``; None (the default)
                is the cluster's.
            on_send: Callable that receives a `pgha.SendInfo` each time the operation is about to be sent to a
                node. The callable runs in the cluster's thread and must be quick. An exception in the
                callable fails the operation before it is sent.

        Returns:
            The rows and the row count.

        Raises:
            pgha.CommitInDoubt: Nothing proves whether the write was applied.
            pgha.NoNodeAvailable: No suitable node became available within ``failover_timeout`` seconds. The
                write was not applied.
            pgha.OperationTimeout: ``timeout`` passed, and the write certainly was not applied.
            pgha.IdempotencyKeyReused: The key was used for another write, or was resolved as not applied.
            pgha.LedgerError: A key was given, and the ledger cannot be used.
            pgha.ConfigError: An argument cannot be used, or the route names an unknown node.
            pgha.SessionRequired: The statement would change the shared session.
            pgha.ClusterClosed: The cluster is closed.
            pgha.QueueFull: The queue was full until ``timeout`` passed.
            psycopg.OperationalError: The connection was lost, the write was not applied, and the retries are
                used up.
            psycopg.Error: The server reported an SQL error, as psycopg's own class. The write was not applied
                (a ``CALL`` may have committed in parts).
            psycopg.NotSupportedError: The statement commits by itself (``VACUUM``, say), and cannot have a
                key or a ``statement_timeout`` of its own.
            WouldDeadlock: The call was made in the cluster's own thread.
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
        """Run several statements as one transaction, in one round trip.

        Works as `pgha.Cluster.execute_batch`. An interrupt works as for `execute`.

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
            pgha.ConfigError: ``statements`` is not a list of statements, or is empty.
        """
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
        """Start an operation and return at once.

        The operation belongs to the cluster and continues by itself. With ``read=True`` it behaves like
        `fetch`, otherwise like `execute`. The call never waits, so it may be made in the cluster's own
        thread. An interrupt does not cancel a submitted operation.

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
            The operation, a `concurrent.futures.Future`. All errors not listed below are its outcome,
            `pgha.ClusterClosed` included.

        Raises:
            pgha.ConfigError: An argument cannot be used, or the route names an unknown node.
            pgha.SessionRequired: The statement would change the shared session.
            pgha.QueueFull: ``max_queued`` operations are waiting already.
        """
        request = self._make(
            RequestMaker.single, query, params, read=read, idempotent=idempotent, route=route,
            timeout=timeout, statement_timeout=statement_timeout, row_factory=row_factory, on_send=on_send,
            idempotency_key=idempotency_key,
        )  # fmt: skip
        waiting = self._host.waiting(request)
        if waiting >= self._most:
            raise QueueFull(f"{waiting} operations are waiting already (max_queued): wait for some of them")
        operation: Operation[Any] = Operation(self._host, request)
        operation.start()
        return operation

    def group(self) -> AbstractContextManager[Group]:
        """Return a scope for operations: ``g.submit`` starts them, and leaving the scope waits for all.

        If the body raises, or an interrupt comes, the unfinished operations are cancelled, and that exception
        is raised unchanged.

        Returns:
            A context manager whose value is a `Group`.

        Raises:
            ExceptionGroup: On leaving: operations failed whose errors the body did not retrieve.
        """
        return Group.opened(self._host, self.submit)

    # Keys

    @property
    def ledger(self) -> Ledger:
        """The table of idempotency keys, to be installed, inspected, pruned and uninstalled."""
        return Ledger(self._host, self._cluster)

    def resolve(self, error: CommitInDoubt, timeout: float | None = None) -> Outcome:
        """Return the outcome of a write that ended with ``error``; see `pgha.CommitInDoubt.resolve`.

        Server failures never raise. An interrupt changes nothing: `resolve` may be called again.

        Args:
            error: The error, raised by this cluster.
            timeout: Seconds to wait; None (the default) is no limit.

        Returns:
            ``applied``, ``not applied`` or ``in doubt``.

        Raises:
            pgha.ClusterClosed: The cluster is closed.
            pgha.ConfigError: ``error`` is not a `pgha.CommitInDoubt`, or was raised by another cluster.
            WouldDeadlock: The call was made in the cluster's own thread.
        """
        if not isinstance(error, CommitInDoubt):
            raise ConfigError(f"resolve() takes a CommitInDoubt, not {error!r}")
        if timeout is not None:
            seconds("timeout", timeout)
        return self._host.run(partial(self._resolve, error, timeout))

    async def _resolve(self, error: CommitInDoubt, timeout: float | None) -> Outcome:
        # An unpickled error of another process belongs to no cluster: its outcome stays in doubt.
        if error._resolve is not None and not self._host.doubted_here(error):
            raise ConfigError("another cluster raised this CommitInDoubt: call resolve() of that cluster")
        return await error.resolve(timeout)

    # Nodes

    @property
    def nodes(self) -> Mapping[str, NodeStatus]:
        """Every node by name, with its status at this moment."""
        return self._host.ask(lambda: self._cluster.nodes)

    def add_node(self, node: str | NodeArgument) -> None:
        """Add a node to the cluster and return at once; the node is used as soon as it answers.

        Args:
            node: A conninfo string, a URI or a `pgha.Node`; a multi-host URI is several nodes.

        Raises:
            pgha.ConfigError: The node cannot be parsed, or its name is taken.
            pgha.ClusterClosed: The cluster is closed.
        """
        self._host.ask(lambda: self._cluster.add_node(node))

    def remove_node(self, name: str, *, timeout: float = 5.0) -> None:
        """Stop using a node: send nothing new, wait for operations in flight, then close its connections.

        Works as `pgha.Cluster.remove_node`. If the call is interrupted, the node is removed at once.

        Args:
            name: The node's name, a key of `Cluster.nodes`.
            timeout: Seconds that operations in flight may take; the default is 5.

        Raises:
            pgha.ConfigError: There is no node of that name.
            WouldDeadlock: The call was made in the cluster's own thread.
        """
        self._host.run(partial(self._cluster.remove_node, name, timeout=timeout))

    def wait_ready(self, count: int | None = None, timeout: float | None = None) -> None:
        """Wait until ``count`` nodes answer and can be read from.

        An interrupt changes nothing.

        Args:
            count: Number of nodes; None (the default) is all nodes.
            timeout: Seconds to wait; None (the default) is no limit.

        Raises:
            pgha.NoNodeAvailable: ``timeout`` passed. The error lists every node and its state.
            pgha.ConfigError: There are fewer nodes than ``count``.
            pgha.ClusterClosed: The cluster was closed.
            WouldDeadlock: The call was made in the cluster's own thread.
        """
        if timeout is not None:
            seconds("timeout", timeout)
        self._host.run(partial(self._wait_ready, count, timeout))

    async def _wait_ready(self, count: int | None, timeout: float | None) -> None:
        with anyio.move_on_after(timeout) as scope:
            await self._cluster.wait_ready(count)
        if scope.cancelled_caught:
            nodes = len(self._cluster._nodes)
            wanted = nodes if count is None else count
            raise self._cluster._dispatcher.no_node(
                f"{self._cluster._ready} of {nodes} nodes became ready within {timeout:g} s (count={wanted})"
            )

    # Events and statistics

    @contextmanager
    def events(self, *, buffer: int = 1024) -> Generator[Events, None, None]:
        """Subscribe to the cluster's events, in a ``with`` block.

        The cluster never waits for a subscriber: an event is dropped if the subscriber's buffer is full.
        `pgha.Statistics.events_dropped` counts dropped events. An interrupt ends the subscription with the
        ``with`` block.

        Args:
            buffer: Number of events kept for a slow subscriber; a negative number is no limit.

        Returns:
            A context manager whose value is an iterator, `Events`.

        Raises:
            pgha.ClusterClosed: The cluster is closed.
            WouldDeadlock: The call was made in the cluster's own thread.
        """
        events = Events(self._host, partial(self._cluster.events, buffer=buffer))
        try:
            yield events.opened()
        finally:
            events.close()

    def statistics(self) -> Statistics:
        """Return the counters and gauges of this moment.

        Returns:
            A frozen snapshot.
        """
        return self._host.ask(self._cluster.statistics)


@contextmanager
def open_cluster(
    *nodes: str | NodeArgument,
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
    backend: Literal["asyncio", "trio"] = "asyncio",
    backend_options: dict[str, Any] | None = None,
    _tuning: Tuning | None = None,
) -> Generator[Cluster[Row], None, None]:
    """Open a cluster for threads: ``with pgha.blocking.open_cluster("host=db1", "host=db2") as cluster``.

    Works as `pgha.open_cluster`, and raises the same errors on entering. Any thread may use ``cluster``.
    After the body has ended, new calls of other threads raise `pgha.ClusterClosed`. Started operations may
    take ``close_timeout`` seconds to end; an exception in the body cancels them. An interrupt
    (KeyboardInterrupt) while the cluster opens or closes cancels the operations, and is raised within about a
    second. None of these leaves a thread, socket or backend behind.

    Example::

        with pgha.blocking.open_cluster("host=db1", "host=db2") as cluster:
            cluster.execute("INSERT INTO item VALUES (1, %s)", ["tea"])
            print(cluster.fetch_value("SELECT count(*) FROM item"))

    Args:
        *nodes: Conninfo strings, URIs or `pgha.Node` objects; a multi-host URI is several nodes.
        read_connections: Read connections per node; the default is 2. Write connections are opened on demand.
            One more connection per node is used for health checks.
        min_ready: Number of nodes that must answer before the body runs; the default is 1. With 0 the body
            runs at once.
        connect_timeout: Seconds per connection attempt; the default is 10.
        failover_timeout: Seconds that an operation waits for a usable node before it raises
            `pgha.NoNodeAvailable`; the default is 60, since a failover manager needs its time (Patroni
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
            ``execute`` waits and ``submit`` raises `pgha.QueueFull`.
        close_timeout: Seconds that a clean exit waits for operations to end; the default is 5.
        row_factory: One of psycopg's row factories, used by every operation without its own; None (the
            default) is tuples.
        prepare_threshold: Number of uses on a connection after which a statement is prepared; the default is
            3, None never prepares.
        on_connect: SQL, a list of SQL, or an async callable, run on each new read or write connection, such
            as ``SET synchronous_commit = off``. The callable is asynchronous, runs in the cluster's thread
            and receives a `pgha.SetupConnection`. A ``LISTEN`` has no use: notifications are dropped.
            ``client_min_messages`` of write connections stays ``warning``.
        application_name: The connections' name in ``pg_stat_activity``; the default is ``pgha``. A conninfo's
            own application_name wins.
        ledger: ``"explicit"`` (the default) uses the ledger for writes with an ``idempotency_key`` only.
            ``"auto"`` assigns a key to every write without one, on nodes with an installed ledger. ``CALL``,
            ``DO`` and statements that commit by themselves get no automatic key.
        backend: The event loop of the cluster's thread: ``"asyncio"`` (the default) or ``"trio"``.
        backend_options: Options for `anyio.run`; None (the default) is none.

    Returns:
        A context manager whose value is a `Cluster`.

    Raises:
        pgha.ConfigError: An argument cannot be used.
        pgha.NoNodeAvailable: Fewer than ``min_ready`` nodes answered within ``failover_timeout`` seconds, or
            too many nodes rejected the connection.
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
        # Also runs after an interrupt immediately after the body.
        host.close(error)
        del error
