"""Compare pgha with other clients on the same servers, in one run; print a table, or JSON.

Every figure is a median of rounds in which the clients take turns. Compare the ratios, not the absolute
figures. The target of a ratio is printed next to it. A missed target gives exit code 1 only with
``--strict``.

Example: python -m bench --only select-1 select-100 --rounds 3
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version

from anyio.from_thread import start_blocking_portal

from bench.conditions import condition_rows
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
    "figures are medians (minimum-maximum) of the rounds; ratios are taken within rounds, and above 1 pgha is"
    " better",
    "PostgreSQL is embedded on this machine, with fsync and autovacuum off, to compare clients and not disks",
    f"pgha has its default options; every pool has {POOL} connections, and is warmed up before it is timed",
    "prepared statements are on, the default of every client; psycopg runs in autocommit mode, which saves a"
    " BEGIN and a COMMIT; asyncpg's pool resets a connection at each release, its default",
    "pgbench: one connection, pipelines of 16 selects, each with its own Sync and so its own transaction, as"
    " in pgha; -M prepared is comparable to pgha, -M extended parses each select anew",
    "uvloop: both clients on it; a long line: a proxy in a process of its own, 5 ms each way; slow commits: a"
    " deferred trigger that sleeps; a full queue: max_queued=50, its ratio is to a queue with room for all",
    "memory: of a node, the growth of the process; of an operation, Python's allocations (no libpq buffers)",
    "failover: each task reads every 10 ms, from any of 3 servers; each call has 5 s; the node in use fails;"
    " psycopg_pool without check=, its default; hasql with acquire_master, over pools of asyncpg",
]
_PACKAGES = ("psycopg", "psycopg-pool", "asyncpg", "psqlpy", "hasql", "uvloop", "anyio", "trio")


def main() -> int:
    rows = [*all_rows(), *condition_rows(), *keyed_rows(), *failover_rows(), *proxy_rows()]
    options = _options([row.name for row in rows])
    if options.list:
        print("\n".join(row.name for row in rows))
        return 0
    wanted = [row for row in rows if not options.only or row.name in options.only]
    figures: list[Figure] | None = None
    try:
        figures = _measured(wanted, options.seconds, options.rounds)
    except* KeyboardInterrupt:
        say("")  # ends the unfinished line of progress; the servers are removed already
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
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--strict", action="store_true", help="return exit code 1 if a target was missed")
    parser.add_argument("--seconds", type=_positive, default=0.8, help="seconds per load (default: 0.8)")
    parser.add_argument("--rounds", type=_whole, default=5, help="rounds per row (default: 5)")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help="measure only these rows")
    parser.add_argument("--list", action="store_true", help="list the names of the rows and exit")
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
    """Measure the rows, and return the figures in the order of the rows.

    Rows that need the same number of servers share them.
    """
    figures: dict[str, list[Figure]] = {row.name: [] for row in rows}
    for servers in sorted({row.servers for row in rows}):
        # The measurements run their own event loops in this thread, so the servers' loop runs in another.
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
