"""The cluster's side of `pgha._ledger.admin`: run its operations on one node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import anyio
from anyio.lowlevel import checkpoint_if_cancelled
from psycopg.rows import tuple_row

from pgha._dispatch.dispatcher import Dispatcher
from pgha._node.node import ManagedNode
from pgha._operation.operation import Operation, Request
from pgha._operation.request_maker import DEFAULT, BatchItem, RequestMaker
from pgha._options import Options
from pgha._rows.result import Result
from pgha._types import NodeStatus, Pin

_TIMEOUT = 60.0
"""Seconds per read and per transaction."""


@final
class LedgerOperations:
    """Reads and transactions of the ledger's administration, on one node each, without a key."""

    def __init__(
        self, dispatcher: Dispatcher, maker: RequestMaker, nodes: Mapping[str, ManagedNode], options: Options,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._dispatcher = dispatcher
        self._maker = maker
        self._nodes = nodes
        self._options = options
        self._clock = clock

    @property
    def nodes(self) -> Mapping[str, NodeStatus]:
        return {name: node.status() for name, node in self._nodes.items()}

    async def seen(self) -> None:
        with anyio.move_on_after(self._options.connect_timeout):
            while any(node.state == "connecting" for node in self.nodes.values()):
                await self._dispatcher.change()

    async def ask(self, node: str, query: str, params: Sequence[Any] = ()) -> Result[Any]:
        request = self._maker.single(
            query, params, read=True, route=Pin(node), timeout=_TIMEOUT, statement_timeout=DEFAULT,
            row_factory=tuple_row, on_send=None,
        )  # fmt: skip
        result: Result[Any] = await self._done(request)
        return result

    async def run(self, node: str, statements: Sequence[BatchItem]) -> list[Result[Any]]:
        request = self._maker.batch(
            statements, idempotent=True, route=Pin(node), timeout=_TIMEOUT, statement_timeout=DEFAULT,
            row_factory=tuple_row, on_send=None,
        )  # fmt: skip
        request.keyed = None
        results: list[Result[Any]] = await self._done(request)
        return results

    async def _done(self, request: Request) -> Any:
        await checkpoint_if_cancelled()
        operation: Operation[Any] = Operation(self._dispatcher, request, self._clock())
        self._dispatcher.start(operation)
        return await operation

    def wall(self) -> float:
        return self._options.sources.wall()

    def system_of(self, node: str) -> int | None:
        found = self._nodes.get(node)
        return None if found is None else found.server.system

    def ledger_changed(self, node: str) -> None:
        if (found := self._nodes.get(node)) is not None:
            found.look_at_ledger()
