"""The servers of `pgha demo`, with or without a workload."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

from pgha import chaos
from pgha.chaos._topologies.nodes import Progress, unheard


@asynccontextmanager
async def servers(
    count: int, first_port: int | None, progress: Progress = unheard
) -> AsyncGenerator[chaos.Masters]:
    """Start `count` masters, on the ports from `first_port` on.

    If a port is taken, the error message says what to do.
    """
    ports = None if first_port is None else range(first_port, first_port + count)
    async with AsyncExitStack() as stack:
        try:
            masters = chaos.masters(count, ports=ports, progress=progress)
            nodes = await stack.enter_async_context(masters)
        except chaos.ChaosError as error:
            if first_port is None or not str(error).endswith("is taken"):
                raise
            raise chaos.ChaosError(f"{error}: choose another --port, or omit it to use free ports") from None
        yield nodes
