"""Administration of the ledger, the table of idempotency keys.

`schema` has the table and its SQL, `admin` installs, inspects and prunes the table, `host` runs these
operations on a cluster. The row of one write is made in `pgha._operation.key`. The package imports
`pgha._dispatch` and the layers below it. Begin with `schema`.
"""
