"""What load a trial runs, as a value."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pgha.chaos._errors import ChaosError


@dataclass(frozen=True, slots=True)
class Workload:
    """How many are at work at the same time, and how.

    Its repr is valid Python. `ChaosError` for negative numbers, a share above 1, and if nobody does anything.
    """

    readers: int = 4
    writers: int = 4
    batchers: int = 1
    """Those who write several rows in one transaction."""
    cancellers: int = 1
    """Writers who leave before the answer is there, most of the time."""
    batch: int = 3
    """Rows of a batch."""
    pace: float = 0.002
    """Mean seconds between two operations of one worker."""
    idempotent: float = 0.25
    """Share of the writes that are declared to be so, 0 to 1."""
    keyed: float = 0.0
    """Share of the writes, batches and left writes that carry a key by which their servers know them, 0 to 1;
    not of those that are idempotent."""
    timeout: float | None = None
    """Seconds for each operation; None: without a limit of its own."""

    def __post_init__(self) -> None:
        numbers = [getattr(self, field.name) for field in fields(self)]
        if any(number is not None and not 0 <= number < float("inf") for number in numbers):
            raise ChaosError(f"{self!r}: its numbers must be finite and at least 0")
        for share in ("idempotent", "keyed"):
            if getattr(self, share) > 1:
                raise ChaosError(f"{self!r}: {share} is a share, from 0 to 1")
        if self.readers + self.writers + self.batchers + self.cancellers == 0:
            raise ChaosError("a workload needs at least one reader, writer, batcher or canceller")
