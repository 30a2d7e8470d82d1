"""pgha itself under the kit's faults: workloads, named scenarios, random schedules and the cut sweep.

For the command `pgha chaos` and for pgha's own chaos suite. Other programs are tested with `pgha.chaos`,
which knows nothing of pgha.
"""
