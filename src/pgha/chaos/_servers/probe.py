"""A check whether a server accepts clients, by a startup message and the first byte of the answer.

pg_isready does the same.

libpq's PQping is not used: psycopg calls it without releasing the GIL, so a frozen server would stop the
whole program.
"""

from __future__ import annotations

import struct

import anyio

_PROTOCOL = 3 << 16
_NOT_YET = b"C57P03\0"


async def accepts(port: int) -> bool:
    """Return whether the server at `port` gets as far as authentication, whether or not that would succeed.

    False if nothing listens there, and while the server starts, recovers or shuts down. With a frozen server
    the wait has no end: call this in a cancel scope with a deadline.
    """
    words = b"user\0postgres\0database\0postgres\0\0"
    try:
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(struct.pack("!ii", len(words) + 8, _PROTOCOL) + words)
            answer = await stream.receive()
            while answer[:1] == b"E" and len(answer) < 5 + _length(answer):
                answer += await stream.receive()
    except (OSError, anyio.EndOfStream, anyio.BrokenResourceError):
        return False
    return answer[:1] == b"R" or (answer[:1] == b"E" and _NOT_YET not in answer)


def _length(answer: bytes) -> int:
    """Return how many bytes of an error message follow its first five bytes.

    While that is unknown, the number is larger than any message.
    """
    return struct.unpack_from("!i", answer, 1)[0] - 4 if len(answer) >= 5 else 1 << 20
