"""`Cluster.ledger`: making the ledger, looking at it, pruning it, removing it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol, final

import anyio
import psycopg
from psycopg import sql

from ._config import seconds
from ._core.ledger import LIFE, horizon
from ._errors import ConfigError, LedgerError
from ._keys import TABLE
from ._requests import BatchItem
from ._result import Result
from ._types import NodeStatus, Role

LAYOUT = 1
_LOCK = 7_093_774_221_000_001
"""Of pg_advisory_xact_lock: one program at a time makes, prunes or removes a ledger."""
_COLUMNS = ["system_identifier bigint", "key uuid", "fingerprint bytea", "deadline timestamp with time zone"]
_PRIMARY_KEY = "PRIMARY KEY (system_identifier, key)"
_CREATE = (
    "CREATE SCHEMA IF NOT EXISTS pgha",
    f"""CREATE TABLE IF NOT EXISTS {TABLE} (
        system_identifier bigint NOT NULL, key uuid NOT NULL, fingerprint bytea NOT NULL,
        deadline timestamptz NOT NULL, {_PRIMARY_KEY}
    )""",
    f"COMMENT ON TABLE {TABLE} IS 'Keys of writes that pgha has applied; layout {LAYOUT}'",
)
_LOOK = """
SELECT c.oid IS NOT NULL, pg_catalog.obj_description(c.oid, 'pg_class'),
    (SELECT pg_catalog.array_agg(a.attname || ' ' || pg_catalog.format_type(a.atttypid, a.atttypmod)
            ORDER BY a.attnum)
        FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
    (SELECT pg_catalog.pg_get_constraintdef(k.oid) FROM pg_catalog.pg_constraint k
        WHERE k.conrelid = c.oid AND k.contype = 'p'),
    pg_catalog.has_schema_privilege(n.oid, 'USAGE'),
    ARRAY(SELECT p FROM pg_catalog.unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p
        WHERE pg_catalog.has_table_privilege(c.oid, p)),
    coalesce(pg_catalog.pg_total_relation_size(c.oid), 0)
FROM (SELECT) one LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = 'pgha'
    LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = 'ledger'
"""
_COUNT = (
    f"SELECT count(*), count(*) FILTER (WHERE fingerprint = ''), min(deadline), max(deadline) FROM {TABLE}"
)
# A transaction that has inserted, or is about to, holds this lock until its end, and took it before its guard
# looked at the clock. What began after the cut-off can be none of the zombies that pruning has to fear.
# Others' transactions may not tell when they began.
_ZOMBIES = f"""
SELECT l.virtualtransaction, l.pid FROM pg_catalog.pg_locks l
    LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.relation = '{TABLE}'::regclass AND l.mode = 'RowExclusiveLock'
    AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())
    AND (a.xact_start IS NULL OR a.xact_start < pg_catalog.clock_timestamp() - make_interval(secs => %s))
"""
_SIZE = (
    f"SELECT pg_catalog.pg_relation_size('{TABLE}') / pg_catalog.current_setting('block_size')::int,"
    " pg_catalog.clock_timestamp()"
)
# By ranges of pages: each is read once, and no index is needed. Rows of other masters go a day later: they
# are their own to prune, unless they are gone for good.
_PRUNE = f"""
WITH held AS MATERIALIZED (SELECT pg_catalog.pg_try_advisory_xact_lock({_LOCK}) AS mine),
pruned AS (
    DELETE FROM {TABLE} WHERE (SELECT mine FROM held) AND ctid >= %s::text::tid AND ctid < %s::text::tid
        AND deadline < %s::timestamptz - CASE WHEN system_identifier = %s::bigint THEN interval '0'
            ELSE interval '1 day' END
    RETURNING 1
)
SELECT (SELECT mine FROM held), (SELECT count(*) FROM pruned)
"""
_PAGES = 512
LONGEST = 36_500 * 86_400.0
"""Seconds. Far longer ago there are no dates."""
_POLL = 0.05


@final
@dataclass(frozen=True, slots=True)
class LedgerStatus:
    """The ledger of one node, as `Ledger.status` found it."""

    node: str
    role: Role
    installed: bool
    """There is a table of that name."""
    problem: str
    """Why this program's keyed writes cannot use it, and what to do; empty when they can."""
    prunable: bool
    """The role may delete from it."""
    keys: int | None = None
    """Rows; None where the role may not read them."""
    given_up: int | None = None
    """Those of them that were settled as not applied."""
    oldest: datetime | None = None
    """The earliest of their deadlines."""
    newest: datetime | None = None
    bytes: int = 0
    """On disk, its index included."""


@final
@dataclass(frozen=True, slots=True)
class Pruned:
    """What `Ledger.prune` did on one node."""

    node: str
    deleted: int
    """Rows."""
    reason: str = ""
    """Why not all was done that could be: somebody else is at it, or an old transaction is in the way."""
    in_the_way: tuple[int, ...] = ()
    """Process ids of backends with such transactions (0: a prepared one)."""


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

    Every method may be cancelled at any time: a node is done, or not begun.
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
        grants = [grant for role in grant_to for grant in _grants(role)]
        await self._host.seen()
        names = self._primaries(nodes)
        for name in names:
            _refuse_layout(name, await self._look(name))
        for name in names:
            await self._make(name, grants)
        return {name: await self._status(name) for name in names}

    async def _make(self, name: str, grants: Sequence[sql.Composed]) -> None:
        lock = f"SELECT pg_catalog.pg_advisory_xact_lock({_LOCK})"
        missing = not (await self._look(name)).installed
        batch: list[BatchItem] = [lock, *(_CREATE if missing else ()), *grants]
        if len(batch) > 1:
            try:
                await self._host.run(name, batch)
            except psycopg.errors.InsufficientPrivilege as error:
                raise LedgerError(
                    f"{name}: the role may not make the ledger ({_first_line(error)}): run it as the"
                    " database's owner, and name the role of your program with --grant (grant_to)"
                ) from error
        _refuse_layout(name, await self._look(name))
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
            ((keys, given_up, oldest, newest),) = await self._host.ask(name, _COUNT)
            return found.status(name, node.role, keys, given_up, oldest, newest)
        except psycopg.Error as error:
            return LedgerStatus(name, node.role, False, _first_line(error), False)

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
        return {name: await self._prune(name, keep, patience) for name in self._primaries(nodes)}

    async def _prune(self, name: str, keep: float, patience: float) -> Pruned:
        found = await self._look(name)
        if not found.installed:
            return Pruned(name, 0, "there is no ledger")
        _refuse_layout(name, found)
        if "DELETE" not in found.rights:
            raise LedgerError(
                f"{name}: the role may not delete from the ledger: `pgha ledger install --grant ROLE`"
            )
        ((pages, now),) = await self._host.ask(name, _SIZE)
        pids = await self._zombies(name, keep, patience)
        if pids:
            reason = "transactions that began before hold the ledger: end them, or try again later"
            return Pruned(name, 0, reason, tuple(pids))
        cut, system, deleted = now - timedelta(seconds=keep), self._host.system_of(name) or 0, 0
        for page in range(0, pages, _PAGES):
            params = [f"({page},0)", f"({page + _PAGES},0)", cut, system]
            (((mine, count),),) = await self._host.run(name, [(_PRUNE, params)])
            if not mine:
                return Pruned(name, deleted, "somebody else is pruning it")
            deleted += count
        return Pruned(name, deleted)

    async def _zombies(self, name: str, keep: float, patience: float) -> list[int]:
        """Wait until those that might still insert a key of a row which is to go have ended; who has not."""
        first = list(await self._host.ask(name, _ZOMBIES, [keep - LIFE]))
        with anyio.move_on_after(patience):
            while first:
                await anyio.sleep(_POLL)
                there = {row[0] for row in await self._host.ask(name, _ZOMBIES, [0])}
                first = [row for row in first if row[0] in there]
        return sorted({row[1] or 0 for row in first})

    async def uninstall(
        self, *, force: bool = False, nodes: Iterable[str] | None = None
    ) -> Mapping[str, bool]:
        """Remove it, and the schema ``pgha`` where nothing else is in it; whether it was there.

        Keys that were used within the last hour may be those of writes that still run: that is a
        `LedgerError`, unless by ``force``. Doing it twice does no harm.
        """
        await self._host.seen()
        names = self._primaries(nodes)
        there = {name: (await self._look(name)).installed for name in names}
        for name in names:
            if there[name] and not force:
                await self._refuse_recent(name)
        for name in names:
            if there[name]:
                await self._remove(name)
        return there

    async def _refuse_recent(self, name: str) -> None:
        _refuse_layout(name, await self._look(name))
        try:
            ((recent,),) = await self._host.ask(
                name,
                f"SELECT count(*) FROM {TABLE} WHERE deadline > pg_catalog.clock_timestamp()"
                " - make_interval(secs => %s)",
                [LIFE],
            )
        except psycopg.errors.InsufficientPrivilege as error:
            raise LedgerError(f"{name}: the role may not read the ledger ({_first_line(error)})") from error
        if recent:
            raise LedgerError(
                f"{name}: {recent} keys were used within the last hour, and their writes may still run:"
                " wait, or use --force (force=True)"
            )

    async def _remove(self, name: str) -> None:
        try:
            await self._host.run(name, [f"DROP TABLE IF EXISTS {TABLE}"])
        except psycopg.errors.InsufficientPrivilege as error:
            raise LedgerError(f"{name}: the role may not remove the ledger ({_first_line(error)})") from error
        try:
            await self._host.run(name, ["DROP SCHEMA IF EXISTS pgha"])
        except (psycopg.errors.DependentObjectsStillExist, psycopg.errors.InsufficientPrivilege):
            pass  # somebody else's: it is left to them
        self._host.ledger_changed(name)

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

    async def _look(self, name: str) -> _Found:
        ((installed, comment, columns, primary_key, schema, rights, size),) = await self._host.ask(
            name, _LOOK
        )
        return _Found(installed, comment or "", columns or [], primary_key, bool(schema), rights, size)


@dataclass(frozen=True, slots=True)
class _Found:
    """What the catalogue says of a node's ledger."""

    installed: bool
    comment: str
    columns: list[str]
    primary_key: str | None
    schema: bool
    """The role may use it."""
    rights: list[str]
    size: int

    @property
    def other_layout(self) -> str:
        """Why it is not the table that this pgha knows; empty when it is, or when there is none."""
        if not self.installed:
            return ""
        said = re.search(r"layout (\d+)", self.comment)
        if said is not None and int(said[1]) != LAYOUT:
            return f"layout {said[1]}"
        if self.columns != _COLUMNS:
            return f"columns {', '.join(self.columns)}"
        return "" if self.primary_key == _PRIMARY_KEY else f"primary key {self.primary_key}"

    @property
    def readable(self) -> bool:
        return self.schema and "SELECT" in self.rights

    def problem(self) -> str:
        if not self.installed:
            return "not installed: `pgha ledger install`"
        if self.other_layout:
            return _layout_words(self.other_layout)
        missing = [right for right in ("SELECT", "INSERT", "UPDATE") if right not in self.rights]
        if not self.schema:
            missing.insert(0, "USAGE of schema pgha")
        return f"the role lacks {', '.join(missing)}: `pgha ledger install --grant ROLE`" if missing else ""

    def status(
        self, node: str, role: Role, keys: int | None = None, given_up: int | None = None,
        oldest: datetime | None = None, newest: datetime | None = None,
    ) -> LedgerStatus:  # fmt: skip
        prunable = self.schema and "DELETE" in self.rights
        return LedgerStatus(
            node, role, self.installed, self.problem(), prunable, keys, given_up, oldest, newest, self.size
        )


def _layout_words(found: str) -> str:
    return (
        f"pgha.ledger has another layout ({found}; this pgha knows {LAYOUT}): if no program needs its keys"
        " any more, `pgha ledger uninstall --force` it, then install"
    )


def _refuse_layout(name: str, found: _Found) -> None:
    if found.other_layout:
        raise LedgerError(f"{name}: {_layout_words(found.other_layout)}")


def _grants(role: object) -> list[sql.Composed]:
    if not isinstance(role, str) or not role or "\0" in role:
        raise ConfigError(f"a role is a name, not {role!r}")
    name = sql.Identifier(role)
    return [
        sql.SQL("GRANT USAGE ON SCHEMA pgha TO {}").format(name),
        sql.SQL("GRANT SELECT, INSERT, UPDATE, DELETE ON pgha.ledger TO {}").format(name),
    ]


def _first_line(error: BaseException) -> str:
    return str(error).split("\n")[0]
