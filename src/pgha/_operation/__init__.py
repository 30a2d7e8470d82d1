"""One operation, as it is passed down from the cluster to a connection.

`request_maker` checks and compiles what the caller asked for, `operation` is what the caller awaits, `key`
makes the ledger's statement for an idempotency key, `in_doubt` keeps what is known of a write in doubt.
Imports `pgha._wire` and what lies below. Begin with `operation`.
"""
