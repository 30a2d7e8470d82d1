"""pgha without an event loop: the same cluster, from any number of threads.

    with pgha.blocking.open_cluster("host=db1 dbname=shop", "host=db2 dbname=shop") as cluster:
        rows = cluster.fetch("SELECT id, name FROM item WHERE price < %s", [10])

One background thread runs the loop and every connection. Operations of all threads share its lanes, so a few
connections serve any number of threads. Row factories, loaders, ``on_send`` and done callbacks run in that
thread: they must be quick, may `submit`, and may not wait (`WouldDeadlock`). Dumpers run in the thread that
calls.

In a child made by ``os.fork`` an inherited cluster raises `ClusterClosed`, and leaving its ``with`` block
does nothing: open another one there.
"""

from pgha.blocking._cluster import Cluster as Cluster
from pgha.blocking._cluster import open_cluster as open_cluster
from pgha.blocking._errors import OperationCancelled as OperationCancelled
from pgha.blocking._errors import WouldDeadlock as WouldDeadlock
from pgha.blocking._events import Events as Events
from pgha.blocking._group import Group as Group
from pgha.blocking._ledger import Ledger as Ledger
from pgha.blocking._operation import Operation as Operation

__all__ = [
    "Cluster",
    "Events",
    "Group",
    "Ledger",
    "Operation",
    "OperationCancelled",
    "WouldDeadlock",
    "open_cluster",
]

for _name in __all__:
    # Errors and reprs name the public place, not the private module.
    globals()[_name].__module__ = "pgha.blocking"
del _name
