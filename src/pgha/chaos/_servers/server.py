"""The blocking half of a node: its folder, its files, the life of its server. Nodes call it from threads."""

from __future__ import annotations

import secrets
import signal
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pgha.chaos._errors import ChaosError
from pgha.chaos._servers import guard, warden
from pgha.chaos._servers.account import server_account
from pgha.chaos._servers.binaries import Installation, find_installation
from pgha.chaos._servers.config import NodeOptions, set_password, write_config
from pgha.chaos._servers.ports import Port
from pgha.chaos._servers.runner import Place, Runner
from pgha.chaos._servers.template import make_data

V = TypeVar("V")
_IN_USE = "Address already in use"
_TAIL = 15
_STATUS_LINE = 7


class PortTaken(ChaosError):
    """Another program listens on the node's port."""


class Server:
    """One PostgreSQL server in a folder of its own: `<folder>/data`, `<folder>/log`.

    Its life: `prepare` once, then any number of `launch` and `kill`, and `clear` last (also after a failed
    `prepare`; no other call may follow). The methods that change something exclude each other: when
    asyncio's own cancellation hits a task, its thread goes on running, and the next call must not overtake
    that thread.
    """

    def __init__(
        self, name: str, options: NodeOptions, port: int | None, runner: Callable[[Place], Runner]
    ) -> None:
        self.name = name
        self.options = options
        self.folder = Path(tempfile.gettempdir()).absolute() / f"pgha-{name}-{secrets.token_hex(5)}"
        place = Place(name, self.folder)
        self.data, self.log = place.data, place.log
        self.runner = runner(place)
        self.known = False  # True once the server was up: clients may know its port
        self.frozen = False
        self._lock = threading.Lock()
        self._cleared = False
        self._wanted_port = port
        self._port: Port | None = None
        self._installation: Installation | None = None
        self._identifier: int | None = None
        self._log_start = 0

    @property
    def installation(self) -> Installation:
        """The installation that the server runs."""
        return self._prepared(self._installation)

    @property
    def identifier(self) -> int:
        """The system identifier of the data folder."""
        return self._prepared(self._identifier)

    @property
    def port(self) -> int:
        """The reserved port."""
        return self._prepared(self._port).number

    def _prepared(self, value: V | None) -> V:
        if value is None:
            raise ChaosError(f"{self.name} has no data folder yet: enter the node with 'async with'")
        return value

    @property
    def pid(self) -> int | None:
        """The postmaster's process id while the postmaster lives (frozen counts as living)."""
        return self.runner.pid

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except (OSError, warden.Stubborn) as error:
                raise ChaosError(f"{self.name}: {error}") from error

    def prepare(self, *, empty: bool = False) -> None:
        """Make the folder with a fresh data folder in it, and reserve a port.

        With `empty` there is no data folder before `replace_data` makes one.
        """
        with self._alone():
            if self._installation is not None or self._cleared:
                raise ChaosError(f"{self.name} was entered before: make a new node")
            self._installation = installation = find_installation(self.options.version)
            self.runner.prepare(installation)
            self._port = Port(self._wanted_port)
            guard.watch(self.folder)  # before the folder exists: a program killed in between leaves nothing
            self.folder.mkdir(mode=0o700)
            server_account().give(self.folder)
            if empty:
                return
            self._identifier = make_data(installation, self.data)
            write_config(installation, self.data, self.options, self.folder.name)
            if self.options.password is not None:
                set_password(installation, self.data, self.options.password)

    def launch(self) -> None:
        """Start the postmaster; `look` returns whether it is ready."""
        with self._alone():
            port = self.port
            if self._cleared or self.pid is not None:
                state = (
                    "closed: make a new node" if self._cleared else "already running: stop or kill it first"
                )
                raise ChaosError(f"{self.name} is {state}")
            self._remove_traces()
            self._log_start = self.log.stat().st_size if self.log.exists() else 0
            self.runner.launch(port)

    def _remove_traces(self) -> None:
        """Remove what a kill leaves.

        That is: children that outlived their postmaster, its shared memory, its lock file.

        The server would handle the last two itself. But it refuses to start if the process id in the lock
        file now belongs to another process, and an old file that says "ready" would be taken for the new one.
        """
        self._kill_all()
        warden.remove_shared_memory(self.data)
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _kill_all(self) -> None:
        self.runner.kill()
        self.frozen = False

    def look(self) -> bool:
        """Return whether the launched server accepts connections.

        `ChaosError` with the end of its log if the server died.
        """
        if self.pid is None:
            words = self.tail()
            if any(_IN_USE in line for line in words):
                raise PortTaken(f"port {self.port} of {self.name} is taken by another program")
            raise ChaosError("\n".join([f"{self.name} is not running; the end of its log:", *words]))
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        if len(lines) <= _STATUS_LINE:
            return False
        self.known = True
        return lines[_STATUS_LINE].strip() == "ready"

    def change_port(self) -> None:
        """Reserve another port in place of the one that is taken."""
        with self._alone():
            self._prepared(self._port).release()
            self._port = Port(self._wanted_port)

    def replace_data(self, change: Callable[[Path], object]) -> None:
        """Replace the content of the data folder while the server is down.

        The node's configuration is then written over it. `change(data folder)` puts the content there (by
        pg_basebackup, by pg_rewind, by a copy). The content must be owned by the servers' account, and keeps
        its password. An error of `change` is raised unchanged; the only calls that then make sense are
        another `replace_data` and `clear`.
        """
        with self._alone():
            if self._cleared or self.pid is not None:
                state = "closed: make a new node" if self._cleared else "running: stop it first"
                raise ChaosError(f"{self.name} is {state}")
            self._remove_traces()
            change(self.data)
            write_config(self.installation, self.data, self.options, self.folder.name)
            control = (self.data / "global/pg_control").read_bytes()
            self._identifier = int(struct.unpack_from("=Q", control)[0])

    def tail(self) -> list[str]:
        """Return the last lines that the log got since the last launch."""
        try:
            with self.log.open("rb") as log:
                log.seek(self._log_start)
                return log.read().decode(errors="replace").splitlines()[-_TAIL:]
        except FileNotFoundError:
            return []

    def signal_backend(self, pid: int, sig: signal.Signals) -> int:
        """Signal the process that the server knows as `pid`, and return its process id on this machine.

        The process is proven to belong to this server, and not to be its postmaster.
        """
        with self._alone():
            process = self.runner.backend(pid)
            warden.send(process, sig)  # at once: a backend may end at any moment
            return process

    def signal(self, sig: signal.Signals) -> None:
        """Send a signal to the postmaster, if it lives."""
        with self._alone():
            self.runner.signal(sig)

    def kill(self) -> None:
        """Send SIGKILL to all processes, frozen or not, and wait until they are gone."""
        with self._alone():
            self._kill_all()

    def freeze(self) -> None:
        """Suspend all processes, and wait until they are suspended."""
        with self._alone():
            if self.pid is None:
                raise ChaosError(f"{self.name} is not running, there is nothing to freeze: start it first")
            self.frozen = True  # before, because some processes are suspended even if time runs out
            self.runner.freeze()

    def thaw(self) -> None:
        """Let all processes continue."""
        with self._alone():
            self.runner.thaw()
            self.frozen = False

    def clear(self) -> None:
        """Kill the server and remove everything that belongs to the node. May be called again.

        What fails here is tried again by the warden when the program ends.
        """
        with self._alone():
            self._cleared = True
            self.runner.clear()
            self.frozen = False
            if self._port is not None:
                self._port.release()
            guard.unwatch(self.folder)
