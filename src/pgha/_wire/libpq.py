"""The one function of libpq that psycopg (3.3) does not wrap, called with the documented ``pgconn_ptr``."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from psycopg import pq
from psycopg.pq.abc import PGconn


def _find() -> Callable[[int], int] | None:
    """Return ``PQsendPipelineSync`` (libpq 17 and later), or None if the function is not available.

    The function queues a Sync without writing to the socket at once.
    """
    if pq.__impl__ == "python":
        return None
    module = "psycopg_binary.pq" if pq.__impl__ == "binary" else "psycopg_c.pq"
    try:
        # The extension is linked against the libpq that it uses, so the lookup finds that libpq and no other.
        path = __import__(module, fromlist=["__file__"]).__file__
        # The function never waits, so there is no need to release the interpreter lock.
        function = ctypes.PyDLL(path).PQsendPipelineSync
    except (ImportError, OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_void_p]
    function.restype = ctypes.c_int
    return function


_send_pipeline_sync = _find()


def pointer_of(pgconn: PGconn) -> int | None:
    """Return the pointer for `sync_unwritten`, or None if there is none.

    The pointer is valid until the connection is finished.
    """
    pointer: int | None = getattr(pgconn, "pgconn_ptr", None)
    return None if _send_pipeline_sync is None else pointer


def sync_unwritten(pointer: int) -> bool:
    """Queue a Sync behind the segment without a system call; return False if that failed."""
    return _send_pipeline_sync is not None and _send_pipeline_sync(pointer) == 1
