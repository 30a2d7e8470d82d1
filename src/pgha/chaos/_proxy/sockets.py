"""Raw non-blocking TCP sockets on either event loop.

They do what streams cannot: a reset without an end of file before it, a half-close, and a send that reports
how many bytes the kernel took.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from typing import Any

import anyio
import anyio.lowlevel

_SIOCOUTQNSD = 0x894B
_BACKLOG = 1024
_LINGER_NOT = struct.pack("ii", 1, 0)
_POLL = 0.001
_PIECE = 1 << 16


def listening(port: int) -> socket.socket:
    """Return a listener at `port` of 127.0.0.1, which a `Port` may have reserved.

    `OSError` if another program listens there.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def prepared(sock: socket.socket) -> socket.socket:
    """Make a socket non-blocking, with a packet for every send; return the socket."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


async def connected(host: str, port: int) -> socket.socket:
    """Connect and return the socket; raises the last `OSError` if no address of `host` accepts."""
    error: OSError = OSError(f"{host} has no address")
    for family, address in await _addresses(host, port):
        try:
            return await _connected(family, address)
        except OSError as failure:
            error = failure
    raise error


async def _addresses(host: str, port: int) -> list[tuple[int, Any]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        # The host is a name. A thread resolves it; for numeric addresses the cost of a thread is avoided.
        named = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [(family, address) for family, *_, address in named]
    return [(family, address) for family, *_, address in found]


async def _connected(family: int, address: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        prepared(sock)
        try:
            sock.connect(address)
        except BlockingIOError:
            await anyio.wait_writable(sock)
            if (code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)) != 0:
                raise OSError(code, os.strerror(code)) from None
    except BaseException:
        sock.close()
        raise
    return sock


async def readable(sock: socket.socket) -> None:
    """Wait until `sock` can be read, or was closed in the meantime (reading then fails)."""
    if sock.fileno() >= 0:
        try:
            await anyio.wait_readable(sock)
        except anyio.ClosedResourceError:
            pass


async def writable(sock: socket.socket) -> None:
    """Wait until `sock` can be written to, or was closed in the meantime (writing then fails)."""
    if sock.fileno() >= 0:
        try:
            await anyio.wait_writable(sock)
        except anyio.ClosedResourceError:
            pass


async def delivered(sock: socket.socket) -> None:
    """Wait until the kernel has sent everything that was written.

    A reset after that overtakes nothing; a reset before it would discard the rest. The wait lasts as long as
    the peer does not read.
    """
    while sock.fileno() >= 0:
        (waiting,) = struct.unpack("i", fcntl.ioctl(sock, _SIOCOUTQNSD, bytes(4)))
        if waiting == 0:
            return
        await anyio.sleep(_POLL)  # the kernel has no event for it


async def drained(sock: socket.socket) -> None:
    """Read `sock` to its end and discard the bytes: closing a socket with unread bytes would be a reset."""
    while True:
        try:
            if not sock.recv(_PIECE):
                return
        except BlockingIOError:
            await readable(sock)
        except OSError:
            return
        else:
            await anyio.lowlevel.checkpoint()


def finish(sock: socket.socket) -> None:
    """Send the end of file, if the connection still exists."""
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def close(sock: socket.socket) -> None:
    """Close a socket, even while a task waits for it."""
    if sock.fileno() >= 0:
        # First: otherwise the loop would go on watching a file descriptor that the next socket may get.
        anyio.notify_closing(sock)
        sock.close()


def reset(sock: socket.socket) -> None:
    """Close a socket with a reset (RST), without an end of file; unsent bytes are discarded."""
    if sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        close(sock)
