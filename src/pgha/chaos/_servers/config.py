"""The files that are written into a data folder before the start: settings, pg_hba.conf, TLS, password."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pgha.chaos._errors import ChaosError
from pgha.chaos._servers.account import run_tool, server_account
from pgha.chaos._servers.binaries import Installation

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "dynamic_shared_memory_type": "mmap",  # files in the data folder: SIGKILL leaves nothing in /dev/shm
    "huge_pages": "off",
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "logical",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "max_worker_processes": "24",
    "max_logical_replication_workers": "16",
    "max_wal_size": "1GB",  # otherwise the small WAL files would make this small too
    # Followers return to a restarted node at once, and notice a node that is frozen for long.
    "wal_retrieve_retry_interval": "100ms",
    "wal_sender_timeout": "10s",
    "wal_receiver_timeout": "10s",
    "log_line_prefix": "%m [%p] ",
}
# io_method: without idle I/O workers, fewer processes have to be started, frozen and killed.
_SINCE = {18: {"io_method": "sync", "max_active_replication_origins": "20"}}
# The kit finds processes by their title, reaches the server by its port, and reads the server's stderr.
_OURS = {"port", "cluster_name", "data_directory", "hba_file", "logging_collector", "log_destination"}
_TRUST = ("host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust")
_SCRAM = tuple(line.replace("trust", "scram-sha-256") for line in _TRUST)


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """The options of a node; `LocalNode` describes each field."""

    version: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    hba: Sequence[str] | None = None
    password: str | None = field(default=None, repr=False)
    tls: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None

    def __post_init__(self) -> None:
        for name in self.settings:
            if name.lower() in _OURS:
                raise ChaosError(f"the setting {name!r} belongs to the kit: remove it from the settings")
            if not re.fullmatch(r"[A-Za-z_][\w.]*", name):
                raise ChaosError(f"{name!r} is not the name of a setting: use letters, digits, '_' and '.'")
        if self.password is not None and (not self.password or "\0" in self.password):
            raise ChaosError("the password cannot be empty or contain a zero byte")


def write_config(installation: Installation, data: Path, options: NodeOptions, name: str) -> None:
    """Write all files of `data` that `options` ask for; `name` becomes the cluster_name. Blocks.

    The password is not in a file: see `set_password`.
    """
    settings = dict(_SETTINGS)
    for since, more in _SINCE.items():
        if installation.version >= since:
            settings |= more
    if options.tls is not None:
        settings |= _copy_tls(data, options.tls)
    settings |= options.settings
    settings["cluster_name"] = name
    with (data / "postgresql.conf").open("a") as file:
        file.writelines(f"{key} = {_quoted(value)}\n" for key, value in settings.items())
    lines = options.hba if options.hba is not None else _SCRAM if options.password else _TRUST
    (data / "pg_hba.conf").write_text("".join(f"{line}\n" for line in lines))


def _quoted(value: str) -> str:
    if "\n" in value:
        raise ChaosError(f"a setting's value cannot contain a line break: {value!r}")
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def _copy_tls(data: Path, files: tuple[str | os.PathLike[str], str | os.PathLike[str]]) -> dict[str, str]:
    """Copy the TLS files into the data folder, owned by the servers' account.

    The server refuses a key that others may read, or that another account owns.
    """
    for source, name in zip(files, ("server.crt", "server.key"), strict=True):
        target = data / name
        target.touch(mode=0o600)
        shutil.copyfile(source, target)
        server_account().give(target)
    return {"ssl": "on", "ssl_cert_file": "server.crt", "ssl_key_file": "server.key"}


def set_password(installation: Installation, data: Path, password: str) -> None:
    """Give the user `postgres` its password, in a data folder with a history of its own. Blocks.

    A standby has its primary's password; a write there would give the standby a history of its own.
    """
    # In single-user mode a statement ends with its line, so everything except letters and digits is escaped.
    escaped = "".join(c if c.isascii() and c.isalnum() else f"\\U{ord(c):08x}" for c in password)
    statement = f"ALTER ROLE postgres PASSWORD E'{escaped}'\n"
    run_tool(
        [installation.program("postgres"), "--single", "-D", data, "postgres"], cwd=data, stdin=statement
    )
