"""Opening a cluster, and the `Cluster` object for its users.

`opening` opens and closes a cluster, `cluster` has the public methods, `group` is a scope of operations. The
package calls `pgha._dispatch` to run operations, and `pgha._ledger` for the table of idempotency keys. Begin
with `cluster`.
"""
