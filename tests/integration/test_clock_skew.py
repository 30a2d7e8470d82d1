"""Differing clocks are reported, and never make a keyed write fail or apply twice."""

from __future__ import annotations

import time

import pytest
from support.common import both_versions, eventually, within
from support.keyed import TABLE, WRITE, ids, keys_of, one_node

import pgha

pytestmark = [pytest.mark.anyio, both_versions]


async def test_a_clock_that_is_off_is_told_and_told_again_when_it_is_right(version: int) -> None:
    async with one_node(version, TABLE, ping_interval=0.05) as (node, cluster):
        skew = cluster.nodes[node.name].clock_skew
        assert skew is not None and abs(skew) < 0.5, "it is one machine"
        ours = cluster._nodes[node.name]
        calm = ours.server.clock.margin
        async with cluster.events() as events:
            ours._monitor._wall = lambda: time.time() - 7.0
            told = []
            with within():
                async for event in events:
                    if isinstance(event, pgha.ClockSkewed):
                        told.append(event)
                        if len(told) == 2:
                            break
                        assert ours.server.clock.margin > calm + 6.0, "the guard is wider meanwhile"
                        ours._monitor._wall = time.time
        assert [one.skewed for one in told] == [True, False]
        assert told[0].node == node.name
        assert told[0].skew == pytest.approx(7.0, abs=0.5)


@pytest.mark.parametrize("timeout", [None, 5.0])
async def test_a_guard_that_refuses_what_is_in_time_gets_wider(version: int, timeout: float | None) -> None:
    """A guard gets wider after it has refused a write that was in time.

    The server's clock was set forward after the last ping: one attempt is rejected, the next is not.
    """
    async with one_node(version, TABLE, ping_interval=60.0) as (node, cluster):
        await cluster.execute(WRITE, ["before"], idempotency_key=pgha.new_idempotency_key())
        clock = cluster._nodes[node.name].server.clock
        assert clock._offset is not None
        clock._offset -= 3600.0
        with within():
            result = await cluster.execute(
                WRITE, ["a"], idempotency_key=pgha.new_idempotency_key(), timeout=timeout
            )
        assert result.attempts >= 2
        assert not result.replayed
        assert await ids(node) == ["a", "before"]
        await eventually(lambda: abs((clock._offset or 0.0) + time.monotonic() - time.time()) < 1.0)


async def test_a_clock_that_does_not_keep_still(version: int) -> None:
    """When no guard is wide enough, the write fails with the reason and is certainly not applied."""
    async with one_node(version, TABLE) as (node, cluster):
        clock = cluster._nodes[node.name].server.clock
        guard = clock.guard

        def always_late(*args: object) -> tuple[float, float]:
            until, deadline = guard(*args)  # type: ignore[arg-type]
            return until, deadline - 1e6

        cluster._nodes[node.name].server.clock = Late(always_late, clock)  # type: ignore[assignment]
        with pytest.raises(pgha.LedgerError, match="its clock moves") as caught, within():
            await cluster.execute(WRITE, ["a"], idempotency_key=pgha.new_idempotency_key())
        assert pgha.error_info(caught.value).outcome == "not applied"
        assert await ids(node) == []


class Late:
    """A clock whose guards have expired as soon as they are made."""

    def __init__(self, guard: object, clock: object) -> None:
        self.guard = guard
        self._clock = clock

    def __getattr__(self, name: str) -> object:
        return getattr(self._clock, name)


@pytest.mark.parametrize("ahead", [8 * 86400.0, -3600.0])
async def test_keys_are_not_pruned_by_a_clock_that_is_off(version: int, ahead: float) -> None:
    """A server whose clock runs days ahead would lose the keys of its last minute."""
    async with one_node(version, TABLE) as (node, cluster):
        await cluster.execute(WRITE, ["a"], idempotency_key=pgha.new_idempotency_key())
        ledger = cluster.ledger
        # The local clock is changed in place of the server's, which is the machine's.
        ledger._wall = lambda: time.time() - ahead
        side = "ahead of" if ahead > 0 else "behind"
        with pytest.raises(pgha.LedgerError, match=f"its clock is {abs(ahead):.0f} s {side} this machine's"):
            await ledger.prune(0)
        assert await keys_of(node) == 1
        await node.execute("UPDATE pgha.ledger SET deadline = clock_timestamp() - interval '1 day'")
        with pytest.raises(pgha.LedgerError, match="force=True"):
            await ledger.uninstall()
        assert await ledger.uninstall(force=True) == {node.name: True}


async def test_keys_are_pruned_by_a_clock_that_is_nearly_right(version: int) -> None:
    async with one_node(version, TABLE) as (node, cluster):
        await cluster.execute(WRITE, ["a"], idempotency_key=pgha.new_idempotency_key())
        await node.execute("UPDATE pgha.ledger SET deadline = clock_timestamp() - interval '1 day'")
        ledger = cluster.ledger
        ledger._wall = lambda: time.time() - 0.9
        assert (await ledger.prune(0))[node.name].deleted == 1
