"""A TCP proxy before a server, which passes every byte on, and breaks the network on demand."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal, Protocol, Self, final

import anyio
import anyio.lowlevel
from psycopg.conninfo import make_conninfo

from pgha.chaos._errors import ChaosError
from pgha.chaos._proxy import sockets as sockets
from pgha.chaos._proxy.direction import CLEAN, DIRECTIONS, Cut, Direction, Wire, known
from pgha.chaos._proxy.relay import Link, Terms
from pgha.chaos._servers.ports import Port

_AGAIN = 0.01


class Target(Protocol):
    """The attributes of a node that a proxy needs."""

    @property
    def name(self) -> str:
        """The name of the node."""
        ...

    @property
    def port(self) -> int:
        """The current port of the node."""
        ...

    @property
    def dsn(self) -> str:
        """The conninfo string of the node."""
        ...


@dataclass(frozen=True, slots=True)
class ConnectionStatus:
    """A living connection through a proxy.

    Example::

        for connection in proxy.connections:
            print(connection.number, connection.up, connection.down)
    """

    number: int
    """The number of the connection, counted from 0."""
    up: int
    """Bytes relayed from client to server."""
    down: int
    """Bytes relayed from server to client."""


@final
class Proxy:
    """A TCP proxy on a port of 127.0.0.1, before a node or another server.

    A proxy is an async context manager: it relays while it is entered. Leaving, also by cancellation, closes
    every connection at once. TLS passes through unchanged. The proxy looks up the target's port for each
    connection, so a node may restart. If the target is down, the client gets a reset.

    Faults are set, changed and healed while connections run, for each direction separately; they affect
    living connections and new ones. While a direction drops, or after `mute`, a new connection is accepted,
    but reaches the server only after healing. The methods do not wait. Call them in the event loop that
    entered the proxy.

    Args:
        target: The node, or the pair (host, port).
        name: The name; None: the target's.
        port: The port to use, which stays reserved while connections are refused; None: any free port.
        seed: The seed of the jitter's random numbers.

    Raises:
        ChaosError: On entering, if the port is taken.

    Example::

        async with Proxy(("127.0.0.1", 5432)) as proxy:
            print(proxy.dsn)
            proxy.set(down=Wire(latency=0.2))
    """

    def __init__(
        self,
        target: Target | tuple[str, int],
        *,
        name: str | None = None,
        port: int | None = None,
        seed: int = 0,
    ) -> None:
        self._target = target
        self._name = name or (f"{target[0]}:{target[1]}" if isinstance(target, tuple) else target.name)
        self._wanted_port, self._seed = port, seed
        self._terms = Terms()
        self._accepted = 0
        self._links: dict[int, Link] = {}
        self._state: Literal["new", "running", "left"] = "new"

    def __repr__(self) -> str:
        return f"<Proxy {self._name} {self._state}>"

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise ChaosError(f"the proxy of {self._name} was entered before: make a new one")
        self._port = Port(self._wanted_port)
        try:
            self._listener: socket.socket | None = self._listen()
            self._listens = anyio.Event()
            self._group = anyio.create_task_group()
            await self._group.__aenter__()
        except BaseException:
            self._close()
            raise
        self._state = "running"
        self._group.start_soon(self._accept, name=f"proxy of {self._name}")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._state = "left"
        self._group.cancel_scope.cancel()
        try:
            if isinstance(exc, anyio.get_cancelled_exc_class()):
                # The cancellation may be the group's own.
                return await self._group.__aexit__(exc_type, exc, traceback)
            # The group must not see the exception: it would raise an exception group, though no task failed.
            await self._group.__aexit__(None, None, None)
            return None
        finally:
            self._close()

    def _close(self) -> None:
        for link in list(self._links.values()):
            link.close()
        self._links.clear()
        if self._listener is not None:
            sockets.close(self._listener)
        self._port.release()

    @property
    def name(self) -> str:
        """The name of the proxy."""
        return self._name

    @property
    def port(self) -> int:
        """The port of 127.0.0.1 that clients connect to."""
        if self._state == "new":
            raise ChaosError(f"the proxy of {self._name} has no port yet: enter the proxy with 'async with'")
        return self._port.number

    @property
    def dsn(self) -> str:
        """The node's DSN with the port of the proxy; for (host, port), only host and port."""
        own = "" if isinstance(self._target, tuple) else self._target.dsn
        return make_conninfo(own, host="127.0.0.1", port=self.port)

    @property
    def up(self) -> Wire:
        """The settings of the direction from client to server; `set` changes them."""
        return self._terms.up

    @property
    def down(self) -> Wire:
        """The settings of the direction from server to client; `set` changes them."""
        return self._terms.down

    @property
    def connections(self) -> tuple[ConnectionStatus, ...]:
        """The living connections, in the order of their numbers.

        Connections that the proxy closed or reset are left out.
        """
        return tuple(
            ConnectionStatus(link.number, link.passed("up"), link.passed("down"))
            for link in self._links.values()
            if link.living
        )

    @property
    def total(self) -> int:
        """The number of connections accepted since counting began.

        This is also the number of the next connection.
        """
        return self._accepted - self._terms.first

    def restart_count(self) -> None:
        """Restart counting: the next connection is number 0.

        Living connections get negative numbers.
        """
        self._terms.first = self._accepted
        self._apply()

    def set(self, *, up: Wire | None = None, down: Wire | None = None) -> None:
        """Change the settings of one direction or of both.

        Args:
            up: The settings from client to server; None: unchanged.
            down: The settings from server to client; None: unchanged.
        """
        self._terms.up = up if up is not None else self._terms.up
        self._terms.down = down if down is not None else self._terms.down
        self._apply()

    def drop(self, *directions: Direction) -> None:
        """Let nothing pass in these directions, and leave their other settings unchanged.

        Connections stay open.

        Args:
            *directions: `up`, `down` or both; none: both.

        Raises:
            ChaosError: For an unknown direction.
        """
        for direction in directions:
            known(direction)
        wires = {
            direction: replace(self._terms.wire(direction), drop=True)
            for direction in directions or DIRECTIONS
        }
        self.set(**wires)

    def cut(self, cut: Cut | None) -> None:
        """Arm a cut, in place of the one that was armed before.

        Args:
            cut: The cut; None: disarm the cut, so that what it stalled goes on.
        """
        self._terms.cut = cut
        self._apply()

    def reset(self) -> None:
        """Send a reset (RST) to both sides of every connection, now."""
        for link in self._links.values():
            link.reset()

    def close_all(self) -> None:
        """Send an end of file to both sides of every connection, now.

        Bytes that the proxy has not passed on yet are lost.
        """
        for link in self._links.values():
            link.finish()

    def refuse(self) -> None:
        """Refuse new connections. Living ones stay, and the port stays reserved.

        Raises:
            ChaosError: If the proxy is not running.
        """
        self._running()
        if self._listener is not None:
            sockets.close(self._listener)
            self._listener = None

    def mute(self) -> None:
        """Accept new connections and never answer, until healed. Living ones stay.

        Raises:
            ChaosError: If the proxy is not running, or its port was taken.
        """
        self._terms.mute = True
        self._accepting()

    def heal(self) -> None:
        """Remove all faults: clean settings, no cut, new connections accepted.

        Everything that stood still goes on.

        Raises:
            ChaosError: If the proxy is not running, or its port was taken.
        """
        self._terms.up = self._terms.down = CLEAN
        self._terms.cut, self._terms.mute = None, False
        self._accepting()

    def _running(self) -> None:
        if self._state != "running":
            raise ChaosError(f"the proxy of {self._name} is not running: use it inside its 'async with'")

    def _apply(self) -> None:
        for link in self._links.values():
            link.apply()

    def _accepting(self) -> None:
        self._running()
        if self._listener is None:
            self._listener = self._listen()
            self._listens.set()
        self._apply()

    def _listen(self) -> socket.socket:
        try:
            return sockets.listening(self._port.number)
        except OSError as error:
            raise ChaosError(
                f"port {self._port.number} of the proxy of {self._name} is taken by another program: {error}"
            ) from error

    async def _accept(self) -> None:
        while True:
            if self._listener is None:
                self._listens = anyio.Event()
                await self._listens.wait()
                continue
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                await sockets.readable(self._listener)
            except OSError:
                # Too many open files, or the client has gone already: try again soon.
                await anyio.sleep(_AGAIN)
            else:
                self._begin(sockets.prepared(client))
                await anyio.lowlevel.checkpoint()

    def _begin(self, client: socket.socket) -> None:
        number = self._accepted
        self._accepted += 1
        link = self._links[number] = Link(number, client, self._terms, self._connect, self._seed)
        self._group.start_soon(self._serve, number, link)

    async def _serve(self, number: int, link: Link) -> None:
        try:
            await link.run()
        finally:
            self._links.pop(number, None)

    async def _connect(self) -> socket.socket:
        host, port = self._target if isinstance(self._target, tuple) else ("127.0.0.1", self._target.port)
        return await sockets.connected(host, port)
