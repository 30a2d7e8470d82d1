"""`Cluster.ledger`: making the ledger, looking at it, pruning it, removing it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol, final

import anyio
import psycopg
from psycopg import sql

from pgha._core.ledger_rules import LIFE, horizon
from pgha._errors import ConfigError, LedgerError
from pgha._ledger.schema import (
    COUNT,
    CREATE,
    LOCK,
    LONGEST,
    LOOK,
    PRUNE,
    SIZE,
    ZOMBIES,
    Found,
    LedgerStatus,
    Pruned,
    first_line,
    grants,
    refuse_layout,
)
from pgha._operation.key import TABLE
from pgha._operation.request_maker import BatchItem
from pgha._options import seconds
from pgha._rows.result import Result
from pgha._types import NodeStatus

_PAGES = 512
"""Of the table, a transaction."""
_POLL = 0.05


class LedgerHost(Protocol):
    """What the cluster does for its ledger."""

    @property
    def nodes(self) -> Mapping[str, NodeStatus]: ...
    async def seen(self) -> None:
        """Wait until each node has answered or failed once: within ``connect_timeout``."""
        ...

    async def ask(self, node: str, query: str, params: Sequence[Any] = ()) -> Result[Any]:
        """A read of that node."""
        ...

    async def run(self, node: str, statements: Sequence[BatchItem]) -> list[Result[Any]]:
        """One transaction on that node, never keyed; harmless when run twice."""
        ...

    def system_of(self, node: str) -> int | None: ...
    def ledger_changed(self, node: str) -> None: ...


@final
class Ledger:
    """The ledger of each node: a table ``pgha.ledger`` that makes keyed writes exactly once.

    It is made on every node that takes writes (a standby has its primary's). A keyed write needs the rights
    SELECT, INSERT and UPDATE on it, pruning needs DELETE: see ``grant_to``. Where masters replicate to each
    other, its rows may be replicated, too: each server's have its own system identifier, and never collide.

    Every method may be cancelled at any time: a node is done, or not begun. An error that comes when some
    nodes are done says which in a note (``__notes__``); all may be done again.
    """

    def __init__(self, host: LedgerHost) -> None:
        self._host = host

    async def install(
        self, *, grant_to: Iterable[str] = (), nodes: Iterable[str] | None = None
    ) -> Mapping[str, LedgerStatus]:
        """Make it where it is not, and grant ``grant_to`` (names of roles) the rights to use and prune it.

        Of ``nodes``, by default all, each must be up, or nothing is done: where writes are replicated, a
        master without the table would stop at the first row. Standbys are left out. A table of that name
        with another layout is left as it is, and raises `LedgerError`, as does a missing right; doing it
        twice does no harm. Gives every node's status afterwards.
        """
        if isinstance(grant_to, str):
            raise ConfigError("grant_to is a list of roles, not a string")
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
        lock = f"SELECT pg_catalog.pg_advisory_xact_lock({LOCK})"
        missing = not (await self._look(name)).installed
        batch: list[BatchItem] = [lock, *(CREATE if missing else ()), *granted]
        if len(batch) > 1:
            try:
                await self._host.run(name, batch)
            except psycopg.errors.InsufficientPrivilege as error:
                raise LedgerError(
                    f"{name}: the role may not make the ledger ({first_line(error)}): run it as the"
                    " database's owner, and name the role of your program with --grant (grant_to)"
                ) from error
        refuse_layout(name, await self._look(name))
        self._host.ledger_changed(name)

    async def status(self) -> Mapping[str, LedgerStatus]:
        """Every node's ledger, standbys included. Never raises for what nodes do: `LedgerStatus.problem`."""
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
        """Delete the rows whose deadline is ``older_than`` (seconds, or a timedelta) ago.

        A key is good for so long: used again later, its write would be applied again. Never less than an
        hour is kept, and the difference between the servers' clocks: so long may attempts of one operation
        begin. A transaction from before that still holds the ledger (a backend that was frozen behind its
        guard) is waited for, ``patience`` seconds, and then nothing is deleted there. Goes in batches, any
        number of programs may do it, and writes go on meanwhile.
        """
        await self._host.seen()
        age = older_than.total_seconds() if isinstance(older_than, timedelta) else older_than
        if seconds("older_than", age) > LONGEST:
            raise ConfigError(f"older_than must be at most {LONGEST:.0f} seconds, 100 years, not {age!r}")
        seconds("patience", patience)
        status = self._host.nodes
        skews = [one.clock_skew for one in status.values() if one.clock_skew is not None]
        keep = horizon(age, skews)
        names = self._primaries(nodes)
        with _telling() as done:
            pruned: dict[str, Pruned] = {}
            for name in names:
                pruned[name] = await self._prune(name, keep, patience)
                done.append(name)
        return pruned

    async def _prune(self, name: str, keep: float, patience: float) -> Pruned:
        found = await self._look(name)
        if not found.installed:
            return Pruned(name, 0, "there is no ledger")
        refuse_layout(name, found)
        if "DELETE" not in found.rights:
            raise LedgerError(
                f"{name}: the role may not delete from the ledger: `pgha ledger install --grant ROLE`"
            )
        ((pages, now),) = await self._host.ask(name, SIZE)
        pids = await self._zombies(name, keep, patience)
        if pids:
            reason = "transactions that began before hold the ledger: end them, or try again later"
            return Pruned(name, 0, reason, tuple(pids))
        cut, system, deleted = now - timedelta(seconds=keep), self._host.system_of(name) or 0, 0
        for page in range(0, pages, _PAGES):
            params = [f"({page},0)", f"({page + _PAGES},0)", cut, system]
            (((mine, count),),) = await self._host.run(name, [(PRUNE, params)])
            if not mine:
                return Pruned(name, deleted, "somebody else is pruning it")
            deleted += count
        return Pruned(name, deleted)

    async def _zombies(self, name: str, keep: float, patience: float) -> list[int]:
        """Wait until those that might still insert a key of a row which is to go have ended; who has not."""
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
        """Remove it, and the schema ``pgha`` where nothing else is in it; whether it was there.

        Keys that were used within the last hour may be those of writes that still run: that is a
        `LedgerError`, unless by ``force``. Doing it twice does no harm: the second time takes an empty
        schema that was left.
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
                    # One that was left on the way, perhaps.
                    await self._remove_schema(name)
                done.append(name)
        return {name: one.installed for name, one in found.items()}

    async def _refuse_recent(self, name: str) -> None:
        refuse_layout(name, await self._look(name))
        try:
            ((recent,),) = await self._host.ask(
                name,
                f"SELECT count(*) FROM {TABLE} WHERE deadline > pg_catalog.clock_timestamp()"
                " - make_interval(secs => %s)",
                [LIFE],
            )
        except psycopg.errors.InsufficientPrivilege as error:
            raise LedgerError(f"{name}: the role may not read the ledger ({first_line(error)})") from error
        if recent:
            raise LedgerError(
                f"{name}: {recent} keys were used within the last hour, and their writes may still run:"
                " wait, or use --force (force=True)"
            )

    async def _remove(self, name: str) -> None:
        try:
            await self._host.run(name, [f"DROP TABLE IF EXISTS {TABLE}"])
        except psycopg.errors.InsufficientPrivilege as error:
            raise LedgerError(f"{name}: the role may not remove the ledger ({first_line(error)})") from error
        self._host.ledger_changed(name)
        await self._remove_schema(name)

    async def _remove_schema(self, name: str) -> None:
        try:
            await self._host.run(name, ["DROP SCHEMA IF EXISTS pgha"])
        except (psycopg.errors.DependentObjectsStillExist, psycopg.errors.InsufficientPrivilege):
            pass  # somebody else's: it is left to them

    def _primaries(self, nodes: Iterable[str] | None) -> list[str]:
        known = self._host.nodes
        chosen = list(known) if nodes is None else list(nodes)
        for name in chosen:
            if name not in known:
                raise ConfigError(f"no node is called {name!r}: see Cluster.nodes for the names")
            if known[name].state not in ("up", "suspect"):
                raise LedgerError(
                    f"{name} is {known[name].state} ({known[name].reason}), and nothing was done anywhere:"
                    " wait for it, or name the others"
                )
        primaries = [name for name in chosen if known[name].role == "primary"]
        if not primaries:
            raise LedgerError("none of these nodes takes writes: a standby has its primary's ledger")
        return primaries

    async def _look(self, name: str) -> Found:
        ((comment, columns, primary_key, schema, rights, size),) = await self._host.ask(name, LOOK)
        return Found(
            size is not None, comment or "", columns or [], primary_key, bool(schema), rights, size or 0
        )


@contextmanager
def _telling() -> Iterator[list[str]]:
    """What is done is added to the list; an error behind that says so."""
    done: list[str] = []
    try:
        yield done
    except psycopg.Error as error:
        if done:
            error.add_note(f"done already, and no harm done again: {', '.join(done)}")
        raise
