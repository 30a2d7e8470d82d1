"""The dispatch of operations: waiting, sending, retrying, cancelling and ending.

The `dispatcher` places operations on nodes. Its parts: `wait_queue` (operations not sent yet), `retries`,
`races` (`fastest`), `cancellation`, `resolution` (writes in doubt), `failure` (errors for callers), `tracker`
(results and statistics), `timers` and `events`. The package sends through `pgha._node` and decides with
`pgha._core`. Begin with `dispatcher`.
"""
