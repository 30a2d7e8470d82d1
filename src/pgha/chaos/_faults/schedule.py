"""Schedules of faults, as values: which fault, when, on which node, for how long."""

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
    """One fault of a schedule.

    An unknown kind, and numbers that are negative or not finite, are a `ChaosError`.

    Example::

        step = Step(0.5, "latency", node=1, hold=2.0, amount=0.1)
        print(step)
    """

    at: float
    """Seconds from the beginning of the schedule."""
    kind: FaultKind
    """The kind of fault."""
    node: int
    """The index of the node, from 0."""
    hold: float = 0.5
    """Seconds until the fault is healed; ignored if the fault is over at once."""
    amount: float = 0.0
    """The amount, in the unit of the kind: seconds of latency, bytes per second, bytes per packet, bytes
    until the cut, or the number of the backend, counted from the oldest. 0: the usual amount of the kind.
    """

    def __post_init__(self) -> None:
        if self.kind not in TRAITS:
            raise ChaosError(f"{self.kind!r} is not a kind of fault: use one of {', '.join(ALL_FAULTS)}")
        numbers = (self.at, self.node, self.hold, self.amount)
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise ChaosError(f"{self!r}: every number must be finite and at least 0")

    @property
    def until(self) -> float:
        """The time when the fault is healed, in seconds from the beginning of the schedule."""
        return self.at + self.hold if TRAITS[self.kind].lasting else self.at

    @property
    def over(self) -> float:
        """The time when the node can be expected to be well again, as a rule of thumb.

        The unit is seconds from the beginning of the schedule.
        """
        # Rounded, so that 0.05 and 0.1 are over at 0.15 exactly.
        return round(self.until + TRAITS[self.kind].settle, 6)

    def __str__(self) -> str:
        trait = TRAITS[self.kind]
        how = f" ({self.amount:g} {trait.unit})" if trait.unit and self.amount else ""
        held = f" for {self.hold:g} s" if trait.lasting else ""
        return f"{self.kind}{how} of node {self.node} at {self.at:g} s{held}"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Faults to inject one after the other or at the same time. `Injector.run` performs a schedule.

    The repr is valid Python; `to_json` and `from_json` are exact.

    Example::

        schedule = Schedule((Step(0.0, "freeze", 0, hold=0.3), Step(0.1, "kill", 1)))
        assert Schedule.from_json(schedule.to_json()) == schedule
    """

    steps: tuple[Step, ...] = ()
    """The faults."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))

    @property
    def seconds(self) -> float:
        """Seconds until the last step is healed; 0 without steps."""
        return max((step.until for step in self.steps), default=0.0)

    @property
    def nodes(self) -> int:
        """The number of nodes that the schedule needs, which is the highest index plus one."""
        return max((step.node for step in self.steps), default=-1) + 1

    def conflicts(self, *, nodes: int | None = None, spare: int = 0) -> list[str]:
        """Return a line for each step that cannot be performed as it is.

        A node has one fault of its own at a time, and its proxy one as well; at any moment, at least `spare`
        of the nodes have none. A node counts as harmed until it had time to come back.

        Args:
            nodes: The number of nodes; None: as many as the schedule needs.
            spare: The number of nodes that have no fault at any moment.

        Returns:
            The lines; empty for a valid schedule.
        """
        return [f"{step}: {why}" for step, why in self._judged(nodes, spare) if why]

    def normalised(self, *, nodes: int | None = None, spare: int = 0) -> Self:
        """Return a valid schedule made of this one, in order of time.

        The steps that `conflicts` reports are left out. Faults that are over at once get a `hold` of 0.

        Args:
            nodes: The number of nodes; None: as many as the schedule needs.
            spare: The number of nodes that have no fault at any moment.

        Returns:
            The valid schedule.
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
        """Return a random valid schedule, the same one for the same state of `random`.

        Args:
            random: The source of random numbers.
            nodes: The number of nodes.
            seconds: Seconds within which all faults begin.
            kinds: The kinds of faults to choose from.
            pace: The mean number of faults per second; fewer if nodes must be spared.
            spare: The number of nodes that have no fault at any moment.
            hold: The longest time that a fault lasts, in seconds.

        Returns:
            The schedule.

        Raises:
            ChaosError: If no fault is possible, because `kinds` is empty or all nodes are spared.
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
        """Return the schedule as JSON.

        Returns:
            A text from which `from_json` makes an equal schedule.
        """
        return json.dumps({"steps": [asdict(step) for step in self.steps]})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the schedule that `to_json` wrote.

        Args:
            text: The JSON text.

        Returns:
            A schedule equal to the original.

        Raises:
            ChaosError: If `text` is not such a schedule.
        """
        try:
            found: Any = json.loads(text)
            return cls(tuple(Step(**step) for step in found["steps"]))
        except (ValueError, TypeError, KeyError) as error:
            raise ChaosError(f"not a schedule in JSON: {error!r}") from error

    def script(self, body: str | None = None, *, program: str | None = None, backend: str = "asyncio") -> str:
        """Return the text of a whole Python program that performs the schedule again.

        Args:
            body: The code after the imports and after `schedule = Schedule(...)`; the code may import more.
                None: the program starts as many servers as needed and performs the schedule on them.
            program: The name of an async function, "package.module:name", that runs beside the schedule and
                gets the DSNs in a tuple; only without `body`. The program ends when both have ended, and an
                error of the function ends the program. None: only the schedule runs.
            backend: The event loop of the program, `asyncio` or `trio`; only without `body`.

        Returns:
            The text of the program.

        Raises:
            ChaosError: If `program` does not have the form "package.module:name".
        """
        steps = "".join(f"        {step!r},\n" for step in self.steps)
        value = f"Schedule(\n    steps=(\n{steps}    )\n)" if steps else "Schedule()"
        if body is None:
            wired = any(TRAITS[step.kind].layer == "wire" for step in self.steps)
            body = default_program(max(self.nodes, 1), wired, program, backend)
        head = f'"""Inject {len(self.steps)} faults in {self.seconds:g} s, as they were injected before."""\n'
        names = "Schedule, Step" if steps else "Schedule"
        text = textwrap.dedent(body).strip()
        return f"{head}\nfrom pgha.chaos import {names}\n\nschedule = {value}\n\n{text}\n"


def objection(earlier: Iterable[Step], step: Step, nodes: int, spare: int) -> str:
    """Return why `step` cannot follow these steps, none of which begins after it; "" if it can."""
    if step.node >= nodes:
        return f"there are {nodes} nodes"
    harmed = {step.node}
    for other in earlier:
        if other.over <= step.at:
            continue
        if other.node == step.node and TRAITS[other.kind].layer == TRAITS[step.kind].layer:
            return f"too early, {other} is not over"
        harmed.add(other.node)
    return f"{spare} of {nodes} nodes are spared" if len(harmed) > nodes - spare else ""


def _check_room(nodes: int, spare: int, kinds: Sequence[FaultKind]) -> None:
    if not 0 <= spare < nodes or not kinds:
        raise ChaosError(
            f"no fault is possible with nodes={nodes}, spare={spare}, kinds={kinds!r}:"
            " spare fewer nodes than there are, and name at least one kind"
        )


def _drawn(random: Random, at: float, kind: FaultKind, node: int, hold: float) -> Step:
    """Return a random step whose numbers are easy to read."""
    trait = TRAITS[kind]
    amount = float(random.choice(trait.amounts)) if trait.amounts else 0.0
    longest = max(hold, _SHORTEST_HOLD)
    held = round(random.uniform(_SHORTEST_HOLD, longest), _DIGITS) if trait.lasting else 0.0
    return Step(round(at, _DIGITS), kind, node, held, amount)


@dataclass(frozen=True, slots=True)
class Done:
    """A fault that was injected, or that could not be.

    Example::

        for done in injector.done:
            print(done.kind, done.node, done.skipped or f"{done.until - done.at:.3f} s")
    """

    kind: FaultKind
    """The kind of fault."""
    node: str
    """The name of the node."""
    at: float
    """The time when the fault began, in seconds of time.monotonic."""
    until: float
    """The time when the fault was healed, in seconds of time.monotonic; inf while it lasts."""
    skipped: str = ""
    """The reason why the fault could not be injected; "" if it was injected."""
