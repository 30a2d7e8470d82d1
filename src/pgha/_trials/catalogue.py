"""The named scenarios: what each does, and where it can be played."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, final

from pgha._trials.field import Field
from pgha._trials.play import play
from pgha._trials.trial import Setup, Trial, Watch, unwatched
from pgha.chaos import ChaosError, NodeKind

Act: TypeAlias = Callable[[Field], Awaitable[None]]


@final
@dataclass(frozen=True, slots=True)
class Scenario:
    """One fault, or a few of a kind, done to servers under load."""

    name: str
    number: int
    """In the list of faults that a suite should try; 0: beside the list."""
    text: str
    setup: Setup
    act: Act
    kinds: tuple[NodeKind, ...]
    """Nodes on which it can be played."""

    async def run(self, kind: NodeKind = "local", seed: int = 0, watch: Watch = unwatched) -> Trial:
        """Play it from the start of its servers to the judgement. `ChaosError` when servers cannot be had."""
        if kind not in self.kinds:
            raise ChaosError(f"{self.name} cannot be played on {kind} nodes, only on {', '.join(self.kinds)}")
        return await play(self.name, self.setup.on(kind), self.act, seed=seed, watch=watch)


SCENARIOS: Final[dict[str, Scenario]] = {}
"""By name, in the order of their numbers once all are registered (see `pgha._trials.scenarios`)."""


def scenario(
    number: int, name: str, text: str, *, setup: Setup | None = None, kinds: Sequence[NodeKind] = ("local",)
) -> Callable[[Act], Act]:
    """Register a scenario."""

    def register(act: Act) -> Act:
        SCENARIOS[name] = Scenario(name, number, text, setup or Setup(), act, tuple(kinds))
        return act

    return register


def find(name: str) -> Scenario:
    """The scenario of that name, or `ChaosError` with those that look like it."""
    if name in SCENARIOS:
        return SCENARIOS[name]
    import difflib

    near = difflib.get_close_matches(name, SCENARIOS, 3, 0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "see pgha chaos --list"
    raise ChaosError(f"there is no scenario {name!r}: {hint}")
