"""Validated options and conninfo strings. Invalid input raises at once; no error shows a password."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, final, get_args

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import tuple_row

from pgha._core.sources import Sources
from pgha._errors import ConfigError


class SetupConnection(Protocol):
    """The argument of an ``on_connect`` callable: the new connection, before any operation uses it.

    Example::

        async def on_connect(connection: pgha.SetupConnection) -> None:
            await connection.execute("SET synchronous_commit = off")

        async with pgha.open_cluster("host=db1", on_connect=on_connect) as cluster:
            await cluster.fetch("SELECT 1")
    """

    async def execute(self, query: str, /) -> list[tuple[str | None, ...]]:
        """Run one statement without parameters.

        Cancelling the call closes the new connection.

        Args:
            query: One SQL statement.

        Returns:
            The rows as tuples of text; None is NULL.

        Raises:
            psycopg.Error: The statement failed. The connection is not used if the callable raises this error
                to pgha.
        """
        ...


LedgerMode = Literal["explicit", "auto"]
OnConnect = str | Sequence[str] | Callable[[SetupConnection], Awaitable[object]]


@final
@dataclass(frozen=True, slots=True)
class Node:
    """A node to connect to: a conninfo string or URI for one host, and an optional name.

    The default name is ``host:port``. The repr omits the conninfo, because it may contain a password.

    Example::

        a = pgha.Node("host=10.0.0.1 dbname=shop", name="a")
        b = pgha.Node("host=10.0.0.2 dbname=shop", name="b")
        async with pgha.open_cluster(a, b) as cluster:
            await cluster.fetch("SELECT 1", route=pgha.pin("a"))
    """

    conninfo: str = field(repr=False)
    """A libpq conninfo string or URI."""
    name: str | None = None
    """The node's name in `Cluster.nodes`, events and errors; None for ``host:port``."""


@final
@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One node's validated connection parameters."""

    name: str
    params: dict[str, str] = field(repr=False)

    def application_name(self, default: str) -> str:
        """Return the conninfo's own application_name if it has one, else ``default``."""
        return self.params.get("application_name", default)

    def conninfo(self, **more: str | int) -> str:
        """Return the conninfo string for libpq, overridden by ``more``; the string may contain a password."""
        return make_conninfo("", **{**self.params, **more})


@final
@dataclass(frozen=True, slots=True)
class Tuning:
    """Limits fixed by the design; in seconds unless stated otherwise."""

    depth: int = 16
    """Operations in flight per lane: more gain nothing (measured)."""
    max_lanes: int = 10
    """Lanes of one kind per node, opened when slow operations block the usual ones."""
    max_attempts: int = 5
    """Attempts per operation. Those that pgha itself made fail do not count, up to as many again."""
    suspected_crashes: int = 2
    """An operation that was the head of this many lost connections, and may have crashed them, is not sent
    again."""
    suspicion_floor: float = 0.05
    """A head older than this, and older than 4 x the node's p99, makes the monitor ping."""
    behind: float = 0.002
    """Nothing is sent behind operations that need longer than this by their pace, or longer than a round trip
    if that is more: waiting for the lane costs one."""
    open_after: float = 0.002
    """One more lane is opened for an operation that has waited for this long behind slow ones."""
    stranded_after: float = 0.1
    """Reads behind a head older than this are taken back, and sent on another connection."""
    lease_after: float = 0.1
    """A lane is kept free for an operation that has waited for this long to be alone on one."""
    overflow_after: float = 0.1
    """Reads that waited for this long for a node on which nothing moves go to another node as well."""
    hold_behind: float = 0.05
    """Nothing is sent behind a head older than this."""
    head_of_line: float = 1.0
    """The server is asked about a head older than this. If others wait behind it, the head may then be
    cancelled and run again alone."""
    ask_again: float = 0.5
    """The server is asked again after this, then after twice this, and so on: an idle backend then proves
    that the answer was lost."""
    cancel_grace: float = 0.02
    """An abandoned operation that became the head has this long to finish by itself."""
    cancel_again: float = 0.1
    """A cancel that was delivered without effect (the backend was idle) is sent again after this."""
    cancel_deadline: float = 1.0
    """A lane whose cancel has no effect for this long is discarded."""
    proof_time: float = 0.1
    """How long a write past its deadline waits for proof of its outcome."""
    cancelled_proof_time: float = 5.0
    """How long a write that its caller cancelled waits for proof of its outcome, or until its deadline."""
    tick: float = 0.02
    """Interval at which lanes with operations in flight are checked."""
    drain_timeout: float = 0.3
    """How long a discarded lane may take to learn the outcome of its operations."""
    idle_lane: float = 10.0
    """An additional lane that was idle for this long is closed."""
    statements: int = 256
    """Prepared statements kept per lane."""
    guard_window: float = 60.0
    """How long an attempt of a keyed write without a timeout may take until it begins on the server."""
    guard_margin: float = 1.0
    """Time added to a keyed write's deadline before the server refuses to begin the write."""
    clock_skew: float = 1.0
    """Clocks that differ by more than this are reported, and make the guard wider."""
    ledger_look: float = 5.0
    """Interval at which pgha checks for the ledger if keys are assigned automatically."""
    reconnect_first: float = 0.05
    reconnect_most: float = 2.0
    probe_no_primary: float = 0.02
    first_look: float = 1.0
    """How long the first write waits for nodes that were not heard of yet and may be newer primaries."""


REAL = Sources(time.monotonic, time.time, time.process_time, random.random, os.urandom)


@final
@dataclass(frozen=True, slots=True)
class Options:
    """The validated arguments of `pgha.open_cluster`."""

    read_connections: int = 2
    min_ready: int = 1
    connect_timeout: float = 10.0
    failover_timeout: float = 60.0
    timeout: float | None = None
    statement_timeout: float | None = None
    ping_interval: float = 1.0
    ping_timeout: float = 0.25
    max_queued: int = 65536
    close_timeout: float = 5.0
    row_factory: Any = tuple_row
    prepare_threshold: int | None = 3
    on_connect: OnConnect | None = None
    application_name: str = "pgha"
    ledger: LedgerMode = "explicit"
    tuning: Tuning = field(default_factory=Tuning)
    sources: Sources = REAL

    def __post_init__(self) -> None:
        _whole("read_connections", self.read_connections, least=1)
        _whole("min_ready", self.min_ready, least=0)
        _whole("max_queued", self.max_queued, least=1)
        for name in ("connect_timeout", "failover_timeout", "ping_interval", "ping_timeout", "close_timeout"):
            seconds(name, getattr(self, name))
        for name in ("connect_timeout", "ping_interval", "ping_timeout"):
            if getattr(self, name) == 0:
                raise ConfigError(f"{name} must be more than zero seconds, not {getattr(self, name)!r}")
        if self.timeout is not None:
            seconds("timeout", self.timeout)
        if self.statement_timeout is not None:
            statement_limit(self.statement_timeout)
        if self.prepare_threshold is not None:
            _whole("prepare_threshold", self.prepare_threshold, least=0)
        if not callable(self.row_factory):
            raise ConfigError(
                f"row_factory must be a row factory such as psycopg.rows.dict_row, not {self.row_factory!r}"
            )
        _text("application_name", self.application_name)
        if self.ledger not in get_args(LedgerMode):
            raise ConfigError(f'ledger must be "explicit" or "auto", not {self.ledger!r}')
        _check_on_connect(self.on_connect)


def _check_on_connect(given: object) -> None:
    queries = [given] if isinstance(given, str) else given
    if given is None or callable(given):
        return
    if not isinstance(queries, Sequence) or not all(isinstance(one, str) for one in queries):
        raise ConfigError(f"on_connect must be SQL, a list of SQL, or an async callable, not {given!r}")


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ConfigError(f"{name} must be a string without NUL, not {value!r}")
    return value


def _whole(name: str, value: object, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, not {value!r}")


def seconds(name: str, value: object) -> float:
    """Return ``value`` as a number of seconds; raise a `ConfigError` about ``name`` otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{name} must be a number of seconds, not {value!r}")
    if math.isnan(value) or value < 0:
        raise ConfigError(f"{name} must be zero or more seconds, not {value!r}")
    return float(value)


def statement_limit(value: object) -> float:
    """Return ``value`` as PostgreSQL's statement_timeout, in seconds."""
    limit = seconds("statement_timeout", value)
    if not 0.001 <= limit <= 2_147_483:
        raise ConfigError(
            f"statement_timeout must be 0.001 to 2147483 seconds, or None for no limit, not {value!r}"
        )
    return limit


def parse_nodes(nodes: Sequence[str | Node]) -> list[NodeConfig]:
    """Return the configuration of every node; a multi-host URI is several nodes. Names must differ."""
    found: list[NodeConfig] = []
    for node in nodes:
        found.extend(_parse_one(_check_node(node if isinstance(node, Node) else Node(_string(node)))))
    if not found:
        raise ConfigError(
            "give at least one node: a conninfo string, a URI, or pgha.Node(conninfo, name=...)"
        )
    seen: set[str] = set()
    for config in found:
        if config.name in seen:
            raise ConfigError(
                f"two nodes are called {config.name!r}: name them with pgha.Node(conninfo, name=...)"
            )
        seen.add(config.name)
    return found


def _check_node(node: Node) -> Node:
    if node.name is not None and not _text("a node's name", node.name):
        raise ConfigError("a node's name must not be empty: leave it out for host:port")
    _string(node.conninfo)
    return node


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"a node is a conninfo string, a URI or a pgha.Node, not {type(value).__name__}")
    return value


def _parse_one(node: Node) -> list[NodeConfig]:
    params = _parse_conninfo(node.conninfo)
    if params.get("target_session_attrs", "any") != "any" or params.get("load_balance_hosts"):
        raise ConfigError(
            "target_session_attrs and load_balance_hosts make libpq choose a host; pgha chooses by role and "
            "route: remove them from the conninfo"
        )
    hosts = params.get("host", "").split(",")
    addresses = params.get("hostaddr", "").split(",") if params.get("hostaddr") else []
    ports = params.get("port", "").split(",")
    count = max(len(hosts), len(addresses))
    if len(ports) not in (1, count) or (addresses and len(hosts) not in (1, len(addresses))):
        raise ConfigError(
            "host, hostaddr and port must have the same number of entries; one port for all hosts is allowed"
        )
    if node.name is not None and count > 1:
        raise ConfigError(
            f"the name {node.name!r} cannot stand for {count} hosts: give each its own pgha.Node"
        )
    many = [_pick(params, hosts, addresses, ports, i) for i in range(count)]
    return [NodeConfig(node.name or _default_name(one), one) for one in many]


def _parse_conninfo(conninfo: str) -> dict[str, str]:
    if "\0" in conninfo:
        raise ConfigError("a conninfo string must not contain a NUL character")
    try:
        return {k: str(v) for k, v in conninfo_to_dict(conninfo).items() if v is not None}
    except ProgrammingError as error:
        # libpq's message may quote the whole string with its password: only the first words are safe to show.
        reason = str(error).strip().split('"')[0].strip() or "it cannot be parsed"
    # Raised outside of the except block: otherwise libpq's error would be its context, and be printed.
    raise ConfigError(f"bad conninfo: {reason} (expected 'host=... dbname=...' or a URI)")


def _pick(
    params: dict[str, str], hosts: list[str], addresses: list[str], ports: list[str], index: int
) -> dict[str, str]:
    one = dict(params)
    host = hosts[index] if len(hosts) > 1 else hosts[0]
    port = ports[index] if len(ports) > 1 else ports[0]
    for key, value in (("host", host), ("port", port)):
        one.pop(key, None)
        if value:
            one[key] = value
    if addresses:
        one["hostaddr"] = addresses[index]
    if port and not (port.isdigit() and 0 < int(port) < 65536):
        # Not shown: if a password contains an unescaped slash, a part of it is parsed as the port.
        raise ConfigError("port must be a number between 1 and 65535 (in a URI's password, escape / as %2F)")
    return one


def _default_name(params: dict[str, str]) -> str:
    return f"{params.get('host') or params.get('hostaddr') or 'local'}:{params.get('port', '5432')}"
