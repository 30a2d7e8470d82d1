"""The function that most commands share: run an event loop until a signal."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterable, Awaitable, Callable

import anyio

from pgha.cli._output import OutputClosed, first_of, output_closed


def ending(loop: str, body: Callable[[], Awaitable[int]], name: str, *reported: type[Exception]) -> int:
    """Run `body` in a new event loop, and return an exit code.

    The code is the one that `body` returns, or tells what ended `body`: a signal, a closed output, or an
    error of the classes `reported`. Such an error is printed in one line, as an error of the command `name`.
    """
    code = 1
    try:
        code = anyio.run(_until_signalled, body, backend=loop)
    except* KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except* OutputClosed as closed:
        code = output_closed(closed, name)
    except* reported as group:
        sys.stderr.write(f"pgha {name}: {' '.join(str(first_of(group)).split())}\n")
    return code


async def _until_signalled(body: Callable[[], Awaitable[int]]) -> int:
    """Return the exit code of `body`, or 128 plus the signal's number if a signal ends `body`.

    A signal becomes an ordinary cancellation, since a KeyboardInterrupt would be raised in an arbitrary task.
    Further signals are ignored: an impatient second Ctrl-C must not stop the removal of the servers, which
    takes a bounded time.
    """
    code = 1
    # A terminal sends these signals to end its programs. `nohup` makes programs ignore them.
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
