"""The outcome of a write in doubt, which may still become known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import anyio
from anyio.lowlevel import checkpoint

from pgha._core.outcome import Outcome
from pgha._operation.key import Keyed


@final
class InDoubtOutcome:
    """The outcome of one write in doubt.

    Shared by the caller's error, the lane that may still deliver an answer, and the resolver that queries the
    ledger. Pending until an outcome is known, or until no source is left that could provide one
    (``hopeless``).
    """

    __slots__ = (
        "__weakref__",
        "_event",
        "_start",
        "_told",
        "asked",
        "attempts",
        "guard",
        "hopeless",
        "keyed",
        "node",
        "outcome",
        "started_at",
        "system",
        "timer",
    )  # fmt: skip

    def __init__(
        self, keyed: Keyed | None, system: int | None, node: str | None, attempts: int, started_at: float,
        guard: float, pursue: Callable[[InDoubtOutcome], None], told: Callable[[InDoubtOutcome], None],
    ) -> None:  # fmt: skip
        self.keyed = keyed
        self.system = system
        """System identifier of the lineage whose ledger can decide."""
        self.node = node
        self.attempts = attempts
        self.started_at = started_at
        self.guard = guard
        """No attempt begins after this time, by the servers' clocks."""
        self.timer: Any = None
        self.outcome: Outcome | None = None
        self.hopeless = False
        self.asked = 0
        """Number of callers waiting for the outcome."""
        self._start = pursue
        self._told = told
        self._event: anyio.Event | None = None

    @property
    def resolvable(self) -> bool:
        """Whether the ledger can decide."""
        return self.keyed is not None and self.system is not None

    def evidence(self, outcome: Outcome) -> None:
        """Accept a late answer, or the connection's end without one (``in doubt``)."""
        if outcome is not Outcome.IN_DOUBT:
            self.resolved(outcome)
        elif not self.resolvable:
            self.give_up()

    def resolved(self, outcome: Outcome) -> None:
        """Set the final outcome; the first one stays."""
        if self.outcome is None:
            self.outcome = outcome
            self._told(self)
            self._wake()

    def give_up(self) -> None:
        """Record that the outcome cannot become known any more."""
        self.hopeless = True
        self._wake()

    @property
    def pending(self) -> bool:
        """Whether the outcome is unknown and may still become known."""
        return self.outcome is None and not self.hopeless

    def _wake(self) -> None:
        event, self._event = self._event, None
        if event is not None:
            event.set()

    async def resolve(self, timeout: float | None) -> Outcome:
        """Implement `pgha.CommitInDoubt.resolve`."""
        if self.pending:
            self.asked += 1
            try:
                self._start(self)
                with anyio.move_on_after(timeout):
                    while self.pending:
                        self._event = self._event or anyio.Event()
                        await self._event.wait()
            finally:
                self.asked -= 1
        else:
            await checkpoint()
        return self.outcome or Outcome.IN_DOUBT
