"""The operations of a server, the same for every kind of node."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from psycopg.rows import TupleRow

from pgha.chaos._servers import sql as _sql

NodeKind: TypeAlias = Literal["local", "container"]
"""The environment of a node's server: `local` processes of this machine, or a `container` on this machine."""
StopMode: TypeAlias = Literal["fast", "smart", "immediate"]
"""The kind of a shutdown: `fast` ends the connections, `smart` waits for clients to leave, `immediate` skips
the checkpoint.
"""


class Node(Protocol):
    """A PostgreSQL server of this machine that can be started, stopped, killed and frozen.

    `LocalNode` and `ContainerNode` implement this protocol. Methods raise `ChaosError`; times are in seconds.

    Example::

        async def crash(node: Node) -> None:
            await node.kill()
            await node.start()
    """

    @property
    def name(self) -> str:
        """The node's name, such as `n1`."""
        ...

    @property
    def kind(self) -> NodeKind:
        """The environment of the server, `local` processes or a `container`."""
        ...

    @property
    def dsn(self) -> str:
        """The conninfo string of the superuser `postgres` and the database `postgres`.

        The string contains the password, if the node has one.
        """
        ...

    @property
    def port(self) -> int:
        """The port on 127.0.0.1.

        The port stays the same over restarts, and stays reserved while the server is down.
        """
        ...

    @property
    def version(self) -> int:
        """PostgreSQL's major version."""
        ...

    @property
    def running(self) -> bool:
        """Whether the postmaster lives; a frozen one does."""
        ...

    @property
    def frozen(self) -> bool:
        """Whether the running server is frozen as a whole; single frozen backends do not count."""
        ...

    @property
    def pid(self) -> int | None:
        """The postmaster's process id on this machine, or None if the server is not running."""
        ...

    @property
    def datadir(self) -> Path:
        """The path of the data folder."""
        ...

    @property
    def bindir(self) -> Path:
        """The folder of the programs that this node runs (`pg_basebackup`, `psql`, ...)."""
        ...

    @property
    def system_identifier(self) -> int:
        """The system identifier, different for every node, as pg_control_system() reports it."""
        ...

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

    async def restart(self, mode: StopMode = "fast", *, timeout: float = 60.0) -> None:
        """Stop the server, then start it again. The data and the port stay.

        Cancellation ends the wait, and the step that was running goes on: the server may then be down.

        Args:
            mode: The kind of shutdown, see `stop`.
            timeout: Seconds to wait for each of the two steps.

        Raises:
            ChaosError: If one of the steps fails, see `stop` and `start`.
        """

    async def kill(self) -> None:
        """Send SIGKILL to all processes of the server at once, frozen or not, and wait until all are gone.

        Committed data is still there after `start`. Cancellation waits for the end (milliseconds).

        Raises:
            ChaosError: If processes remain after 10 s.
        """

    async def freeze(self) -> None:
        """Suspend all processes of the server, and wait until all are suspended.

        Local processes get SIGSTOP, containers are paused by the freezer of cgroups. Connections stay open,
        but nothing answers. The kernel still accepts new connections, into the queue of the listening socket.
        Cancellation waits for the end.

        Raises:
            ChaosError: If the server is not running, or processes still run after 10 s.
        """

    async def thaw(self) -> None:
        """Let all processes of the server continue, single frozen backends too.

        Cancellation waits for the end (milliseconds).

        Raises:
            ChaosError: If the container engine fails.
        """

    async def pause(self) -> None:
        """Freeze the server: `freeze` under the name that container engines use.

        Cancellation waits for the end.

        Raises:
            ChaosError: If the server is not running, or processes still run after 10 s.
        """

    async def unpause(self) -> None:
        """Thaw the server: `thaw` under the name that container engines use.

        Cancellation waits for the end.

        Raises:
            ChaosError: If the container engine fails.
        """

    async def kill_backend(self, pid: int) -> None:
        """Send SIGKILL to one process of the server, and wait until the postmaster has noticed.

        PostgreSQL then ends all other connections too and recovers; `wait_ready` waits for that. Cancellation
        ends the wait; the signal may have been sent.

        Args:
            pid: The process id, as in pg_stat_activity.

        Raises:
            ChaosError: If `pid` is not a backend of this node, or is still there after 10 s.
        """

    async def freeze_backend(self, pid: int) -> None:
        """Send SIGSTOP to one process of the server, and wait until the process is suspended.

        Cancellation ends the wait; the signal may have been sent.

        Args:
            pid: The process id, as in pg_stat_activity.

        Raises:
            ChaosError: If `pid` is not a backend of this node, or still runs after 10 s.
        """

    async def thaw_backend(self, pid: int) -> None:
        """Send SIGCONT to one process of the server, so that the process continues.

        When the call is cancelled, the signal may have been sent.

        Args:
            pid: The process id, as in pg_stat_activity.

        Raises:
            ChaosError: If `pid` is not a backend of this node.
        """

    async def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until the server accepts a new connection.

        When cancelled, the call returns at once; the server is not affected.

        Args:
            timeout: Seconds to wait.

        Raises:
            ChaosError: If the server is down, or accepts no connection within `timeout`.
        """

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
        ...

    async def logs(self) -> str:
        """Return everything that the server has written to its log since the node was made.

        Cancellation waits for the end (milliseconds).

        Returns:
            The text of the log; empty if the server was never started.
        """
        ...

    async def close(self) -> None:
        """Kill the server, frozen or not, and remove its folder.

        Cancellation cannot interrupt the call. The time is bounded: usually 50 ms, in a container 0.3 s, and
        at most 30 s if something does not end.

        Raises:
            ChaosError: If a process, the container or the folder cannot be removed in time.
        """
