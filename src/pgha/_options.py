"""Validated options and conninfo strings. Bad input fails here, at once, and passwords stay here."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, final, get_args

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import tuple_row

from pgha._errors import ConfigError


class SetupConnection(Protocol):
    """What an ``on_connect`` callable is given: the new connection, before anybody else uses it."""

    async def execute(self, query: str, /) -> list[tuple[str | None, ...]]:
        """Run one statement without parameters; the rows come as text."""
        ...


LedgerMode = Literal["explicit", "auto"]
OnConnect = str | Sequence[str] | Callable[[SetupConnection], Awaitable[object]]


@final
@dataclass(frozen=True, slots=True)
class Node:
    """A node to connect to: a conninfo string or URI of one host, and the name it goes by.

    Without a name it is called ``host:port``. The repr leaves the conninfo out: it may hold a password.
    """

    conninfo: str = field(repr=False)
    name: str | None = None


@final
@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One node's validated connection parameters."""

    name: str
    params: dict[str, str] = field(repr=False)

    def application_name(self, default: str) -> str:
        """The conninfo's own, if it has one."""
        return self.params.get("application_name", default)

    def conninfo(self, **more: str | int) -> str:
        """The conninfo string for libpq, with ``more`` laid over it. It may hold a password."""
        return make_conninfo("", **{**self.params, **more})


@final
@dataclass(frozen=True, slots=True)
class Tuning:
    """Bounds that the design fixes; in seconds unless said otherwise."""

    depth: int = 16
    """Operations on one lane at a time: deeper gains nothing (measured)."""
    max_lanes: int = 10
    """Lanes of one kind a node, when slow heads block the usual ones."""
    max_attempts: int = 5
    """Times that one operation is handed to a node."""
    suspected_crashes: int = 2
    """An operation that may have broken so many connections, as their head, is not sent again."""
    suspicion_floor: float = 0.05
    """A head older than this, or than 4 x the node's p99, makes the monitor ask."""
    hold_behind: float = 0.05
    """Nothing is sent behind a head older than this."""
    head_of_line: float = 1.0
    """The server is asked about a head older than this; with others behind it, it may then be cancelled and
    run again alone."""
    ask_again: float = 0.5
    """And again after this, then twice this, ...: an idle backend then proves a loss."""
    cancel_grace: float = 0.02
    """An abandoned operation that became head is left so long to finish by itself."""
    cancel_again: float = 0.1
    """A cancel that was delivered and did not work (it met an idle backend) is sent again after this."""
    cancel_deadline: float = 1.0
    """A lane whose cancel shows no effect for so long is discarded."""
    proof_time: float = 0.1
    """How long a write past its deadline waits for proof."""
    tick: float = 0.02
    """How often lanes with work in flight are looked at."""
    drain_timeout: float = 0.3
    """How long a discarded lane may take to say what became of its operations."""
    idle_lane: float = 10.0
    """An additional lane that was idle for so long is closed."""
    statements: int = 256
    """Prepared statements kept a lane."""
    guard_window: float = 60.0
    """How long an attempt of a keyed write without a timeout may take until it begins on the server."""
    guard_margin: float = 1.0
    """What is added to a keyed write's deadline, before the server refuses to begin with it."""
    clock_skew: float = 1.0
    """Clocks that are further apart are told, and make the guard wider."""
    ledger_look: float = 5.0
    """How often the ledger is looked for, where keys are pgha's own."""
    reconnect_first: float = 0.05
    reconnect_most: float = 2.0
    probe_no_primary: float = 0.02


@final
@dataclass(frozen=True, slots=True)
class Options:
    """The validated arguments of `pgha.open_cluster`."""

    read_connections: int = 2
    min_ready: int = 1
    connect_timeout: float = 10.0
    failover_timeout: float = 30.0
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

    def __post_init__(self) -> None:
        _whole("read_connections", self.read_connections, least=1)
        _whole("min_ready", self.min_ready, least=0)
        _whole("max_queued", self.max_queued, least=1)
        for name in ("connect_timeout", "failover_timeout", "ping_interval", "ping_timeout", "close_timeout"):
            seconds(name, getattr(self, name))
        for name in ("connect_timeout", "ping_interval", "ping_timeout"):
            if getattr(self, name) == 0:
                raise ConfigError(f"{name} must be more than zero seconds")
        if self.timeout is not None:
            seconds("timeout", self.timeout)
        if self.statement_timeout is not None:
            statement_limit(self.statement_timeout)
        if self.prepare_threshold is not None:
            _whole("prepare_threshold", self.prepare_threshold, least=0)
        if not callable(self.row_factory):
            raise ConfigError("row_factory must be one of psycopg.rows or a callable like them")
        _text("application_name", self.application_name)
        if self.ledger not in get_args(LedgerMode):
            raise ConfigError(f'ledger must be "explicit" or "auto", not {self.ledger!r}')
        _check_on_connect(self.on_connect)


def _check_on_connect(given: object) -> None:
    queries = [given] if isinstance(given, str) else given
    if given is None or callable(given):
        return
    if not isinstance(queries, Sequence) or not all(isinstance(one, str) for one in queries):
        raise ConfigError(f"on_connect is SQL, a list of it, or an async callable, not {given!r}")


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ConfigError(f"{name} must be a string without NUL, not {value!r}")
    return value


def _whole(name: str, value: object, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, not {value!r}")


def seconds(name: str, value: object) -> float:
    """``value`` as a number of seconds; anything else is a `ConfigError` that names ``name``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{name} must be a number of seconds, not {value!r}")
    if math.isnan(value) or value < 0:
        raise ConfigError(f"{name} must be zero or more seconds, not {value!r}")
    return float(value)


def statement_limit(value: object) -> float:
    """``value`` as PostgreSQL's statement_timeout, in seconds."""
    limit = seconds("statement_timeout", value)
    if not 0.001 <= limit <= 2_147_483:
        raise ConfigError(
            f"statement_timeout must be 0.001 to 2147483 seconds, or None for no limit, not {value!r}"
        )
    return limit


def parse_nodes(nodes: Sequence[str | Node]) -> list[NodeConfig]:
    """Every node named by ``nodes``; a multi-host URI is several. Names must differ."""
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
        raise ConfigError("a node's name cannot be empty")
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
            "target_session_attrs and load_balance_hosts choose among hosts inside libpq; pgha does that "
            "itself, by role and route: leave them out"
        )
    hosts = params.get("host", "").split(",")
    addresses = params.get("hostaddr", "").split(",") if params.get("hostaddr") else []
    ports = params.get("port", "").split(",")
    count = max(len(hosts), len(addresses))
    if len(ports) not in (1, count) or (addresses and len(hosts) not in (1, len(addresses))):
        raise ConfigError("host, hostaddr and port must list equally many entries, or one port for all")
    if node.name is not None and count > 1:
        raise ConfigError(
            f"the name {node.name!r} cannot stand for {count} hosts: give each its own pgha.Node"
        )
    many = [_pick(params, hosts, addresses, ports, i) for i in range(count)]
    return [NodeConfig(node.name or _default_name(one), one) for one in many]


def _parse_conninfo(conninfo: str) -> dict[str, str]:
    if "\0" in conninfo:
        raise ConfigError("a conninfo string cannot hold a NUL character")
    try:
        return {k: str(v) for k, v in conninfo_to_dict(conninfo).items() if v is not None}
    except ProgrammingError as error:
        # libpq's message may quote the string, password and all: only its first words are safe to show.
        reason = str(error).strip().split('"')[0].strip() or "it cannot be parsed"
    # Raised out here, or libpq's error would hang on to it as its context, and be printed.
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
        # Not quoted: where a password holds an unescaped slash, a part of it is taken for the port.
        raise ConfigError("port must be a number between 1 and 65535 (in a URI's password, escape / as %2F)")
    return one


def _default_name(params: dict[str, str]) -> str:
    return f"{params.get('host') or params.get('hostaddr') or 'local'}:{params.get('port', '5432')}"
