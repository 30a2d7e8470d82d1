"""The runner protocol, which controls the processes of a server, and its kind for local processes."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

from pgha.chaos._errors import ChaosError
from pgha.chaos._servers import warden
from pgha.chaos._servers.account import environment, server_account
from pgha.chaos._servers.binaries import Installation
from pgha.chaos._servers.protocol import NodeKind


@dataclass(frozen=True, slots=True)
class Place:
    """The folder of a server, whose name is never used twice."""

    name: str
    folder: Path

    @property
    def data(self) -> Path:
        """The path of the data folder."""
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """The path of the log file."""
        return self.folder / "log"


class NoBackend(ChaosError):
    """The process id is not, or no longer, that of a backend."""


class Runner(Protocol):
    """The part of `Server` that differs between kinds of nodes.

    All methods block. All but `pid` are called by one thread at a time. Failures raise `OSError`,
    `ChaosError` or `warden.Stubborn`.
    """

    @property
    def kind(self) -> NodeKind:
        """The kind of node that this runner is for."""
        ...

    @property
    def pid(self) -> int | None:
        """The postmaster's process id on this machine while it lives (frozen counts as living)."""
        ...

    def prepare(self, installation: Installation) -> None:
        """Check, before anything exists, that servers can run here.

        `installation` makes the data folder.
        """

    def launch(self, port: int) -> None:
        """Start a postmaster of the data folder, and append its output to the log; none runs before."""

    def signal(self, sig: signal.Signals) -> None:
        """Send a signal to the postmaster, if it lives."""

    def kill(self) -> None:
        """Send SIGKILL to all processes, frozen or not, and wait until they are gone."""

    def freeze(self) -> None:
        """Suspend all processes, and wait until they are suspended."""

    def thaw(self) -> None:
        """Let all processes continue."""

    def backend(self, pid: int) -> int:
        """Return the process id on this machine of the process that the server knows as `pid`.

        The process is proven to belong to the server, and not to be the postmaster.
        """
        ...

    def clear(self) -> None:
        """Kill and remove everything, also after a failed `prepare` or `launch`. May be called again."""


@final
class LocalRunner:
    """A runner whose postmaster is a child of this program."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._program: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def kind(self) -> NodeKind:
        return "local"

    @property
    def pid(self) -> int | None:
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    def prepare(self, installation: Installation) -> None:
        self._program = installation.program("postgres")

    def launch(self, port: int) -> None:
        assert self._program is not None
        with self._place.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "-D", self._place.data, "-p", str(port)],
                cwd=self._place.folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                umask=0o077,
                **server_account().credentials,
            )

    def signal(self, sig: signal.Signals) -> None:
        if (pid := self.pid) is not None:
            warden.send(pid, sig)

    def kill(self) -> None:
        warden.kill_all(self._place.folder, reap=lambda: self.pid)
        if self._process is not None:
            self._process.wait()

    def freeze(self) -> None:
        warden.freeze_all(self._place.folder)

    def thaw(self) -> None:
        warden.thaw_all(self._place.folder)

    def backend(self, pid: int) -> int:
        if pid == self.pid or pid not in warden.processes(self._place.folder):
            raise NoBackend(
                f"{pid} is not a backend of {self._place.name}: take a pid from its pg_stat_activity"
            )
        return pid

    def clear(self) -> None:
        self.kill()
        warden.clear(self._place.folder)
