"""The container engine and the images: they are found and built, and error messages say what is wrong."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pytest
from support.common import demand_engine

from pgha.chaos import (
    ChaosError,
    build_image,
    engine_available,
    find_image,
    find_installation,
    require_engine,
    standalone,
)
from pgha.chaos._containers.container import ContainerRunner
from pgha.chaos._containers.image import main
from pgha.chaos._containers.tar import pack
from pgha.chaos._servers import warden
from pgha.chaos._servers.runner import Place

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = pytest.mark.anyio
NOWHERE = "127.0.0.1:1/nothing:1"
"""An image that is not on this machine and whose registry refuses connections."""


@pytest.fixture(scope="module")
def engine() -> Iterator[DockerClient]:
    demand_engine()
    from pgha.chaos._containers.engine import connected

    with connected() as client:
        yield client


# --- engines that are missing or unsuitable -----------------------------------------------------------


class Answering(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


@contextmanager
def fake_engine(path: Path, answer: Callable[[str, str], tuple[int, object]]) -> Iterator[None]:
    """Run an engine on the socket `path` that answers each method and path with a status and JSON."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            status, content = answer(self.command, self.path)
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_DELETE = _answer

        def log_message(self, *words: object) -> None:
            pass

        def address_string(self) -> str:
            return "local"

    with Answering(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield
        server.shutdown()
        thread.join()


def refused(monkeypatch: pytest.MonkeyPatch, words: str, **environment: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ChaosError, match=words) as caught:
        require_engine()
    assert "\n" not in str(caught.value)
    assert not engine_available()


def content(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_no_engine_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    missing = tmp_path / "none.sock"
    refused(
        monkeypatch,
        rf"no container engine answers at {missing} \(No such file or directory\): start it \('systemctl ",
        DOCKER_HOST=f"unix://{missing}",
    )
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    refused(
        monkeypatch, r"answers at .*dead.sock \(Connection refused\): start it", DOCKER_HOST=f"unix://{dead}"
    )
    with pytest.raises(ChaosError, match="no container engine answers"):
        async with standalone(2, kind="container"):
            pytest.fail("without an engine")
    assert content(tmp_path) == [dead]
    refused(
        monkeypatch,
        "DOCKER_HOST=tcp://10.0.0.1:2375 is not a socket of this machine, .*: set it to unix:///path, or",
        DOCKER_HOST="tcp://10.0.0.1:2375",
    )


async def test_an_unknown_kind() -> None:
    with pytest.raises(ChaosError, match="'jail' is not a kind of node: use 'local' or 'container'"):
        async with standalone(kind=cast(Any, "jail")):
            pytest.fail("there is none")


def test_an_engine_that_may_not_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(self: socket.socket, address: object) -> None:
        raise PermissionError(13, "Permission denied")

    class Forbidden(socket.socket):
        pass

    monkeypatch.setattr(Forbidden, "connect", connect)
    monkeypatch.setattr("pgha.chaos._containers.engine.socket.socket", Forbidden)
    refused(monkeypatch, r"no permission to use the container engine at .*: join the group that owns it")


def test_without_the_package_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    refused(monkeypatch, r"need the package docker \(.*\): pip install pgha\[chaos\]")


def test_a_rootless_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def answer(method: str, path: str) -> tuple[int, object]:
        if path.endswith("/version"):
            return 200, {"ApiVersion": "1.41", "MinAPIVersion": "1.12"}
        return 200, {"SecurityOptions": ["name=seccomp,profile=default", "name=rootless"]}

    with fake_engine(tmp_path / "engine.sock", answer):
        refused(monkeypatch, "is a rootless one", DOCKER_HOST=f"unix://{tmp_path}/engine.sock")


class Foreign:
    """A container whose engine counts processes in a separate namespace."""

    id = "0" * 64
    attrs: ClassVar = {"State": {"Pid": os.getpid()}}

    def reload(self) -> None:
        pass

    def wait(self, timeout: float) -> None:
        raise TimeoutError(f"it runs on after {timeout} s")


def test_an_engine_whose_processes_are_elsewhere(tmp_path: Path) -> None:
    runner = ContainerRunner(Place("n1", tmp_path), None)
    with pytest.raises(ChaosError, match=r"are not seen here, .*: run this program on the engine's own"):
        runner._find(cast(Any, Foreign()))


def test_a_container_on_its_way_is_waited_for(tmp_path: Path) -> None:
    """A program may be killed while the engine has not yet carried out its request to make a container."""
    answers = iter([(404, {}), (404, {}), (409, {"message": "in progress"}), (204, {})])
    asked: list[tuple[str, str]] = []

    def answer(method: str, path: str) -> tuple[int, object]:
        asked.append((method, path))
        return next(answers)

    with fake_engine(tmp_path / "engine.sock", answer):
        warden.note_container(tmp_path, tmp_path / "engine.sock", "n1", made=False)
        warden.remove_container(tmp_path)
    assert asked == [("DELETE", "/containers/n1?force=1&v=1")] * 4
    assert not (tmp_path / warden.NOTE).exists()


def test_a_container_that_was_made_and_is_gone(tmp_path: Path) -> None:
    with fake_engine(tmp_path / "engine.sock", lambda method, path: (404, {})):
        warden.note_container(tmp_path, tmp_path / "engine.sock", "n1", made=True)
        began = time.monotonic()
        warden.remove_container(tmp_path)
        assert time.monotonic() - began < warden._MAKING
    warden.remove_container(tmp_path)  # does nothing: no container is noted any more


def test_an_engine_that_does_not_remove(tmp_path: Path) -> None:
    with fake_engine(tmp_path / "engine.sock", lambda method, path: (500, {"message": "busy"})):
        warden.note_container(tmp_path, tmp_path / "engine.sock", "n1", made=True)
        with pytest.raises(warden.Stubborn, match=r"container n1 was not removed within 0.1 s: .*busy"):
            warden.remove_container(tmp_path, timeout=0.1)
    with pytest.raises(OSError, match=r"engine at .*engine.sock does not answer"):
        warden.remove_container(tmp_path)
    assert (tmp_path / warden.NOTE).exists()


# --- images -------------------------------------------------------------------------------------------


@pytest.fixture
def tag(engine: DockerClient) -> Iterator[str]:
    name = f"pgha-test:{os.getpid()}"
    yield name
    if engine.images.list(name):
        engine.images.remove(name, force=True)


def dangling(engine: DockerClient) -> set[str]:
    return {str(image.id) for image in engine.images.list(filters={"dangling": True})}


@pytest.mark.thorough
def test_images(engine: DockerClient, tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGHA_IMAGE", raising=False)
    before = dangling(engine)
    own = find_image(18)
    assert own.startswith(f"pgha-postgres:{find_installation(18).release}-")
    assert find_image(18) == own
    assert build_image(18, tag) == tag
    first = engine.images.get(tag).id
    assert build_image(18, tag) == tag
    assert engine.images.get(tag).id != first
    assert dangling(engine) <= before  # the image that had the name is removed
    assert engine.images.get(tag).attrs["Size"] < 60 << 20
    monkeypatch.setenv("PGHA_IMAGE", tag)
    assert find_image() == find_image(16) == tag


@pytest.mark.thorough
def test_an_image_that_is_not_here(engine: DockerClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHA_IMAGE", NOWHERE)
    with pytest.raises(ChaosError, match=rf"cannot pull the image {NOWHERE}: .*: load it .*, or unset PGHA_"):
        find_image()


def test_what_cannot_be_packed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = "\tlibz.so.1 => not found\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f900e27b000)\n"
    (tmp_path / "ldd").write_text(f"#!/bin/sh\nprintf '{lines}'\n")
    (tmp_path / "ldd").chmod(0o755)
    installation = find_installation(18)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ChaosError, match=r"^.*postgres needs libz.so.1, not found by 'ldd': install it$"):
        pack(installation)
    (tmp_path / "ldd").unlink()
    with pytest.raises(ChaosError, match=r"^making an image needs the program ldd"):
        pack(installation)


@pytest.mark.thorough
def test_the_command(engine: DockerClient, tag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["image", "--version", "16", "--tag", tag]) == 0
    assert capsys.readouterr().out == f"{tag}\n"
    assert engine.images.list(tag)
    assert main(["image", "--version", "9"]) == 1
    assert "no PostgreSQL 9 found" in capsys.readouterr().err


def test_the_module_is_a_program() -> None:
    words = [sys.executable, "-W", "error", "-m", "pgha.chaos", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "image" in done.stdout
