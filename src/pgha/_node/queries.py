"""The monitor's own SQL, and the reading of its answers.

Every name of a function or operator is qualified, so that no search_path changes what a query does.

The status query asks for everything that a role without special rights may usually read. A server or a role
may forbid a part of the query, and then the whole query fails: `STATUS` has the query without that part next.
"""

from __future__ import annotations

from typing import Final

from pgha._core.pipeline import Doing
from pgha._core.server_status import Columns
from pgha._wire import PGresult

_ALWAYS: Final = (
    b"SELECT s.in_recovery,"
    b" pg_catalog.current_setting('default_transaction_read_only') AS read_only,"
    b" pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) AS clock"
)
_FROM: Final = b" FROM (SELECT pg_catalog.pg_is_in_recovery() AS in_recovery OFFSET 0) AS s"
"""A subquery with OFFSET is not flattened: pg_is_in_recovery() is called once, before the functions that
fail in the other case."""
_WAL: Final = (
    b", CASE WHEN s.in_recovery THEN pg_catalog.pg_last_wal_replay_lsn()"
    b" ELSE pg_catalog.pg_current_wal_insert_lsn() END AS position"
    b", CASE WHEN s.in_recovery THEN pg_catalog.pg_last_wal_receive_lsn()"
    b" ELSE pg_catalog.pg_current_wal_flush_lsn() END AS durable"
    b", CASE WHEN NOT s.in_recovery THEN"
    b" pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()) END AS wal_file"
    b", CASE WHEN s.in_recovery THEN pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()"
    b" OPERATOR(pg_catalog.-) pg_catalog.pg_last_xact_replay_timestamp()) END AS replay_age"
    b", CASE WHEN s.in_recovery THEN (SELECT r.received_tli"
    b" FROM pg_catalog.pg_stat_get_wal_receiver() AS r) END AS received_timeline"
)
_SYSTEM: Final = b", (SELECT c.system_identifier FROM pg_catalog.pg_control_system() AS c) AS system"
_CHECKPOINT: Final = (
    b", CASE WHEN s.in_recovery THEN (SELECT c.timeline_id"
    b" FROM pg_catalog.pg_control_checkpoint() AS c) END AS checkpoint_timeline"
)
STATUS: Final = (
    _ALWAYS + _SYSTEM + _WAL + _CHECKPOINT + _FROM,
    _ALWAYS + _SYSTEM + _WAL + _FROM,
    _ALWAYS + _WAL + _FROM,
    _ALWAYS + _SYSTEM + _FROM,
    _ALWAYS + _FROM,
)
"""The status query, and what is asked instead if the one before it is forbidden."""
LEDGER: Final = (
    b"SELECT pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE')"
    b" AND pg_catalog.has_table_privilege(c.oid, 'INSERT')"
    b" AND pg_catalog.has_table_privilege(c.oid, 'UPDATE')"
    b" AND pg_catalog.has_table_privilege(c.oid, 'SELECT')"
    b" AND EXISTS (SELECT FROM pg_catalog.pg_attribute a"
    b" WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid"
    b" AND a.attname OPERATOR(pg_catalog.=) 'fingerprint' AND NOT a.attisdropped)"
    b" FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n"
    b" ON n.oid OPERATOR(pg_catalog.=) c.relnamespace"
    b" WHERE n.nspname OPERATOR(pg_catalog.=) 'pgha' AND c.relname OPERATOR(pg_catalog.=) 'ledger'"
)
"""A query that says whether the ledger is usable. The query reads the catalogue, since to_regclass fails if
the role may not use the schema."""
_ACTIVITY: Final = (
    b"SELECT a.pid, a.state, a.wait_event,"
    b" pg_catalog.current_setting('synchronous_standby_names') OPERATOR(pg_catalog.<>) ''"
    b" FROM pg_catalog.unnest(ARRAY[%s]) AS asked (pid),"
    b" pg_catalog.pg_stat_get_activity(asked.pid) AS a"
)


def activity(pids: list[int]) -> bytes:
    """Return the query for the state of backends.

    The query avoids the view pg_stat_activity, which looks up names of roles and databases, and needs a right
    of its own.
    """
    return _ACTIVITY % b", ".join(b"%d" % pid for pid in pids)


def termination(pids: list[int]) -> bytes:
    """Return the query that terminates backends."""
    return b"SELECT " + b", ".join(b"pg_catalog.pg_terminate_backend(%d)" % pid for pid in pids)


def limited(query: bytes, seconds: float) -> bytes:
    """Return a query that the server itself ends after some time, for this once.

    A server that is slow then answers with an error, and a server that does not answer at all is frozen.
    """
    return b"SET LOCAL statement_timeout = %d; " % max(1, round(seconds * 1000)) + query


def columns(reply: PGresult | None) -> Columns:
    """Return the first row of a reply by the names of its columns; nothing if there is no row."""
    if reply is None or not reply.ntuples:
        return {}
    names = ((column, reply.fname(column)) for column in range(reply.nfields))
    return {(name or b"").decode(): reply.get_value(0, column) for column, name in names}


def doings(reply: PGresult | None) -> dict[int, Doing]:
    """Return what each backend is doing, by its process number, from the answer to `activity`."""
    if reply is None:
        return {}
    return {int(reply.get_value(row, 0) or 0): _doing(reply, row) for row in range(reply.ntuples)}


def _doing(reply: PGresult, row: int) -> Doing:
    state, event = reply.get_value(row, 1), reply.get_value(row, 2)
    if state is None:
        return Doing.UNKNOWN  # another role's backend: the server does not say
    if event == b"SyncRep":
        return Doing.REPLICATING
    # A backend with a part of a request waits for the rest (ClientRead); after a failed frame it is idle in a
    # transaction block.
    if state.startswith(b"idle") or event == b"ClientRead":
        return Doing.IDLE
    return Doing.SYNCHRONOUS if reply.get_value(row, 3) == b"t" else Doing.RUNNING
