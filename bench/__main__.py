"""``python -m bench``: a table, or JSON with ``--json``.

Machines are noisy, so every figure is a median of rounds in which the peers take turns, and what counts are
the ratios. The target of each row is printed beside it; a miss is the exit code 1 with ``--strict`` alone.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
from dataclasses import asdict, dataclass

import anyio

from pgha import chaos

from .loads import Load, asyncpg_pool, pgha_cluster

TABLE = "CREATE TABLE item (id int PRIMARY KEY, name text NOT NULL)"
ROWS = "INSERT INTO item SELECT i, 'item ' || i FROM generate_series(1, 10000) i"
TARGETS = {100: 4.0, 10: 3.0, 1: 1.2}
"""Tasks, and how many times an asyncpg pool of 10 pgha is to reach (select by key)."""


@dataclass(frozen=True)
class Row:
    """One line of the table; rates in operations a second."""

    tasks: int
    asyncpg_pool: float
    pgha_asyncio: float
    pgha_trio: float
    ratio_asyncio: float
    ratio_trio: float
    spread: str
    target: float

    @property
    def reached(self) -> bool:
        return min(self.ratio_asyncio, self.ratio_trio) >= self.target


def measure(dsn: str, tasks: int, seconds: float, rounds: int) -> Row:
    """Take turns: peer, pgha on asyncio, pgha on trio; the ratios are those of each round."""
    peer, ours, trios = [], [], []
    for _ in range(rounds):
        load = Load(tasks, seconds)
        peer.append(anyio.run(asyncpg_pool, dsn, load))
        ours.append(anyio.run(pgha_cluster, dsn, load))
        trios.append(anyio.run(pgha_cluster, dsn, load, backend="trio"))
    ratios = [mine / other for mine, other in zip(ours, peer, strict=True)]
    ratios_trio = [mine / other for mine, other in zip(trios, peer, strict=True)]
    return Row(
        tasks=tasks,
        asyncpg_pool=round(statistics.median(peer)),
        pgha_asyncio=round(statistics.median(ours)),
        pgha_trio=round(statistics.median(trios)),
        ratio_asyncio=round(statistics.median(ratios), 2),
        ratio_trio=round(statistics.median(ratios_trio), 2),
        spread=f"{min(ratios + ratios_trio):.1f}-{max(ratios + ratios_trio):.1f}",
        target=TARGETS[tasks],
    )


async def _with_server(seconds: float, rounds: int, wanted: list[int]) -> list[Row]:
    async with chaos.standalone(1) as nodes:
        await nodes.execute(TABLE)
        await nodes.execute(ROWS)
        await nodes.execute("VACUUM ANALYZE item")
        call = functools.partial(measure, nodes.dsns[0], seconds=seconds, rounds=rounds)
        # Each measurement runs loops of its own, so it needs a thread of its own.
        return [await anyio.to_thread.run_sync(functools.partial(call, tasks)) for tasks in wanted]


def table(rows: list[Row]) -> str:
    lines = [
        "select by key, operations a second (median)",
        f"{'tasks':>6} {'asyncpg pool':>13} {'pgha asyncio':>16} {'pgha trio':>16} {'spread':>9} "
        f"{'target':>7}",
    ]
    for row in rows:
        asyncio_part = f"{row.pgha_asyncio:.0f} ({row.ratio_asyncio:.2f}x)"
        trio_part = f"{row.pgha_trio:.0f} ({row.ratio_trio:.2f}x)"
        verdict = "" if row.reached else "  missed"
        lines.append(
            f"{row.tasks:>6} {row.asyncpg_pool:>13.0f} {asyncio_part:>16} {trio_part:>16} "
            f"{row.spread:>9} {row.target:>6.1f}x{verdict}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--strict", action="store_true", help="exit code 1 when a target was missed")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, nargs="*", default=[100, 10, 1], choices=sorted(TARGETS))
    options = parser.parse_args()
    rows = anyio.run(_with_server, options.seconds, options.rounds, options.tasks)
    print(json.dumps([asdict(row) for row in rows], indent=2) if options.json else table(rows))
    return 1 if options.strict and not all(row.reached for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
