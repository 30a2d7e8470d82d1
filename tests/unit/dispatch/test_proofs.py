"""A commit whose wait for a standby pgha broke off is acknowledged once a later commit was replicated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg.pq import ExecStatus
from support.fake_link import FakeError, FakeLink, FakeResult
from support.in_memory import InMemory

import pgha
from pgha._node.lane import Lane
from pgha._operation.operation import Operation, Stage

pytestmark = pytest.mark.anyio
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


async def test_a_wait_that_somebody_else_broke_off_is_not_mended() -> None:
    scene = Scene(ours=False)
    assert scene.proofs == 0
    assert isinstance(scene.write.failure, pgha.CommitInDoubt)
    scene.write.retrieve()
    scene.world.close()
