"""Nodes that live as long as their scope."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from _pgha_pytest._options import topology, unusable

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

    from pgha.chaos import Nodes


class Shelf:
    """A store of nodes, each set started once; `stack` ends all of them."""

    def __init__(self, portal: BlockingPortal, stack: ExitStack) -> None:
        self._portal, self._stack = portal, stack
        self._kept: list[tuple[dict[str, Any], Nodes]] = []

    def nodes(self, options: dict[str, Any]) -> Nodes:
        """Return the running nodes with these options.

        The test fails, with one message, if they cannot be started.
        """
        from pgha.chaos import ChaosError

        for known, nodes in self._kept:
            if known == options:
                return nodes
        try:
            started = self._stack.enter_context(self._portal.wrap_async_context_manager(topology(options)))
        except ChaosError as error:
            raise unusable(error) from None
        self._kept.append((options, started))
        return started

    def mend(self, nodes: Nodes) -> None:
        """Let all of the nodes run, for the next test.

        If that fails, the next test gets new ones.
        """
        from pgha.chaos import ChaosError

        try:
            self._portal.call(_mended, nodes)
        except ChaosError as error:
            self._kept = [(options, others) for options, others in self._kept if others is not nodes]
            raise unusable(error) from None


async def _mended(nodes: Nodes) -> None:
    from pgha.chaos import Injector

    for node in nodes:
        if node.running:
            await node.thaw()  # always, because `frozen` does not report single frozen backends
    await Injector(nodes).heal()
