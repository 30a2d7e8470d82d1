"""Nodes in containers, with the same operations as local ones.

`container` is the node, `engine` finds and uses the container engine, `image` and `tar` make the image
offline. Imports `pgha.chaos._servers`. Begin with `container`.
"""
