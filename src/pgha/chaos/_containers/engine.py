"""The container engine of this machine: Docker, or Podman, which speaks the same protocol."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pgha.chaos._errors import ChaosError

if TYPE_CHECKING:  # the package `docker` comes with pgha[chaos] and takes 0.2 s to import
    from docker import DockerClient

_SOCKETS = (Path("/var/run/docker.sock"), Path("/run/podman/podman.sock"))
_SCHEMES = ("unix://", "http+unix://")
_TIMEOUT = 60
_STARTING = "start it ('systemctl start docker', or 'dockerd' as root), or set DOCKER_HOST"


def engine_available() -> bool:
    """Whether nodes can run in containers here, as far as the engine goes. Blocks shortly."""
    try:
        require_engine()
    except ChaosError:
        return False
    return True


def require_engine() -> None:
    """`ChaosError`, which says what to do, when no engine of this machine can be used. Blocks shortly.

    The engine is the one of `DOCKER_HOST`, else of /var/run/docker.sock, else of /run/podman/podman.sock. It
    has to run on this machine, as root: nodes in containers share files, ports and the list of processes with
    this program.
    """
    with connected():
        pass


@contextmanager
def connected() -> Iterator[DockerClient]:
    """A client of the engine for a while."""
    client = connect()
    try:
        yield client
    finally:
        client.close()


def connect() -> DockerClient:
    """A client of the engine, to be closed by the caller; `ChaosError` when there is none."""
    try:
        import docker
    except ImportError as error:
        raise ChaosError(
            f"nodes in containers need the package docker ({error}): pip install pgha[chaos]"
        ) from error
    path = engine_socket()
    _knock(path)
    with translated("talk to this program"):
        client = docker.DockerClient(base_url=f"unix://{path}", timeout=_TIMEOUT)
        try:
            options = client.info().get("SecurityOptions") or ()
        except BaseException:
            client.close()
            raise
    if any("rootless" in option for option in options):
        client.close()
        raise ChaosError(
            f"the container engine at {path} is a rootless one, with networks and users of its own:"
            " set DOCKER_HOST to one which runs as root"
        )
    return client


def engine_socket() -> Path:
    """The socket of the engine, whether anybody listens there or not."""
    if not (chosen := os.environ.get("DOCKER_HOST")):
        return next((path for path in _SOCKETS if path.exists()), _SOCKETS[0])
    for scheme in _SCHEMES:
        if chosen.startswith(scheme):
            return Path(chosen.removeprefix(scheme))
    raise ChaosError(
        f"DOCKER_HOST={chosen} is no socket of this machine, which nodes in containers need:"
        " set it to unix:///path, or unset it"
    )


def _knock(path: Path) -> None:
    """The SDK hides the three usual reasons inside one error: so ask the kernel before it."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_TIMEOUT)
        try:
            probe.connect(str(path))
        except PermissionError as error:
            raise ChaosError(
                f"no permission to use the container engine at {path}:"
                " join the group which owns it (docker), or run as root"
            ) from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise ChaosError(f"no container engine answers at {path} ({reason}): {_STARTING}") from error


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """What the engine or the way to it raises becomes a `ChaosError`: it could not do `doing`."""
    from docker.errors import APIError, DockerException

    try:
        yield
    except APIError as error:
        raise ChaosError(f"the container engine cannot {doing}: {error.explanation or error}") from error
    except (DockerException, OSError) as error:  # OSError: requests' exceptions are
        raise ChaosError(f"the container engine cannot {doing}: {error}") from error


@contextmanager
def accepting(*codes: int) -> Iterator[None]:
    """An answer of the engine with one of these HTTP statuses is fine: 404 no such thing, 409 not in a state
    for that.
    """
    from docker.errors import APIError

    try:
        yield
    except APIError as error:
        if error.status_code not in codes:
            raise
