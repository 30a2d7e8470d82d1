"""The kernel's counters of a TCP connection's traffic, which show whether anything still moves.

The counters exist on Linux, for TCP. On other systems, and for other sockets, every function returns 0, as
for a connection on which nothing moves.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios

# The place of tcpi_bytes_acked and tcpi_bytes_received in struct tcp_info (since Linux 4.1).
_TCP_INFO, _TCP_INFO_BYTES, _TCP_INFO_SIZE = 11, 120, 136


def moved(fd: int) -> int:
    """Return the bytes carried so far: those that the other kernel confirmed plus those received here."""
    try:
        copy = socket.fromfd(fd, socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return 0
    try:
        info = copy.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _TCP_INFO_SIZE)
    except OSError:
        return 0
    finally:
        copy.close()
    if len(info) < _TCP_INFO_SIZE:
        return 0
    confirmed, received = struct.unpack_from("QQ", info, _TCP_INFO_BYTES)
    return int(confirmed + received)


def unsent(fd: int) -> int:
    """Return the number of bytes written that the other kernel has not confirmed."""
    try:
        (count,) = struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)))
    except OSError:
        return 0
    return int(count)
