"""`pgha ledger`: make, look at, prune and remove the table that makes keyed writes exactly once."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

import psycopg

import pgha
from pgha._config import parse_nodes
from pgha._core.ledger import LIFE
from pgha.cli._demo import ending
from pgha.cli._view import write

Act: TypeAlias = Literal["install", "status", "prune", "uninstall"]
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_CONNECT = 10.0
"""Seconds for a node to answer."""
_WIDTHS = (22, 8, 12, 9, 19)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be done."""

    act: Act
    dsns: tuple[str, ...]
    json: bool = False
    grants: tuple[str, ...] = ()
    older_than: float = 7 * 86400.0
    """Seconds."""
    force: bool = False
    loop: str = "asyncio"


def age(text: str) -> float:
    """``7d``, ``36h``, ``90m``, ``3600s`` or plain seconds, as seconds; ValueError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw]?)\s*", text)
    if found is None:
        raise ValueError(f"{text!r} is no length of time: 7d, 36h, 90m, 3600s")
    seconds = float(found[1]) * _UNITS[found[2]]
    if seconds < LIFE:
        raise ValueError(f"{text} is too short: keys are kept for an hour at least, writes may still run")
    return seconds


def run(asked: Asked) -> int:
    """Do it; the exit code.

    0: all is as it was asked for. 1: it is not, for a reason that is told in a line. 2: arguments that cannot
    be used. 130 and 143: ended by a signal.
    """
    try:
        parse_nodes(asked.dsns)
    except pgha.ConfigError as error:
        _complain(error)
        return 2
    return ending(asked.loop, lambda: _told(asked), "ledger")


async def _told(asked: Asked) -> int:
    try:
        async with pgha.open_cluster(
            *asked.dsns,
            min_ready=0,
            connect_timeout=_CONNECT,
            node_wait=_CONNECT,
            application_name="pgha ledger",
        ) as cluster:
            return await _ACTS[asked.act](cluster, asked)
    except psycopg.Error as error:
        _complain(error)
        return 2 if isinstance(error, pgha.ConfigError) else 1


def _complain(error: BaseException) -> None:
    sys.stderr.write(f"pgha ledger: {' '.join(str(error).split())}\n")


async def _install(cluster: pgha.Cluster, asked: Asked) -> int:
    return _show(await cluster.ledger.install(grant_to=asked.grants), asked)


async def _status(cluster: pgha.Cluster, asked: Asked) -> int:
    return _show(await cluster.ledger.status(), asked)


async def _prune(cluster: pgha.Cluster, asked: Asked) -> int:
    found = await cluster.ledger.prune(asked.older_than)
    if asked.json:
        _json([asdict(one) for one in found.values()])
    for one in found.values() if not asked.json else ():
        pids = f" (process {', '.join(map(str, one.in_the_way))})" if one.in_the_way else ""
        reason = f"; {one.reason}{pids}" if one.reason else ""
        write(f"{one.node}: {one.deleted:,} keys deleted{reason}", sys.stdout)
    return 1 if any(one.reason for one in found.values()) else 0


async def _uninstall(cluster: pgha.Cluster, asked: Asked) -> int:
    found = await cluster.ledger.uninstall(force=asked.force)
    if asked.json:
        _json([{"node": name, "removed": was} for name, was in found.items()])
    for name, was in found.items() if not asked.json else ():
        write(f"{name}: {'removed' if was else 'there was none'}", sys.stdout)
    return 0


_ACTS: Mapping[Act, Callable[[pgha.Cluster, Asked], Awaitable[int]]] = {
    "install": _install,
    "status": _status,
    "prune": _prune,
    "uninstall": _uninstall,
}


def _show(found: Mapping[str, pgha.LedgerStatus], asked: Asked) -> int:
    """Every node's ledger; 0 when all that take writes can be used."""
    if asked.json:
        _json([asdict(one) for one in found.values()])
    else:
        for line in table(list(found.values())):
            write(line, sys.stdout)
    return 1 if any(one.problem and one.role != "standby" for one in found.values()) else 0


def table(found: Sequence[pgha.LedgerStatus]) -> list[str]:
    """Lines of less than 80 columns, but for what is wrong."""
    lines = [_line("node", "role", "keys", "given up", "oldest", "size")]
    for one in found:
        keys, given_up = _number(one.keys), _number(one.given_up)
        lines.append(_line(one.node, one.role, keys, given_up, _moment(one.oldest), _size(one.bytes)))
        if one.problem:
            lines.append(f"  ! {one.problem}")
    return lines


def _line(node: str, role: str, keys: str, given_up: str, oldest: str, size: str) -> str:
    a, b, c, d, e = _WIDTHS
    return f"{node:<{a}}{role:<{b}}{keys:>{c}}{given_up:>{d}}  {oldest:<{e}}{size:>8}".rstrip()


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _moment(at: datetime | None) -> str:
    return "-" if at is None else f"{at.astimezone():%Y-%m-%d %H:%M:%S}"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}"


def _json(nodes: list[dict[str, Any]]) -> None:
    def plain(value: object) -> str:
        return value.isoformat() if isinstance(value, datetime) else str(value)

    write(json.dumps({"nodes": nodes}, indent=2, default=plain), sys.stdout)
