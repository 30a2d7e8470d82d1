"""The load of a trial, as a value."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pgha.chaos._errors import ChaosError


@dataclass(frozen=True, slots=True)
class Workload:
    """The number of concurrent workers of each kind, and what they do.

    The repr is valid Python. Negative numbers, a share above 1 and a workload without any worker are a
    `ChaosError`.

    Example::

        workload = Workload(readers=8, writers=2, idempotent=1.0, timeout=5.0)
    """

    readers: int = 4
    """The number of workers that read."""
    writers: int = 4
    """The number of workers that write one row per operation."""
    batchers: int = 1
    """The number of workers that write several rows per transaction."""
    cancellers: int = 1
    """The number of workers that write and mostly cancel before the answer arrives."""
    batch: int = 3
    """Rows per batch."""
    pace: float = 0.002
    """Mean seconds between two operations of one worker."""
    idempotent: float = 0.25
    """The share of the writes that are declared idempotent, from 0 to 1."""
    keyed: float = 0.0
    """The share of writes, batches and cancelled writes that carry an idempotency key, from 0 to 1;
    idempotent ones carry none.
    """
    timeout: float | None = None
    """Seconds per operation; None: no limit."""

    def __post_init__(self) -> None:
        numbers = [getattr(self, field.name) for field in fields(self)]
        if any(number is not None and not 0 <= number < float("inf") for number in numbers):
            raise ChaosError(f"{self!r}: every number must be finite and at least 0")
        for share in ("idempotent", "keyed"):
            if getattr(self, share) > 1:
                raise ChaosError(f"{self!r}: {share} must be a share from 0 to 1")
        if self.readers + self.writers + self.batchers + self.cancellers == 0:
            raise ChaosError(f"{self!r}: a workload needs at least one reader, writer, batcher or canceller")
