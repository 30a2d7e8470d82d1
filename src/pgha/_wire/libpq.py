"""The one function of libpq that psycopg (3.3) does not wrap, reached by its documented ``pgconn_ptr``."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from psycopg import pq
from psycopg.pq.abc import PGconn


def _find() -> Callable[[int], int] | None:
    """``PQsendPipelineSync`` (libpq 17 and later): a Sync that is not written to the socket at once."""
    if pq.__impl__ == "python":
        return None
    module = "psycopg_binary.pq" if pq.__impl__ == "binary" else "psycopg_c.pq"
    try:
        # The extension is linked against the libpq that it uses: looking there finds that one, no other.
        path = __import__(module, fromlist=["__file__"]).__file__
        # It never waits, so the interpreter need not be let go of.
        function = ctypes.PyDLL(path).PQsendPipelineSync
    except (ImportError, OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_void_p]
    function.restype = ctypes.c_int
    return function


_send_pipeline_sync = _find()


def pointer_of(pgconn: PGconn) -> int | None:
    """What `sync_unwritten` takes; valid until the connection is finished. None: it is not to be had."""
    pointer: int | None = getattr(pgconn, "pgconn_ptr", None)
    return None if _send_pipeline_sync is None else pointer


def sync_unwritten(pointer: int) -> bool:
    """Put a Sync behind the segment without a system call; False: it failed."""
    return _send_pipeline_sync is not None and _send_pipeline_sync(pointer) == 1
