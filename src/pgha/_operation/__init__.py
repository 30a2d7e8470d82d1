"""One operation, as it is passed down from the cluster to a connection.

`request_maker` checks and compiles the caller's arguments, `operation` is the awaitable object, `key` makes
the ledger's statement for an idempotency key, `in_doubt` keeps the facts about a write in doubt. The package
imports `pgha._wire` and the layers below it. Begin with `operation`.
"""
