"""Tests of the timelines: of the primaries of one lineage, only the newest one takes writes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgha._core.need import WRITE
from pgha._core.routing import Candidate, choose
from pgha._core.server_status import ServerStatus
from pgha._core.timelines import Timelines

quick = settings(deadline=None, max_examples=200)


def primary(timeline: int | None, system: int | None = 7) -> ServerStatus:
    return ServerStatus(system=system, timeline=timeline)


def standby(timeline: int | None, system: int | None = 7) -> ServerStatus:
    return ServerStatus(in_recovery=True, system=system, timeline=timeline)


def test_the_lower_timeline_is_superseded() -> None:
    for order in itertools.permutations([primary(1), primary(2), primary(3)]):
        timelines = Timelines()
        for status in order:
            timelines.seen(status)
        assert timelines.newest(7) == 3
        superseded = [timelines.superseded(primary(number)) for number in (1, 2, 3, 4)]
        assert superseded == [True, True, False, False]


def test_nothing_goes_back() -> None:
    timelines = Timelines()
    assert timelines.seen(primary(2))
    assert not timelines.seen(primary(1)) and not timelines.seen(primary(2))
    assert timelines.superseded(primary(1)), "whatever became of the newer one"


def test_a_standby_proves_its_timeline_and_is_not_superseded() -> None:
    timelines = Timelines()
    timelines.seen(standby(2))
    assert timelines.superseded(primary(1))
    timelines.seen(primary(3))
    assert not timelines.superseded(standby(2))


def test_lineages_do_not_concern_each_other() -> None:
    timelines = Timelines()
    timelines.seen(primary(5, system=8))
    timelines.seen(primary(1, system=7))
    assert not timelines.superseded(primary(1, system=7))
    assert timelines.newest(9) is None


@pytest.mark.parametrize("unknown", [primary(None), primary(1, None), primary(None, None)])
def test_the_unknown_is_left_alone(unknown: ServerStatus) -> None:
    timelines = Timelines()
    timelines.seen(primary(2))
    assert not timelines.seen(unknown)
    assert not timelines.superseded(unknown)
    assert timelines.newest(7) == 2


statuses = st.builds(
    ServerStatus,
    in_recovery=st.sampled_from([False, False, True]),
    system=st.sampled_from([7, 7, 8, None]),
    timeline=st.sampled_from([1, 2, 3, 4, None]),
)


@quick
@given(st.lists(st.tuples(st.sampled_from("abc"), statuses), max_size=30), st.data())
def test_writes_never_go_below_the_highest_timeline_seen(
    history: list[tuple[str, ServerStatus]], data: st.DataObject
) -> None:
    """Whatever is seen in whatever order, and whatever goes down: a chosen node has the newest timeline."""
    timelines, known = Timelines(), dict[str, ServerStatus]()
    highest: dict[int, int] = {}
    current: str | None = None
    for name, status in history:
        known[name] = status
        timelines.seen(status)
        if status.system is not None and status.timeline is not None:
            highest[status.system] = max(highest.get(status.system, 0), status.timeline)
        down = data.draw(st.sets(st.sampled_from("abc"), max_size=2))
        seen = [
            Candidate(
                name=one,
                state="down" if one in down else "up",
                role=told.role,
                latency=data.draw(st.sampled_from([0.001, 0.1])),
                serving=True,
                lineage=told.system,
                superseded=timelines.superseded(told),
            )
            for one, told in known.items()
        ]
        current = choose(seen, current, WRITE)
        if current is not None:
            chosen = known[current]
            assert not chosen.in_recovery
            if chosen.system is not None and chosen.timeline is not None:
                assert chosen.timeline == highest[chosen.system]
