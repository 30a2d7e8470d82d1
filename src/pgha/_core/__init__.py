"""Every decision of the driver, as pure functions and state machines.

The package uses no event loop, driver, clock, random draw or log: time and random draws are arguments, and
each result says what to do. The package imports only itself and `pgha._types`. Each file opens with its table
of states or rules. Begin with `outcome` (what a failure proves), then `pipeline` (what a connection may send
and cancel).
"""
