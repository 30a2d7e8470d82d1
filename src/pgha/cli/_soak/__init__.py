"""`pgha soak`: spikes of operations on running nodes, each answer checked.

`command` runs them, `tally` counts and prints. Begin with `command`.
"""
