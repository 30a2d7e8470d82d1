"""What waits, where it is sent, and what becomes of it.

The `dispatcher` places operations on nodes. Around it: `wait_queue` (what is not sent yet), `retries`,
`races` (`fastest`), `cancellation`, `resolution` (writes in doubt), `failure` (errors for callers), `tracker`
(results and statistics), `timers` and `events`. Sends through `pgha._node` and decides with `pgha._core`.
Begin with `dispatcher`.
"""
