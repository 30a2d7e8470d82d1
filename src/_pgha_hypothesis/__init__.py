"""Called by Hypothesis when it is imported, through the entry point `hypothesis`.

A package of its own, since importing anything below `pgha` imports all of it: every test run that has
Hypothesis would pay for that, with or without databases.
"""

from __future__ import annotations

import sys


def register() -> None:
    """If the kit was imported before, let `st.from_type` know its values; else it does so when it is."""
    offers = sys.modules.get("pgha.chaos._offers")
    if offers is not None:
        offers.register()
