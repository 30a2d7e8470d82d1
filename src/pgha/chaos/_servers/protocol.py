"""What can be done to a server, whatever it runs in."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from psycopg.rows import TupleRow

from pgha.chaos._servers import sql as _sql

NodeKind: TypeAlias = Literal["local", "container"]
"""What a node's server runs in: processes of this machine, or a container of them."""
StopMode: TypeAlias = Literal["fast", "smart", "immediate"]


class Node(Protocol):
    """A PostgreSQL server of this machine that can be started, stopped, killed and frozen.

    `LocalNode` and `ContainerNode` are; what is said there holds here. Methods raise `ChaosError`; times are
    in seconds.
    """

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> NodeKind: ...

    @property
    def dsn(self) -> str: ...

    @property
    def port(self) -> int: ...

    @property
    def version(self) -> int: ...

    @property
    def running(self) -> bool: ...

    @property
    def frozen(self) -> bool: ...

    @property
    def pid(self) -> int | None: ...

    @property
    def datadir(self) -> Path: ...

    @property
    def bindir(self) -> Path: ...

    @property
    def system_identifier(self) -> int: ...

    async def start(self, *, timeout: float = 60.0) -> None:
        """Start the server and wait until it accepts connections."""

    async def stop(self, mode: StopMode = "fast", *, timeout: float = 60.0) -> None:
        """Shut down in an orderly way and wait for the end."""

    async def restart(self, mode: StopMode = "fast", *, timeout: float = 60.0) -> None:
        """`stop`, then `start`."""

    async def kill(self) -> None:
        """SIGKILL all processes of the server at once, frozen or not."""

    async def freeze(self) -> None:
        """Let all processes stand still; connections stay open."""

    async def thaw(self) -> None:
        """Let all processes go on, single frozen backends too."""

    async def pause(self) -> None:
        """`freeze`, in the words of container engines."""

    async def unpause(self) -> None:
        """`thaw`, in the words of container engines."""

    async def kill_backend(self, pid: int) -> None:
        """SIGKILL one process of the server, named as pg_stat_activity names it."""

    async def freeze_backend(self, pid: int) -> None:
        """SIGSTOP one process of the server."""

    async def thaw_backend(self, pid: int) -> None:
        """SIGCONT one process of the server."""

    async def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until the server accepts a new connection."""

    async def execute(self, sql: str, params: _sql.Params = None, *, timeout: float = 10.0) -> list[TupleRow]:
        """Run `sql` on a connection of its own; the rows of its last statement."""
        ...

    async def logs(self) -> str:
        """All the server has written to its log."""
        ...

    async def close(self) -> None:
        """Kill the server, frozen or not, and remove every trace of it."""
