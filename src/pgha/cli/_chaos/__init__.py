"""`pgha chaos`: a random schedule of faults under load, its summary and its report.

`arguments` checks the arguments, `command` plays the run, `text` prints lines and summary, `report` and
`timelines` compute the numbers, and `figure` and `panels` draw them. Begin with `command`.
"""
