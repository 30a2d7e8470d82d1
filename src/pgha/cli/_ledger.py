"""`pgha ledger`: create, show, prune and remove the table of idempotency keys."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

import psycopg

import pgha
from pgha._core.ledger_rules import LIFE
from pgha._ledger.schema import LONGEST
from pgha._options import parse_nodes
from pgha.cli._output import write
from pgha.cli._run import ending

Act: TypeAlias = Literal["install", "status", "prune", "uninstall"]
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_CONNECT = 10.0
"""Seconds within which a node has to answer."""
_WIDTHS = (22, 8, 12, 9, 19)


@dataclass(frozen=True, slots=True)
class Asked:
    """The subcommand to run, and its options."""

    act: Act
    dsns: tuple[str, ...]
    json: bool = False
    grants: tuple[str, ...] = ()
    older_than: float = 7 * 86400.0
    """Seconds."""
    yes: bool = False
    """Do not ask for confirmation."""
    force: bool = False
    loop: str = "asyncio"


def age(text: str) -> float:
    """Return the seconds of ``7d``, ``36h``, ``90m``, ``3600s`` or a plain number of seconds.

    Raise ValueError for any other text, and for an age that is too short or too long.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw]?)\s*", text)
    if found is None:
        raise ValueError(f"{text!r} is not a length of time: use for example 7d, 36h, 90m or 3600s")
    seconds = float(found[1]) * _UNITS[found[2]]
    if seconds < LIFE:
        raise ValueError(f"{text} is too short: use 1h or more, since younger writes may still run")
    if seconds > LONGEST:
        raise ValueError(f"{text} is too long: use 36500d or less")
    return seconds


def run(asked: Asked) -> int:
    """Run a subcommand, and return the exit code.

    0: the request was carried out. 1: it was not; the reason is printed in one line. 2: unusable arguments.
    130 and 143: ended by a signal.
    """
    try:
        nodes = [node.name for node in parse_nodes(asked.dsns)]
    except pgha.ConfigError as error:
        _complain(error)
        return 2
    if asked.act == "uninstall" and not asked.yes and (code := _refused(nodes)):
        return code
    return ending(asked.loop, lambda: _told(asked), "ledger")


async def _told(asked: Asked) -> int:
    try:
        async with pgha.open_cluster(
            *asked.dsns,
            min_ready=0,
            connect_timeout=_CONNECT,
            failover_timeout=_CONNECT,
            application_name="pgha ledger",
        ) as cluster:
            return await _ACTS[asked.act](cluster, asked)
    except psycopg.Error as error:
        _complain("; ".join([str(error), *getattr(error, "__notes__", ())]))
        return 2 if isinstance(error, pgha.ConfigError) else 1


def _complain(what: object) -> None:
    sys.stderr.write(f"pgha ledger: {_on_one_line(what)}\n")


def _on_one_line(what: object) -> str:
    return " ".join(str(what).split())


def _refused(nodes: Sequence[str]) -> int:
    """Ask the user at the terminal for confirmation; return 0 if the answer is yes, else the exit code."""
    if sys.stdin is None or not sys.stdin.isatty():
        _complain("standard input is not a terminal: pass --yes to confirm that all keys are deleted")
        return 2
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_DFL:
        # SIG_DFL would kill the program by the signal and leave the cursor in the middle of the line.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.stderr.write(f"Remove the ledger from {', '.join(nodes)}, and delete all keys? [y/N] ")
        sys.stderr.flush()
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, before)
    if answer.strip().lower() in ("y", "yes"):
        return 0
    if not answer.endswith("\n"):
        sys.stderr.write("\n")
    _complain("nothing was removed")
    return 1


async def _install(cluster: pgha.Cluster, asked: Asked) -> int:
    return _show(await cluster.ledger.install(grant_to=asked.grants), asked)


async def _status(cluster: pgha.Cluster, asked: Asked) -> int:
    return _show(await cluster.ledger.status(), asked)


async def _prune(cluster: pgha.Cluster, asked: Asked) -> int:
    """Prune node by node, so that a problem on one node does not keep the others from being pruned."""
    found: list[pgha.Pruned] = []
    standbys: psycopg.Error | None = None
    for name in cluster.nodes:
        try:
            found += (await cluster.ledger.prune(asked.older_than, nodes=[name])).values()
        except psycopg.Error as error:
            node, reason = cluster.nodes[name], _on_one_line(error).removeprefix(f"{name}: ")
            if node.state not in ("up", "suspect"):
                reason = f"the node is {node.state}: {_on_one_line(node.reason)}"
            elif not node.writable:
                standbys = error
                continue
            found.append(pgha.Pruned(name, 0, reason))
    if not found and standbys is not None:
        raise standbys
    if asked.json:
        _json([asdict(one) for one in found])
    for one in found if not asked.json else ():
        _tell_pruned(one)
    return 1 if any(one.reason for one in found) else 0


def _tell_pruned(one: pgha.Pruned) -> None:
    counted = f"{one.node}: {one.deleted:,} keys deleted"
    if one.reason:
        pids = f" (process {', '.join(map(str, one.in_the_way))})" if one.in_the_way else ""
        _complain(f"{counted}; {one.reason}{pids}")
    else:
        write(counted, sys.stdout)


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
    """Print each node's ledger, and return the exit code.

    The code is 0 if the ledger of every node that takes writes is usable; if none takes writes, of every
    node.
    """
    if asked.json:
        _json([asdict(one) for one in found.values()])
    else:
        for line in table(list(found.values())):
            write(line, sys.stdout)
    needed = [one for one in found.values() if one.role != "standby"] or list(found.values())
    return 1 if any(one.problem for one in needed) else 0


def table(found: Sequence[pgha.LedgerStatus]) -> list[str]:
    """Return the lines of the table. Each has less than 80 columns, except the description of a problem."""
    lines = [_line("node", "role", "keys", "given up", "oldest", "size")]
    for one in found:
        keys, given_up = _number(one.keys), _number(one.given_up)
        lines.append(_line(one.node, one.role, keys, given_up, _moment(one.oldest), _size(one.bytes)))
        if one.problem:
            lines.append(f"  ! {_on_one_line(one.problem)}")
    return lines


def _line(node: str, role: str, keys: str, given_up: str, oldest: str, size: str) -> str:
    a, b, c, d, e = _WIDTHS
    return f"{node:<{a - 1}} {role:<{b}}{keys:>{c}}{given_up:>{d}}  {oldest:<{e}}{size:>8}".rstrip()


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
