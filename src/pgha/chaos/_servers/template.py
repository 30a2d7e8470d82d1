"""Data folders: one initdb, then copies, each with a system identifier of its own."""

from __future__ import annotations

import hashlib
import secrets
import struct
from pathlib import Path

from pgha.chaos._errors import ChaosError
from pgha.chaos._servers.account import run_tool, server_account
from pgha.chaos._servers.binaries import Installation
from pgha.chaos._servers.cache import cached

# Nodes with hba lines or a password do not keep this trust: their pg_hba.conf is written after the copy.
_INITDB = (
    *("--no-sync", "--auth=trust", "--username=postgres"),
    *("--encoding=UTF8", "--locale=C", "--wal-segsize=1"),
)
_CONTROL_SIZES = range(200, 512, 4)
_WAL_IDENTIFIER = slice(24, 32)
_LONG_HEADER = 0x0002


def make_data(installation: Installation, data: Path) -> int:
    """Make `data`, a fresh data folder owned by the servers' account, and return its system identifier.

    Blocks for 0.1 s, or 0.6 s if the template must be made first.
    """
    run_tool(["cp", "-R", _template(installation) / "data", data], cwd=data.parent)
    identifier = secrets.randbits(62) | 1 << 61  # non-zero, and positive as a bigint
    _set_identifier(data, identifier)
    return identifier


def _template(installation: Installation) -> Path:
    account = server_account()
    words = f"{installation.bindir}:{account.uid}:{_INITDB}"
    key = hashlib.sha256(words.encode()).hexdigest()[:12]

    def build(target: Path) -> None:
        account.give(target)
        run_tool([installation.program("initdb"), *_INITDB, "-D", target / "data"], cwd=target)

    return cached(f"template-{installation.release}-{key}", build)


def _set_identifier(data: Path, identifier: int) -> None:
    """Write `identifier` into a cluster that was shut down: into pg_control and the headers of its WAL files.

    The alternative, one initdb per node, costs five times as much as a copy. pg_control begins with the
    identifier and ends with a CRC-32C of everything before it. The position of the CRC differs between
    versions, and is found by the CRC itself, so an unknown layout is an error, and never damages a file. Page
    headers of the WAL have no checksum.
    """
    control = bytearray((data / "global/pg_control").read_bytes())
    old = bytes(control[:8])
    sums = _crc32c_prefixes(control, _CONTROL_SIZES.stop)
    ends = [n for n in _CONTROL_SIZES if struct.unpack_from("=I", control, n)[0] == sums[n]]
    if len(ends) != 1:
        raise ChaosError(
            f"{data}/global/pg_control has an unknown layout: this version of PostgreSQL is not supported"
        )
    control[:8] = struct.pack("=Q", identifier)
    struct.pack_into("=I", control, ends[0], _crc32c_prefixes(control, ends[0] + 1)[ends[0]])
    for segment in (data / "pg_wal").glob("[0-9A-F]" * 24):
        _set_wal_identifier(segment, old, bytes(control[:8]))
    _overwrite(data / "global/pg_control", bytes(control))


def _set_wal_identifier(segment: Path, old: bytes, new: bytes) -> None:
    with segment.open("rb") as file:
        head = bytearray(file.read(40))
    if not any(head):
        return  # a segment made in advance, without content
    if not struct.unpack_from("=H", head, 2)[0] & _LONG_HEADER or bytes(head[_WAL_IDENTIFIER]) != old:
        raise ChaosError(f"{segment} has an unknown layout: this version of PostgreSQL is not supported")
    head[_WAL_IDENTIFIER] = new
    _overwrite(segment, bytes(head))


def _overwrite(path: Path, head: bytes) -> None:
    with path.open("r+b") as file:  # in place, so that owner, mode and the rest of the file stay
        file.write(head)


def _crc32c_prefixes(content: bytes | bytearray, count: int) -> list[int]:
    """Return the CRC-32C of content[:n] for each n below `count`."""
    crc = 0xFFFFFFFF
    sums = []
    for byte in content[:count]:
        sums.append(crc ^ 0xFFFFFFFF)
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return sums
