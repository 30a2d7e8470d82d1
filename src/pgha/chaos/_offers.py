"""The values of the kit that Hypothesis can make without being told how: `st.from_type(Schedule)`.

Hypothesis and the kit do not import each other: the one that is imported last registers the values. The
strategies are imported when the first value is asked for. If plugins of Hypothesis are switched off,
importing `pgha.chaos.properties` registers the values.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from pgha.chaos._faults.schedule import Schedule, Step
from pgha.chaos._workload import Workload

_STRATEGIES = {Step: "steps", Schedule: "schedules", Workload: "workloads"}
"""The strategy of `pgha.chaos.properties` that makes the values of each class."""


def register() -> None:
    """Register the strategies with Hypothesis, if it has been imported.

    Hypothesis calls this function itself, at the end of its own import.
    """
    tell = getattr(sys.modules.get("hypothesis.strategies"), "register_type_strategy", None)
    if tell is not None:
        for kind, strategy in _STRATEGIES.items():
            tell(kind, partial(_make, strategy))


def _make(strategy: str, _: type) -> Any:
    from pgha.chaos import properties

    return getattr(properties, strategy)()
