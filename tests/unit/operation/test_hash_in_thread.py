"""Tests of the fingerprint of large statements: another thread computes it, and the event loop goes on."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import pgha
from pgha._operation import key as keys
from pgha._operation.key import LARGE, Keyed, fingerprint, hash_in_thread, keyed, new_idempotency_key
from pgha._wire.compiler import Compiler, Statement, own_adapters

pytestmark = pytest.mark.anyio


def statements_of(size: int) -> list[Statement]:
    return [Compiler(own_adapters()).compile("INSERT INTO t VALUES (%s)", [b"x" * size])]


def pending() -> Keyed:
    return keyed(new_idempotency_key(), statements_of(LARGE), auto=False, hash_later=True)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Stop the computation until the gate is set."""
    opened = threading.Event()

    def slow(statements: Sequence[Statement]) -> bytes:
        assert opened.wait(20)
        return fingerprint(statements)

    monkeypatch.setattr(keys, "fingerprint", slow)
    return opened


@pytest.mark.parametrize("size", [0, 1, LARGE - 100, LARGE, 3 * LARGE])
async def test_the_fingerprint_is_the_same(size: int) -> None:
    statements = statements_of(size)
    at_once = keyed(new_idempotency_key(), statements, auto=False)
    later = keyed(new_idempotency_key(), statements, auto=False, hash_later=True)
    assert at_once.unhashed is None
    assert (later.unhashed is None) == (size < LARGE)
    await hash_in_thread(later, None)
    assert later.fingerprint == at_once.fingerprint
    assert later.unhashed is None


async def test_the_loop_goes_on(gate: threading.Event) -> None:
    found, turns = pending(), 0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hash_in_thread, found, None)
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
            turns += 1
        assert found.fingerprint == b""
        gate.set()
    assert turns == 10 and len(found.fingerprint) == 16


async def test_the_callers_timeout_ends_the_wait(gate: threading.Event) -> None:
    try:
        with anyio.fail_after(20), pytest.raises(pgha.OperationTimeout, match="not sent"):
            await hash_in_thread(pending(), 0.01)
    finally:
        gate.set()


async def test_cancelling_ends_the_wait(gate: threading.Event) -> None:
    ended: list[Any] = []

    async def wait() -> None:
        try:
            await hash_in_thread(pending(), None)
        finally:
            ended.append(gate.is_set())

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        assert ended == [False]
    finally:
        gate.set()
