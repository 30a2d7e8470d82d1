"""A PostgreSQL server in a container."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, final

from pgha.chaos._containers.engine import accepting, connect, engine_socket, translated
from pgha.chaos._containers.image import choose
from pgha.chaos._errors import ChaosError
from pgha.chaos._servers import warden
from pgha.chaos._servers.account import server_account
from pgha.chaos._servers.binaries import Installation
from pgha.chaos._servers.config import NodeOptions
from pgha.chaos._servers.node import ServerNode
from pgha.chaos._servers.protocol import NodeKind
from pgha.chaos._servers.runner import NoBackend, Place

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

_MISSING, _NOT_SO = 404, 409
_LABEL = "pgha.chaos"
_DEATH, _NEWS = 20, 5
# The log of all kinds of nodes is a file in the folder. The shell replaces itself by the server, which
# becomes process 1 of the container and gets its signals.
_SCRIPT = 'umask 077; exec >>"$1" 2>&1; shift; exec postgres "$@"'


@final
class ContainerRunner:
    """A runner whose postmaster is process 1 of a container.

    The folder is mounted under its own path, and the container has the network and the host name of the
    machine. So the server's files, port and command line are the same as without a container. `pid` and
    `backend` need to see the container's processes; each start checks that.
    """

    def __init__(self, place: Place, image: str | None) -> None:
        self._place = place
        self._image = image
        self._client: DockerClient | None = None
        self._socket = Path()
        self._container: Container | None = None
        self._container_port = 0
        self._process: tuple[int, int] | None = None  # its id and its start time

    @property
    def kind(self) -> NodeKind:
        return "container"

    @property
    def pid(self) -> int | None:
        if (process := self._process) is None or warden.started(process[0]) != process[1]:
            return None
        return process[0]

    def prepare(self, installation: Installation) -> None:
        self._socket = engine_socket().absolute()
        self._client = connect()
        self._image = self._image or choose(self._client, installation.version)

    def launch(self, port: int) -> None:
        if self._container is not None and self._container_port != port:
            warden.remove_container(self._place.folder)
            self._container = None
        if self._container is None:
            self._container = self._make(port)
            self._container_port = port
        with translated(f"start the container of {self._place.name}"):
            self._container.start()
            self._process = self._find(self._container)

    def _make(self, port: int) -> Container:
        from docker.errors import APIError

        folder = self._place.folder
        warden.note_container(folder, self._socket, folder.name, made=False)
        with translated(f"make a container of the image {self._image} for {self._place.name}"):
            try:
                container = self._create(port)
            except APIError:
                # The engine refused. After other errors the container may exist.
                (folder / warden.NOTE).unlink()
                raise
        warden.note_container(folder, self._socket, folder.name, made=True)
        return container

    def _create(self, port: int) -> Container:
        from docker.types import Mount

        assert self._client is not None and self._image is not None
        folder, account = self._place.folder, server_account()
        words = [self._place.log, "-D", self._place.data, "-p", port]
        return self._client.containers.create(
            self._image,
            entrypoint=["sh", "-c", _SCRIPT, "sh"],
            command=[str(word) for word in words],
            name=folder.name,
            labels={_LABEL: self._place.name},
            user=f"{account.uid}:{account.gid}",
            environment={"LC_ALL": "C", "TZ": "UTC"},
            working_dir=str(folder),
            # A mount of this kind, unlike a volume, fails if the engine does not see the folder.
            mounts=[Mount(target=str(folder), source=str(folder), type="bind")],
            network_mode="host",
            userns_mode="host",  # otherwise the number may stand for another account
            cap_drop=["ALL"],
            # label=disable: otherwise SELinux would require the folder to be relabelled.
            security_opt=["no-new-privileges", "label=disable"],
        )

    def _find(self, container: Container) -> tuple[int, int] | None:
        """Return process 1 of the container, proven to be that, and its start time; None if it has ended."""
        container.reload()
        if not (pid := container.attrs["State"]["Pid"]):
            return None
        began = warden.started(pid)
        try:
            ours = str(container.id) in Path(f"/proc/{pid}/cgroup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            ours = False
        if ours and began is not None:
            return pid, began
        try:
            container.wait(timeout=_NEWS)  # the process may have died, and the engine not noticed yet
        except OSError as error:
            raise ChaosError(
                f"the processes of the engine at {self._socket} are not seen here, but nodes need that:"
                " run this program on the engine's own machine, outside of containers"
            ) from error
        return None

    def signal(self, sig: signal.Signals) -> None:
        if self._container is not None and self.pid is not None:
            with translated(f"signal {self._place.name}"), accepting(_MISSING, _NOT_SO):
                self._container.kill(signal=sig.name)

    def kill(self) -> None:
        if self._container is not None and not self._end(self._container):
            self._container = None  # another program removed the container: the next start makes a new one
        warden.kill_all(self._place.folder)

    def _end(self, container: Container) -> bool:
        """Kill the container and wait until the engine has noticed; False if there is no container."""
        from docker.errors import NotFound

        with translated(f"kill {self._place.name}"):
            try:
                with accepting(_NOT_SO):
                    container.kill()
                # The process may have died by itself. Until the engine notices, a start would do nothing.
                container.wait(timeout=_DEATH)
            except NotFound:
                return False
        return True

    def freeze(self) -> None:
        if not self._is_paused():
            with translated(f"pause {self._place.name}"):
                assert self._container is not None
                self._container.pause()

    def thaw(self) -> None:
        if self._is_paused():
            with translated(f"unpause {self._place.name}"):
                assert self._container is not None
                self._container.unpause()
        warden.thaw_all(self._place.folder)

    def _is_paused(self) -> bool:
        if self._container is None or self.pid is None:
            return False
        with translated(f"look at {self._place.name}"):
            self._container.reload()
        return bool(self._container.status == "paused")

    def backend(self, pid: int) -> int:
        if self._is_paused():
            raise ChaosError(f"{self._place.name} is paused, and so are its backends: thaw it first")
        for process in warden.processes(self._place.folder):
            if process != self.pid and _inner_id(process) == pid:
                return process
        raise NoBackend(f"{pid} is not a backend of {self._place.name}: take a pid from its pg_stat_activity")

    def clear(self) -> None:
        warden.clear(self._place.folder)
        self._container = self._process = None
        if self._client is not None:
            self._client.close()


def _inner_id(pid: int) -> int | None:
    """Return the id of a process in its innermost pid namespace, its own container; None if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return next((int(line.split()[-1]) for line in lines if line.startswith("NSpid:")), None)


@final
class ContainerNode(ServerNode):
    """A PostgreSQL server in a container of this machine's engine, on a port of 127.0.0.1.

    A container node has the operations and the options of `LocalNode`, and is an async context manager in the
    same way. The faults differ: `kill` is the engine's kill, `start` starts the same container again, and
    `freeze` pauses the container by the freezer of cgroups, which suspends all processes at the same moment.
    While the container is frozen, single backends, named as in pg_stat_activity, cannot be touched.

    The container has the name of the node's folder and the label `pgha.chaos`. It runs under the account that
    local nodes use, without capabilities, with the machine's network, and with the folder mounted at its own
    path, which holds the data and the log.

    The node needs the package docker, and an engine on this machine that runs as root: see `require_engine`.
    Leaving removes the container, paused or not; so does the end of the program, even by SIGKILL.
    Cancellation cannot interrupt leaving.

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
        image: The image, which needs `sh` and `postgres` of the node's major version in its PATH; None: that
            of `find_image`.

    Raises:
        ChaosError: If an argument is invalid.

    Example::

        async with ContainerNode("n1") as node:
            await node.start()
            await node.freeze()
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
        image: str | None = None,
    ) -> None:
        options = NodeOptions(version, dict(settings or {}), hba, password, tls)
        super().__init__(name, options, port, partial(ContainerRunner, image=image))
