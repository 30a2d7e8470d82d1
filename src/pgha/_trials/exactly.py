"""The test of the ledger: keyed and plain writes side by side, through many faults, on each topology.

The figures of keyed writes show the ledger's use. One is the number of writes with an attempt that ended in
doubt: without the ledger, their callers would have been told so. The other is the number of callers who were
told so with the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from pgha import chaos
from pgha._trials.field import Field
from pgha._trials.play import play
from pgha._trials.scenarios._replication import gathered
from pgha._trials.trial import Setup, Topology, Trial
from pgha.chaos import FaultKind, Workload

_LOAD = Workload(readers=1, writers=6, batchers=1, cancellers=2, idempotent=0.0, keyed=0.7)
# The faults that leave writes without an answer: backends and servers die or freeze, connections lose
# acknowledgements or break.
_FAULTS: tuple[FaultKind, ...] = (
    "kill", "drop_down", "freeze_backend", "crash", "cut", "kill_backend", "drop_both", "freeze", "terminate",
    "reset", "restart", "drop_up",
)  # fmt: skip
_AROUND = 120.0
_PER_FAULT = 8.0
"""A trial is given up as stuck after `_AROUND` seconds, plus `_PER_FAULT` seconds per fault."""
_BETWEEN = 12
"""The minimum number of operations that are acknowledged between two faults."""


async def exactly_once(topology: Topology, version: int, *, faults: int, seed: int) -> Trial:
    """Inflict this number of faults, one after the other, on the node that takes the writes.

    With topology "replicas", every third fault kills the primary and promotes its synchronous standby.
    """
    setup = Setup(
        topology=topology,
        nodes={"masters": 3, "replicas": 2, "standalone": 1}[topology],
        version=version,
        synchronous=1 if topology == "replicas" else 0,
        proxied=True,
        workload=_LOAD,
    )

    async def act(field: Field) -> None:
        await field.more(_BETWEEN)
        for number in range(faults):
            if topology == "replicas" and number % 3 == 2:
                await _fail_over(field)
            else:
                await _strike(field, _FAULTS[number % len(_FAULTS)])
            await field.more(_BETWEEN)

    bound = _AROUND + _PER_FAULT * faults
    return await play(f"exactly once, {topology}, {version}", setup, act, seed=seed, bound=bound)


async def _strike(field: Field, kind: FaultKind) -> None:
    """Inflict a fault for a random time: pgha may notice the fault, or the fault is over before."""
    victim = field.victim
    async with field.struck(kind, victim):
        await field.pause(field.random.choice([0.02, 0.1, 0.4]))
    await field.up(victim)


async def _fail_over(field: Field) -> None:
    """Kill the primary under load and promote its standby; the old primary returns as a standby."""
    nodes = field.nodes
    assert isinstance(nodes, chaos.Replicas)
    old, new = nodes.primary, nodes.standbys[0]
    await field.begin("kill", old)
    await nodes.promote(new)
    await field.more(_BETWEEN, node=new)
    await gathered(field, old)
    await field.heal(old)  # the node runs again, so the fault "kill" is over


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of some trials."""

    trials: int
    faults: int
    """The number of faults that were inflicted."""
    keyed: int
    """The number of keyed writes."""
    left: int
    """Keyed writes whose callers left before they were told the outcome."""
    acknowledged: int
    """Keyed writes that were acknowledged."""
    replayed: int
    """Operations that an earlier attempt had applied, as the ledger showed."""
    doubted: int
    """Keyed writes with an attempt that ended in doubt: their callers would be told so without the ledger."""
    in_doubt: int
    """Keyed writes whose callers were told "in doubt" despite the ledger."""
    plain_in_doubt: int
    """Writes without a key whose callers were told "in doubt"."""
    violations: int

    def __str__(self) -> str:
        return (
            f"{self.trials} trials, {self.faults} faults, {self.keyed} keyed writes: {self.acknowledged}"
            f" acknowledged ({self.replayed} replayed), {self.left} left by their callers; in doubt before"
            f" the ledger {self.doubted}, after it {self.in_doubt}; without a key {self.plain_in_doubt} in"
            f" doubt; violations {self.violations}"
        )


def figures(trials: Iterable[Trial]) -> Figures:
    """Return the figures of all `trials` together."""
    played = list(trials)
    writes = [entry for trial in played for entry in trial.history if entry.kind == "write"]
    keyed = [entry for entry in writes if entry.keyed]
    told = [entry for entry in writes if str(entry.error).startswith("CommitInDoubt")]
    return Figures(
        trials=len(played),
        faults=sum(not done.skipped for trial in played for done in trial.faults),
        keyed=len(keyed),
        left=sum(str(entry.error) == "left by its caller" for entry in keyed),
        acknowledged=sum(entry.ending == "acknowledged" for entry in keyed),
        replayed=sum(trial.replayed for trial in played),
        doubted=sum(any(one.outcome == "in doubt" for one in entry.attempts) for entry in keyed),
        in_doubt=sum(entry.keyed for entry in told),
        plain_in_doubt=sum(not entry.keyed for entry in told),
        violations=sum(len(trial.violations) for trial in played),
    )


def total(found: Iterable[Figures]) -> Figures:
    """Add up the figures of several groups of trials."""
    groups = list(found)
    return Figures(**{one.name: sum(getattr(group, one.name) for group in groups) for one in fields(Figures)})
