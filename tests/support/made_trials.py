"""Make trials, for the tests of the functions that check and draw trials."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from random import Random
from typing import Any

from pgha._trials.trial import Sighting, Trial
from pgha.chaos import ALL_FAULTS, Done
from pgha.chaos.checkers import Violation
from pgha.chaos.history import Attempt, Ending, Entry, History, OperationKind

BEGAN = 1000.0
"""The `time.monotonic` seconds at which each of the trials began."""

_numbers = count()


def entry(
    key: str,
    begun: float,
    ended: float | None,
    ending: Ending | None = "acknowledged",
    kind: OperationKind = "read",
    node: str | None = "n1",
    error: str | None = None,
    attempts: Iterable[Attempt] = (),
) -> Entry:
    """Return an operation; times are in seconds since the load began."""
    end = None if ended is None else BEGAN + ended
    return Entry(key, kind, BEGAN + begun, end, ending, node, error=error, attempts=tuple(attempts))


def answers(times: Iterable[float], latency: float = 0.001, **more: Any) -> list[Entry]:
    """Return acknowledged operations that ended at these times."""
    return [entry(f"a{next(_numbers)}", at - latency, at, **more) for at in times]


def sighting(at: float, node: str, state: str = "up", role: str = "primary") -> Sighting:
    return Sighting(BEGAN + at, node, state, role)


def done(kind: Any, node: str, at: float, until: float, skipped: str = "") -> Done:
    return Done(kind, node, BEGAN + at, BEGAN + until, skipped)


def violations(many: int) -> list[Violation]:
    return [
        Violation("doubled", f"w{n}", f"write w{n} is there twice, and was tried once") for n in range(many)
    ]


def trial(
    seconds: float = 10.0,
    history: Sequence[Entry] = (),
    faults: Sequence[Done] = (),
    sightings: Sequence[Sighting] | None = None,
    nodes: Sequence[str] = ("n1", "n2", "n3"),
    **more: Any,
) -> Trial:
    """Return a trial of `seconds`. Without `sightings`, all nodes are up all the time."""
    seen = [sighting(-0.1, node) for node in nodes] if sightings is None else sightings
    values: dict[str, Any] = {
        "title": "made up",
        "seed": 7,
        "loop": "trio",
        "kind": "local",
        "violations": (),
        "schedule": None,
        "retried": 0,
    }
    values.update(more)
    return Trial(
        nodes=tuple(nodes),
        began=BEGAN,
        ended=BEGAN + seconds,
        history=History(tuple(history)),
        faults=tuple(faults),
        sightings=tuple(seen),
        **values,
    )


def lively(seconds: float, rate: float, faults: int, *, seed: int = 1, errors: float = 0.0) -> Trial:
    """Return a trial with `rate` operations per second under a number of faults.

    `errors` is the fraction of operations that ended with an error.
    """
    random = Random(seed)
    nodes = ("n1", "n2", "n3")
    struck, seen = [], [sighting(-0.1, node) for node in nodes]
    for _ in range(faults):
        at = seconds * random.uniform(0.05, 0.95)
        until = at + random.choice([0.0, random.uniform(0.1, 3.0)])
        node = random.choice(nodes)
        struck.append(done(random.choice(ALL_FAULTS), node, at, until))
        seen += [sighting(at, node, "suspect"), sighting((at + until) / 2, node, "down")]
        seen += [sighting(until, node, "connecting"), sighting(until + 0.1, node)]
    history: list[Entry] = []
    at = 0.0
    while (at := at + random.expovariate(rate)) < seconds:
        latency = random.lognormvariate(-6.5, 1.0)
        kind: OperationKind = "read" if random.random() < 0.6 else "write"
        ending: Ending = (
            random.choice(["refused", "in doubt"]) if random.random() < errors else "acknowledged"
        )
        history.append(
            entry(str(len(history)), at, min(seconds, at + latency), ending, kind, random.choice(nodes))
        )
    return trial(seconds, history, struck, sorted(seen, key=lambda one: one.at), retried=faults)
