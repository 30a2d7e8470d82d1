"""The addresses of a node's host, resolved in a thread: libpq would resolve a name in the loop's thread."""

from __future__ import annotations

import socket

import anyio
from psycopg import pq

from pgha._options import NodeConfig

_STOPS_LIBPQ = {"sslmode": "none of libpq's"}
"""A parameter that libpq refuses after completing the others, and before it opens a socket."""


async def targets(config: NodeConfig) -> list[dict[str, str]]:
    """Return connection parameters for each address of the node's host, in the order to try.

    The host may also come from the environment (PGHOST) or from a service file, even as a list of hosts. An
    empty dict leaves all to libpq, which then resolves nothing: a socket directory, or an address.

    Raises:
        OSError: No host can be resolved.
    """
    params = config.params
    host = params.get("host", "")
    if params.get("hostaddr"):
        return [{}]
    if host:
        return [{}] if _is_path(host) else [{"hostaddr": address} for address in await _resolved(host)]
    completed = _completed(config)
    hosts = completed.get("host", "").split(",")
    if completed.get("hostaddr") or not all(hosts):
        return [{}]
    return await _targets_of(hosts, completed.get("port", "").split(","))


async def _targets_of(hosts: list[str], ports: list[str]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    failure: OSError | None = None
    for index, host in enumerate(hosts):
        port = ports[index] if len(ports) == len(hosts) else ports[0]
        fixed = {"host": host} | ({"port": port} if port else {})
        try:
            addresses = [] if _is_path(host) else await _resolved(host)
        except OSError as error:
            failure = error
            continue
        found += [{**fixed, "hostaddr": one} for one in addresses] if addresses else [fixed]
    if failure is not None and not found:
        raise failure
    return found


def _is_path(host: str) -> bool:
    return host.startswith(("/", "@"))


async def _resolved(host: str) -> list[str]:
    found = await anyio.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _completed(config: NodeConfig) -> dict[str, str]:
    """Return the parameters with libpq's values for those that the conninfo leaves out.

    libpq has no function for this that reads a service named in the conninfo. So a connection is begun that
    libpq refuses before it resolves or opens anything.
    """
    pgconn = pq.PGconn.connect_start(config.conninfo(**_STOPS_LIBPQ).encode())
    try:
        options = pgconn.info
    finally:
        pgconn.finish()
    return {one.keyword.decode(): one.val.decode() for one in options if one.val}
