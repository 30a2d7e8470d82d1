"""What the kernel knows of a TCP connection's traffic: whether anything still moves.

Linux tells, for TCP; elsewhere, and for other sockets, all is 0, as of a connection where nothing moves.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios

# Of struct tcp_info: tcpi_bytes_acked and tcpi_bytes_received (since Linux 4.1).
_TCP_INFO, _TCP_INFO_BYTES, _TCP_INFO_SIZE = 11, 120, 136


def moved(fd: int) -> int:
    """Bytes carried so far, both ways: what the other kernel confirmed, and what ours received."""
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
    """Bytes written that the other kernel has not confirmed."""
    try:
        (count,) = struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)))
    except OSError:
        return 0
    return int(count)
