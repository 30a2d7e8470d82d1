"""Tests of `Lineages`: which nodes are marked and reported, and how long a first choice waits for others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from pgha._core.health import Health
from pgha._core.server_status import ServerStatus
from pgha._dispatch.common import Common
from pgha._dispatch.lineages import Lineages
from pgha._options import REAL, Options, Tuning
from pgha._types import PrimarySuperseded

LOOK = 1.0


def primary(timeline: int, system: int = 7) -> ServerStatus:
    return ServerStatus(system=system, timeline=timeline)


class Node:
    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.health = Health(now)
        self.leaving = False


class World:
    """A cluster in memory: its nodes, clock and timers, and what was reported."""

    def __init__(self, *names: str) -> None:
        self.now = 0.0
        self.nodes = {name: Node(name, 0.0) for name in names}
        self.events: list[PrimarySuperseded] = []
        self.logged: list[tuple[str, int, int]] = []
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.rerouted = 0
        options = Options(sources=replace(REAL, clock=lambda: self.now), tuning=Tuning(first_look=LOOK))
        tracker = SimpleNamespace(events=self, log=self)
        nothing = cast(Any, None)
        common = Common(nothing, options, cast(Any, self.nodes), cast(Any, self), cast(Any, tracker), nothing)
        self.lineages = Lineages(common, self.reroute)

    def emit(self, event: PrimarySuperseded) -> None:
        self.events.append(event)

    def superseded(self, node: str, timeline: int, newest: int) -> None:
        self.logged.append((node, timeline, newest))

    def at(self, when: float, call: Callable[[], None]) -> None:
        self.timers.append((when, call))

    def reroute(self) -> None:
        self.rerouted += 1

    def answers(self, name: str, status: ServerStatus) -> None:
        node = self.nodes[name]
        node.health.answered(self.now, status, 0.001)
        self.lineages.status_seen(cast(Any, node))

    def writable(self) -> list[str]:
        return [name for name, node in self.nodes.items() if node.health.writable]

    def changed(self) -> list[str]:
        return [node.name for node in self.lineages.take_changed()]


def test_an_old_primary_is_marked_when_a_newer_one_answers() -> None:
    world = World("old", "new")
    world.answers("old", primary(1))
    assert world.writable() == ["old"]
    world.answers("new", primary(2))
    assert world.writable() == ["new"]
    assert world.changed() == ["old"] and world.changed() == []
    (event,) = world.events
    assert (event.node, event.timeline, event.newest_timeline) == ("old", 1, 2)
    assert world.logged == [("old", 1, 2)]


def test_an_old_primary_that_answers_later_is_never_writable() -> None:
    world = World("old", "new")
    world.answers("new", primary(2))
    world.nodes["new"].health.failed(0.0, "killed")
    world.answers("old", primary(1))
    assert world.writable() == ["new"]
    assert world.changed() == ["old"]


def test_it_is_reported_once() -> None:
    world = World("old", "new")
    world.answers("new", primary(2))
    for _ in range(3):
        world.answers("old", primary(1))
        world.nodes["old"].health.failed(0.0, "killed")
    world.answers("new", primary(3))
    assert len(world.events) == len(world.logged) == 1


def test_a_primary_that_is_down_is_reported_when_it_comes_back() -> None:
    """In an orderly failover, the old primary is down, and there is nothing to fence."""
    world = World("old", "new")
    world.answers("old", primary(1))
    world.nodes["old"].health.failed(0.0, "killed")
    world.answers("new", primary(2))
    assert world.writable() == ["new"] and world.events == []
    world.answers("old", primary(1))
    world.answers("old", primary(1))
    assert world.logged == [("old", 1, 2)] and len(world.events) == 1


def test_an_old_primary_that_joins_the_new_one_is_marked_no_more() -> None:
    world = World("old", "new")
    world.answers("new", primary(2))
    world.answers("old", primary(1))
    world.answers("old", ServerStatus(in_recovery=True, system=7, timeline=2))
    assert world.changed() == ["old", "old"]
    assert world.writable() == ["new"]
    world.answers("old", primary(3))
    assert world.writable() == ["old"]


def test_masters_do_not_concern_each_other() -> None:
    world = World("a", "b")
    world.answers("a", primary(1, system=7))
    world.answers("b", primary(9, system=8))
    assert world.events == [] and world.changed() == []


# The first choice


def test_a_choice_waits_for_nodes_that_were_not_heard_of() -> None:
    world = World("a", "b")
    assert world.lineages.incomplete()
    world.answers("a", primary(1))
    assert world.lineages.incomplete()
    world.answers("b", primary(1))
    assert not world.lineages.incomplete()


def test_a_node_that_cannot_be_reached_is_not_waited_for() -> None:
    world = World("a", "b")
    world.answers("a", primary(1))
    world.nodes["b"].health.failed(0.0, "connection refused")
    assert not world.lineages.incomplete()


def test_a_node_that_never_answers_is_waited_for_only_for_a_while() -> None:
    world = World("a", "b")
    world.answers("a", primary(1))
    for _ in range(3):
        assert world.lineages.incomplete()
    ((when, call),) = world.timers
    assert when == LOOK, "one timer, however often the choice is made"
    world.now = when
    assert not world.lineages.incomplete()
    call()
    assert world.rerouted == 1


def test_a_node_that_leaves_is_not_waited_for() -> None:
    world = World("a", "b")
    world.answers("a", primary(1))
    world.nodes["b"].leaving = True
    assert not world.lineages.incomplete()
