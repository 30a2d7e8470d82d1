"""A TCP proxy that breaks the network on purpose.

`proxy` accepts connections, `relay` moves bytes, `direction` decides when each byte leaves, `group` puts one
proxy before each of several nodes. Imports nothing else of the kit except its errors and its ports. Begin
with `proxy`.
"""
