"""The data folder of a replica: copied from the primary, rewound to it, and told which server to follow."""

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
    "wal_log_hints": "on",  # pg_rewind needs this and full pages, to find every page that changed
    "full_page_writes": "on",
    "wal_keep_size": "256MB",  # for a standby that was away, and to find where two timelines part
}
_WIRING = "pgha_replica.conf"
_SIGNAL = "standby.signal"


async def base_backup(
    node: ServerNode, primary: ServerNode, timeout: float, upstream: ServerNode | None = None
) -> None:
    """Give `node`, which is down, a copy of `primary`, as a standby that follows `upstream`.

    Until the copy is complete, `node` keeps its old data.
    """
    server = node._server
    fresh = server.folder / "data.new"
    await blocking(warden.remove_folder, fresh)  # the rest of a cancelled backup
    words = ["-X", "stream", "-c", "fast", "--no-sync", "--no-manifest", "-d", primary.dsn]
    await _run([server.installation.program("pg_basebackup"), "-D", fresh, *words], server.folder, timeout)

    def exchange(data: Path) -> None:
        # Before the exchange: whoever is cancelled after it must not leave a node that starts as a primary.
        _write_signal(fresh)
        _write_wiring(fresh, node.name, upstream)
        warden.remove_folder(data)
        fresh.rename(data)

    await blocking(server.replace_data, exchange)


async def rewind(node: ServerNode, primary: ServerNode, timeout: float) -> None:
    """Undo in the folder of `node`, which is down, what `primary` does not have. The rest comes by streaming.

    After a failure or a cancellation, only a base backup can repair the folder.
    """
    server = node._server
    # Removes the lock file of a killed server, with which pg_rewind would fail.
    await blocking(server.replace_data, _nothing)
    words = ["--no-sync", "--source-server", primary.dsn]
    await _run([server.installation.program("pg_rewind"), "-D", server.data, *words], server.folder, timeout)
    # pg_rewind has copied the primary's settings: write the node's own again.
    await blocking(server.replace_data, _nothing)


def _nothing(data: Path) -> None:
    """Leave the data unchanged: only the steps around the change are wanted."""


def recovering_on(node: ServerNode) -> str | None:
    """Return the timeline of `node`, which is down, if the node was a standby until then.

    None if it was a primary. Blocks.
    """
    server = node._server
    said = run_tool([server.installation.program("pg_controldata"), "-D", server.data], cwd=server.folder)
    facts = {name: value.strip() for name, _, value in (line.partition(":") for line in said.splitlines())}
    if facts["Database cluster state"] not in ("in archive recovery", "shut down in recovery"):
        return None
    timeline = facts["Min recovery ending loc's timeline"]
    return timeline if timeline != "0" else "current"


def make_standby(node: ServerNode) -> None:
    """Let `node` start as a standby. Blocks."""
    _write_signal(node._server.data)


def _write_signal(folder: Path) -> None:
    path = folder / _SIGNAL
    path.touch(mode=0o600)
    server_account().give(path)


def wire(
    node: ServerNode, upstream: ServerNode | None, synchronous: str = "", timeline: str = "latest"
) -> None:
    """Write which server `node` follows as a standby, and for which it waits as a primary. Blocks.

    `upstream` None: the node follows no server. The file takes effect at the next start or reload; `timeline`
    (the one to follow) at the next start.
    """
    _write_wiring(node._server.data, node.name, upstream, synchronous, timeline)


def _write_wiring(
    folder: Path, name: str, upstream: ServerNode | None, synchronous: str = "", timeline: str = "latest"
) -> None:
    source = "" if upstream is None else make_conninfo(upstream.dsn, application_name=name)
    settings = {
        "primary_conninfo": source,
        "synchronous_standby_names": synchronous,
        "recovery_target_timeline": timeline,
    }
    target = folder / _WIRING
    fresh = target.with_suffix(".new")
    fresh.touch(mode=0o600)  # the file may hold a password
    fresh.write_text("".join(f"{name} = {_quoted(value)}\n" for name, value in settings.items()))
    server_account().give(fresh)
    fresh.rename(target)  # atomic: a server that starts right now must not read half a line


def include_wiring(node: ServerNode) -> None:
    """Let the server, and all copies of its data, read the file that `wire` writes. Blocks."""
    with (node._server.data / "postgresql.conf").open("a") as file:
        file.write(f"include_if_exists '{_WIRING}'\n")


def _quoted(value: str) -> str:
    """Quote a value for postgresql.conf, in which a value cannot contain the end of a line."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n") + "'"


async def _run(arguments: Sequence[str | Path], cwd: Path, timeout: float) -> None:
    """Run a program, as `run_tool` does, but end it on cancellation.

    The program may be waiting for a frozen server.
    """
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
    """Kill the program and its children, if it is still running.

    pg_basebackup has one child, pg_rewind runs a server. `aclose` alone is not enough: after asyncio's own
    cancellation it waits for a living program.
    """
    with anyio.CancelScope(shield=True):
        if process.returncode is None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        await process.aclose()
