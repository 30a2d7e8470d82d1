"""Masters that replicate to each other by PostgreSQL's own logical replication."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from psycopg import sql

from pgha.chaos._errors import ChaosError
from pgha.chaos._servers.protocol import Node, NodeKind
from pgha.chaos._topologies.nodes import (
    Files,
    Nodes,
    Progress,
    in_parallel,
    make_nodes,
    opened,
    unheard,
    until_nothing,
)

_FIRST_VERSION = 16  # origin = none
_PUBLICATION = "pgha_masters"
_LINK_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class _Link:
    """One direction between two masters."""

    publisher: Node
    subscriber: Node

    @property
    def name(self) -> str:
        """The name of the subscription, of its slot on the publisher, and of its application_name."""
        return f"{self.subscriber.name}_from_{self.publisher.name}"

    def __str__(self) -> str:
        return f"{self.publisher.name} -> {self.subscriber.name}"


class Masters(Nodes):
    """Nodes that replicate everything written on them to each other.

    The replication is asynchronous and has no conflict resolution, as PostgreSQL ships it: if two nodes
    insert the same key, the replication between them stops until the conflict is repaired. A node that was
    killed or frozen catches up by itself.

    Args:
        nodes: The nodes; `masters` connects them.

    Example::

        async with masters(2) as nodes:
            await nodes.create("CREATE TABLE item (id int PRIMARY KEY)")
            await nodes[0].execute("INSERT INTO item VALUES (1)")
            await nodes.wait_replicated()
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        super().__init__(nodes)
        self._links = tuple(_Link(p, s) for p in self for s in self if p is not s)

    def _into(self, node: Node) -> list[_Link]:
        return [link for link in self._links if link.subscriber is node]

    async def create(self, ddl: str, *, timeout: float = 30.0) -> None:
        """Run DDL on all nodes, and let every subscription include the new tables.

        DDL is not replicated. Write to new tables only after the call: rows that are written earlier may not
        be replicated. The call is not atomic: after a failure or a cancellation, some nodes may have run the
        DDL and others not.

        Args:
            ddl: One or more statements.
            timeout: Seconds to wait for the DDL, and again for the subscriptions.

        Raises:
            ChaosError: If a node is down or frozen, or the tables are not replicated within `timeout`.
            psycopg.Error: If the DDL fails on a node.
            TimeoutError: If a node does not run the DDL within `timeout`.
        """
        if lame := [node.name for node in self if not node.running or node.frozen]:
            raise ChaosError(
                f"DDL needs all masters, but {', '.join(lame)} is down or frozen: start or thaw it"
            )
        await self.execute(ddl, timeout=timeout)
        await in_parallel(self._refresh, self)
        await until_nothing(self._unready_tables, timeout, "tables are not replicated yet")

    async def _refresh(self, node: Node) -> None:
        for link in self._into(node):
            await node.execute(f"ALTER SUBSCRIPTION {link.name} REFRESH PUBLICATION WITH (copy_data = false)")

    async def _unready_tables(self) -> list[str]:
        rows = await self.execute(
            "SELECT srrelid::regclass::text FROM pg_subscription_rel WHERE srsubstate <> 'r'"
        )
        return [f"{name}: {row[0]}" for name, found in rows.items() for row in found]

    async def wait_replicated(self, timeout: float = 30.0) -> None:
        """Wait until the running nodes have applied each other's writes.

        Every running node must have applied everything that the others had written when the call began. Nodes
        that are down or frozen at that time do not count on either side. Cancellation ends the wait, and
        changes nothing.

        Args:
            timeout: Seconds to wait.

        Raises:
            ChaosError: After `timeout`. The message says which direction lags, by how many bytes and, if a
                conflict stopped the replication, which one.
        """
        alive = [node for node in self if node.running and not node.frozen]
        targets: dict[str, str] = {}

        async def lagging() -> list[str]:
            marks = await in_parallel(_mark, [node for node in alive if node.name not in targets])
            targets.update(marks)
            slots = await in_parallel(lambda node: _slots(node, targets[node.name]), alive)
            links = [link for link in self._links if link.publisher in alive and link.subscriber in alive]
            states = [(link, slots[link.publisher.name].get(link.name, "its slot is gone")) for link in links]
            return [f"{link}: {state}" for link, state in states if state]

        try:
            await until_nothing(lagging, timeout, "not replicated")
        except ChaosError as error:
            reasons = await in_parallel(_last_apply_error, alive)
            raise ChaosError("\n".join([str(error), *filter(None, reasons.values())])) from None

    async def _link_up(self) -> None:
        """Make all publications and slots, then all subscriptions, and wait until every one streams.

        The slots are made first, and separately: CREATE SUBSCRIPTION would make its slot inside a
        transaction, and the slot waits for all transactions that are open on the publisher. One of them might
        be the transaction that makes the opposite subscription: a deadlock over two servers, which neither of
        them sees.
        """
        await self.execute(f"CREATE PUBLICATION {_PUBLICATION} FOR ALL TABLES")
        await in_parallel(self._make_slots, self)
        await in_parallel(self._subscribe, self)
        await until_nothing(self._not_streaming, _LINK_TIMEOUT, "subscriptions do not stream")

    async def _make_slots(self, node: Node) -> None:
        names = [link.name for link in self._links if link.publisher is node]
        await node.execute(
            "SELECT pg_create_logical_replication_slot(n, 'pgoutput') FROM unnest(%s::name[]) n", [names]
        )

    async def _subscribe(self, node: Node) -> None:
        for link in self._into(node):
            # synchronous_commit: applied changes are confirmed at once, not at the WAL writer's next round.
            statement = sql.SQL(
                "CREATE SUBSCRIPTION {} CONNECTION {} PUBLICATION {} WITH"
                " (create_slot = false, copy_data = false, origin = none, synchronous_commit = on)"
            ).format(sql.Identifier(link.name), sql.Literal(link.publisher.dsn), sql.Identifier(_PUBLICATION))
            await node.execute(statement.as_string())

    async def _not_streaming(self) -> list[str]:
        rows = await self.execute(
            "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'"
        )
        streaming = {row[0] for found in rows.values() for row in found}
        return [str(link) for link in self._links if link.name not in streaming]


async def _mark(node: Node) -> str:
    """Return a position in the WAL of `node` after everything that has been committed there.

    The commit of the message flushes the WAL up to this position, also after commits that did not wait for a
    flush.
    """
    rows = await node.execute("SELECT pg_logical_emit_message(true, 'pgha', '')::text")
    return str(rows[0][0])


async def _slots(publisher: Node, target: str) -> dict[str, str]:
    """Return for each slot of `publisher` what is missing up to `target`, "" if nothing."""
    rows = await publisher.execute(
        "SELECT slot_name::text, active, pg_wal_lsn_diff(%s, confirmed_flush_lsn)::bigint"
        " FROM pg_replication_slots WHERE slot_type = 'logical'",
        [target],
    )
    words = {True: "connected", False: "not connected"}
    return {name: f"{lag} bytes behind, {words[active]}" if lag > 0 else "" for name, active, lag in rows}


async def _last_apply_error(node: Node) -> str:
    """Return what last stopped a subscription of `node`, according to its log; "" if nothing did."""
    lines = (await node.logs()).splitlines()
    ends = [i for i, line in enumerate(lines) if "processing remote data for replication origin" in line]
    if not ends:
        return ""
    start = max((i for i in range(ends[-1]) if "ERROR: " in lines[i]), default=ends[-1])
    return "\n".join([f"{node.name} could not apply:", *lines[start : ends[-1] + 1]])


@asynccontextmanager
async def masters(
    n: int = 3,
    *,
    version: int | None = None,
    settings: Mapping[str, str] | None = None,
    hba: Sequence[str] | None = None,
    password: str | None = None,
    tls: Files | None = None,
    ports: Sequence[int] | None = None,
    kind: NodeKind = "local",
    progress: Progress = unheard,
) -> AsyncGenerator[Masters]:
    """Run `n` servers, named n1, n2, ..., each of which replicates to every other.

    Entering waits until all directions stream (about a second). Leaving kills the servers, frozen or not, and
    removes all their files. The time for that is bounded, and cancellation cannot interrupt it. If entering
    is cancelled, the servers are removed in the same way.

    Args:
        n: The number of servers.
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
        An async context manager that gives the running `Masters`.

    Raises:
        ChaosError: On entering, if an argument is invalid, PostgreSQL is older than 16, a port is taken, or a
            server does not start.

    Example::

        async with masters(3) as nodes:
            await nodes.create("CREATE TABLE item (id int PRIMARY KEY)")
    """
    nodes = make_nodes(n, version, settings, hba, password, tls, ports, kind)
    async with opened(nodes, progress):
        if nodes[0].version < _FIRST_VERSION:
            raise ChaosError(
                f"masters need PostgreSQL {_FIRST_VERSION} or newer (origin = none), not {nodes[0].version}"
            )
        cluster = Masters(nodes)
        await cluster._link_up()
        for node in nodes:
            progress(node.name, "linked")
        yield cluster
