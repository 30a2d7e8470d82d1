"""`pgha demo`: real servers, a workload, faults, and the outcome of every operation.

`command` runs it; `workload`, `faults` and `check` do the work, `view` and `live` show it, `serve` is
`pgha demo --serve`. Begin with `command`.
"""
