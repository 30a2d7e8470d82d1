"""High-availability PostgreSQL client for trio and asyncio: pipelined, and failing over by itself."""

from ._cluster import Cluster as Cluster
from ._config import Node as Node
from ._config import SetupConnection as SetupConnection
from ._errors import ClusterClosed as ClusterClosed
from ._errors import CommitInDoubt as CommitInDoubt
from ._errors import ConfigError as ConfigError
from ._errors import Error as Error
from ._errors import Info as Info
from ._errors import KeyReused as KeyReused
from ._errors import LedgerError as LedgerError
from ._errors import NodeReport as NodeReport
from ._errors import NoNodeAvailable as NoNodeAvailable
from ._errors import NotOnALane as NotOnALane
from ._errors import OperationCancelled as OperationCancelled
from ._errors import OperationTimeout as OperationTimeout
from ._errors import QueueFull as QueueFull
from ._errors import RowsLost as RowsLost
from ._errors import info as info
from ._group import Group as Group
from ._keys import new_key as new_key
from ._ledger import Ledger as Ledger
from ._ledgertable import LedgerStatus as LedgerStatus
from ._ledgertable import Pruned as Pruned
from ._opening import open_cluster as open_cluster
from ._operation import Operation as Operation
from ._result import Result as Result
from ._types import ClockSkewed as ClockSkewed
from ._types import Event as Event
from ._types import Evidence as Evidence
from ._types import FailureUnretrieved as FailureUnretrieved
from ._types import Fastest as Fastest
from ._types import LaneLost as LaneLost
from ._types import Nearest as Nearest
from ._types import NodeChanged as NodeChanged
from ._types import NodeStatus as NodeStatus
from ._types import OperationInDoubt as OperationInDoubt
from ._types import OperationRetried as OperationRetried
from ._types import OperationSettled as OperationSettled
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
    "ClockSkewed",
    "Cluster",
    "ClusterClosed",
    "CommitInDoubt",
    "ConfigError",
    "Error",
    "Event",
    "Evidence",
    "FailureUnretrieved",
    "Fastest",
    "Group",
    "Info",
    "KeyReused",
    "LaneLost",
    "Ledger",
    "LedgerError",
    "LedgerStatus",
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
    "OperationSettled",
    "OperationTimeout",
    "Pin",
    "Pruned",
    "QueueFull",
    "Record",
    "Result",
    "RoleChanged",
    "RowsLost",
    "Sent",
    "SetupConnection",
    "Statistics",
    "Try",
    "fastest",
    "info",
    "nearest",
    "new_key",
    "open_cluster",
    "pin",
]

for _name in __all__:
    # Errors and reprs name the public place, not the private module.
    globals()[_name].__module__ = "pgha"
del _name
