"""Tests of pgha under the faults of `pgha.chaos`: workloads, scenarios, random schedules and the cut sweep.

The command `pgha chaos` and pgha's own chaos suite use this package. Users test other programs with
`pgha.chaos`, which does not depend on pgha.
"""
