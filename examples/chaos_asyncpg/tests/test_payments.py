"""The lost acknowledgement, caused on purpose, and how each of the ledgers handles it."""

from __future__ import annotations

import asyncio
from uuid import UUID

import asyncpg
import pytest
from payments import TABLES, GuardedLedger, Ledger, NaiveLedger, Unknown, open_pool

from pgha.chaos import Injector, Nodes, Proxies
from pgha.chaos.checkers import Violation, check
from pgha.chaos.history import Recorder

pytestmark = pytest.mark.pgha(scope="module")


async def book(ledger: NaiveLedger, recorder: Recorder) -> None:
    """Book a payment, and record what the ledger told its caller."""
    one = recorder.begin("write")
    try:
        await ledger.book(UUID(one.key), "alice", 100)
    except Unknown as error:
        one.doubt(error)
    except asyncpg.PostgresError as error:
        one.refused(error)
    else:
        one.acknowledged(node="n1")


def url(proxies: Proxies) -> str:
    """Return the URL of the first proxy: asyncpg takes only URLs."""
    return f"postgresql://postgres@127.0.0.1:{proxies[0].port}/postgres"


async def prepare(nodes: Nodes) -> None:
    await nodes.execute("DROP TABLE IF EXISTS payment, loose_payment")
    await nodes.execute(TABLES)


async def violations(nodes: Nodes, ledger: NaiveLedger, recorder: Recorder) -> list[Violation]:
    """Compare what the ledger told its callers with what the server holds."""
    rows = await nodes[0].execute(f"SELECT id::text FROM {ledger.table}")
    return check(recorder.history(), {"n1": [(row[0], "n1") for row in rows]})


async def lose_an_acknowledgement(
    kind: type[NaiveLedger], nodes: Nodes, proxies: Proxies, injector: Injector
) -> list[Violation]:
    """Let the server commit, hold back the answer, and break the connection."""
    await prepare(nodes)
    recorder = Recorder()
    async with open_pool(url(proxies)) as pool:
        ledger = kind(pool, timeout=10.0)
        await book(ledger, recorder)  # prepares the statement: from now on one message, one answer
        await injector.strike("drop_down", "n1")
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            tasks.create_task(book(ledger, recorder))
            while await nodes[0].execute(f"SELECT count(*) FROM {kind.table}") != [(2,)]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            proxies[0].reset()
            await injector.heal()
    return await violations(nodes, ledger, recorder)


async def test_the_naive_ledger_books_twice(
    pgha_nodes: Nodes, pgha_proxies: Proxies, pgha_injector: Injector
) -> None:
    (found,) = await lose_an_acknowledgement(NaiveLedger, pgha_nodes, pgha_proxies, pgha_injector)
    assert found.rule == "doubled"
    assert found.text.endswith("was applied twice: twice by n1")


async def test_with_a_key_alone_a_booked_payment_fails(
    pgha_nodes: Nodes, pgha_proxies: Proxies, pgha_injector: Injector
) -> None:
    (found,) = await lose_an_acknowledgement(GuardedLedger, pgha_nodes, pgha_proxies, pgha_injector)
    assert found.rule == "refused_present"
    assert "UniqueViolationError" in found.text


async def test_the_repaired_ledger_keeps_its_promise(
    pgha_nodes: Nodes, pgha_proxies: Proxies, pgha_injector: Injector
) -> None:
    assert await lose_an_acknowledgement(Ledger, pgha_nodes, pgha_proxies, pgha_injector) == []
