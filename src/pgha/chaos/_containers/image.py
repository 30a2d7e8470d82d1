"""The image of nodes in containers: an existing one, a pulled one, or one made here, offline.

An image needs `sh`, and `postgres` of the right major version in its PATH. The node brings its data folder,
made by the programs of this machine, and names its account by number.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pgha.chaos._containers.engine import connected, translated
from pgha.chaos._containers.tar import pack
from pgha.chaos._errors import ChaosError
from pgha.chaos._servers.binaries import Installation, find_installation

if TYPE_CHECKING:
    from docker import DockerClient

_REPOSITORY = "pgha-postgres"
_LAYOUT = "1"
"""The version of the way in which the image is made."""
_one_builder = threading.Lock()


def find_image(version: int | None = None, *, pull: bool = False) -> str:
    """Find or make an image for nodes.

    The candidates are, in this order: the image named by `PGHA_IMAGE` (pulled if it is not here); with
    `pull`, `postgres:<version>`, pulled; an image that `build_image` made before; `postgres:<version>` if it
    is here; an image that `build_image` makes now. So nothing comes from the network unless requested. The
    call blocks, for some milliseconds if the image is here.

    Args:
        version: PostgreSQL's major version; None: the default (18).
        pull: Whether to pull `postgres:<version>`.

    Returns:
        The name of the image.

    Raises:
        ChaosError: If there is no engine, or no such image can be found or made.
    """
    with connected() as client:
        return choose(client, version, pull=pull)


def choose(client: DockerClient, version: int | None, *, pull: bool = False) -> str:
    """Do the work of `find_image` with an existing client."""
    if chosen := os.environ.get("PGHA_IMAGE"):
        if _identifier(client, chosen) is None:
            _pull(client, chosen)
        return chosen
    installation = find_installation(version)
    official = f"postgres:{installation.version}"
    if pull:
        _pull(client, official)
        return official
    own = _own_name(installation)
    with _one_builder:  # three nodes of one program must not build the image three times
        for name in (own, official):
            if _identifier(client, name) is not None:
                return name
        return _build(client, installation, own)


def build_image(version: int | None = None, tag: str | None = None) -> str:
    """Make an image without any registry.

    The image contains the programs that `find_installation(version)` finds, this machine's `sh`, and the
    libraries of both: about 30 MB. The call blocks for a second or two. An image that has the name already is
    replaced.

    Args:
        version: PostgreSQL's major version; None: the default (18).
        tag: The name of the image; None: `pgha-postgres:<release>-<a digest>`, which `find_image` finds.

    Returns:
        The name of the image.

    Raises:
        ChaosError: If there is no engine, or something is missing.
    """
    installation = find_installation(version)
    with connected() as client, _one_builder:
        return _build(client, installation, tag or _own_name(installation))


def _own_name(installation: Installation) -> str:
    digest = hashlib.sha256(_LAYOUT.encode() + (installation.bindir / "postgres").read_bytes())
    return f"{_REPOSITORY}:{installation.release}-{digest.hexdigest()[:8]}"


def _identifier(client: DockerClient, name: str) -> str | None:
    from docker.errors import ImageNotFound

    with translated(f"look for the image {name}"):
        try:
            return str(client.images.get(name).id)
        except ImageNotFound:
            return None


def _pull(client: DockerClient, name: str) -> None:
    repository, tag = _split(name)
    try:
        with translated(f"pull the image {name}"):
            client.images.pull(repository, tag=tag)
    except ChaosError as error:
        raise ChaosError(
            f"{error}: load it ('docker load'), or unset PGHA_IMAGE and do not ask for a pull"
        ) from error


def _split(name: str) -> tuple[str, str]:
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:  # host:port/name
        return name, "latest"
    return repository, tag


def _build(client: DockerClient, installation: Installation, name: str) -> str:
    content = pack(installation)
    path = os.pathsep.join([str(installation.bindir.resolve()), "/bin"])
    repository, tag = _split(name)
    before = _identifier(client, name)
    with translated(f"make the image {name}"):
        said = client.api.import_image_from_data(
            content, repository=repository, tag=tag, changes=[f"ENV PATH={path}", 'CMD ["postgres"]']
        )
    _check(name, said)
    if before is not None:
        _discard(client, before)
    return name


def _check(name: str, said: str) -> None:
    """Raise `ChaosError` if making the image failed.

    A failure after the engine began to read comes with status 200, in the last line of the answer.
    """
    for line in said.splitlines():
        if line.startswith("{") and (error := json.loads(line).get("error")):
            raise ChaosError(f"the container engine cannot make the image {name}: {error}")


def _discard(client: DockerClient, identifier: str) -> None:
    """Remove an image that has lost its name, unless a container uses it or it has other names."""
    from docker.errors import APIError

    try:
        client.images.remove(identifier)
    except APIError:
        pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m pgha.chaos image`: make the image and print its name."""
    parser = argparse.ArgumentParser(prog="python -m pgha.chaos", description="Tools of the fault kit.")
    commands = parser.add_subparsers(dest="command", required=True)
    image = commands.add_parser("image", help="make the image for nodes in containers, and print its name")
    image.add_argument(
        "--version", type=int, help="PostgreSQL's major version (default: the first installation found)"
    )
    image.add_argument("--tag", help="the name of the image (default: a name that nodes find by themselves)")
    options = parser.parse_args(arguments)
    try:
        sys.stdout.write(build_image(options.version, options.tag) + "\n")
    except ChaosError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0
