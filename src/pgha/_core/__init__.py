"""Every decision of the driver, as pure functions and state machines.

No event loop, no driver, no clock, no random draw, no log: time and draws are arguments, and the result says
what to do. Imports only itself and `pgha._types`. Each file opens with its table of states or rules. Begin
with `outcome` (what a failure proves), then `pipeline` (what a connection may send and cancel).
"""
