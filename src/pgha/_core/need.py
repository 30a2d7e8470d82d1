"""What an operation asks of the node that it is sent to, as one value.

`pgha._core.routing` compares a `Need` with a node's state in `eligible`. A new condition (a position in the
write-ahead log that the node must have reached, a limit of its replication lag) is one more field here with a
default that asks for nothing, and one more line in `eligible`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

AccessMode = Literal["read", "write"]
"""The kind of connection that an operation needs: one that is read-only by default, or one for writes."""
ACCESS_MODES: tuple[AccessMode, AccessMode] = ("read", "write")


class Need(NamedTuple):
    """The conditions under which an operation may be sent to a node.

    Operations with equal needs wait in one queue, so a need is a key of dictionaries in the hot path: it is a
    tuple of a few short strings and numbers, which is quick to hash and to compare.
    """

    access: AccessMode
    """The access mode of the connection."""
    role: Literal["any", "primary"] = "any"
    """``primary`` for every write, and for reads that must not come from a standby."""
    node: str | None = None
    """Name of the only node that may run the operation; None if any node may."""
    lineage: int | None = None
    """System identifier of the only servers that may run the operation; None if any server may. All servers
    that took over from one another have one system identifier."""


READ = Need("read")
"""The need of a read that any node may answer."""
PRIMARY_READ = Need("read", "primary")
"""The need of a read that must come from the primary that the writes go to."""
WRITE = Need("write", "primary")
"""The need of a write that any primary may apply."""
