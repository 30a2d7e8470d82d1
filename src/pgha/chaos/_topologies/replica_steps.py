"""Knowledge of a topology of replicas about its nodes, and the steps of its operations."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from typing import Literal, TypeAlias

from pgha.chaos._errors import ChaosError
from pgha.chaos._servers import warden
from pgha.chaos._servers.node import ServerNode, blocking
from pgha.chaos._servers.protocol import Node
from pgha.chaos._topologies import replica_data as data
from pgha.chaos._topologies import replica_state as state
from pgha.chaos._topologies.nodes import Nodes, in_parallel, until_nothing

Rejoined: TypeAlias = Literal["rewind", "basebackup"]
"""The way in which a node was taken back."""
TIMEOUT = 60.0


class Topology(Nodes):
    """The roles of the nodes: which is the primary, which follow it, which it waits for."""

    def __init__(self, nodes: Iterable[ServerNode]) -> None:
        self._servers = tuple(nodes)
        super().__init__(self._servers)
        self._primary = self._servers[0]
        self._unfollowed = False  # True after a promotion, until it is known which standbys follow
        self._strays: set[str] = set()
        self._apart: set[str] = set()  # standbys that were disconnected
        self._torn: set[str] = set()  # nodes whose data may be incomplete, because pg_rewind began
        self._wished, self._favoured = 0, self.names
        self._waits_for: dict[str, str] = {}  # synchronous_standby_names, by node, if not empty
        self._unsure: set[str] = set()  # nodes that may not have loaded their synchronous_standby_names yet

    # Finding and checking

    def _known(self, node: Node | str) -> ServerNode:
        for one in self._servers:
            if one is node or one.name == node:
                return one
        raise ChaosError(f"{node!r} is not one of these nodes: {', '.join(self.names)}")

    @property
    def _standbys(self) -> tuple[ServerNode, ...]:
        return tuple(n for n in self._servers if n is not self._primary and n.name not in self._strays)

    def _standby(self, node: Node | str) -> ServerNode:
        """Return the node, proven to be a standby that answers."""
        one = self._known(node)
        if one is self._primary:
            raise ChaosError(f"{one.name} is the primary, not a standby")
        if one.name in self._strays:
            raise ChaosError(
                f"{one.name} does not follow {self._primary.name}: take it back by 'rejoin' first"
            )
        if not one.running or one.frozen:
            raise ChaosError(f"{one!r} does not answer: start or thaw it first")
        return one

    def _need_primary(self) -> None:
        if not self._primary.running or self._primary.frozen:
            raise ChaosError(f"{self._primary!r} is the primary: start or thaw it, or promote a standby")

    def _able(self) -> list[ServerNode]:
        """Return the standbys that follow at this moment, or are about to."""
        return [node for node in state.alive(self._standbys) if node.name not in self._apart]

    def _affordable(self, followers: Iterable[Node]) -> int:
        """Return how many of `followers` a primary should wait for."""
        return min(self._wished, len([node for node in followers if node.name in self._favoured]))

    # Changing

    def _upstream(self, node: ServerNode) -> ServerNode | None:
        """Return the node that `node` has to follow, if any."""
        follows = node in self._standbys and node.name not in self._apart
        return self._primary if follows else None

    async def _wire(self, node: ServerNode) -> None:
        """Tell a node which server to follow and which standbys to wait for."""
        await blocking(data.wire, node, self._upstream(node), self._waits_for.get(node.name, ""))
        if not node.frozen and not await _hears(node):
            return  # the node reads the file when it starts
        if (pid := node.pid) is not None:
            warden.send(pid, signal.SIGHUP)  # a frozen node handles the signal when it is thawed

    async def _demand(self, node: ServerNode, n: int) -> None:
        """Let `node`, a primary or about to be one, wait for `n` standbys, from its next commit on."""
        names = ", ".join(f'"{name}"' for name in self._favoured if name != node.name)
        words = f"FIRST {n} ({names})" if n else ""
        if words == self._waits_for.get(node.name, "") and node.name not in self._unsure:
            return
        self._waits_for[node.name] = words
        self._unsure.add(node.name)
        await self._wire(node)

        async def old() -> list[str]:
            return [] if await state.waits_for(node) == words else [node.name]

        await until_nothing(old, TIMEOUT, "not reloaded")
        # A flag says whether commits wait at all. The checkpointer sets it when it handles the reload, which
        # it does before it begins a checkpoint.
        await state.ask(node, "CHECKPOINT", timeout=TIMEOUT)
        self._unsure.discard(node.name)

    async def _not_streaming(self) -> list[ServerNode]:
        able = self._able()
        following = await state.following(self._primary, able)
        return [node for node in able if node.name not in following]

    async def _until_streaming(self, node: ServerNode, timeout: float) -> None:
        branch = await state.branch(self._primary)

        async def missing() -> list[str]:
            if await state.following(self._primary, [node]):
                return []
            if await self._strayed([node], branch):
                raise ChaosError(f"{node.name} is ahead of {self._primary.name}: stop it, then 'rejoin' it")
            return [await state.why_not(node)]

        await until_nothing(missing, timeout, "not streaming")

    async def _strayed(self, nodes: Iterable[ServerNode], branch: state.Branch) -> set[str]:
        """Return which of the standbys are past the start of the primary's timeline: strays from now on."""
        past = await in_parallel(lambda node: state.is_past(node, branch), nodes)
        found = {name for name, ahead in past.items() if ahead}
        for name in found:
            self._strays.add(name)
            await self._wire(self._known(name))
        return found

    async def _start_standby(self, node: ServerNode, timeout: float) -> None:
        await self._wire(node)
        await blocking(data.make_standby, node)
        await node.start(timeout=timeout)
        await self._until_streaming(node, timeout)

    async def _renew(self, node: ServerNode, how: str, timeout: float) -> Rejoined:
        if how == "rewind" and node.name in self._torn:
            raise ChaosError(f"{node.name} was left half rewound: take it back by 'basebackup'")
        if how != "basebackup" and node.name not in self._torn:
            try:
                await self._rewind(node, timeout)
                return "rewind"
            except ChaosError:
                if how == "rewind":
                    raise
                await node.kill()  # the node may have been started to recover
        await data.base_backup(node, self._primary, timeout, self._upstream(node))
        return "basebackup"

    async def _rewind(self, node: ServerNode, timeout: float) -> None:
        if timeline := await blocking(data.recovering_on, node):
            await self._recover(node, timeline, timeout)
        # Before 16, pg_rewind reads the primary's timeline only from its last checkpoint.
        await state.ask(self._primary, "CHECKPOINT", timeout=timeout)
        self._torn.add(node.name)
        await data.rewind(node, self._primary, timeout)

    async def _recover(self, node: ServerNode, timeline: str, timeout: float) -> None:
        """Let a standby that is down replay all the WAL that it has, alone, on the timeline that it was on.

        pg_rewind looks at the replayed position, but the server then replays all WAL that is there: past the
        place where it should switch to another timeline. And a standby that was killed would become a primary
        by pg_rewind's own recovery, with a history of its own on the timeline of another node.
        """
        await blocking(data.wire, node, None, timeline=timeline)
        await blocking(data.make_standby, node)
        await node.start(timeout=timeout)

        async def busy() -> list[str]:
            return [] if await state.idle(node) else [node.name]

        await until_nothing(busy, timeout, "still replaying")
        await node.stop(timeout=timeout)


async def _hears(node: ServerNode) -> bool:
    """Return whether `node` is up and can be signalled.

    The signal would kill a server that has just begun to start.
    """
    try:
        await node.wait_ready()
    except ChaosError:
        if node.running:
            raise
        return False
    return True
