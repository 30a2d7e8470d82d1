"""Property-based tests with faults: strategies for schedules and loads, and async state machines.

Example::

    @given(schedules(nodes=3, spare=1))
    def test_it_survives(schedule): ...

This package needs Hypothesis, which `pip install pgha[chaos]` installs.
"""

from hypothesis.stateful import Bundle, consumes, multiple

from pgha.chaos.properties._decorators import initialize, invariant, precondition, rule
from pgha.chaos.properties._draws import Draws
from pgha.chaos.properties._life import Tasks
from pgha.chaos.properties._loops import Backend
from pgha.chaos.properties._machine import AsyncRuleBasedStateMachine, run_async_state_machine_as_test
from pgha.chaos.properties._strategies import faults, schedules, steps, workloads

__all__ = [
    "AsyncRuleBasedStateMachine",
    "Backend",
    "Bundle",
    "Draws",
    "Tasks",
    "consumes",
    "faults",
    "initialize",
    "invariant",
    "multiple",
    "precondition",
    "rule",
    "run_async_state_machine_as_test",
    "schedules",
    "steps",
    "workloads",
]
