"""The named scenarios: their descriptions, and the kinds of nodes on which each can be played."""

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
    """A fault, or several faults of a kind, inflicted on servers under load."""

    name: str
    number: int
    """The number of the fault in the list of faults that a suite should try; 0: not in the list."""
    text: str
    setup: Setup
    act: Act
    kinds: tuple[NodeKind, ...]
    """The kinds of nodes on which the scenario can be played."""

    async def run(self, kind: NodeKind = "local", seed: int = 0, watch: Watch = unwatched) -> Trial:
        """Play the scenario, from the start of the servers to the final checks.

        Raises:
            ChaosError: The servers cannot be started, or not on nodes of this `kind`.
        """
        if kind not in self.kinds:
            raise ChaosError(f"{self.name} cannot be played on {kind} nodes, only on {', '.join(self.kinds)}")
        return await play(self.name, self.setup.on(kind), self.act, seed=seed, watch=watch)


SCENARIOS: Final[dict[str, Scenario]] = {}
"""The scenarios by name, sorted by number once all are registered (see `pgha._trials.scenarios`)."""


def scenario(
    number: int, name: str, text: str, *, setup: Setup | None = None, kinds: Sequence[NodeKind] = ("local",)
) -> Callable[[Act], Act]:
    """Register the decorated function as a scenario."""

    def register(act: Act) -> Act:
        SCENARIOS[name] = Scenario(name, number, text, setup or Setup(), act, tuple(kinds))
        return act

    return register


def find(name: str) -> Scenario:
    """Return the scenario with this name, or raise `ChaosError` with the similar names."""
    if name in SCENARIOS:
        return SCENARIOS[name]
    import difflib

    near = difflib.get_close_matches(name, SCENARIOS, 3, 0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "see pgha chaos --list"
    raise ChaosError(f"there is no scenario {name!r}: {hint}")
