"""The data folder of a replica: copied from the primary, rewound to it, and told whom to follow."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from subprocess import DEVNULL, STDOUT

import anyio
from anyio.abc import Process
from psycopg.conninfo import make_conninfo

from pgha.chaos._errors import ChaosError
from pgha.chaos._servers import warden
from pgha.chaos._servers.account import environment, run_tool, server_account
from pgha.chaos._servers.node import ServerNode, blocking

SETTINGS = {
    "wal_log_hints": "on",  # pg_rewind demands it, and full pages, so that it finds every page that changed
    "full_page_writes": "on",
    "wal_keep_size": "256MB",  # for a standby that was away, and for finding where two timelines parted
}
_WIRING = "pgha_replica.conf"
_SIGNAL = "standby.signal"


async def base_backup(node: ServerNode, primary: ServerNode, timeout: float) -> None:
    """Give `node`, which is down, a copy of what `primary` has; until that is there it keeps what it had."""
    server = node._server
    fresh = server.folder / "data.new"
    await blocking(warden.remove_folder, fresh)  # what a cancelled one left
    words = ["-X", "stream", "-c", "fast", "--no-sync", "--no-manifest", "-d", primary.dsn]
    await _run([server.installation.program("pg_basebackup"), "-D", fresh, *words], server.folder, timeout)

    def exchange(data: Path) -> None:
        warden.remove_folder(data)
        fresh.rename(data)

    await blocking(server.replace_data, exchange)


async def rewind(node: ServerNode, primary: ServerNode, timeout: float) -> None:
    """Undo in the folder of `node`, which is down, what `primary` has not; what it has comes by streaming.

    When it fails or is cancelled, the folder is good for nothing but a base backup.
    """
    server = node._server
    await blocking(server.replace_data, _nothing)  # a killed server's lock file would stand in the way
    words = ["--no-sync", "--source-server", primary.dsn]
    await _run([server.installation.program("pg_rewind"), "-D", server.data, *words], server.folder, timeout)
    await blocking(server.replace_data, _nothing)  # it has copied the primary's settings


def _nothing(data: Path) -> None:
    """The change is made by other means; what is done around it is wanted."""


def recovering_on(node: ServerNode) -> str | None:
    """If `node`, which is down, was a standby until then: the timeline that it was on. Blocks."""
    server = node._server
    said = run_tool([server.installation.program("pg_controldata"), "-D", server.data], cwd=server.folder)
    facts = {name: value.strip() for name, _, value in (line.partition(":") for line in said.splitlines())}
    if facts["Database cluster state"] not in ("in archive recovery", "shut down in recovery"):
        return None
    timeline = facts["Min recovery ending loc's timeline"]
    return timeline if timeline != "0" else "current"


def make_standby(node: ServerNode) -> None:
    """Let `node` start as a standby. Blocks."""
    path = node._server.data / _SIGNAL
    path.touch(mode=0o600)
    server_account().give(path)


def wire(
    node: ServerNode, upstream: ServerNode | None, synchronous: str = "", timeline: str = "latest"
) -> None:
    """Write whom `node` follows as a standby (None: nobody) and whom it waits for as a primary. Blocks.

    It counts from the next start or reload; `timeline` (the one to follow) from the next start.
    """
    source = "" if upstream is None else make_conninfo(upstream.dsn, application_name=node.name)
    settings = {
        "primary_conninfo": source,
        "synchronous_standby_names": synchronous,
        "recovery_target_timeline": timeline,
    }
    target = node._server.data / _WIRING
    fresh = target.with_suffix(".new")
    fresh.touch(mode=0o600)  # it may hold a password
    fresh.write_text("".join(f"{name} = {_quoted(value)}\n" for name, value in settings.items()))
    server_account().give(fresh)
    fresh.rename(target)  # at once: a server that starts just now must not read half a line


def include_wiring(node: ServerNode) -> None:
    """Let the server read what `wire` writes; all copies of its data will. Blocks."""
    with (node._server.data / "postgresql.conf").open("a") as file:
        file.write(f"include_if_exists '{_WIRING}'\n")


def _quoted(value: str) -> str:
    """As in postgresql.conf, where the end of a line cannot stand in a value itself."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n") + "'"


async def _run(arguments: Sequence[str | Path], cwd: Path, timeout: float) -> None:
    """As `run_tool`, but a cancellation ends the program: it may be waiting for a server that is frozen."""
    name = Path(arguments[0]).name
    try:
        process = await anyio.open_process(
            [str(word) for word in arguments],
            stdin=DEVNULL,
            stderr=STDOUT,
            cwd=cwd,
            env=environment(),
            start_new_session=True,
            umask=0o077,
            **server_account().credentials,
        )
    except OSError as error:
        raise ChaosError(f"cannot run {name}: {error}") from error
    said = b""
    try:
        assert process.stdout is not None
        with anyio.fail_after(timeout):
            async for chunk in process.stdout:
                said += chunk
            status = await process.wait()
    except TimeoutError:
        raise ChaosError(f"{name} took more than {timeout} s") from None
    finally:
        await _end(process)
    if status != 0:
        words = " / ".join(said.decode(errors="replace").strip().splitlines()[-3:])
        raise ChaosError(f"{name} failed with status {status}: {words}")


async def _end(process: Process) -> None:
    """Kill the program and its children (pg_basebackup has one, pg_rewind runs a server), if it still runs.

    Not left to `aclose`, which waits for a living program when asyncio's own cancellation came.
    """
    with anyio.CancelScope(shield=True):
        if process.returncode is None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        await process.aclose()
