"""High-availability PostgreSQL client for trio and asyncio: pipelined, and failing over by itself."""

from ._cluster import Cluster as Cluster
from ._cluster import open_cluster as open_cluster
from ._config import Node as Node
from ._config import SetupConnection as SetupConnection
from ._errors import ClusterClosed as ClusterClosed
from ._errors import CommitInDoubt as CommitInDoubt
from ._errors import ConfigError as ConfigError
from ._errors import Error as Error
from ._errors import Info as Info
from ._errors import NodeReport as NodeReport
from ._errors import NoNodeAvailable as NoNodeAvailable
from ._errors import NotOnALane as NotOnALane
from ._errors import OperationCancelled as OperationCancelled
from ._errors import OperationTimeout as OperationTimeout
from ._errors import QueueFull as QueueFull
from ._errors import info as info
from ._group import Group as Group
from ._operation import Operation as Operation
from ._result import Result as Result
from ._types import Event as Event
from ._types import FailureUnretrieved as FailureUnretrieved
from ._types import Fastest as Fastest
from ._types import LaneLost as LaneLost
from ._types import Nearest as Nearest
from ._types import NodeChanged as NodeChanged
from ._types import NodeStatus as NodeStatus
from ._types import OperationInDoubt as OperationInDoubt
from ._types import OperationRetried as OperationRetried
from ._types import Pin as Pin
from ._types import Record as Record
from ._types import RoleChanged as RoleChanged
from ._types import Sent as Sent
from ._types import Statistics as Statistics
from ._types import Try as Try
from ._types import fastest as fastest
from ._types import nearest as nearest
from ._types import pin as pin

__all__ = [
    "Cluster",
    "ClusterClosed",
    "CommitInDoubt",
    "ConfigError",
    "Error",
    "Event",
    "FailureUnretrieved",
    "Fastest",
    "Group",
    "Info",
    "LaneLost",
    "Nearest",
    "NoNodeAvailable",
    "Node",
    "NodeChanged",
    "NodeReport",
    "NodeStatus",
    "NotOnALane",
    "Operation",
    "OperationCancelled",
    "OperationInDoubt",
    "OperationRetried",
    "OperationTimeout",
    "Pin",
    "QueueFull",
    "Record",
    "Result",
    "RoleChanged",
    "Sent",
    "SetupConnection",
    "Statistics",
    "Try",
    "fastest",
    "info",
    "nearest",
    "open_cluster",
    "pin",
]

for _name in __all__:
    # Errors and reprs name the public place, not the private module.
    globals()[_name].__module__ = "pgha"
del _name
