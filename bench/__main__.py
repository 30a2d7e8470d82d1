"""``python -m bench``: pgha beside its peers, on the same servers, in one run; a table, or JSON.

Every figure is a median of rounds in which the contestants take turns, and what counts are the ratios. The
target of each is printed beside it; a miss is the exit code 1 with ``--strict`` alone.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version

from anyio.from_thread import start_blocking_portal

from bench.failover import failover_rows
from bench.keyed import keyed_rows
from bench.measure import Measurement, Setting, say
from bench.peers import POOL, SCHEMA
from bench.proxy import proxy_rows
from bench.report import Figure, Report
from bench.rows import all_rows
from pgha import chaos

_SETTINGS = {"autovacuum": "off", "max_connections": "300"}
_NOTES = [
    "median (least-most) of the rounds; a ratio is taken within a round, and above 1 pgha is the better one",
    "embedded PostgreSQL on this machine, fsync and autovacuum off: clients are compared, not disks",
    f"pgha opens as by default; every pool has {POOL} connections, and is warm before it is measured",
    "prepared statements are on, as by default of each; psycopg in autocommit mode, which spares it a BEGIN"
    " and a COMMIT; asyncpg's pool resets a connection at each release, as by default",
    "pgbench: one connection, pipelines of 16 selects, each with a Sync of its own: as in pgha, each is a"
    " transaction of its own; -M prepared is the like of pgha, -M extended parses each anew",
    "memory: of a node what the process grew by; of an operation what Python allocated (not libpq's buffers)",
    "failover: a read every 10 ms a task, on any of 3 servers; every call has 5 s; the node in use is struck;"
    " psycopg_pool without check=, as by default; hasql with acquire_master, over pools of asyncpg",
]
_PACKAGES = ("psycopg", "psycopg-pool", "asyncpg", "psqlpy", "hasql", "anyio", "trio")


def main() -> int:
    rows = [*all_rows(), *keyed_rows(), *failover_rows(), *proxy_rows()]
    options = _options([row.name for row in rows])
    if options.list:
        print("\n".join(row.name for row in rows))
        return 0
    wanted = [row for row in rows if not options.only or row.name in options.only]
    figures: list[Figure] | None = None
    try:
        figures = _measured(wanted, options.seconds, options.rounds)
    except* KeyboardInterrupt:
        say("")  # the servers are gone already; the progress stands in an unfinished line
    if figures is None:
        return 130
    facts = {"Python": platform.python_version(), "PostgreSQL": chaos.find_installation().release}
    facts |= {name: version(name) for name in _PACKAGES}
    report = Report(figures, _NOTES, facts)
    print(report.json() if options.json else report.table())
    return 1 if options.strict and report.missed else 0


def _options(names: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="JSON in place of the table")
    parser.add_argument("--strict", action="store_true", help="exit code 1 when a target was missed")
    parser.add_argument("--seconds", type=_positive, default=0.8, help="of each load (default: 0.8)")
    parser.add_argument("--rounds", type=_whole, default=5, help="of each row (default: 5)")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help="these rows alone")
    parser.add_argument("--list", action="store_true", help="name the rows, and measure nothing")
    return parser.parse_args()


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 3600:
        raise ValueError(text)
    return value


def _whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _measured(rows: Sequence[Measurement], seconds: float, rounds: int) -> list[Figure]:
    """All rows in their order; those that need equally many servers share them."""
    figures: dict[str, list[Figure]] = {row.name: [] for row in rows}
    for servers in sorted({row.servers for row in rows}):
        # The measurements run loops of their own, in this thread: the servers belong to one in another.
        with (
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(chaos.standalone(servers, settings=_SETTINGS)) as nodes,
        ):
            portal.call(nodes.execute, SCHEMA)
            portal.call(nodes.execute, "VACUUM ANALYZE")
            setting = Setting(nodes, seconds, rounds)
            for row in rows:
                if row.servers == servers:
                    figures[row.name] = row.run(setting)
    return [figure for found in figures.values() for figure in found]


if __name__ == "__main__":
    sys.exit(main())
