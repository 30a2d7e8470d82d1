"""The entry point `hypothesis`, which Hypothesis calls when it is imported.

This is a package of its own, because importing anything below `pgha` imports all of it: every test run with
Hypothesis would pay for that, with or without databases.
"""

from __future__ import annotations

import sys


def register() -> None:
    """Register the values of the kit for `st.from_type`, if the kit was imported before.

    Otherwise the kit does so when it is imported.
    """
    offers = sys.modules.get("pgha.chaos._offers")
    if offers is not None:
        offers.register()
