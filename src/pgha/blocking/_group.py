"""`Group`: a scope of operations, for threads."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, final
from uuid import UUID

from pgha._operation.request_maker import DEFAULT, OnSend, Seconds
from pgha._rows.result import Result
from pgha._types import ReadRoute, WriteRoute, nearest
from pgha._wire.compiler import AnyParams, AnyQuery
from pgha.blocking._host import Host
from pgha.blocking._operation import Operation

Submit = Callable[..., Operation[Result[Any]]]


@final
class Group:
    """A scope of operations, made by `Cluster.group`. Any thread may `submit` to it.

    Example::

        with cluster.group() as g:
            for i in range(1000):
                g.submit("INSERT INTO log VALUES (%s)", [i])
    """

    def __init__(self, host: Host, submit: Submit) -> None:
        self._host = host
        self._submit = submit
        self._running: dict[Operation[Any], None] = {}
        self._failed: list[Operation[Any]] = []

    @classmethod
    @contextmanager
    def opened(cls, host: Host, submit: Submit) -> Generator[Group, None, None]:
        """Internal: open a group, for `Cluster.group`; an interrupt cancels its operations."""
        group = cls(host, submit)
        try:
            yield group
            group._wait()
        except BaseException:
            group._cancel()
            raise
        group._raise()

    def submit(
        self, query: AnyQuery, params: AnyParams | None = None, *, read: bool = False,
        idempotent: bool = False, idempotency_key: UUID | None = None,
        route: ReadRoute | WriteRoute = nearest(), timeout: Seconds = DEFAULT,
        statement_timeout: Seconds = DEFAULT, row_factory: Any = None, on_send: OnSend | None = None,
    ) -> Operation[Result[Any]]:  # fmt: skip
        """Start an operation as `Cluster.submit` does; leaving the group waits for it.

        The call does not wait.

        Args:
            query: SQL, as for `Cluster.fetch`.
            params: Parameters, as for `Cluster.fetch`.
            read: Whether the operation is a read. The default is a write.
            idempotent: As for `Cluster.execute`.
            idempotency_key: As for `Cluster.execute`.
            route: As for `Cluster.submit`.
            timeout: Seconds, as for `Cluster.submit`.
            statement_timeout: Seconds, as for `Cluster.submit`.
            row_factory: As for `Cluster.submit`.
            on_send: As for `Cluster.submit`.

        Returns:
            The operation, a future. An error retrieved from it is not raised again by the group.

        Raises:
            psycopg.Error: As for `Cluster.submit`.
        """
        operation = self._submit(
            query, params, read=read, idempotent=idempotent,
            idempotency_key=idempotency_key, route=route,
            timeout=timeout, statement_timeout=statement_timeout, row_factory=row_factory, on_send=on_send,
        )  # fmt: skip
        self._running[operation] = None
        operation.finished.then(partial(self._done, operation))
        return operation

    def _done(self, operation: Operation[Any]) -> None:
        """Record the end once: an interrupt may have kept `submit` from registering this callback."""
        if self._running.pop(operation, self) is None and operation.failed:
            self._failed.append(operation)

    def _wait(self) -> None:
        self._host.check_waitable()
        while self._running:
            for operation in tuple(self._running):
                operation.finished.wait()
                self._done(operation)

    def _cancel(self) -> None:
        """Cancel the running operations, and ignore failures: only the body's exception is raised."""
        for operation in tuple(self._running):
            operation.cancel()
        for operation in tuple(self._failed):
            operation.unseen()

    def _raise(self) -> None:
        errors = [error for error in (one.unseen() for one in self._failed) if error is not None]
        if errors:
            # An ExceptionGroup, unless a row factory raised an exception that is not an Exception.
            raise BaseExceptionGroup("operations of the group failed", errors)
