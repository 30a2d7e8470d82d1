"""Waiting times between attempts, and the budget that keeps retries from becoming a storm.

Full jitter after https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/ :
many clients that lost the same node must not come back in step.
"""

from __future__ import annotations


def delay(attempt: int, draw: float, first: float, most: float) -> float:
    """Seconds to wait before attempt number ``attempt`` (0 is the first repetition).

    ``draw`` is a random number in [0, 1). The bound doubles from ``first`` up to ``most``; the answer
    lies between half the bound and the bound, so that it is never zero.
    """
    bound = min(most, first * 2.0 ** min(attempt, 30))
    return bound * (0.5 + draw / 2)


class RetryBudget:
    """A token bucket: each repetition takes one, each success gives some back, time gives some too.

    A node that dies may put every operation in flight back at once, so the bucket is deep; a cluster
    where everything fails all the time is soon told so, instead of being asked several times over.
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
        if self._tokens < self._most:
            self._tokens = min(self._most, self._tokens + self._per_success)

    def available(self, now: float) -> bool:
        """Whether a repetition may be made now."""
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        return self._tokens >= 1

    def take(self) -> None:
        self._tokens -= 1
