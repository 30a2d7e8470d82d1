"""The cut sweep: every byte of every connection, in each direction, by each way of cutting."""

from __future__ import annotations

import os

import pytest
from support.tally import TALLY

from pgha._trials.sweep import HOWS, all_cuts, sweep
from pgha.chaos import CutHow, standalone

pytestmark = pytest.mark.anyio

SETTINGS = {"max_connections": "500", "log_min_messages": "fatal"}


LONG = os.environ.get("PGHA_LONG") == "1"
# Each way of cutting runs on one loop at least; stalls, which the client has to detect itself, run on both.
PLAYED = [("eof", "asyncio"), ("reset", "trio"), ("stall", "asyncio"), ("stall", "trio")]
ALL = [(how, loop) for how in HOWS for loop in ("asyncio", "trio")]


@pytest.mark.parametrize(("how", "anyio_backend"), ALL if LONG else PLAYED)
async def test_every_byte(how: CutHow) -> None:
    async with standalone(settings=SETTINGS) as nodes:
        swept = await sweep(nodes[0], [how], width=64 if how == "stall" else 32)
    TALLY.swept(swept)
    assert not swept.violations, "\n".join(str(one) for one in swept.violations)
    # No cut was left out, and each connection was there: the monitor's, one for reads, one for writes.
    assert swept.cuts[how] == len(list(all_cuts(swept.lengths, [how]))) > 2000
    assert {number for number, _ in swept.lengths} == {0, 1, 2}
    assert all(length > 100 for length in swept.lengths.values())
    acknowledged = sum(entry.ending == "acknowledged" for entry in swept.history)
    assert acknowledged > len(swept.history) / 2
