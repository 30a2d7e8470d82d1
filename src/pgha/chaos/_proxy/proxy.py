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
    """What a proxy has to know of a node."""

    @property
    def name(self) -> str: ...

    @property
    def port(self) -> int: ...

    @property
    def dsn(self) -> str: ...


@dataclass(frozen=True, slots=True)
class ConnectionStatus:
    """A living connection: its number, counted from 0, and the bytes relayed each way."""

    number: int
    up: int
    down: int


@final
class Proxy:
    """A proxy on a port of 127.0.0.1, before `target`: a node, or (host, port).

    An async context manager: it relays while it is entered; leaving closes every connection at once. TLS
    passes through as it is. The target's port is looked up for each connection, so a node may restart. Of a
    target that is down the client sees a reset.

    Faults are set, changed and healed while connections run, each direction apart; they count for living
    connections and for new ones. While a direction drops, or after `mute`, a new connection is accepted, but
    reaches the server only once that is healed. The methods do not wait; they belong into the loop that
    entered the proxy.

    `name`: the target's by default. `port`: this one instead of any free one; it stays reserved while
    connections are refused. `seed`: of the jitter's draws. `ChaosError` for what makes no sense, and when
    the port is taken.
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
            raise ChaosError(f"the proxy of {self._name} was entered before: make another one")
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
                return await self._group.__aexit__(exc_type, exc, traceback)  # it may be the group's own
            # Not through the group: it would come out in an exception group, and no task had a part in it.
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
        return self._name

    @property
    def port(self) -> int:
        """The port of 127.0.0.1 that clients connect to."""
        if self._state == "new":
            raise ChaosError(f"the proxy of {self._name} has no port yet: enter it with 'async with'")
        return self._port.number

    @property
    def dsn(self) -> str:
        """The node's own DSN with the proxy's port; of (host, port), host and port alone."""
        own = "" if isinstance(self._target, tuple) else self._target.dsn
        return make_conninfo(own, host="127.0.0.1", port=self.port)

    @property
    def up(self) -> Wire:
        """What the direction from client to server is like; changed by `set`."""
        return self._terms.up

    @property
    def down(self) -> Wire:
        """What the direction from server to client is like; changed by `set`."""
        return self._terms.down

    @property
    def connections(self) -> tuple[ConnectionStatus, ...]:
        """The living ones, in the order of their numbers; without those that were closed or reset here."""
        return tuple(
            ConnectionStatus(link.number, link.passed("up"), link.passed("down"))
            for link in self._links.values()
            if link.living
        )

    @property
    def total(self) -> int:
        """Connections accepted so far, since counting began: the number of the next one."""
        return self._accepted - self._terms.first

    def restart_count(self) -> None:
        """Let the next connection be number 0. Living ones get numbers below 0."""
        self._terms.first = self._accepted
        self._apply()

    def set(self, *, up: Wire | None = None, down: Wire | None = None) -> None:
        """Another wire for a direction; None leaves it as it is."""
        self._terms.up = up if up is not None else self._terms.up
        self._terms.down = down if down is not None else self._terms.down
        self._apply()

    def drop(self, *directions: Direction) -> None:
        """Let nothing pass in these directions (both when none is named), and nothing else change there.
        Connections stay open.
        """
        for direction in directions:
            known(direction)
        wires = {
            direction: replace(self._terms.wire(direction), drop=True)
            for direction in directions or DIRECTIONS
        }
        self.set(**wires)

    def cut(self, cut: Cut | None) -> None:
        """Arm a cut in place of any other; None: disarm it, so that what it stalled flows on."""
        self._terms.cut = cut
        self._apply()

    def reset(self) -> None:
        """A reset (RST) to both sides of every connection, now."""
        for link in self._links.values():
            link.reset()

    def close_all(self) -> None:
        """An end of file to both sides of every connection, now; what is on its way here is lost."""
        for link in self._links.values():
            link.finish()

    def refuse(self) -> None:
        """Refuse new connections; living ones stay. The port stays reserved."""
        self._running()
        if self._listener is not None:
            sockets.close(self._listener)
            self._listener = None

    def mute(self) -> None:
        """Accept new connections and say nothing, until it is healed; living ones stay."""
        self._terms.mute = True
        self._accepting()

    def heal(self) -> None:
        """Clean wires, no cut, new connections welcome: all that stood still flows on."""
        self._terms.up = self._terms.down = CLEAN
        self._terms.cut, self._terms.mute = None, False
        self._accepting()

    def _running(self) -> None:
        if self._state != "running":
            raise ChaosError(f"the proxy of {self._name} does not run: use it within its 'async with'")

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
                f"port {self._port.number} of the proxy of {self._name} was taken: {error}"
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
                await anyio.sleep(_AGAIN)  # too many open files, or the client has gone already
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
