"""Administration of the ledger, the table of idempotency keys.

`schema` has the table and its SQL, `admin` installs, inspects and prunes it, `host` decides when a cluster
uses it. The row of one write is made in `pgha._operation.key`. Imports `pgha._dispatch` and what lies below.
Begin with `schema`.
"""
