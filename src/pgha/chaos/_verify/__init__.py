"""The checks after a trial: evidence for the checkers, and anything left behind.

Used by `pgha.chaos.checkers`, `pgha.chaos.nothing_left` and the pytest plugin. Begin with `evidence`.
"""
