"""The ledger's table: what it is made by, what the catalogue says of it, what is asked of it in SQL."""

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
"""Of pg_advisory_xact_lock: one program at a time makes, prunes or removes a ledger."""
_COLUMNS = ["system_identifier bigint", "key uuid", "fingerprint bytea", "deadline timestamp with time zone"]
_PRIMARY_KEY = "PRIMARY KEY (system_identifier, key)"
CREATE = (
    "CREATE SCHEMA IF NOT EXISTS pgha",
    f"""CREATE TABLE IF NOT EXISTS {TABLE} (
        system_identifier bigint NOT NULL, key uuid NOT NULL, fingerprint bytea NOT NULL,
        deadline timestamptz NOT NULL, {_PRIMARY_KEY}
    )""",
    f"COMMENT ON TABLE {TABLE} IS 'Keys of writes that pgha has applied; layout {LAYOUT}'",
)
# The functions see a table that is dropped meanwhile disappear (NULL), the joins do not. So the size is asked
# for last: where there is one, the answers before were those of a table that was there.
LOOK = """
SELECT pg_catalog.obj_description(c.oid, 'pg_class'),
    (SELECT pg_catalog.array_agg(a.attname || ' ' || pg_catalog.format_type(a.atttypid, a.atttypmod)
            ORDER BY a.attnum)
        FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
    (SELECT pg_catalog.pg_get_constraintdef(k.oid) FROM pg_catalog.pg_constraint k
        WHERE k.conrelid = c.oid AND k.contype = 'p'),
    pg_catalog.has_schema_privilege(n.oid, 'USAGE'),
    ARRAY(SELECT p FROM pg_catalog.unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p
        WHERE pg_catalog.has_table_privilege(c.oid, p)),
    pg_catalog.pg_total_relation_size(c.oid)
FROM (SELECT) one LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = 'pgha'
    LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = 'ledger'
"""
COUNT = (
    f"SELECT count(*), count(*) FILTER (WHERE fingerprint = ''), min(deadline), max(deadline) FROM {TABLE}"
)
# A transaction that has inserted, or is about to, holds this lock until its end, and took it before its guard
# looked at the clock. What began after the cut-off can be none of the zombies that pruning has to fear.
# Others' transactions may not tell when they began.
ZOMBIES = f"""
SELECT l.virtualtransaction, l.pid FROM pg_catalog.pg_locks l
    LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.relation = '{TABLE}'::regclass AND l.mode = 'RowExclusiveLock'
    AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())
    AND (a.xact_start IS NULL OR a.xact_start < pg_catalog.clock_timestamp() - make_interval(secs => %s))
"""
SIZE = (
    f"SELECT pg_catalog.pg_relation_size('{TABLE}') / pg_catalog.current_setting('block_size')::int,"
    " pg_catalog.clock_timestamp()"
)
# By ranges of pages: each is read once, and no index is needed. Rows of other masters go a day later: they
# are their own to prune, unless they are gone for good.
PRUNE = f"""
WITH held AS MATERIALIZED (SELECT pg_catalog.pg_try_advisory_xact_lock({LOCK}) AS mine),
pruned AS (
    DELETE FROM {TABLE} WHERE (SELECT mine FROM held) AND ctid >= %s::text::tid AND ctid < %s::text::tid
        AND deadline < %s::timestamptz - CASE WHEN system_identifier = %s::bigint THEN interval '0'
            ELSE interval '1 day' END
    RETURNING 1
)
SELECT (SELECT mine FROM held), (SELECT count(*) FROM pruned)
"""
LONGEST = 36_500 * 86_400.0
"""Seconds. Far longer ago there are no dates."""


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
    """Those of them that were resolved as not applied."""
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


@dataclass(frozen=True, slots=True)
class Found:
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


def refuse_layout(name: str, found: Found) -> None:
    if found.other_layout:
        raise LedgerError(f"{name}: {_layout_words(found.other_layout)}")


def grants(role: object) -> list[sql.Composed]:
    if not isinstance(role, str) or not role or "\0" in role:
        raise ConfigError(f"a role is a name, not {role!r}")
    name = sql.Identifier(role)
    return [
        sql.SQL("GRANT USAGE ON SCHEMA pgha TO {}").format(name),
        sql.SQL("GRANT SELECT, INSERT, UPDATE, DELETE ON pgha.ledger TO {}").format(name),
    ]


def first_line(error: BaseException) -> str:
    return str(error).split("\n")[0]
