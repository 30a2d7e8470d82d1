"""High-availability PostgreSQL client for trio and asyncio, with pipelining and automatic failover.

Begin with `open_cluster`.
"""

from pgha._cluster.cluster import Cluster as Cluster
from pgha._cluster.group import Group as Group
from pgha._cluster.opening import open_cluster as open_cluster
from pgha._errors import ClusterClosed as ClusterClosed
from pgha._errors import CommitInDoubt as CommitInDoubt
from pgha._errors import ConfigError as ConfigError
from pgha._errors import Error as Error
from pgha._errors import ErrorInfo as ErrorInfo
from pgha._errors import IdempotencyKeyReused as IdempotencyKeyReused
from pgha._errors import LedgerError as LedgerError
from pgha._errors import NodeReport as NodeReport
from pgha._errors import NoNodeAvailable as NoNodeAvailable
from pgha._errors import OperationCancelled as OperationCancelled
from pgha._errors import OperationTimeout as OperationTimeout
from pgha._errors import QueueFull as QueueFull
from pgha._errors import RowsLost as RowsLost
from pgha._errors import SessionRequired as SessionRequired
from pgha._errors import error_info as error_info
from pgha._ledger.admin import Ledger as Ledger
from pgha._ledger.schema import LedgerStatus as LedgerStatus
from pgha._ledger.schema import Pruned as Pruned
from pgha._operation.key import new_idempotency_key as new_idempotency_key
from pgha._operation.operation import Operation as Operation
from pgha._options import Node as Node
from pgha._options import SetupConnection as SetupConnection
from pgha._rows.result import Result as Result
from pgha._types import Attempt as Attempt
from pgha._types import ClockSkewed as ClockSkewed
from pgha._types import ConnectionLost as ConnectionLost
from pgha._types import Event as Event
from pgha._types import Evidence as Evidence
from pgha._types import FailureUnretrieved as FailureUnretrieved
from pgha._types import Fastest as Fastest
from pgha._types import Nearest as Nearest
from pgha._types import NodeStateChanged as NodeStateChanged
from pgha._types import NodeStatus as NodeStatus
from pgha._types import OperationInDoubt as OperationInDoubt
from pgha._types import OperationResolved as OperationResolved
from pgha._types import OperationRetried as OperationRetried
from pgha._types import Pin as Pin
from pgha._types import Primary as Primary
from pgha._types import PrimarySuperseded as PrimarySuperseded
from pgha._types import Record as Record
from pgha._types import RoleChanged as RoleChanged
from pgha._types import SendInfo as SendInfo
from pgha._types import Statistics as Statistics
from pgha._types import fastest as fastest
from pgha._types import nearest as nearest
from pgha._types import pin as pin
from pgha._types import primary as primary

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
    "ErrorInfo",
    "IdempotencyKeyReused",
    "ConnectionLost",
    "Ledger",
    "LedgerError",
    "LedgerStatus",
    "Nearest",
    "NoNodeAvailable",
    "Node",
    "NodeStateChanged",
    "NodeReport",
    "NodeStatus",
    "SessionRequired",
    "Operation",
    "OperationCancelled",
    "OperationInDoubt",
    "OperationRetried",
    "OperationResolved",
    "OperationTimeout",
    "Pin",
    "Pruned",
    "Primary",
    "PrimarySuperseded",
    "QueueFull",
    "Record",
    "Result",
    "RoleChanged",
    "RowsLost",
    "SendInfo",
    "SetupConnection",
    "Statistics",
    "Attempt",
    "fastest",
    "error_info",
    "nearest",
    "new_idempotency_key",
    "open_cluster",
    "pin",
    "primary",
]

for _name in __all__:
    # Errors and reprs then show the public name, `pgha.X`, not the private module.
    globals()[_name].__module__ = "pgha"
del _name
