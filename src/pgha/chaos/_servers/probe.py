"""Whether a server lets clients in, asked as pg_isready does: a startup message, and the first byte of the
answer.

Not libpq's PQping: psycopg calls it without giving up the GIL, so a frozen server would stop the whole
program.
"""

from __future__ import annotations

import struct

import anyio

_PROTOCOL = 3 << 16
_NOT_YET = b"C57P03\0"


async def accepts(port: int) -> bool:
    """Whether the server at `port` gets as far as authentication (whether it then lets us in does not
    matter).

    False while nobody listens there and while the server starts, recovers or shuts down. Waits as long as a
    frozen server lets it: give it a scope.
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
    """How much of an error message follows its first five bytes; more than there is while that is unknown."""
    return struct.unpack_from("!i", answer, 1)[0] - 4 if len(answer) >= 5 else 1 << 20
