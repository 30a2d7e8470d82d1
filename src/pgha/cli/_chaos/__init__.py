"""`pgha chaos`: a random schedule of faults under load, its summary and its report.

`arguments` checks what was asked for, `command` plays it, `text` prints it, `report` computes the figures,
and `figure`, `panels` and `timelines` draw them. Begin with `command`.
"""
