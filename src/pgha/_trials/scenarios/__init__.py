"""Importing this package registers every scenario in `pgha._trials.catalogue`."""

from pgha._trials.catalogue import SCENARIOS, Scenario, find
from pgha._trials.scenarios import _cancel, _ledger, _network, _process, _replication, _sql, _zombies

__all__ = ["SCENARIOS", "Scenario", "find"]

_FAMILIES = (_process, _sql, _replication, _cancel, _network, _ledger, _zombies)
_ordered = sorted(SCENARIOS.values(), key=lambda one: (one.number == 0, one.number, one.name))
SCENARIOS.clear()
SCENARIOS.update((one.name, one) for one in _ordered)
