"""A scope of operations, for threads."""

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
    """What ``with cluster.group() as g`` gives. Any thread may `submit` to it."""

    def __init__(self, host: Host, submit: Submit) -> None:
        self._host = host
        self._submit = submit
        self._running: dict[Operation[Any], None] = {}
        self._failed: list[Operation[Any]] = []

    @classmethod
    @contextmanager
    def opened(cls, host: Host, submit: Submit) -> Generator[Group, None, None]:
        """For `Cluster.group`."""
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
        """As `Cluster.submit`; the operation is waited for when the group is left."""
        operation = self._submit(
            query, params, read=read, idempotent=idempotent,
            idempotency_key=idempotency_key, route=route,
            timeout=timeout, statement_timeout=statement_timeout, row_factory=row_factory, on_send=on_send,
        )  # fmt: skip
        self._running[operation] = None
        operation.finished.then(partial(self._done, operation))
        return operation

    def _done(self, operation: Operation[Any]) -> None:
        """Once is enough: an interrupt may have kept `submit` from asking to be told."""
        if self._running.pop(operation, self) is None and operation.failed:
            self._failed.append(operation)

    def _wait(self) -> None:
        self._host.check_waitable()
        while self._running:
            for operation in tuple(self._running):
                operation.finished.wait()
                self._done(operation)

    def _cancel(self) -> None:
        """The body raised, or the wait was interrupted: that is what comes out, and nothing beside it."""
        for operation in tuple(self._running):
            operation.cancel()
        for operation in tuple(self._failed):
            operation.unseen()

    def _raise(self) -> None:
        errors = [error for error in (one.unseen() for one in self._failed) if error is not None]
        if errors:
            # An ExceptionGroup, unless a row factory raised more than an Exception.
            raise BaseExceptionGroup("operations of the group failed", errors)
