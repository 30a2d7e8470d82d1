"""pgha without an event loop: the same cluster, for any number of threads.

Example::

    with pgha.blocking.open_cluster("host=db1", "host=db2") as cluster:
        rows = cluster.fetch("SELECT name FROM item WHERE id < %s", [10])

One background thread runs the event loop and every connection. Operations of all threads share the
connections, so a few connections serve any number of threads. Row factories, loaders, ``on_send`` and done
callbacks run in that thread: they must be quick, may call `submit`, and must not wait (`WouldDeadlock`).
Dumpers run in the calling thread.

In a child process made by ``os.fork``, an inherited cluster raises `ClusterClosed`, and leaving its ``with``
block does nothing. Open another cluster in the child.
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
    # Errors and reprs then show the public name, `pgha.blocking.X`, not the private module.
    globals()[_name].__module__ = "pgha.blocking"
del _name
