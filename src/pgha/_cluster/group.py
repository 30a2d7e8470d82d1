"""`Group`: a scope of operations."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Protocol, final
from uuid import UUID

from pgha._operation.operation import Operation
from pgha._operation.request_maker import DEFAULT, OnSend, Seconds
from pgha._rows.result import Result
from pgha._types import ReadRoute, WriteRoute, nearest
from pgha._wire.compiler import AnyParams, AnyQuery


class Submit(Protocol):
    """The signature of `Cluster.submit`."""

    def __call__(
        self, query: AnyQuery, params: AnyParams | None = None, *, read: bool = False,
        idempotent: bool = False, idempotency_key: UUID | None = None, route: ReadRoute | WriteRoute = ...,
        timeout: Seconds = ..., statement_timeout: Seconds = ..., row_factory: Any = None,
        on_send: OnSend | None = None,
    ) -> Operation[Result[Any]]: ...  # fmt: skip


@final
class Group:
    """A scope of operations, made by `Cluster.group`.

    Example::

        async with cluster.group() as g:
            for i in range(1000):
                g.submit("INSERT INTO log VALUES (%s)", [i])
    """

    def __init__(self, submit: Submit) -> None:
        self._submit = submit
        self._running: dict[Operation[Any], None] = {}
        self._failed: list[Operation[Any]] = []

    @classmethod
    @asynccontextmanager
    async def opened(cls, submit: Submit) -> AsyncGenerator[Group, None]:
        """Internal: open a group, for `Cluster.group`; leaving by cancellation cancels its operations."""
        group = cls(submit)
        try:
            yield group
            await group._wait()
        except BaseException:
            for operation in tuple(group._running):
                operation.cancel()
            for operation in group._failed:
                operation.retrieve()
            raise
        group._raise()

    def submit(
        self, query: AnyQuery, params: AnyParams | None = None, *, read: bool = False,
        idempotent: bool = False, idempotency_key: UUID | None = None,
        route: ReadRoute | WriteRoute = nearest(), timeout: Seconds = DEFAULT,
        statement_timeout: Seconds = DEFAULT, row_factory: Any = None, on_send: OnSend | None = None,
    ) -> Operation[Result[Any]]:  # fmt: skip
        """Start an operation as `Cluster.submit` does; leaving the group awaits it.

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
            The operation. An error retrieved by awaiting the operation is not raised again by the group.

        Raises:
            psycopg.Error: As for `Cluster.submit`.
        """
        operation = self._submit(
            query, params, read=read, idempotent=idempotent, idempotency_key=idempotency_key, route=route,
            timeout=timeout, statement_timeout=statement_timeout, row_factory=row_factory, on_send=on_send,
        )  # fmt: skip
        self._running[operation] = None
        operation.when_done(self._done)
        return operation

    def _done(self, operation: Operation[Any]) -> None:
        del self._running[operation]
        if operation.failure is not None:
            self._failed.append(operation)

    async def _wait(self) -> None:
        while self._running:
            await next(iter(self._running)).wait()

    def _raise(self) -> None:
        errors: list[BaseException] = []
        for operation in self._failed:
            if not operation.retrieved and operation.failure is not None:
                operation.retrieve()
                errors.append(operation.failure)
        if errors:
            # An ExceptionGroup, unless a row factory raised an exception that is not an Exception.
            raise BaseExceptionGroup("operations of the group failed", errors)
