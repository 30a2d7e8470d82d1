"""A PostgreSQL server: start, stop, kill, freeze, thaw; and one of local processes."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, Self, TypeVar, final

import anyio
import anyio.to_thread
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from pgha.chaos._errors import ChaosError
from pgha.chaos._servers import probe, warden
from pgha.chaos._servers import sql as _sql
from pgha.chaos._servers.config import NodeOptions
from pgha.chaos._servers.protocol import NodeKind, StopMode
from pgha.chaos._servers.runner import LocalRunner, Place, Runner
from pgha.chaos._servers.server import PortTaken, Server

P = ParamSpec("P")
T = TypeVar("T")
_STOP_SIGNALS = {"fast": signal.SIGINT, "smart": signal.SIGTERM, "immediate": signal.SIGQUIT}
_POLL = 0.005
_PORT_TRIES = 5


async def blocking(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run what blocks shortly in a thread. It is not abandoned half-way: a cancellation waits for its end."""
    # Not the shared limiter: threads which wait for a frozen server must not delay thawing it.
    limiter = anyio.CapacityLimiter(1)
    return await anyio.to_thread.run_sync(lambda: function(*args, **kwargs), limiter=limiter)


class ServerNode:
    """What nodes of all kinds have in common: everything but what their processes run in."""

    def __init__(
        self, name: str, options: NodeOptions, port: int | None, runner: Callable[[Place], Runner]
    ) -> None:
        if not re.fullmatch(r"[A-Za-z]\w{0,30}", name, re.ASCII):
            raise ChaosError(
                f"{name!r} is no name for a node: a letter, then up to 30 letters, digits and '_'"
            )
        self._server = Server(name, options, port, runner)

    def __repr__(self) -> str:
        state = "frozen" if self.frozen else "running" if self.running else "down"
        return f"<{type(self).__name__} {self.name} {state}>"

    async def __aenter__(self) -> Self:
        try:
            await blocking(self._server.prepare)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Kill the server, frozen or not, and remove its folder. Cancellation cannot interrupt it; it is
        bounded in time (usually 50 ms, in a container 0.3 s; at most 30 s if somebody does not let go, then
        `ChaosError`).
        """
        with anyio.CancelScope(shield=True):
            await blocking(self._server.clear)

    @property
    def name(self) -> str:
        return self._server.name

    @property
    def kind(self) -> NodeKind:
        """What the server runs in: `local` processes or a `container`."""
        return self._server.runner.kind

    @property
    def dsn(self) -> str:
        """How to connect as superuser `postgres` to the database `postgres`; contains the password if there
        is one.
        """
        password = self._server.options.password
        more = {} if password is None else {"password": password}
        return make_conninfo(host="127.0.0.1", port=self.port, user="postgres", dbname="postgres", **more)

    @property
    def port(self) -> int:
        """The port of 127.0.0.1; it stays the same over restarts, and reserved while the server is down."""
        return self._server.port

    @property
    def pid(self) -> int | None:
        """The postmaster's process id on this machine, None when it is not running."""
        return self._server.pid

    @property
    def datadir(self) -> Path:
        return self._server.data

    @property
    def version(self) -> int:
        """PostgreSQL's major version."""
        return self._server.installation.version

    @property
    def bindir(self) -> Path:
        """The folder of the programs this node runs (`pg_basebackup`, `psql`, ...)."""
        return self._server.installation.bindir

    @property
    def system_identifier(self) -> int:
        """What IDENTIFY_SYSTEM and pg_control_system() say; different for all nodes ever made."""
        return self._server.identifier

    @property
    def running(self) -> bool:
        """Whether the postmaster lives; a frozen one does."""
        return self._server.pid is not None

    @property
    def frozen(self) -> bool:
        return self._server.frozen and self.running

    async def start(self, *, timeout: float = 60.0) -> None:
        """Start the server and wait until it accepts connections (0.1 s; after a crash its recovery comes
        first).

        `ChaosError` with the end of its log when it dies or takes longer than `timeout`. When cancelled, the
        server goes on starting. A port that another program took is replaced unless clients may know it: then
        `ChaosError`.
        """
        for tries in range(_PORT_TRIES):
            await blocking(self._server.launch)
            try:
                await self._until(self._server.look, timeout, "start")
            except PortTaken:
                if self._server.known or tries == _PORT_TRIES - 1:
                    raise
                await blocking(self._server.change_port)
            else:
                return

    async def stop(self, mode: StopMode = "fast", *, timeout: float = 60.0) -> None:
        """Shut down in an orderly way and wait for the end: `fast` breaks connections off, `smart` waits for
        clients to leave, `immediate` skips the checkpoint (recovery at the next start). Nothing happens if it
        is not running.

        `ChaosError` when it takes longer than `timeout`; then, and when cancelled, it goes on shutting down.
        """
        if self.frozen:
            raise ChaosError(f"{self.name} is frozen and would not hear it: thaw or kill it")
        await blocking(self._server.signal, _STOP_SIGNALS[mode])
        await self._until(lambda: not self.running, timeout, f"stop ({mode})")

    async def restart(self, mode: StopMode = "fast", *, timeout: float = 60.0) -> None:
        """`stop`, then `start`; each may take `timeout` seconds. Data and port stay."""
        await self.stop(mode, timeout=timeout)
        await self.start(timeout=timeout)

    async def kill(self) -> None:
        """SIGKILL the postmaster and all its children at once, frozen or not; returns when all are gone.

        Cancellation waits for that (milliseconds). What was committed is still there after `start`.
        """
        await blocking(self._server.kill)

    async def freeze(self) -> None:
        """Stop all processes where they are (SIGSTOP, in a container the freezer of cgroups); returns when
        all stand still. Connections stay open, but nothing answers.

        The kernel still accepts new connections, into the listening socket's queue.
        """
        await blocking(self._server.freeze)

    async def thaw(self) -> None:
        """Let all processes, single frozen backends too, go on with what they were doing."""
        await blocking(self._server.thaw)

    async def pause(self) -> None:
        """The same as `freeze`, in the words of container engines."""
        await self.freeze()

    async def unpause(self) -> None:
        """The same as `thaw`, in the words of container engines."""
        await self.thaw()

    async def kill_backend(self, pid: int) -> None:
        """SIGKILL one process of the server (of pg_stat_activity); returns when the postmaster has noticed.

        PostgreSQL then ends all other connections too and recovers; `wait_ready` waits for that.
        """
        process = await blocking(self._server.backend, pid)
        warden.send(process, signal.SIGKILL)
        gone = (None, "Z") if self.frozen else (None,)
        await self._until(lambda: warden.state(process) in gone, 10.0, f"reap {pid}")

    async def freeze_backend(self, pid: int) -> None:
        """SIGSTOP one process of the server (of pg_stat_activity) and wait until it stands."""
        process = await blocking(self._server.backend, pid)
        warden.send(process, signal.SIGSTOP)
        await self._until(lambda: warden.state(process) in ("T", "Z", None), 10.0, f"stop {pid}")

    async def thaw_backend(self, pid: int) -> None:
        """SIGCONT one process of the server (of pg_stat_activity)."""
        process = await blocking(self._server.backend, pid)
        warden.send(process, signal.SIGCONT)

    async def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until the server accepts a new connection; `ChaosError` when it is down or after `timeout`
        seconds.
        """
        with anyio.move_on_after(timeout):
            await self._until(self._server.look, timeout, "start")
            while not await probe.accepts(self.port):
                self._server.look()  # raises if it died meanwhile
                await anyio.sleep(_POLL)
            return
        raise ChaosError(f"{self!r} accepted no connection within {timeout} s")

    async def execute(self, sql: str, params: _sql.Params = None, *, timeout: float = 10.0) -> list[TupleRow]:
        """Run `sql` on a connection of its own, in autocommit mode; the rows of its last statement, [] if it
        has none.

        Without `params` it may be several statements. Raises psycopg's errors, and `TimeoutError` after
        `timeout`. A cancelled call leaves at once and drops its connection: the server may still finish the
        statement.
        """
        return await _sql.execute(self.dsn, sql, params, timeout=timeout)

    async def logs(self) -> str:
        """All the server has written to its log since the node was made."""
        path = self._server.log
        return await blocking(lambda: path.read_text(errors="replace") if path.exists() else "")

    async def _until(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        with anyio.move_on_after(timeout):
            while True:
                if condition():
                    return
                await anyio.sleep(_POLL)
        tail = "\n".join(self._server.tail())
        raise ChaosError(f"{self!r} did not {what} within {timeout} s; the end of its log:\n{tail}")


@final
class LocalNode(ServerNode):
    """A PostgreSQL server of this machine, on a port of 127.0.0.1, with a data folder of its own.

    An async context manager: entering makes a fresh data folder (the server is then started with `start`),
    leaving kills the server and removes every trace. `standalone` and `masters` give nodes which are started
    already.

    `name`: letters, digits and `_`. `version`: PostgreSQL's major version, None for the default (18).
    `settings`: for postgresql.conf, on top of the kit's own. `hba`: the lines of pg_hba.conf; without them
    everybody from 127.0.0.1 is trusted, or with `password` asked for it (scram). `password`: the one of user
    `postgres`. `tls`: (certificate file, key file), copied into the data folder. `port`: this one instead of
    any free one.

    fsync is off: that a machine crash would lose data is nothing to a throw-away node, and SIGKILLed
    *processes* lose nothing by it, since what they wrote is in the kernel's cache. All nodes go when the
    program ends, however it ends (SIGKILL too). Methods raise `ChaosError`; times are in seconds.
    """

    def __init__(
        self,
        name: str,
        *,
        version: int | None = None,
        settings: Mapping[str, str] | None = None,
        hba: Sequence[str] | None = None,
        password: str | None = None,
        tls: tuple[str | PathLike[str], str | PathLike[str]] | None = None,
        port: int | None = None,
    ) -> None:
        options = NodeOptions(version, dict(settings or {}), hba, password, tls)
        super().__init__(name, options, port, LocalRunner)
