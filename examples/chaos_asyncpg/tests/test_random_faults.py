"""The repaired ledger under faults that Hypothesis chooses."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from payments import Ledger, NaiveLedger, open_pool
from test_payments import book, prepare, url, violations

from pgha.chaos import Injector, Nodes, Proxies, Schedule
from pgha.chaos.history import Recorder
from pgha.chaos.properties import schedules

LEDGER = Ledger


@pytest.mark.pgha(scope="module")
# The examples share the nodes on purpose: the injector heals the nodes after each example.
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedule=schedules(nodes=1, spare=0, seconds=1.0, hold=0.5, max_steps=4))
async def test_every_payment_is_booked_once(
    pgha_nodes: Nodes, pgha_proxies: Proxies, schedule: Schedule
) -> None:
    await prepare(pgha_nodes)
    recorder, over = Recorder(), asyncio.Event()

    async def customer(ledger: NaiveLedger) -> None:
        while not over.is_set():
            await book(ledger, recorder)
            await asyncio.sleep(0.002)

    async with open_pool(url(pgha_proxies)) as pool:
        ledger = LEDGER(pool)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(customer(ledger))
            await Injector(pgha_nodes, pgha_proxies).run(schedule)
            over.set()
    assert await violations(pgha_nodes, ledger, recorder) == []
    assert all(entry.ending == "acknowledged" for entry in recorder.history())
