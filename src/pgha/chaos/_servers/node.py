"""A PostgreSQL server that can be started, stopped, killed, frozen and thawed, and its local kind."""

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
    """Run a function that blocks for a short time in a thread.

    The thread is never abandoned: a cancellation waits for the end of the function.
    """
    # Not anyio's shared limiter: threads that wait for a frozen server must not delay its thawing.
    limiter = anyio.CapacityLimiter(1)
    return await anyio.to_thread.run_sync(lambda: function(*args, **kwargs), limiter=limiter)


class ServerNode:
    """A node of any kind: everything except the environment of its processes."""

    def __init__(
        self, name: str, options: NodeOptions, port: int | None, runner: Callable[[Place], Runner]
    ) -> None:
        if not re.fullmatch(r"[A-Za-z]\w{0,30}", name, re.ASCII):
            raise ChaosError(
                f"{name!r} is not a node name: use a letter, then up to 30 letters, digits and '_'"
            )
        self._server = Server(name, options, port, runner)

    def __repr__(self) -> str:
        state = "frozen" if self.frozen else "running" if self.running else "down"
        return f"<{type(self).__name__} {self.name} {state}>"

    async def __aenter__(self) -> Self:
        await self._enter()
        return self

    async def _enter(self, *, empty: bool = False) -> None:
        try:
            await blocking(self._server.prepare, empty=empty)
        except BaseException:
            await self.close()
            raise

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Kill the server, frozen or not, and remove its folder.

        Cancellation cannot interrupt the call. The time is bounded: usually 50 ms, in a container 0.3 s, and
        at most 30 s if something does not end.

        Raises:
            ChaosError: If a process, the container or the folder cannot be removed in time.
        """
        with anyio.CancelScope(shield=True):
            await blocking(self._server.clear)

    @property
    def name(self) -> str:
        """The node's name, such as `n1`."""
        return self._server.name

    @property
    def kind(self) -> NodeKind:
        """The environment of the server, `local` processes or a `container`."""
        return self._server.runner.kind

    @property
    def dsn(self) -> str:
        """The conninfo string of the superuser `postgres` and the database `postgres`.

        The string contains the password, if the node has one.
        """
        password = self._server.options.password
        more = {} if password is None else {"password": password}
        return make_conninfo(host="127.0.0.1", port=self.port, user="postgres", dbname="postgres", **more)

    @property
    def port(self) -> int:
        """The port on 127.0.0.1.

        The port stays the same over restarts, and stays reserved while the server is down.
        """
        return self._server.port

    @property
    def pid(self) -> int | None:
        """The postmaster's process id on this machine, or None if the server is not running."""
        return self._server.pid

    @property
    def datadir(self) -> Path:
        """The path of the data folder."""
        return self._server.data

    @property
    def version(self) -> int:
        """PostgreSQL's major version."""
        return self._server.installation.version

    @property
    def bindir(self) -> Path:
        """The folder of the programs that this node runs (`pg_basebackup`, `psql`, ...)."""
        return self._server.installation.bindir

    @property
    def system_identifier(self) -> int:
        """The system identifier, different for every node, as pg_control_system() reports it."""
        return self._server.identifier

    @property
    def running(self) -> bool:
        """Whether the postmaster lives; a frozen one does."""
        return self._server.pid is not None

    @property
    def frozen(self) -> bool:
        """Whether the running server is frozen as a whole; single frozen backends do not count."""
        return self._server.frozen and self.running

    async def start(self, *, timeout: float = 60.0) -> None:
        """Start the server and wait until it accepts connections.

        That takes 0.1 s; after a crash, the recovery comes first. If another program took the port, the node
        takes another port, unless clients may know the old one. Cancellation ends the wait, and the server
        goes on starting.

        Args:
            timeout: Seconds to wait.

        Raises:
            ChaosError: If the server dies or takes longer than `timeout`, with the end of its log; if the
                server is already running; or if its port is taken.
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
        """Shut the server down in an orderly way and wait for its end.

        A server that is not running stays as it is. Cancellation ends the wait, and the server goes on
        shutting down.

        Args:
            mode: `fast` ends the connections, `smart` waits for clients to leave, `immediate` skips the
                checkpoint, so that the next start runs a recovery.
            timeout: Seconds to wait.

        Raises:
            ChaosError: If the shutdown takes longer than `timeout` (the server then goes on shutting down),
                or if the server is frozen.
        """
        if self.frozen:
            raise ChaosError(f"{self.name} is frozen and cannot shut down: thaw it first, or kill it")
        await blocking(self._server.signal, _STOP_SIGNALS[mode])
        await self._until(lambda: not self.running, timeout, f"stop ({mode})")

    async def restart(self, mode: StopMode = "fast", *, timeout: float = 60.0) -> None:
        """Stop the server, then start it again. The data and the port stay.

        Cancellation ends the wait, and the step that was running goes on: the server may then be down.

        Args:
            mode: The kind of shutdown, see `stop`.
            timeout: Seconds to wait for each of the two steps.

        Raises:
            ChaosError: If one of the steps fails, see `stop` and `start`.
        """
        await self.stop(mode, timeout=timeout)
        await self.start(timeout=timeout)

    async def kill(self) -> None:
        """Send SIGKILL to all processes of the server at once, frozen or not, and wait until all are gone.

        Committed data is still there after `start`. Cancellation waits for the end (milliseconds).

        Raises:
            ChaosError: If processes remain after 10 s.
        """
        await blocking(self._server.kill)

    async def freeze(self) -> None:
        """Suspend all processes of the server, and wait until all are suspended.

        Local processes get SIGSTOP, containers are paused by the freezer of cgroups. Connections stay open,
        but nothing answers. The kernel still accepts new connections, into the queue of the listening socket.
        Cancellation waits for the end.

        Raises:
            ChaosError: If the server is not running, or processes still run after 10 s.
        """
        await blocking(self._server.freeze)

    async def thaw(self) -> None:
        """Let all processes of the server continue, single frozen backends too.

        Cancellation waits for the end (milliseconds).

        Raises:
            ChaosError: If the container engine fails.
        """
        await blocking(self._server.thaw)

    async def pause(self) -> None:
        """Freeze the server: `freeze` under the name that container engines use.

        Cancellation waits for the end.

        Raises:
            ChaosError: If the server is not running, or processes still run after 10 s.
        """
        await self.freeze()

    async def unpause(self) -> None:
        """Thaw the server: `thaw` under the name that container engines use.

        Cancellation waits for the end.

        Raises:
            ChaosError: If the container engine fails.
        """
        await self.thaw()

    async def kill_backend(self, pid: int) -> None:
        """Send SIGKILL to one process of the server, and wait until the postmaster has noticed.

        PostgreSQL then ends all other connections too and recovers; `wait_ready` waits for that. Cancellation
        ends the wait; the signal may have been sent.

        Args:
            pid: The process id, as in pg_stat_activity.

        Raises:
            ChaosError: If `pid` is not a backend of this node, or is still there after 10 s.
        """
        process = await blocking(self._server.signal_backend, pid, signal.SIGKILL)
        gone = (None, "Z") if self.frozen else (None,)
        await self._until(lambda: warden.state(process) in gone, 10.0, f"reap {pid}")

    async def freeze_backend(self, pid: int) -> None:
        """Send SIGSTOP to one process of the server, and wait until the process is suspended.

        Cancellation ends the wait; the signal may have been sent.

        Args:
            pid: The process id, as in pg_stat_activity.

        Raises:
            ChaosError: If `pid` is not a backend of this node, or still runs after 10 s.
        """
        process = await blocking(self._server.signal_backend, pid, signal.SIGSTOP)
        await self._until(lambda: warden.state(process) in ("T", "Z", None), 10.0, f"stop {pid}")

    async def thaw_backend(self, pid: int) -> None:
        """Send SIGCONT to one process of the server, so that the process continues.

        When the call is cancelled, the signal may have been sent.

        Args:
            pid: The process id, as in pg_stat_activity.

        Raises:
            ChaosError: If `pid` is not a backend of this node.
        """
        await blocking(self._server.signal_backend, pid, signal.SIGCONT)

    async def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until the server accepts a new connection.

        When cancelled, the call returns at once; the server is not affected.

        Args:
            timeout: Seconds to wait.

        Raises:
            ChaosError: If the server is down, or accepts no connection within `timeout`.
        """
        with anyio.move_on_after(timeout):
            await self._until(self._server.look, timeout, "start")
            while not await probe.accepts(self.port):
                self._server.look()  # raises if the server died meanwhile
                await anyio.sleep(_POLL)
            return
        raise ChaosError(f"{self!r} accepted no connection within {timeout} s")

    async def execute(self, sql: str, params: _sql.Params = None, *, timeout: float = 10.0) -> list[TupleRow]:
        """Run SQL on a new connection, in autocommit mode.

        When cancelled, the call returns at once and closes its connection: the server may still finish the
        statement.

        Args:
            sql: The SQL text; several statements are allowed without `params`.
            params: The parameters, as psycopg takes them.
            timeout: Seconds to wait for the connection and the result.

        Returns:
            The rows of the last statement; an empty list if that statement returns none.

        Raises:
            psycopg.Error: If the connection or the statement fails.
            TimeoutError: If the result does not arrive within `timeout`.
        """
        return await _sql.execute(self.dsn, sql, params, timeout=timeout)

    async def logs(self) -> str:
        """Return everything that the server has written to its log since the node was made.

        Cancellation waits for the end (milliseconds).

        Returns:
            The text of the log; empty if the server was never started.
        """
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

    A node is an async context manager. Entering makes a fresh data folder and does not start the server: call
    `start`. Leaving kills the server and removes all its files. Cancellation cannot interrupt leaving, and
    waits for the current step of entering. `standalone`, `masters` and `replicas` make nodes that are already
    started.

    fsync is off: a throw-away node need not survive a crash of the machine. Processes that are killed by
    SIGKILL lose nothing, because what they wrote is in the kernel's cache. All nodes are removed when the
    program ends, even by SIGKILL. Methods raise `ChaosError`; times are in seconds.

    Args:
        name: The name: a letter, then up to 30 letters, digits and `_`.
        version: PostgreSQL's major version; None: the default (18).
        settings: Settings for postgresql.conf, in addition to the kit's own.
        hba: The lines of pg_hba.conf. None: all clients on 127.0.0.1 are trusted, or need the password
            (scram) if there is one.
        password: The password of the user `postgres`; None: no password.
        tls: The paths of the certificate and of the key; both files are copied into the data folder. None: no
            TLS.
        port: The port to use; None: any free port.

    Raises:
        ChaosError: If an argument is invalid.

    Example::

        async with LocalNode("n1", settings={"max_connections": "20"}) as node:
            await node.start()
            print(await node.execute("SELECT version()"))
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
