"""The kinds of faults, from simple to odd, and what each is like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

NodeFault: TypeAlias = Literal[
    "kill", "freeze", "restart", "crash", "kill_backend", "terminate", "freeze_backend"
]
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
FaultKind: TypeAlias = Literal[NodeFault, WireFault]
"""What `Injector` can do to a server, or to the line before it.

Nodes: `kill` SIGKILLs a server and starts it again when healed, `freeze` lets it stand still, `restart` is a
fast shutdown and `crash` an immediate one, both started again when healed. `kill_backend` SIGKILLs one
client's process (the server then recovers), `terminate` ends all client sessions with pg_terminate_backend,
`freeze_backend` lets one client's process stand still.

Lines: `latency`, `bandwidth`, `slice` (packets of so many bytes), `coalesce` (packets collected up to so many
bytes) and `slow_close` are for both directions. `drop_up` lets nothing through from client to server,
`drop_down` nothing back, `drop_both` neither; what was sent comes through when healed. `reset` and `close`
end the living connections at once, by RST or in an orderly way. `refuse` and `mute` reset them too: new ones
are then refused, or accepted and never answered. `cut` resets every connection behind so many bytes of
answers.
"""
Layer: TypeAlias = Literal["node", "wire"]

NODE_FAULTS: tuple[NodeFault, ...] = get_args(NodeFault)
WIRE_FAULTS: tuple[WireFault, ...] = get_args(WireFault)
ALL_FAULTS: tuple[FaultKind, ...] = (*NODE_FAULTS, *WIRE_FAULTS)


@dataclass(frozen=True, slots=True)
class Trait:
    """What is known of a kind before it is done."""

    layer: Layer = "wire"
    lasting: bool = True
    """Whether it is held, or over as soon as it is done."""
    settle: float = 0.05
    """Seconds after its healing until the next fault may come: servers have to start, clients to connect."""
    unit: str = ""
    """Of `Step.amount`, "" where that means nothing."""
    amounts: tuple[float, ...] = ()
    """Sensible ones, the mildest first; the first stands for 0."""


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
    "bandwidth": Trait(unit="bytes a second each way", amounts=(64_000.0, 8_000.0, 1_000.0)),
    "slice": Trait(unit="bytes a packet", amounts=(1, 7, 100)),
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
