"""The kinds of faults, from simple to odd, and the properties of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

NodeFault: TypeAlias = Literal[
    "kill", "freeze", "restart", "crash", "kill_backend", "terminate", "freeze_backend"
]
"""The kinds of faults that are injected into a node."""
WireFault: TypeAlias = Literal[
    "latency",
    "bandwidth",
    "slice",
    "coalesce",
    "slow_close",
    "drop_up",
    "drop_down",
    "drop_both",
    "reset",
    "close",
    "refuse",
    "mute",
    "cut",
]
"""The kinds of faults that are injected into the proxy before a node."""
FaultKind: TypeAlias = Literal[NodeFault, WireFault]
"""A kind of fault that `Injector` can inject into a server, or into the proxy before it.

Faults of nodes: `kill` sends SIGKILL to a server, `freeze` suspends it, `restart` is a fast shutdown and
`crash` an immediate one. Healing starts the server again, or thaws it. `kill_backend` sends SIGKILL to the
process of one client (the server then recovers), `terminate` ends all client sessions by
pg_terminate_backend, `freeze_backend` suspends the process of one client.

Faults of the network: `latency`, `bandwidth`, `slice` (small packets of a given size), `coalesce` (packets
collected up to a given size) and `slow_close` affect both directions. `drop_up` lets nothing through from
client to server, `drop_down` nothing from server to client, `drop_both` nothing either way; healing delivers
what was sent. `reset` and `close` end the living connections at once, by RST or in an orderly way. `refuse`
and `mute` reset them too, and new connections are then refused, or accepted and never answered. `cut` resets
every connection after a given number of bytes of answers.
"""
Layer: TypeAlias = Literal["node", "wire"]
"""The layer of a fault: the node itself, or the network before it."""

NODE_FAULTS: tuple[NodeFault, ...] = get_args(NodeFault)
"""All kinds of faults that are injected into a node."""
WIRE_FAULTS: tuple[WireFault, ...] = get_args(WireFault)
"""All kinds of faults that are injected into the proxy before a node."""
ALL_FAULTS: tuple[FaultKind, ...] = (*NODE_FAULTS, *WIRE_FAULTS)
"""All kinds of faults, from simple to odd."""


@dataclass(frozen=True, slots=True)
class Trait:
    """The properties of a kind of fault."""

    layer: Layer = "wire"
    lasting: bool = True
    """Whether the fault lasts until it is healed; False: it is over at once."""
    settle: float = 0.05
    """Seconds from the healing to the earliest next fault: servers must start, clients must connect."""
    unit: str = ""
    """The unit of `Step.amount`; "" if the kind has no amount."""
    amounts: tuple[float, ...] = ()
    """Sensible amounts, the usual one first: it stands for 0."""


_SERVER_BACK = 0.5

TRAITS: dict[FaultKind, Trait] = {
    "kill": Trait("node", settle=_SERVER_BACK),
    "freeze": Trait("node", settle=0.1),
    "restart": Trait("node", settle=_SERVER_BACK),
    "crash": Trait("node", settle=_SERVER_BACK),
    "kill_backend": Trait("node", lasting=False, settle=_SERVER_BACK, unit="which", amounts=(0, 1, 2, 3)),
    "terminate": Trait("node", lasting=False, settle=0.1),
    "freeze_backend": Trait("node", settle=0.1, unit="which", amounts=(0, 1, 2, 3)),
    "latency": Trait(unit="seconds each way", amounts=(0.02, 0.005, 0.1, 0.5)),
    "bandwidth": Trait(unit="bytes per second each way", amounts=(64_000.0, 8_000.0, 1_000.0)),
    "slice": Trait(unit="bytes per packet", amounts=(1, 7, 100)),
    "coalesce": Trait(unit="bytes", amounts=(8192, 100_000)),
    "slow_close": Trait(unit="seconds", amounts=(0.1, 0.5)),
    "drop_up": Trait(),
    "drop_down": Trait(),
    "drop_both": Trait(),
    "reset": Trait(lasting=False),
    "close": Trait(lasting=False),
    "refuse": Trait(),
    "mute": Trait(),
    "cut": Trait(unit="bytes of answers", amounts=(1, 5, 60, 400, 1000, 4000)),
}
