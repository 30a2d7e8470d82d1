"""Faults as values: what is done when, to whom, for how long. Nothing here does any of it."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any, Self

from pgha.chaos._errors import ChaosError
from pgha.chaos._faults.kinds import ALL_FAULTS, NODE_FAULTS, TRAITS, FaultKind
from pgha.chaos._faults.script import default_program

_SHORTEST_HOLD = 0.05
_DIGITS = 3


@dataclass(frozen=True, slots=True)
class Step:
    """One fault of a schedule. `ChaosError` for an unknown kind, and for numbers below 0 or not finite."""

    at: float
    """Seconds since the schedule began."""
    kind: FaultKind
    node: int
    """Index of the node, from 0."""
    hold: float = 0.5
    """Seconds until it is healed; means nothing where the fault is over at once."""
    amount: float = 0.0
    """The kind's own: seconds of latency, bytes a second, bytes of a packet, bytes until the cut, which of
    the backends in the order of their age. 0 is the kind's usual one.
    """

    def __post_init__(self) -> None:
        if self.kind not in TRAITS:
            raise ChaosError(f"{self.kind!r} is no kind of fault; there are {', '.join(ALL_FAULTS)}")
        numbers = (self.at, self.node, self.hold, self.amount)
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise ChaosError(f"{self!r}: its numbers must be finite and at least 0")

    @property
    def until(self) -> float:
        """When it is healed, in seconds since the schedule began."""
        return self.at + self.hold if TRAITS[self.kind].lasting else self.at

    @property
    def over(self) -> float:
        """When its node can be expected to be well again, by a rule of thumb."""
        # Rounded: 0.05 and 0.1 shall be over at 0.15.
        return round(self.until + TRAITS[self.kind].settle, 6)

    def __str__(self) -> str:
        trait = TRAITS[self.kind]
        how = f" ({self.amount:g} {trait.unit})" if trait.unit and self.amount else ""
        held = f" for {self.hold:g} s" if trait.lasting else ""
        return f"{self.kind}{how} of node {self.node} at {self.at:g} s{held}"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Faults to be done one after the other or at the same time. `Injector.run` performs it.

    Its repr is valid Python, `to_json` and `from_json` are exact.
    """

    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))

    @property
    def seconds(self) -> float:
        """Until the last step is healed; 0 without steps."""
        return max((step.until for step in self.steps), default=0.0)

    @property
    def nodes(self) -> int:
        """How many nodes it needs: the highest index and one."""
        return max((step.node for step in self.steps), default=-1) + 1

    def conflicts(self, *, nodes: int | None = None, spare: int = 0) -> list[str]:
        """What cannot be done as it stands, one line for each such step; [] for a valid schedule.

        A node has one fault of its own at a time, and its line one; at any moment at least `spare` of `nodes`
        (default: as many as the schedule needs) have none at all. A node counts as harmed until it had time
        to come back.
        """
        return [f"{step}: {why}" for step, why in self._judged(nodes, spare) if why]

    def normalised(self, *, nodes: int | None = None, spare: int = 0) -> Self:
        """The same in order of time, without the steps that `conflicts` names, and without a hold where there
        is nothing to hold.
        """
        kept = [step for step, why in self._judged(nodes, spare) if not why]
        return type(self)(
            tuple(step if TRAITS[step.kind].lasting else replace(step, hold=0.0) for step in kept)
        )

    def _judged(self, nodes: int | None, spare: int) -> Iterable[tuple[Step, str]]:
        kept: list[Step] = []
        for step in sorted(self.steps, key=lambda step: step.at):
            why = objection(kept, step, self.nodes if nodes is None else nodes, spare)
            if not why:
                kept.append(step)
            yield step, why

    @classmethod
    def random(
        cls,
        random: Random,
        *,
        nodes: int = 3,
        seconds: float = 3.0,
        kinds: Sequence[FaultKind] = NODE_FAULTS,
        pace: float = 2.0,
        spare: int = 1,
        hold: float = 1.0,
    ) -> Self:
        """A valid schedule, the same for the same `random`: about `pace` faults a second (fewer where nodes
        must be spared), all begun within `seconds`, held for at most `hold` seconds.
        """
        _check_room(nodes, spare, kinds)
        steps: list[Step] = []
        at = random.expovariate(pace)
        while at < seconds:
            candidates = [_drawn(random, at, random.choice(kinds), node, hold) for node in range(nodes)]
            fitting = [step for step in candidates if not objection(steps, step, nodes, spare)]
            if fitting:
                steps.append(random.choice(fitting))
            at += random.expovariate(pace)
        return cls(tuple(steps)).normalised(nodes=nodes, spare=spare)

    def to_json(self) -> str:
        return json.dumps({"steps": [asdict(step) for step in self.steps]})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """`ChaosError` when it is not what `to_json` wrote."""
        try:
            found: Any = json.loads(text)
            return cls(tuple(Step(**step) for step in found["steps"]))
        except (ValueError, TypeError, KeyError) as error:
            raise ChaosError(f"this is no schedule in JSON: {error!r}") from error

    def script(self, body: str | None = None, *, program: str | None = None, backend: str = "asyncio") -> str:
        """A whole Python program that does it again.

        `body`: what comes behind the imports and `schedule = Schedule(...)`; it may import more. Without it,
        the program starts so many servers and performs the schedule on them. `program`
        ("package.module:name") is then an async function that runs beside it, given the DSNs in a tuple; all
        ends when both have, and the function's error is the program's.
        """
        steps = "".join(f"        {step!r},\n" for step in self.steps)
        value = f"Schedule(\n    steps=(\n{steps}    )\n)" if steps else "Schedule()"
        if body is None:
            wired = any(TRAITS[step.kind].layer == "wire" for step in self.steps)
            body = default_program(max(self.nodes, 1), wired, program, backend)
        head = f'"""{len(self.steps)} faults in {self.seconds:g} s, as they were done before."""\n'
        names = "Schedule, Step" if steps else "Schedule"
        text = textwrap.dedent(body).strip()
        return f"{head}\nfrom pgha.chaos import {names}\n\nschedule = {value}\n\n{text}\n"


def objection(earlier: Iterable[Step], step: Step, nodes: int, spare: int) -> str:
    """Why `step` cannot come to these steps, none of which begins after it; "" if it can."""
    if step.node >= nodes:
        return f"there are {nodes} nodes"
    harmed = {step.node}
    for other in earlier:
        if other.over <= step.at:
            continue
        if other.node == step.node and TRAITS[other.kind].layer == TRAITS[step.kind].layer:
            return f"not before {other} is over"
        harmed.add(other.node)
    return f"{spare} of {nodes} nodes are spared" if len(harmed) > nodes - spare else ""


def _check_room(nodes: int, spare: int, kinds: Sequence[FaultKind]) -> None:
    if not 0 <= spare < nodes or not kinds:
        raise ChaosError(f"nothing can be done with {nodes} nodes, {spare} spared, and the kinds {kinds!r}")


def _drawn(random: Random, at: float, kind: FaultKind, node: int, hold: float) -> Step:
    """A step with readable numbers."""
    trait = TRAITS[kind]
    amount = float(random.choice(trait.amounts)) if trait.amounts else 0.0
    longest = max(hold, _SHORTEST_HOLD)
    held = round(random.uniform(_SHORTEST_HOLD, longest), _DIGITS) if trait.lasting else 0.0
    return Step(round(at, _DIGITS), kind, node, held, amount)


@dataclass(frozen=True, slots=True)
class Done:
    """A fault that was done, or could not be."""

    kind: FaultKind
    node: str
    at: float
    """When it was begun, in seconds of time.monotonic."""
    until: float
    """When it was healed; inf while it lasts."""
    skipped: str = ""
    """Why it could not be done; "" if it was."""
