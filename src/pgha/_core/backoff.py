"""Backoff delays between attempts, and the budgets that keep retries from becoming a storm.

The delays have jitter, as recommended in
https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/ :
many clients that lost the same node must not all reconnect at the same moment.
"""

from __future__ import annotations

import enum


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

    def success(self, count: int = 1) -> None:
        """Record that ``count`` operations succeeded."""
        if self._tokens < self._most:
            self._tokens = min(self._most, self._tokens + count * self._per_success)

    def available(self, now: float) -> bool:
        """Return whether a retry is allowed now."""
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        return self._tokens >= 1

    def take(self) -> None:
        """Take the token of one retry."""
        self._tokens -= 1


class Budget(enum.Enum):
    """The retry budgets of a cluster, one per cause: hopeless statements use up only their own budget."""

    FAILOVER = "lost connections, and nodes that take no writes any more"
    RESOURCES = "class 53: full disks, used up memory, too many connections"
    SERIALIZATION = "40001 and 40P01: serialization failures and deadlocks"
    LEDGER = "keyed writes that the ledger's guard refused"


class RetryBudgets:
    """The retry budgets of a cluster. Each success fills all of them."""

    __slots__ = ("_buckets", "successes")

    def __init__(self, now: float) -> None:
        self._buckets = {budget: RetryBudget(now) for budget in Budget}
        self.successes = 0
        """The successes that no bucket has counted yet: successes are frequent, and questions are rare. The
        owner counts them."""

    def exhausted(self, now: float) -> frozenset[Budget]:
        """Return the budgets from which no retry is allowed now."""
        count, self.successes = self.successes, 0
        for bucket in self._buckets.values():
            bucket.success(count)
        return frozenset(budget for budget, bucket in self._buckets.items() if not bucket.available(now))

    def take(self, budget: Budget) -> None:
        """Take the token of one retry; call `exhausted` before."""
        self._buckets[budget].take()
