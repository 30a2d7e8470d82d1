"""Tables of how each kind of fault is injected and healed, and the few steps that the tables name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, TypeAlias

from pgha.chaos._errors import ChaosError
from pgha.chaos._faults.kinds import NodeFault, WireFault
from pgha.chaos._proxy.direction import Cut, Direction, Wire
from pgha.chaos._servers.protocol import Node, StopMode
from pgha.chaos._servers.runner import NoBackend

_STOP_TIMEOUT = 20.0
_COALESCE_WAIT = 0.05
_TRIES = 20
_CLIENTS = (
    "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    " ORDER BY backend_start, pid"
)
_TERMINATE = "SELECT pg_terminate_backend(pid) FROM (" + _CLIENTS + ") client"


class ProxyLike(Protocol):
    """The operations that faults need on a proxy before a node, such as `Proxy`."""

    @property
    def name(self) -> str: ...

    def set(self, *, up: Wire | None = None, down: Wire | None = None) -> None: ...
    def drop(self, *directions: Direction) -> None: ...
    def cut(self, cut: Cut | None) -> None: ...
    def reset(self) -> None: ...
    def close_all(self) -> None: ...
    def refuse(self) -> None: ...
    def mute(self) -> None: ...
    def heal(self) -> None: ...


NodeAct: TypeAlias = Callable[[Node, float], Awaitable[object]]
NodeHeal: TypeAlias = Callable[[Node], Awaitable[object]]
WireAct: TypeAlias = Callable[[ProxyLike, float], object]


async def _kill(node: Node, _: float) -> None:
    await node.kill()


async def _freeze(node: Node, _: float) -> None:
    await node.freeze()


async def _stop(mode: StopMode, node: Node, _: float) -> None:
    try:
        await node.stop(mode, timeout=_STOP_TIMEOUT)
    except ChaosError:
        await node.kill()  # otherwise the server would end at some later time, after it was healed
        raise


async def _terminate(node: Node, _: float) -> None:
    if not await node.execute(_TERMINATE):
        raise ChaosError("no client is connected")


async def _kill_backend(node: Node, which: float) -> None:
    await _to_client(node.kill_backend, node, which)


async def _freeze_backend(node: Node, which: float) -> None:
    await _to_client(node.freeze_backend, node, which)


async def _to_client(strike: Callable[[int], Awaitable[object]], node: Node, which: float) -> None:
    """Strike the backend of a client; ask again when the client has left meanwhile."""
    for _ in range(_TRIES):
        try:
            await strike(await _client(node, which))
        except NoBackend as error:
            gone = error
        else:
            return
    raise gone


async def _client(node: Node, which: float) -> int:
    """Return the process id of one of the clients' backends, counted from the oldest."""
    rows = await node.execute(_CLIENTS)
    if not rows:
        raise ChaosError("no client is connected")
    return int(rows[int(which) % len(rows)][0])


async def mend(node: Node) -> None:
    """Let a node run and accept connections, whatever its state is now."""
    if node.frozen:
        await node.thaw()
    if node.running:
        await node.wait_ready()
    else:
        await node.start()


async def _thaw(node: Node) -> None:
    await node.thaw()  # single frozen backends too
    await mend(node)


async def _nothing(node: Node) -> None:
    """Do nothing: the fault has no lasting effect."""


NODE_ACTS: dict[NodeFault, tuple[NodeAct, NodeHeal]] = {
    "kill": (_kill, mend),
    "freeze": (_freeze, mend),
    "restart": (partial(_stop, "fast"), mend),
    "crash": (partial(_stop, "immediate"), mend),
    "kill_backend": (_kill_backend, mend),
    "terminate": (_terminate, _nothing),
    "freeze_backend": (_freeze_backend, _thaw),
}


def _both(line: ProxyLike, wire: Wire) -> None:
    line.set(up=wire, down=wire)


def _refuse(line: ProxyLike, _: float) -> None:
    line.refuse()
    line.reset()


def _mute(line: ProxyLike, _: float) -> None:
    line.mute()
    line.reset()


# `ProxyLike.heal` heals all of them.
WIRE_ACTS: dict[WireFault, WireAct] = {
    "latency": lambda line, amount: _both(line, Wire(latency=amount)),
    "bandwidth": lambda line, amount: _both(line, Wire(bandwidth=amount)),
    "slice": lambda line, amount: _both(line, Wire(chunk=int(amount))),
    "coalesce": lambda line, amount: _both(line, Wire(coalesce=(int(amount), _COALESCE_WAIT))),
    "slow_close": lambda line, amount: _both(line, Wire(close_delay=amount)),
    "drop_up": lambda line, _: line.drop("up"),
    "drop_down": lambda line, _: line.drop("down"),
    "drop_both": lambda line, _: line.drop(),
    "reset": lambda line, _: line.reset(),
    "close": lambda line, _: line.close_all(),
    "refuse": _refuse,
    "mute": _mute,
    "cut": lambda line, amount: line.cut(Cut(int(amount), "reset", "down")),
}
