"""Tests of the kernel's information on a connection, with a pair of sockets of this program."""

from __future__ import annotations

import socket
import sys

import pytest
from support.common import eventually

from pgha._wire.tcp_info import moved, unsent

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells"),
]


async def test_what_moves_and_what_does_not() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as near,
        listener.accept()[0] as far,
    ):
        fd, before = near.fileno(), moved(near.fileno())
        near.sendall(b"x" * 1000)
        await eventually(lambda: moved(fd) == before + 1000)  # acknowledged by the kernel, read by no program
        assert unsent(fd) == 0
        far.sendall(b"y" * 50)
        await eventually(lambda: moved(fd) == before + 1050)
        near.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                near.send(b"z" * 65536)
        await eventually(lambda: unsent(fd) > 0)


async def test_a_socket_that_is_no_tcp_and_one_that_is_closed() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.sendall(b"x")
        assert moved(one.fileno()) == 0
        fd = one.fileno()
    assert (moved(fd), unsent(fd)) == (0, 0)
