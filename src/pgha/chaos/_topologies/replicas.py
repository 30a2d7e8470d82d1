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
# Settings that the topology writes itself, or that it needs.
_OURS = {"primary_conninfo", "synchronous_standby_names", "hot_standby", "recovery_target_timeline"}


class Replicas(Topology):
    """A primary and the standbys that stream from it, which are exact copies and can be read from.

    The kit does no failover by itself: a primary that dies stays dead until `promote` is called. Which node
    is the primary depends only on the calls of `promote`. Call one of these methods at a time.

    Args:
        nodes: The nodes; `replicas` connects them. The first one is the primary.

    Example::

        async with replicas(standbys=2) as nodes:
            await nodes.primary.kill()
            await nodes.promote("n2")
            await nodes.rejoin("n1")
    """

    @property
    def primary(self) -> Node:
        """The node that was made the primary last, alive or not."""
        return self._primary

    @property
    def standbys(self) -> tuple[Node, ...]:
        """The nodes that follow the primary, or will when they run and are connected again."""
        return self._standbys

    @property
    def strays(self) -> tuple[Node, ...]:
        """The nodes with a history of their own, which follow no other node until `rejoin` takes them back.

        These are former primaries, and standbys that were ahead of the promoted one.
        """
        return tuple(node for node in self if node.name in self._strays)

    async def promote(self, node: Node | str, *, timeout: float = 30.0) -> None:
        """Make a standby the primary, and wait until it takes writes and the other living standbys follow it.

        The former primary is left as it is. If it is alive, there are two primaries, on purpose: fencing it
        (`kill`, `stop`, `freeze`) is the caller's task. From then on it counts as a stray. So does a standby
        that is ahead of the promoted node: it cannot follow, but can still be read from.

        The new primary waits for as many synchronous standbys as were requested, but not for more than are
        alive, so that writes go on; `rejoin` raises the number again.

        After a failure or a cancellation, the standby may have been promoted all the same: call `promote`
        again.

        Args:
            node: The standby, or its name.
            timeout: Seconds to wait.

        Raises:
            ChaosError: If the node is not a standby that answers, or after `timeout`.
        """
        deadline = anyio.current_time() + timeout
        # After a call that promoted the node and then failed, only the rest has to be done.
        if not (self._unfollowed and self._known(node) is self._primary):
            chosen = self._standby(node)
            followers = [one for one in self._able() if one is not chosen]
            await self._demand(chosen, self._affordable(followers))
            await self._take_over(chosen, timeout)
        await self._follow(max(0.0, deadline - anyio.current_time()))
        await self._demand(self._primary, self._affordable(self._able()))
        self._unfollowed = False

    async def _take_over(self, node: ServerNode, timeout: float) -> None:
        # A cancelled call, or another program, may have promoted the node already.
        if await state.in_recovery(node):
            seconds = max(1, math.ceil(timeout))
            await state.ask(node, "SELECT pg_promote(true, %s)", [seconds], timeout=timeout)
            if await state.in_recovery(node):
                raise ChaosError(f"{node.name} was not promoted within {timeout} s")
        self._strays.add(self._primary.name)
        self._apart.discard(node.name)
        self._primary = node
        self._unfollowed = True

    async def _follow(self, timeout: float) -> None:
        """Switch all standbys to the new primary, and wait until each one streams or is known to be ahead."""
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
        """Make a node that is down a standby of the present primary, and wait until it streams.

        The node may have been a primary or a standby. When `rewind` fails or is cancelled, only a base backup
        can take the node back (`auto` knows that).

        Args:
            node: The node, or its name.
            how: `rewind`: pg_rewind undoes what the primary does not have. `basebackup`: a new copy of
                everything. `auto`: `rewind`, and if that fails, `basebackup`.
            timeout: Seconds to wait for each step.

        Returns:
            The way in which the node was taken back, `rewind` or `basebackup`.

        Raises:
            ChaosError: If the node is running or is the primary, the primary is down, or a step fails or
                takes longer than `timeout`.
        """
        again = self._known(node)
        if how not in ("auto", *get_args(Rejoined)):
            raise ChaosError(f"how must be 'rewind', 'basebackup' or 'auto', not {how!r}")
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
        """Wait until every standby has replayed everything that the primary had flushed when the call began.

        Standbys that are down, frozen or disconnected when the call begins do not count. Cancellation ends
        the wait, and changes nothing.

        Args:
            timeout: Seconds to wait.

        Raises:
            ChaosError: After `timeout`, saying which standbys lag and by how many bytes; or if the primary is
                down or frozen.
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
        """Let every commit on the primary wait until `n` standbys have flushed it.

        Returns when that holds for every commit from then on. The primary waits for the first `n` of `names`
        that are connected. While fewer are alive, commits wait. When cancelled, the new setting may already
        be in effect: call this method again.

        Args:
            n: The number of standbys; 0: commits wait for none.
            names: The names of the standbys, in order of preference; None: all nodes, in their order.
            timeout: Seconds to wait until the standbys are synchronous.

        Raises:
            ChaosError: If `n` is larger than the number of standbys, a name is unknown, the primary is down
                or frozen, or after `timeout`.
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
        """Stop a standby from receiving WAL, until `reconnect`, also over restarts.

        The standby can be read from and promoted, without what the primary acknowledged in the meantime.
        Cancellation ends the wait; the standby stays disconnected.

        Args:
            node: The standby, or its name.
            timeout: Seconds to wait until the standby has stopped receiving.

        Raises:
            ChaosError: If the node is not a standby that answers, or after `timeout`.
        """
        standby = self._standby(node)
        self._apart.add(standby.name)
        await self._wire(standby)

        async def receiving() -> list[str]:
            return [standby.name] if await state.receives(standby) else []

        await until_nothing(receiving, timeout, "still connected")

    async def reconnect(self, node: Node | str, *, timeout: float = 30.0) -> None:
        """Let a disconnected standby receive WAL again, and wait until it has caught up.

        Cancellation ends the wait; the standby goes on receiving.

        Args:
            node: The standby, or its name.
            timeout: Seconds to wait.

        Raises:
            ChaosError: After `timeout`, with the reason from the log: if the primary no longer has the WAL
                that the standby lacks (more than 256 MB), only `rejoin` can take the standby back. Also if
                the node is not a standby that answers, or the primary is down or frozen.
        """
        standby = self._standby(node)
        self._need_primary()
        self._apart.discard(standby.name)
        await self._wire(standby)
        await self._until_streaming(standby, timeout)

    async def pause_replay(self, node: Node | str, *, timeout: float = 30.0) -> None:
        """Let a standby receive WAL without replaying it, so that reads return old data.

        Promoting the standby ends the pause. Cancellation ends the wait; the standby may be paused.

        Args:
            node: The standby, or its name.
            timeout: Seconds to wait until the replay has stopped.

        Raises:
            ChaosError: If the node is not a standby that answers, or after `timeout`.
        """
        standby = self._standby(node)
        await state.ask(standby, "SELECT pg_wal_replay_pause()")

        async def replaying() -> list[str]:
            return [] if await state.replay_stands(standby) else [standby.name]

        await until_nothing(replaying, timeout, "still replaying")

    async def resume_replay(self, node: Node | str) -> None:
        """Let a paused standby replay again; `wait_replicated` waits until it has caught up.

        When the call is cancelled, the replay may have been resumed.

        Args:
            node: The standby, or its name.

        Raises:
            ChaosError: If the node is not a standby that answers.
        """
        await state.ask(self._standby(node), "SELECT pg_wal_replay_resume()")

    async def _bring_up(self, synchronous: int, progress: Progress) -> None:
        """Start the primary, copy it, start the copies, and wait until all of them stream."""
        ready = anyio.Event()

        async def bring_up(node: Node) -> None:
            server = self._known(node)
            await server._enter(empty=server is not self._primary)  # the others get copies
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
        raise ChaosError(f"a primary needs at least one standby, not {standbys}: use 'standalone' for none")
    if not 0 <= synchronous <= standbys:
        raise ChaosError(f"{synchronous} synchronous standbys of {standbys}: ask for 0 to {standbys}")
    for name in settings or {}:
        if name.lower() in _OURS:
            raise ChaosError(f"the setting {name!r} belongs to the topology: remove it from the settings")
    if hba is not None and not any(_LETS_IN.match(line) for line in hba):
        raise ChaosError(f"these lines of pg_hba.conf reject standbys: add {'host replication all ...'!r}")


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
    """Run a primary, n1, and hot standbys that stream from it, n2, n3, ...

    Entering waits until all standbys stream (about a second). Leaving kills the servers, frozen or not, and
    removes all their files. The time for that is bounded, and cancellation cannot interrupt it. If entering
    is cancelled, the servers are removed in the same way.

    Args:
        standbys: The number of standbys.
        synchronous: The number of standbys that a commit waits for, see `Replicas.set_synchronous`.
        version: PostgreSQL's major version; None: the default (18).
        settings: Settings for postgresql.conf, in addition to the kit's own.
        hba: The lines of pg_hba.conf. None: all clients on 127.0.0.1 are trusted, or need the password if
            there is one.
        password: The password of the user `postgres`; None: no password.
        tls: The paths of the certificate and of the key; None: no TLS.
        ports: One port per node; None: any free ports.
        kind: The environment of each server, `local` (`LocalNode`) or `container` (`ContainerNode`).
        progress: A function that gets a node's name and `starting`, `started` or `linked` as the node comes
            up.

    Returns:
        An async context manager that gives the running `Replicas`.

    Raises:
        ChaosError: On entering, if an argument is invalid, a port is taken, or a server does not start.

    Example::

        async with replicas(standbys=2, synchronous=1) as nodes:
            await nodes.primary.execute("CREATE TABLE item (id int)")
            await nodes.wait_replicated()
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
