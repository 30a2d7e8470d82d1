"""The log of pgha.

`digest` summarizes many facts in a few lines, and is pure. `log` passes the lines to `logging`. The package
may import `_types` and `_errors`. Begin reading at `digest`.
"""
