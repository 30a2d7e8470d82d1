"""The fault kit: local PostgreSQL servers that tests start, kill and freeze, alone or replicating.

Example::

    async with pgha.chaos.masters(3) as nodes:
        await nodes.create("CREATE TABLE item (id int PRIMARY KEY)")
        await nodes["n2"].kill()

The kit runs on trio and asyncio, needs Linux, and finds PostgreSQL by itself (`pip install pgha[chaos]`
installs one). The folders of the nodes are below TMPDIR. With TMPDIR=/dev/shm, if there is enough memory,
nodes start twice as fast.
"""

from pgha.chaos import _offers
from pgha.chaos._containers.container import ContainerNode
from pgha.chaos._containers.engine import engine_available, require_engine
from pgha.chaos._containers.image import build_image, find_image
from pgha.chaos._errors import ChaosError
from pgha.chaos._faults.injector import Injector
from pgha.chaos._faults.kinds import ALL_FAULTS, NODE_FAULTS, WIRE_FAULTS, FaultKind
from pgha.chaos._faults.schedule import Done, Schedule, Step
from pgha.chaos._proxy.direction import Cut, CutHow, Direction, Wire
from pgha.chaos._proxy.group import Proxies, proxied
from pgha.chaos._proxy.proxy import ConnectionStatus, Proxy
from pgha.chaos._servers.binaries import Installation, find_installation
from pgha.chaos._servers.node import LocalNode
from pgha.chaos._servers.protocol import Node, NodeKind, StopMode
from pgha.chaos._topologies.masters import Masters, masters
from pgha.chaos._topologies.nodes import Nodes, standalone
from pgha.chaos._topologies.replicas import Replicas, replicas
from pgha.chaos._verify.leftovers import nothing_left
from pgha.chaos._workload import Workload

__all__ = [
    "ALL_FAULTS",
    "ChaosError",
    "ConnectionStatus",
    "ContainerNode",
    "Cut",
    "CutHow",
    "Direction",
    "Done",
    "FaultKind",
    "Injector",
    "Installation",
    "LocalNode",
    "Masters",
    "NODE_FAULTS",
    "Node",
    "NodeKind",
    "Nodes",
    "Proxies",
    "Proxy",
    "Replicas",
    "Schedule",
    "Step",
    "StopMode",
    "WIRE_FAULTS",
    "Wire",
    "Workload",
    "build_image",
    "engine_available",
    "find_image",
    "find_installation",
    "nothing_left",
    "masters",
    "proxied",
    "replicas",
    "require_engine",
    "standalone",
]

_offers.register()
