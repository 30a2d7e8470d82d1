"""The ledger's table: its definition, the queries of administration, and their results."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import final

from psycopg import sql

from pgha._errors import ConfigError, LedgerError
from pgha._operation.key import TABLE
from pgha._types import Role

LAYOUT = 1
LOCK = 7_093_774_221_000_001
"""Key of pg_advisory_xact_lock: one program at a time creates, prunes or drops a ledger."""
_COLUMNS = ["system_identifier bigint", "key uuid", "fingerprint bytea", "deadline timestamp with time zone"]
_PRIMARY_KEY = "PRIMARY KEY (system_identifier, key)"

# Whoever may create objects in a schema on the search path can shadow functions, operators and types of
# pg_catalog, and so have the ledger's administrator run foreign code. So every function and type is qualified
# here, and every operator. All operators of this form have one precedence: nested ones need parentheses.
_EQ, _GT, _GE, _LT = (f"OPERATOR(pg_catalog.{name})" for name in ("=", ">", ">=", "<"))
_AND_TEXT, _MINUS, _DIV = (f"OPERATOR(pg_catalog.{name})" for name in ("||", "-", "/"))
CREATE = (
    "CREATE SCHEMA IF NOT EXISTS pgha",
    f"""CREATE TABLE IF NOT EXISTS {TABLE} (
        system_identifier bigint NOT NULL, key pg_catalog.uuid NOT NULL,
        fingerprint pg_catalog.bytea NOT NULL, deadline pg_catalog.timestamptz NOT NULL, {_PRIMARY_KEY}
    )""",
    f"COMMENT ON TABLE {TABLE} IS 'Keys of writes that pgha has applied; layout {LAYOUT}'",
)
TAKE_LOCK = f"SELECT pg_catalog.pg_advisory_xact_lock({LOCK})"
DROP_TABLE, DROP_SCHEMA = f"DROP TABLE IF EXISTS {TABLE}", "DROP SCHEMA IF EXISTS pgha"
# If the table is dropped during the query, the functions return NULL, but the joins still show the table. So
# the size is queried last: if it is not NULL, the columns before it belong to a table that existed.
LOOK = f"""
SELECT pg_catalog.obj_description(c.oid, 'pg_class'),
    (SELECT pg_catalog.array_agg(a.attname::pg_catalog.text {_AND_TEXT} ' '::pg_catalog.text
            {_AND_TEXT} pg_catalog.format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum)
        FROM pg_catalog.pg_attribute a
        WHERE a.attrelid {_EQ} c.oid AND a.attnum {_GT} 0::smallint AND NOT a.attisdropped),
    (SELECT pg_catalog.pg_get_constraintdef(k.oid) FROM pg_catalog.pg_constraint k
        WHERE k.conrelid {_EQ} c.oid AND k.contype {_EQ} 'p'),
    pg_catalog.has_schema_privilege(n.oid, 'USAGE'),
    ARRAY(SELECT p FROM pg_catalog.unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p
        WHERE pg_catalog.has_table_privilege(c.oid, p)),
    pg_catalog.pg_total_relation_size(c.oid)
FROM (SELECT) one LEFT JOIN pg_catalog.pg_namespace n ON n.nspname {_EQ} 'pgha'
    LEFT JOIN pg_catalog.pg_class c ON c.relnamespace {_EQ} n.oid AND c.relname {_EQ} 'ledger'
"""
COUNT = (
    f"SELECT pg_catalog.count(*), pg_catalog.count(*) FILTER (WHERE fingerprint {_EQ} ''),"
    f" pg_catalog.min(deadline), pg_catalog.max(deadline) FROM {TABLE}"
)
RECENT = f"""
SELECT pg_catalog.clock_timestamp(), pg_catalog.count(*) FILTER (WHERE deadline {_GT}
    (pg_catalog.clock_timestamp() {_MINUS} pg_catalog.make_interval(secs => %s))) FROM {TABLE}
"""
# A transaction that has inserted a key, or is about to, holds this lock until its end, and took the lock
# before its guard read the clock. Pruning need not wait for a transaction that began after the cut-off. The
# start of other roles' transactions may be invisible (NULL).
ZOMBIES = f"""
SELECT l.virtualtransaction, l.pid FROM pg_catalog.pg_locks l
    LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid {_EQ} l.pid
WHERE l.locktype {_EQ} 'relation' AND l.relation {_EQ} '{TABLE}'::pg_catalog.regclass
    AND l.mode {_EQ} 'RowExclusiveLock' AND l.database {_EQ}
        (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname {_EQ} pg_catalog.current_database())
    AND (a.xact_start IS NULL OR a.xact_start {_LT}
        (pg_catalog.clock_timestamp() {_MINUS} pg_catalog.make_interval(secs => %s)))
"""
SIZE = (
    f"SELECT pg_catalog.pg_relation_size('{TABLE}') {_DIV} pg_catalog.current_setting('block_size')::int,"
    " pg_catalog.clock_timestamp()"
)
# By ranges of pages: each page is read once, and no index is needed. Rows of other masters are deleted a day
# later: those masters prune their own rows, unless they are gone for good.
PRUNE = f"""
WITH held AS MATERIALIZED (SELECT pg_catalog.pg_try_advisory_xact_lock({LOCK}) AS mine),
pruned AS (
    DELETE FROM {TABLE} WHERE (SELECT mine FROM held)
        AND ctid {_GE} %s::pg_catalog.text::pg_catalog.tid AND ctid {_LT} %s::pg_catalog.text::pg_catalog.tid
        AND deadline {_LT} (%s::pg_catalog.timestamptz {_MINUS} CASE
            WHEN system_identifier {_EQ} %s::bigint THEN interval '0' ELSE interval '1 day' END)
    RETURNING 1
)
SELECT (SELECT mine FROM held), (SELECT pg_catalog.count(*) FROM pruned)
"""
LONGEST = 36_500 * 86_400.0
"""Seconds. Timestamps do not reach much further back."""


@final
@dataclass(frozen=True, slots=True)
class LedgerStatus:
    """The state of one node's ledger, as `Ledger.status` found it.

    Example::

        for status in (await cluster.ledger.status()).values():
            print(status.node, status.installed, status.problem)
    """

    node: str
    """Name of the node."""
    role: Role
    """The node's role. A standby shows its primary's ledger."""
    installed: bool
    """Whether a table of that name exists."""
    problem: str
    """Why keyed writes of this program cannot use the ledger, and the remedy; empty if they can."""
    prunable: bool
    """Whether the role may delete rows."""
    keys: int | None = None
    """Number of rows; None if the role may not read them."""
    given_up: int | None = None
    """Number of rows of writes that were resolved as not applied."""
    oldest: datetime | None = None
    """The earliest deadline of the rows."""
    newest: datetime | None = None
    """The latest deadline of the rows."""
    bytes: int = 0
    """Size on disk in bytes, with the index."""


@final
@dataclass(frozen=True, slots=True)
class Pruned:
    """The result of `Ledger.prune` on one node.

    Example::

        for pruned in (await cluster.ledger.prune()).values():
            print(pruned.node, pruned.deleted, pruned.reason)
    """

    node: str
    """Name of the node."""
    deleted: int
    """Number of deleted rows."""
    reason: str = ""
    """Why pruning stopped early (another program is pruning, an old transaction holds the ledger); empty if
    it did not."""
    in_the_way: tuple[int, ...] = ()
    """Process ids of the backends with such transactions, 0 for a prepared transaction."""


@dataclass(frozen=True, slots=True)
class Found:
    """The catalogue's facts about a node's ledger."""

    installed: bool
    comment: str
    columns: list[str]
    primary_key: str | None
    schema: bool
    """Whether the role may use the schema."""
    rights: list[str]
    size: int

    @property
    def other_layout(self) -> str:
        """How the table differs from this version's layout.

        Empty if the table does not differ, or if there is no table.
        """
        if not self.installed:
            return ""
        said = re.search(r"layout (\d+)", self.comment)
        if said is not None and int(said[1]) != LAYOUT:
            return f"layout {said[1]}"
        # A type is shown with its schema if the search path hides the type.
        columns = [column.replace(" pg_catalog.", " ") for column in self.columns]
        if columns != _COLUMNS:
            return f"columns {', '.join(columns)}"
        return "" if self.primary_key == _PRIMARY_KEY else f"primary key {self.primary_key}"

    @property
    def readable(self) -> bool:
        return self.schema and "SELECT" in self.rights

    def problem(self) -> str:
        if not self.installed:
            return "not installed: run `pgha ledger install`"
        if self.other_layout:
            return _layout_words(self.other_layout)
        missing = [right for right in ("SELECT", "INSERT", "UPDATE") if right not in self.rights]
        if not self.schema:
            missing.insert(0, "USAGE of schema pgha")
        return (
            f"the role lacks {', '.join(missing)}: run `pgha ledger install --grant ROLE`" if missing else ""
        )

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
        f"pgha.ledger has another layout ({found}; this version of pgha uses layout {LAYOUT}): if no program"
        " needs its keys any more, run `pgha ledger uninstall --force`, then `pgha ledger install`"
    )


def refuse_layout(name: str, found: Found) -> None:
    if found.other_layout:
        raise LedgerError(f"{name}: {_layout_words(found.other_layout)}")


def grants(role: object) -> list[sql.Composed]:
    if not isinstance(role, str) or not role or "\0" in role:
        raise ConfigError(f"a role must be a name, not {role!r}")
    name = sql.Identifier(role)
    return [
        sql.SQL("GRANT USAGE ON SCHEMA pgha TO {}").format(name),
        sql.SQL("GRANT SELECT, INSERT, UPDATE, DELETE ON pgha.ledger TO {}").format(name),
    ]


def first_line(error: BaseException) -> str:
    return str(error).split("\n")[0]
