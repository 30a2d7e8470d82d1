"""`Cluster.ledger`: install, inspect, prune and uninstall the ledger."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, final

import anyio
import psycopg
from psycopg import sql

from pgha._core.ledger_rules import LIFE, MOST_SKEW, horizon, proven_skew
from pgha._errors import ConfigError, LedgerError
from pgha._ledger.schema import (
    COUNT,
    CREATE,
    DROP_SCHEMA,
    DROP_TABLE,
    LONGEST,
    LOOK,
    PRUNE,
    RECENT,
    SIZE,
    TAKE_LOCK,
    ZOMBIES,
    Found,
    LedgerStatus,
    Pruned,
    first_line,
    grants,
    refuse_layout,
)
from pgha._operation.request_maker import BatchItem
from pgha._options import seconds
from pgha._rows.result import Result
from pgha._telemetry.log import say
from pgha._types import NodeStatus

logger = logging.getLogger("pgha.ledger")

_PAGES = 512
"""Pages of the table per transaction."""
_POLL = 0.05
"""Seconds between two checks for old transactions."""


class LedgerHost(Protocol):
    """The operations that a cluster provides to its ledger."""

    @property
    def nodes(self) -> Mapping[str, NodeStatus]: ...
    async def seen(self) -> None:
        """Wait until each node has answered or failed once, at most ``connect_timeout`` seconds."""
        ...

    async def ask(self, node: str, query: str, params: Sequence[Any] = ()) -> Result[Any]:
        """Run one read on that node."""
        ...

    async def run(self, node: str, statements: Sequence[BatchItem]) -> list[Result[Any]]:
        """Run one transaction on that node, without a key; running it twice must be harmless."""
        ...

    def wall(self) -> float:
        """Return the local time, in seconds since 1970."""
        ...

    def system_of(self, node: str) -> int | None: ...
    def ledger_changed(self, node: str) -> None: ...


@final
class Ledger:
    """The ledger of each node: a table ``pgha.ledger`` that makes keyed writes exactly once.

    The table exists on every node that accepts writes (a standby has its primary's). A keyed write needs the
    rights SELECT, INSERT and UPDATE on the table; pruning also needs DELETE. ``install(grant_to=...)`` grants
    all of them. If masters replicate to each other, the table may be replicated too: the rows of each server
    contain its own system identifier, and never collide.

    Every method may be cancelled at any time: a node is either done or not begun. An error raised after some
    nodes were done names them in a note (``__notes__``). Repeating the call on all nodes is harmless.

    Example::

        await cluster.ledger.install(grant_to=["shop"])
        await cluster.ledger.prune(older_than=7 * 86400)
    """

    def __init__(self, host: LedgerHost) -> None:
        self._host = host
        self._wall = host.wall

    async def install(
        self, *, grant_to: Iterable[str] = (), nodes: Iterable[str] | None = None
    ) -> Mapping[str, LedgerStatus]:
        """Create the table on every node that lacks it, and grant roles the rights to use and prune it.

        Each of the nodes must be up, or nothing is done: if writes are replicated, a master without the table
        would stop at the first row. Installing twice is harmless.

        If the call is cancelled, a node is either done or not begun.

        Args:
            grant_to: Names of roles; none by default.
            nodes: Names of the nodes; None (the default) is all nodes. Standbys are skipped: they have their
                primary's ledger.

        Returns:
            The status of every node that was installed, by name.

        Raises:
            LedgerError: A node is unavailable, the role lacks a right, or a table of that name has another
                layout (such a table is not changed).
            ConfigError: A node or role is unknown or not a name.
        """
        if isinstance(grant_to, str):
            raise ConfigError(
                f"grant_to must be a list of role names, not the string {grant_to!r}: pass [{grant_to!r}]"
            )
        granted = [grant for role in grant_to for grant in grants(role)]
        await self._host.seen()
        names = self._primaries(nodes)
        for name in names:
            refuse_layout(name, await self._look(name))
        with _telling() as done:
            for name in names:
                await self._make(name, granted)
                done.append(name)
        return {name: await self._status(name) for name in names}

    async def _make(self, name: str, granted: Sequence[sql.Composed]) -> None:
        missing = not (await self._look(name)).installed
        batch: list[BatchItem] = [TAKE_LOCK, *(CREATE if missing else ()), *granted]
        if len(batch) > 1:
            try:
                await self._host.run(name, batch)
            except psycopg.errors.InsufficientPrivilege as error:
                raise LedgerError(
                    f"{name}: the role may not create the ledger ({first_line(error)}): install it as the"
                    " database's owner, and pass the role of your program with --grant (grant_to)"
                ) from error
        refuse_layout(name, await self._look(name))
        self._host.ledger_changed(name)
        if missing:
            say(logger, logging.INFO, "node %s: the ledger was installed", name)

    async def status(self) -> Mapping[str, LedgerStatus]:
        """Return the status of every node's ledger, standbys included.

        Failures of nodes never raise: `LedgerStatus.problem` reports them. Cancellation changes nothing.

        Returns:
            The status of every node, by name.

        Raises:
            ClusterClosed: The cluster is closed.
        """
        await self._host.seen()
        return {name: await self._status(name) for name in self._host.nodes}

    async def _status(self, name: str) -> LedgerStatus:
        node = self._host.nodes.get(name)
        if node is None:
            return LedgerStatus(name, "unknown", False, "the node was removed", False)
        if node.state not in ("up", "suspect"):
            return LedgerStatus(name, node.role, False, f"the node is {node.state}: {node.reason}", False)
        try:
            found = await self._look(name)
            if not found.installed or not found.readable or found.other_layout:
                return found.status(name, node.role)
            ((keys, given_up, oldest, newest),) = await self._host.ask(name, COUNT)
            return found.status(name, node.role, keys, given_up, oldest, newest)
        except psycopg.Error as error:
            return LedgerStatus(name, node.role, False, first_line(error), False)

    async def prune(
        self, older_than: float | timedelta = timedelta(days=7), *, nodes: Iterable[str] | None = None,
        patience: float = 10.0,
    ) -> Mapping[str, Pruned]:  # fmt: skip
        """Delete the rows whose deadline passed ``older_than`` seconds ago.

        A key protects its write until its row is deleted: a later call with the same key would apply the
        write again. Rows are kept for at least one hour plus the difference between the clocks of the servers
        and of this machine, because attempts of one operation may begin that late. If a server's clock and
        this machine's differ by more than a second, nothing is deleted on that node.

        A transaction from before that time may still hold the ledger (a backend that was frozen after passing
        its time guard). Pruning waits ``patience`` seconds for such transactions. If they have not ended by
        then, nothing is deleted on that node.

        Rows are deleted in batches while writes continue. Several programs may prune at the same time.

        If the call is cancelled, batches that were committed stay deleted.

        Args:
            older_than: Age in seconds, or a timedelta; the default is 7 days.
            nodes: Names of the nodes; None (the default) is all nodes. Standbys are skipped: they have their
                primary's ledger.
            patience: Seconds to wait for old transactions; the default is 10.

        Returns:
            The number of deleted rows per node, by name; see `Pruned`.

        Raises:
            LedgerError: A node is unavailable, the role lacks the right DELETE, the table has another
                layout, or the clocks differ.
            ConfigError: An argument cannot be used, or a node is unknown.
        """
        await self._host.seen()
        age = older_than.total_seconds() if isinstance(older_than, timedelta) else older_than
        if seconds("older_than", age) > LONGEST:
            raise ConfigError(f"older_than must be at most {LONGEST:.0f} seconds (100 years), not {age!r}")
        seconds("patience", patience)
        status = self._host.nodes
        skews = [one.clock_skew for one in status.values() if one.clock_skew is not None]
        keep = horizon(age, skews)
        names = self._primaries(nodes)
        with _telling() as done:
            pruned: dict[str, Pruned] = {}
            for name in names:
                one = pruned[name] = await self._prune(name, keep, patience)
                say(logger, logging.INFO, "node %s: %d keys were pruned", name, one.deleted)
                done.append(name)
        return pruned

    async def _prune(self, name: str, keep: float, patience: float) -> Pruned:
        found = await self._look(name)
        if not found.installed:
            return Pruned(name, 0, "the ledger is not installed")
        refuse_layout(name, found)
        if "DELETE" not in found.rights:
            raise LedgerError(
                f"{name}: the role may not delete from the ledger: run `pgha ledger install --grant ROLE`"
            )
        before = self._wall()
        ((pages, now),) = await self._host.ask(name, SIZE)
        self._refuse_skewed(name, now, before)
        pids = await self._zombies(name, keep, patience)
        if pids:
            reason = "older transactions still hold the ledger: end them, or try again later"
            return Pruned(name, 0, reason, tuple(pids))
        # The earlier clock: the answer may have been on its way for long.
        cut = min(now, datetime.fromtimestamp(before, UTC)) - timedelta(seconds=keep)
        system, deleted = self._host.system_of(name) or 0, 0
        for page in range(0, pages, _PAGES):
            params = [f"({page},0)", f"({page + _PAGES},0)", cut, system]
            (((mine, count),),) = await self._host.run(name, [(PRUNE, params)])
            if not mine:
                return Pruned(name, deleted, "another program is pruning the ledger: try again later")
            deleted += count
        return Pruned(name, deleted)

    def _refuse_skewed(self, name: str, now: datetime, before: float, advice: str = "") -> None:
        """Raise `LedgerError` if the node's clock, which says which keys are old, cannot be right.

        ``now`` is that clock, read since the local time ``before``.
        """
        skew = proven_skew(now.timestamp(), before, self._wall())
        if abs(skew) > MOST_SKEW:
            side = "ahead of" if skew > 0 else "behind"
            raise LedgerError(
                f"{name}: its clock is {abs(skew):.0f} s {side} this machine's clock, so the age of keys is"
                f" uncertain: correct the clock that is wrong{advice}"
            )

    async def _zombies(self, name: str, keep: float, patience: float) -> list[int]:
        """Wait until the transactions that could still insert an expired key have ended.

        Returns the process ids of those that have not ended.
        """
        first = list(await self._host.ask(name, ZOMBIES, [keep - LIFE]))
        with anyio.move_on_after(patience):
            while first:
                await anyio.sleep(_POLL)
                there = {row[0] for row in await self._host.ask(name, ZOMBIES, [0])}
                first = [row for row in first if row[0] in there]
        return sorted({row[1] or 0 for row in first})

    async def uninstall(
        self, *, force: bool = False, nodes: Iterable[str] | None = None
    ) -> Mapping[str, bool]:
        """Drop the table, and the schema ``pgha`` if nothing else is in it.

        Keys used within the last hour may belong to writes that still run: this raises `LedgerError`, unless
        ``force`` is true. Uninstalling twice is harmless: the second call drops an empty schema that was left
        behind.

        If the call is cancelled, a node is either done or not begun.

        Args:
            force: Whether to drop the table although keys were used within the last hour.
            nodes: Names of the nodes; None (the default) is all nodes. Standbys are skipped: they have their
                primary's ledger.

        Returns:
            Whether the table existed, by node.

        Raises:
            LedgerError: A node is unavailable, keys were used recently, the role lacks a right, or the node's
                clock and this machine's differ by more than a second (not with ``force``).
            ConfigError: A node is unknown.
        """
        await self._host.seen()
        names = self._primaries(nodes)
        found = {name: await self._look(name) for name in names}
        for name in names:
            if found[name].installed and not force:
                await self._refuse_recent(name)
        with _telling() as done:
            for name in names:
                if found[name].installed:
                    await self._remove(name)
                elif found[name].schema:
                    # An uninstall that was interrupted may have left the schema.
                    await self._remove_schema(name)
                done.append(name)
        return {name: one.installed for name, one in found.items()}

    async def _refuse_recent(self, name: str) -> None:
        refuse_layout(name, await self._look(name))
        try:
            before = self._wall()
            ((now, recent),) = await self._host.ask(name, RECENT, [LIFE])
        except psycopg.errors.InsufficientPrivilege as error:
            raise LedgerError(f"{name}: the role may not read the ledger ({first_line(error)})") from error
        if not recent:
            self._refuse_skewed(name, now, before, " (force=True, --force: remove it all the same)")
        else:
            raise LedgerError(
                f"{name}: {recent} keys were used within the last hour, and their writes may still run:"
                " wait, or pass --force (force=True)"
            )

    async def _remove(self, name: str) -> None:
        try:
            await self._host.run(name, [DROP_TABLE])
        except psycopg.errors.InsufficientPrivilege as error:
            raise LedgerError(
                f"{name}: the role may not drop the ledger ({first_line(error)}): uninstall it as its owner"
            ) from error
        self._host.ledger_changed(name)
        say(logger, logging.INFO, "node %s: the ledger was removed", name)
        await self._remove_schema(name)

    async def _remove_schema(self, name: str) -> None:
        try:
            await self._host.run(name, [DROP_SCHEMA])
        except (psycopg.errors.DependentObjectsStillExist, psycopg.errors.InsufficientPrivilege):
            pass  # the schema has other objects or another owner, and stays

    def _primaries(self, nodes: Iterable[str] | None) -> list[str]:
        known = self._host.nodes
        chosen = list(known) if nodes is None else list(nodes)
        for name in chosen:
            if name not in known:
                raise ConfigError(f"no node is called {name!r}: the nodes are {', '.join(map(repr, known))}")
            if known[name].state not in ("up", "suspect"):
                raise LedgerError(
                    f"{name} is {known[name].state} ({known[name].reason}); nothing was done on any node:"
                    " wait until it is up, or name the other nodes"
                )
        primaries = [name for name in chosen if known[name].writable]
        if not primaries:
            raise LedgerError(f"none of the nodes ({', '.join(chosen)}) accepts writes: name their primary")
        return primaries

    async def _look(self, name: str) -> Found:
        ((comment, columns, primary_key, schema, rights, size),) = await self._host.ask(name, LOOK)
        return Found(
            size is not None, comment or "", columns or [], primary_key, bool(schema), rights, size or 0
        )


@contextmanager
def _telling() -> Iterator[list[str]]:
    """Yield a list of finished nodes; add a note with its content to an error."""
    done: list[str] = []
    try:
        yield done
    except psycopg.Error as error:
        if done:
            error.add_note(f"already done, and harmless to repeat: {', '.join(done)}")
        raise
