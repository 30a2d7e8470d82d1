"""`pgha soak`: bursts of operations on nodes that run already, each answer checked.

`command` runs them, `tally` counts and prints. Begin with `command`.
"""
