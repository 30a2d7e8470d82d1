"""A commit whose wait for a standby pgha broke off is acknowledged once a later commit was replicated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from psycopg.pq import ExecStatus
from support.fake_link import FakeError, FakeLink, FakeResult
from support.in_memory import InMemory

import pgha
from pgha._core.pipeline import Doing
from pgha._node.lane import Lane
from pgha._operation.operation import Operation, Stage

pytestmark = pytest.mark.anyio
MakeWorld = Callable[..., InMemory]
PROOF = "pg_logical_emit_message"


class FakeSync:
    """The mark that a link leaves when the server warned that the commit is not replicated."""

    status = ExecStatus.PIPELINE_SYNC


class Scene:
    """A write whose wait was broken off: by a cancel of pgha's, or by somebody else."""

    def __init__(self, *, ours: bool = True, keyed: bool = False) -> None:
        self.world = InMemory()
        self.lane: Lane
        self.link: FakeLink
        self.lane, self.link = self.world.open("a", "write")
        self.write: Operation[object] = self.world.start("INSERT 1", keyed=keyed)
        self.lane.pipeline.slots[0].overlapped = ours
        self.break_off()

    def break_off(self) -> None:
        texts = self.link.sent[self.link.answered]
        self.answer(*[FakeResult(text) for text in texts], FakeSync())

    def answer(self, *results: object) -> None:
        self.link.answer(*results)
        self.lane._readable()

    def in_doubt(self) -> None:
        """Check that the write is in doubt, or that the ledger is asked if it has a key."""
        if self.write.request.keyed is not None:
            assert self.write.stage is Stage.RESOLVING
            self.write.cancel()
        assert isinstance(self.write.failure, pgha.CommitInDoubt)
        self.write.retrieve()

    @property
    def proofs(self) -> int:
        return sum(PROOF in text for texts in self.link.sent for text in texts)


@pytest.fixture(params=[False, True], ids=["plain", "keyed"])
async def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:  # type: ignore[misc]
    made = Scene(keyed=request.param)
    yield made
    made.world.close()


async def test_a_later_commit_proves_it(scene: Scene) -> None:
    assert not scene.write.done and scene.proofs == 1
    scene.answer()
    assert scene.write.failure is None
    assert scene.write.value is not None
    assert scene.world.dispatcher.tracker.counters.in_doubt == 0
    assert not scene.world.dispatcher.tracker.open


async def test_the_proof_is_tried_again_if_it_is_broken_off_too(scene: Scene) -> None:
    scene.break_off()
    assert not scene.write.done and scene.proofs == 2
    scene.answer()
    assert scene.write.failure is None


async def test_without_proof_the_write_is_in_doubt(scene: Scene) -> None:
    for number in range(1, 6):
        assert scene.proofs == number and not scene.write.done
        scene.answer(FakeError("42501"))
    assert scene.proofs == 5
    scene.in_doubt()


async def test_another_connection_proves_nothing(scene: Scene) -> None:
    """Another server may have taken the node's place, without that commit."""
    scene.link.end()
    scene.lane._readable()
    scene.in_doubt()


async def test_an_old_primary_proves_nothing(scene: Scene) -> None:
    """Its later commits are as lost as the earlier ones, once another server has taken over."""
    node = scene.world.nodes["a"]
    node.health.supersede(True)
    scene.answer()
    scene.in_doubt()


async def test_a_caller_that_leaves_does_not_wait_for_the_proof(scene: Scene) -> None:
    scene.write.cancel()
    assert isinstance(scene.write.failure, pgha.CommitInDoubt)
    scene.write.retrieve()
    scene.answer()
    assert isinstance(scene.write.failure, pgha.CommitInDoubt)
    assert not scene.world.dispatcher.tracker.open


class Stalled:
    """A write on `a` that pgha's cancel broke off; the cancel is still on its way, so the proof waits."""

    def __init__(self, world: InMemory, **more: Any) -> None:
        self.world = world
        self.lane, self.link = world.open("a", "write")
        self.cancelled = world.start("INSERT 1")
        self.write = world.start("INSERT 2", **more)
        self.last = world.start("INSERT 3")
        self.cancelled.cancel()
        world.inspected(self.lane, Doing.RUNNING)
        assert self.lane.pipeline.cancelling

    def break_off(self) -> None:
        self.link.answer()
        texts = self.link.sent[self.link.answered]
        self.link.answer(*[FakeResult(text) for text in texts], FakeSync())
        self.lane._readable()
        assert self.cancelled.done
        assert self.write.stage is Stage.RESOLVING
        assert self.proofs == 0

    @property
    def proofs(self) -> int:
        return sum(PROOF in text for texts in self.link.sent for text in texts)


async def test_a_proof_is_sent_whoever_reads_the_answer_before_it(make_world: MakeWorld) -> None:
    scene = Stalled(make_world())
    scene.last.cancel()
    scene.break_off()
    scene.world.cancel_ended(scene.lane)
    scene.world.wait(0.03)  # the server is asked about the last one, too
    scene.link.answer()
    scene.world.inspected(scene.lane, Doing.RUNNING)
    assert scene.last.done
    scene.world.wait(0.1)
    assert scene.proofs == 1
    scene.world.answer(scene.lane, scene.link)
    assert scene.write.done
    assert scene.write.failure is None


async def test_a_lane_is_watched_while_a_proof_waits_or_is_in_flight(make_world: MakeWorld) -> None:
    scene = Stalled(make_world())
    scene.break_off()
    scene.link.answer()
    scene.lane._readable()
    node = scene.world.nodes["a"]
    assert not scene.lane.in_flight
    assert node._anything_to_watch()
    scene.world.cancel_ended(scene.lane)
    assert scene.proofs == 1
    assert node._anything_to_watch()


async def test_no_proof_is_sent_to_a_primary_that_another_has_replaced(make_world: MakeWorld) -> None:
    world: InMemory = make_world("ab")
    world.ping("a")
    scene = Stalled(world)
    scene.break_off()
    world.ping("b", timeline=2)
    world.cancel_ended(scene.lane)
    assert scene.proofs == 0
    assert isinstance(scene.write.failure, pgha.CommitInDoubt)
    scene.write.retrieve()


async def test_an_idempotent_write_without_proof_is_run_again(make_world: MakeWorld) -> None:
    scene = Stalled(make_world(), idempotent=True)
    scene.break_off()
    scene.link.end()
    scene.lane._readable()
    assert scene.write.failure is None
    scene.world.ping("a")
    _, link = scene.world.open("a", "write")
    scene.world.wait(0.1)
    assert ["INSERT 2"] in link.sent
    for one in (scene.cancelled, scene.last):
        one.retrieve()


async def test_a_wait_that_somebody_else_broke_off_is_not_mended() -> None:
    scene = Scene(ours=False)
    assert scene.proofs == 0
    assert isinstance(scene.write.failure, pgha.CommitInDoubt)
    scene.write.retrieve()
    scene.world.close()
