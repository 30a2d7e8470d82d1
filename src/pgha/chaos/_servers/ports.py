"""Ports of 127.0.0.1 which stay ours while no server listens on them."""

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

    The reservation is a socket which is bound but never listens. The server may bind too, since both set
    SO_REUSEADDR and only one listens; a client of a server that is down gets "connection refused" as it
    should; but another search for a free port fails there, and the kernel never hands the port out for an
    outgoing connection.
    """

    __slots__ = ("_socket", "number")

    def __init__(self, wanted: int | None = None) -> None:
        """Reserve `wanted`, or a free one outside the range of outgoing connections. `ChaosError` if there is
        none.
        """
        for number in [wanted] if wanted is not None else _candidates():
            holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            # Without it, binding fails where anybody else is bound. A port that was asked for is had a minute
            # after other servers there too, with their connections in TIME_WAIT: unless somebody listens.
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
            "no free port on 127.0.0.1" if wanted is None else f"port {wanted} of 127.0.0.1 is taken"
        )

    def release(self) -> None:
        self._socket.close()


def _candidates() -> list[int]:
    try:
        low, high = (int(word) for word in _RANGE.read_text().split())
    except FileNotFoundError:
        low, high = 32_768, 60_999
    outside = [*range(_LOWEST, low), *range(max(high + 1, _LOWEST), 65_536)]
    return random.sample(outside or range(_LOWEST, 65_536), _TRIES)
