"""Values of the kit that Hypothesis can make without being told how: `st.from_type(Schedule)`.

Whichever is imported last, Hypothesis or the kit, registers them. Neither imports the other, and the
strategies are imported when the first value is asked for. Where plugins of Hypothesis are switched off,
importing `pgha.chaos.properties` registers them.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from pgha.chaos._faults.schedule import Schedule, Step
from pgha.chaos._workload import Workload

_STRATEGIES = {Step: "steps", Schedule: "schedules", Workload: "workloads"}
"""Each class and the strategy of `pgha.chaos.properties` that makes its values."""


def register() -> None:
    """Tell Hypothesis, if it has been imported. At the end of its own import, Hypothesis calls this
    itself."""
    tell = getattr(sys.modules.get("hypothesis.strategies"), "register_type_strategy", None)
    if tell is not None:
        for kind, strategy in _STRATEGIES.items():
            tell(kind, partial(_make, strategy))


def _make(strategy: str, _: type) -> Any:
    from pgha.chaos import properties

    return getattr(properties, strategy)()
