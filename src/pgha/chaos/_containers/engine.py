"""The container engine of this machine: Docker, or Podman, which uses the same protocol."""

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
    """Return whether the engine of this machine can run nodes in containers.

    The call blocks for a short time.

    Returns:
        Whether `require_engine` would succeed.
    """
    try:
        require_engine()
    except ChaosError:
        return False
    return True


def require_engine() -> None:
    """Check that the engine of this machine can be used.

    The engine is the one of `DOCKER_HOST`, else of /var/run/docker.sock, else of /run/podman/podman.sock. The
    engine must run on this machine, as root: nodes in containers share files, ports and the list of processes
    with this program. The call blocks for a short time.

    Raises:
        ChaosError: If no engine can be used; the message says what to do.
    """
    with connected():
        pass


@contextmanager
def connected() -> Iterator[DockerClient]:
    """Give a client of the engine, and close it at the end."""
    client = connect()
    try:
        yield client
    finally:
        client.close()


def connect() -> DockerClient:
    """Return a client of the engine, which the caller closes; `ChaosError` if there is no engine."""
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
            " set DOCKER_HOST to one that runs as root"
        )
    return client


def engine_socket() -> Path:
    """Return the path of the engine's socket, whether or not an engine listens there."""
    if not (chosen := os.environ.get("DOCKER_HOST")):
        return next((path for path in _SOCKETS if path.exists()), _SOCKETS[0])
    for scheme in _SCHEMES:
        if chosen.startswith(scheme):
            return Path(chosen.removeprefix(scheme))
    raise ChaosError(
        f"DOCKER_HOST={chosen} is not a socket of this machine, which nodes in containers need:"
        " set it to unix:///path, or unset it"
    )


def _knock(path: Path) -> None:
    """Raise `ChaosError` if the engine does not accept connections.

    The SDK hides the three usual reasons in one error, so the kernel is asked first.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_TIMEOUT)
        try:
            probe.connect(str(path))
        except PermissionError as error:
            raise ChaosError(
                f"no permission to use the container engine at {path}:"
                " join the group that owns it (docker), or run as root"
            ) from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise ChaosError(f"no container engine answers at {path} ({reason}): {_STARTING}") from error


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn errors of the engine, or of the way to it, into a `ChaosError`: the engine cannot do `doing`."""
    from docker.errors import APIError, DockerException

    try:
        yield
    except APIError as error:
        raise ChaosError(f"the container engine cannot {doing}: {error.explanation or error}") from error
    except (DockerException, OSError) as error:  # the exceptions of requests are OSErrors
        raise ChaosError(f"the container engine cannot {doing}: {error}") from error


@contextmanager
def accepting(*codes: int) -> Iterator[None]:
    """Ignore answers of the engine with one of these HTTP statuses.

    404 means that the object does not exist, 409 that it is not in the right state.
    """
    from docker.errors import APIError

    try:
        yield
    except APIError as error:
        if error.status_code not in codes:
            raise
