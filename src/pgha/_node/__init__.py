"""One node: its monitor, its connections and its reconnects.

`node` owns the task group, `monitor` pings on a connection of its own, `lane_set` opens and closes the
pipelined connections (lanes), `connector` opens and sets up one connection for it, `lane` sends and reads on
one of them, `callbacks` defines the interface between lanes and their owners. The package speaks to the
server through `pgha._wire`. Begin with `node`.
"""
