"""Opening a cluster, and the object that its users hold.

`opening` enters and leaves, `cluster` has the methods that users call, `group` is a scope of operations. Asks
`pgha._dispatch` to run operations and `pgha._ledger` for the table of idempotency keys. Begin with `cluster`.
"""
