"""Ports of 127.0.0.1 that stay reserved while no server listens on them."""

from __future__ import annotations

import random
import socket
from pathlib import Path

from pgha.chaos._errors import ChaosError

_LOWEST = 10_240
_TRIES = 200
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


class Port:
    """A reserved port number.

    The reservation is a socket that is bound but never listens. The server can bind too, because both sockets
    set SO_REUSEADDR and only one of them listens. A client of a server that is down gets "connection
    refused", as it should. Another search for a free port fails on this port, and the kernel never uses the
    port for an outgoing connection.
    """

    __slots__ = ("_socket", "number")

    def __init__(self, wanted: int | None = None) -> None:
        """Reserve `wanted`, or a free port outside the range of outgoing connections.

        `ChaosError` if there is none.
        """
        for number in [wanted] if wanted is not None else _candidates():
            holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            # Without SO_REUSEADDR, binding fails if another socket is bound, so a random port is really free.
            # A wanted port is usable while the connections of an earlier server there are still in TIME_WAIT
            # (for a minute), so it is bound with SO_REUSEADDR: that fails only if another socket listens.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(wanted is not None))
            try:
                holder.bind(("127.0.0.1", number))
            except OSError:
                holder.close()
                continue
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket, self.number = holder, number
            return
        raise ChaosError(
            f"no free port on 127.0.0.1 in {_TRIES} tries"
            if wanted is None
            else f"port {wanted} of 127.0.0.1 is taken"
        )

    def release(self) -> None:
        """Release the reservation."""
        self._socket.close()


def _candidates() -> list[int]:
    try:
        low, high = (int(word) for word in _RANGE.read_text().split())
    except FileNotFoundError:
        low, high = 32_768, 60_999
    outside = [*range(_LOWEST, low), *range(max(high + 1, _LOWEST), 65_536)]
    return random.sample(outside or range(_LOWEST, 65_536), _TRIES)
