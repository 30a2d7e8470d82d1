"""A primary with standbys that stream from it: promoted, taken back, cut off."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Literal, get_args

import anyio

from pgha.chaos._errors import ChaosError
from pgha.chaos._servers.node import ServerNode, blocking
from pgha.chaos._servers.protocol import Node, NodeKind
from pgha.chaos._topologies import replica_data as data
from pgha.chaos._topologies import replica_state as state
from pgha.chaos._topologies.nodes import Files, Progress, in_parallel, make_nodes, unheard, until_nothing
from pgha.chaos._topologies.replica_steps import TIMEOUT, Rejoined, Topology

_LETS_IN = re.compile(r"\s*host[^#]*\breplication\b")
# What the topology writes itself, or would not work without.
_OURS = {"primary_conninfo", "synchronous_standby_names", "hot_standby", "recovery_target_timeline"}


class Replicas(Topology):
    """A primary and the standbys that stream from it: copies of it to the byte, which can be read from.

    The kit watches nobody: a primary that dies is dead until somebody calls `promote`, and who the primary is
    is what the calls of `promote` have made of it. Call one of these methods at a time.
    """

    @property
    def primary(self) -> Node:
        """The node that was made the primary last, whether it lives or not."""
        return self._primary

    @property
    def standbys(self) -> tuple[Node, ...]:
        """The nodes that follow the primary, or will once they run and are connected again."""
        return self._standbys

    @property
    def strays(self) -> tuple[Node, ...]:
        """The nodes with a history of their own, which follow nobody until `rejoin` takes them back: former
        primaries, and standbys that were ahead of the one which was promoted.
        """
        return tuple(node for node in self if node.name in self._strays)

    async def promote(self, node: Node | str, *, timeout: float = 30.0) -> None:
        """Make a standby the primary; returns when it takes writes and the other living standbys follow it.

        The former primary is left as it is. If it lives there are two primaries on purpose: to fence it
        (`kill`, `stop`, `freeze`) is up to the caller. It counts as a stray from then on. So does a standby
        that is ahead of the promoted node: it cannot follow it, but can still be read from.

        The new primary waits for as many synchronous standbys as were asked for, but not for more than live,
        so that writes go on; `rejoin` brings the number up again.

        `ChaosError` after `timeout` seconds. Then, and when cancelled, it may have been promoted all the
        same: call it again.
        """
        deadline = anyio.current_time() + timeout
        if not (self._unfollowed and self._known(node) is self._primary):  # else only the rest is to be done
            chosen = self._standby(node)
            followers = [one for one in self._able() if one is not chosen]
            await self._demand(chosen, self._affordable(followers))
            await self._take_over(chosen, timeout)
        await self._follow(max(0.0, deadline - anyio.current_time()))
        await self._demand(self._primary, self._affordable(self._able()))
        self._unfollowed = False

    async def _take_over(self, node: ServerNode, timeout: float) -> None:
        if await state.in_recovery(node):  # else a cancelled call has promoted it, or somebody else
            seconds = max(1, math.ceil(timeout))
            await state.ask(node, "SELECT pg_promote(true, %s)", [seconds], timeout=timeout)
            if await state.in_recovery(node):
                raise ChaosError(f"{node.name} was not promoted within {timeout} s")
        self._strays.add(self._primary.name)
        self._apart.discard(node.name)
        self._primary = node
        self._unfollowed = True

    async def _follow(self, timeout: float) -> None:
        """Turn all standbys to the new primary, and wait until each one streams or is known to be ahead."""
        branch = await state.branch(self._primary)
        for node in self._standbys:
            await self._wire(node)

        async def undecided() -> list[str]:
            waiting = await self._not_streaming()
            ahead = await self._strayed(waiting, branch)
            return [await state.why_not(node) for node in waiting if node.name not in ahead]

        await until_nothing(undecided, timeout, f"{self._primary.name} is the primary, but not followed")
        await self._strayed(state.alive(self._standbys), branch)

    async def rejoin(
        self,
        node: Node | str,
        *,
        how: Literal["rewind", "basebackup", "auto"] = "auto",
        timeout: float = TIMEOUT,
    ) -> Rejoined:
        """Make a node that is down a standby of the present primary, whatever it was; which way it was done.

        `rewind`: pg_rewind undoes what the primary has not. `basebackup`: a new copy of everything. `auto`:
        the first, and if it fails the second. Returns when it streams.

        `ChaosError` when it fails or a step takes longer than `timeout` seconds. When `rewind` fails or is
        cancelled, only a base backup can take the node back (`auto` knows).
        """
        again = self._known(node)
        if how not in ("auto", *get_args(Rejoined)):
            raise ChaosError(f"a node is taken back by 'rewind', 'basebackup' or 'auto', not by {how!r}")
        if again is self._primary:
            raise ChaosError(f"{again.name} is the primary: promote another node first")
        if again.running:
            raise ChaosError(f"{again.name} is running: stop or kill it, then take it back")
        self._need_primary()
        done = await self._renew(again, how, timeout)
        self._strays.discard(again.name)
        self._apart.discard(again.name)
        self._waits_for.pop(again.name, None)
        await self._start_standby(again, timeout)
        self._torn.discard(again.name)
        await self._demand(self._primary, self._affordable(self._able()))
        return done

    async def wait_replicated(self, timeout: float = 30.0) -> None:
        """Wait until every standby has replayed what the primary had flushed at the time of the call.

        Standbys which are down, frozen or disconnected at that time do not count. `ChaosError` after
        `timeout` seconds, saying who lags and by how much; also if the primary is down or frozen.
        """
        self._need_primary()
        able = self._able()
        rows = await state.ask(self._primary, "SELECT pg_current_wal_flush_lsn()::text")

        async def lagging() -> list[str]:
            leads = await state.leads(able, rows[0][0])
            return [f"{name}: {-lead} bytes behind" for name, lead in leads.items() if lead < 0]

        await until_nothing(lagging, timeout, "not replicated")

    async def set_synchronous(
        self, n: int, names: Sequence[str] | None = None, *, timeout: float = 30.0
    ) -> None:
        """Let every commit on the primary wait until `n` standbys have flushed it; 0: it waits for nobody.

        It waits for the first `n` of `names` that are connected; without `names`, of all nodes in their
        order. Returns when that holds for every commit from then on. While fewer live, commits wait.

        `ChaosError` for more than there are and for unknown names, and after `timeout` seconds.
        """
        favoured = self.names if names is None else tuple(names)
        possible = {self._known(name).name for name in favoured} - {self._primary.name}
        if not 0 <= n <= len(possible):
            raise ChaosError(f"{n} synchronous standbys of {len(possible)}: ask for 0 to {len(possible)}")
        self._need_primary()
        self._wished, self._favoured = n, favoured
        await self._demand(self._primary, n)
        able = {node.name for node in self._able()}
        expected = [name for name in favoured if name in able][:n]

        async def wrong() -> list[str]:
            found = {name for name, sync in (await state.streaming(self._primary)).items() if sync == "sync"}
            return [] if found == set(expected) else [f"{', '.join(sorted(found)) or 'none'} of {expected}"]

        await until_nothing(wrong, timeout, "not synchronous")

    async def disconnect(self, node: Node | str, *, timeout: float = 30.0) -> None:
        """Let a standby receive nothing more, until `reconnect`, and over restarts; returns when it is so.

        It can be read from and promoted: without what the primary acknowledged meanwhile.
        """
        standby = self._standby(node)
        self._apart.add(standby.name)
        await self._wire(standby)

        async def receiving() -> list[str]:
            return [standby.name] if await state.receives(standby) else []

        await until_nothing(receiving, timeout, "still connected")

    async def reconnect(self, node: Node | str, *, timeout: float = 30.0) -> None:
        """Let a disconnected standby receive again; returns when it has caught up.

        `ChaosError` after `timeout` seconds, with what its log says: if the primary has no longer what it
        lacks (more than 256 MB), it has to be taken back by `rejoin`.
        """
        standby = self._standby(node)
        self._need_primary()
        self._apart.discard(standby.name)
        await self._wire(standby)
        await self._until_streaming(standby, timeout)

    async def pause_replay(self, node: Node | str, *, timeout: float = 30.0) -> None:
        """Let a standby receive, but show nothing new: what is read there is old. Promoting it ends that."""
        standby = self._standby(node)
        await state.ask(standby, "SELECT pg_wal_replay_pause()")

        async def replaying() -> list[str]:
            return [] if await state.replay_stands(standby) else [standby.name]

        await until_nothing(replaying, timeout, "still replaying")

    async def resume_replay(self, node: Node | str) -> None:
        """The end of `pause_replay`; `wait_replicated` waits until it shows everything."""
        await state.ask(self._standby(node), "SELECT pg_wal_replay_resume()")

    async def _bring_up(self, synchronous: int, progress: Progress) -> None:
        """Start the primary, copy it, start the copies, and wait until all of them stream."""
        ready = anyio.Event()

        async def bring_up(node: Node) -> None:
            server = self._known(node)
            await server.__aenter__()
            progress(node.name, "starting")
            if server is self._primary:
                await blocking(data.include_wiring, server)
                await self._wire(server)
                await server.start()
                ready.set()
                progress(node.name, "started")
            else:
                await ready.wait()
                await data.base_backup(server, self._primary, TIMEOUT)
                await self._start_standby(server, TIMEOUT)
                progress(node.name, "started")
                progress(node.name, "linked")

        await in_parallel(bring_up, self)
        await self.set_synchronous(synchronous)
        progress(self._primary.name, "linked")


def _check(
    standbys: int, synchronous: int, settings: Mapping[str, str] | None, hba: Sequence[str] | None
) -> None:
    if standbys < 1:
        raise ChaosError(f"a primary needs at least one standby, not {standbys}; see also 'standalone'")
    if not 0 <= synchronous <= standbys:
        raise ChaosError(f"{synchronous} synchronous standbys of {standbys}: ask for 0 to {standbys}")
    for name in settings or {}:
        if name.lower() in _OURS:
            raise ChaosError(f"the setting {name!r} belongs to the topology: it cannot be overridden")
    if hba is not None and not any(_LETS_IN.match(line) for line in hba):
        raise ChaosError(f"these lines of pg_hba.conf let no standby in: add {'host replication all ...'!r}")


@asynccontextmanager
async def replicas(
    standbys: int = 1,
    *,
    synchronous: int = 0,
    version: int | None = None,
    settings: Mapping[str, str] | None = None,
    hba: Sequence[str] | None = None,
    password: str | None = None,
    tls: Files | None = None,
    ports: Sequence[int] | None = None,
    kind: NodeKind = "local",
    progress: Progress = unheard,
) -> AsyncGenerator[Replicas]:
    """A running primary, n1, and `standbys` hot standbys that stream from it: n2, n3, ...

    `synchronous`: how many standbys a commit waits for, see `Replicas.set_synchronous`. The other options are
    those of `LocalNode`. `ports`: one for each node, instead of any free ones; `ChaosError` when one is
    taken. `kind`: `local` or `container`, what each server runs in. `progress`: called with a node's name and
    `starting`, `started`, `linked`, as it comes up.

    Entering waits until all stream (about a second). Leaving kills the servers, frozen or not, and removes
    every trace, shielded from cancellation and bounded in time.
    """
    _check(standbys, synchronous, settings, hba)
    nodes = make_nodes(
        standbys + 1, version, data.SETTINGS | dict(settings or {}), hba, password, tls, ports, kind
    )
    cluster = Replicas(nodes)
    try:
        await cluster._bring_up(synchronous, progress)
        yield cluster
    finally:
        with anyio.CancelScope(shield=True):
            await in_parallel(lambda node: node.close(), nodes)
