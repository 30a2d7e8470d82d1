"""A TCP proxy that breaks the network on purpose.

`proxy` accepts connections, `relay` moves bytes, `direction` decides what becomes of each, `group` puts one
proxy before each of several nodes. Imports nothing else of the kit but its errors. Begin with `proxy`.
"""
