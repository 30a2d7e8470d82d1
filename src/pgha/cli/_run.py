"""What the commands share: the loop that each runs in, how a signal ends it, and the servers it starts."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import anyio

from pgha import chaos
from pgha.chaos._topologies.nodes import Progress, unheard
from pgha.cli._output import OutputClosed, first_of, output_closed


def ending(loop: str, body: Callable[[], Awaitable[int]], name: str = "demo") -> int:
    """Run `body` in a loop of its own; its exit code, or the one for what ended it: a signal, a reader of the
    output that left, or servers that did not start, which is told in a line. `name`: the command's.
    """
    code = 1
    try:
        code = anyio.run(_until_signalled, body, backend=loop)
    except* KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except* OutputClosed as closed:
        code = output_closed(closed, name)
    except* chaos.ChaosError as group:
        sys.stderr.write(f"pgha {name}: {' '.join(str(first_of(group)).split())}\n")
    return code


async def _until_signalled(body: Callable[[], Awaitable[int]]) -> int:
    """The exit code of `body`, or, when a signal ends it, 128 and the signal's number.

    The signal is an ordinary cancellation: a KeyboardInterrupt would come up in whatever task runs. Further
    signals change nothing: an impatient second Ctrl-C must not keep the servers from being removed, which is
    bounded in time.
    """
    code = 1
    # What a terminal ends its programs by. `nohup` has them ignored.
    more = [one for one in (signal.SIGHUP, signal.SIGQUIT) if signal.getsignal(one) != signal.SIG_IGN]

    async def listen(signals: AsyncIterable[signal.Signals], work: anyio.CancelScope) -> None:
        nonlocal code
        async for number in signals:
            code = 128 + number
            work.cancel()

    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, *more) as signals:
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as work:
                tasks.start_soon(listen, signals, work)
                code = await body()
            tasks.cancel_scope.cancel()
    return code


@asynccontextmanager
async def servers(
    count: int, first_port: int | None, progress: Progress = unheard
) -> AsyncGenerator[chaos.Masters]:
    """Start `count` masters, on the ports from `first_port` on; the error of a taken port says what to do."""
    ports = None if first_port is None else range(first_port, first_port + count)
    async with AsyncExitStack() as stack:
        try:
            masters = chaos.masters(count, ports=ports, progress=progress)
            nodes = await stack.enter_async_context(masters)
        except chaos.ChaosError as error:
            if first_port is None or not str(error).endswith("is taken"):
                raise
            raise chaos.ChaosError(f"{error}: choose another --port, or none for any free ones") from None
        yield nodes
