"""Backoff delays between attempts, and the budget that keeps retries from becoming a storm.

The delays have jitter, as recommended in
https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/ :
many clients that lost the same node must not all reconnect at the same moment.
"""

from __future__ import annotations


def delay(attempt: int, draw: float, first: float, most: float) -> float:
    """Return the seconds to wait before retry number ``attempt`` (0 is the first retry).

    ``draw`` is a random number in [0, 1). The bound doubles from ``first`` up to ``most``; the delay
    lies between half the bound and the bound, so that the delay is never zero.
    """
    bound = min(most, first * 2.0 ** min(attempt, 30))
    return bound * (0.5 + draw / 2)


class RetryBudget:
    """A token bucket that limits retries.

    Each retry takes one token. Each success and each passing second give some tokens back. The bucket is
    deep, because the loss of a node may requeue every operation in flight at once. When everything fails all
    the time, the bucket is soon empty, and operations fail at once instead of loading the cluster with
    retries.
    """

    __slots__ = ("_at", "_most", "_per_second", "_per_success", "_tokens")

    def __init__(
        self, now: float, *, most: float = 2000.0, per_second: float = 50.0, per_success: float = 0.2
    ) -> None:
        self._at = now
        self._most = most
        self._per_second = per_second
        self._per_success = per_success
        self._tokens = most

    def success(self) -> None:
        """Record that an operation succeeded."""
        if self._tokens < self._most:
            self._tokens = min(self._most, self._tokens + self._per_success)

    def available(self, now: float) -> bool:
        """Return whether a retry is allowed now."""
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        return self._tokens >= 1

    def take(self) -> None:
        """Take the token of one retry."""
        self._tokens -= 1
