"""Several nodes at once: standalone servers, masters, a primary with standbys.

`nodes` is the common base; `masters` sets up logical replication, the `replica*` files streaming replication.
Imports the servers and the containers. Begin with `nodes`.
"""
