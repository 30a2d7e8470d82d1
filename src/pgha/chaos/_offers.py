"""Values of the kit that Hypothesis can make without being told how: `st.from_type(Schedule)`.

Whichever is imported first, Hypothesis or the kit: the second one registers. Neither imports the other, and
the strategies are imported when the first value is asked for.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

_offers: dict[type, str] = {}


def offer(kind: type, strategy: str) -> None:
    """`pgha.chaos.properties.<strategy>()` makes values of this class."""
    _offers[kind] = strategy
    register()


def register() -> None:
    """Tell Hypothesis, if it is there. While it is still being imported, it calls this itself at the end."""
    tell = getattr(sys.modules.get("hypothesis.strategies"), "register_type_strategy", None)
    if tell is not None:
        for kind, strategy in _offers.items():
            tell(kind, partial(_make, strategy))


def _make(strategy: str, _: type) -> Any:
    from pgha.chaos import properties

    return getattr(properties, strategy)()
