"""Tests of the operation for threads as a future of the standard library, without a loop or a server."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support.threads import crew

from pgha._errors import OperationCancelled
from pgha.blocking._operation import Operation

Snapshot = tuple[bool, bool, Any, BaseException | None]


class Host:
    """A stand-in for the cluster's thread, in which a test finishes the operations itself."""

    def post(self, letter: object) -> None:
        pass

    def now(self) -> float:
        return 0.0

    def check_waitable(self) -> None:
        pass

    def unretrieved(self, error: BaseException) -> None:
        pass


def operation_of() -> Operation[int]:
    host: Any = Host()
    return Operation(host, None)  # type: ignore[arg-type]


def finish(operation: Operation[int], value: int | None = None, error: BaseException | None = None) -> None:
    operation._call.value = value
    if error is None:
        operation._call._done()
    else:
        operation._call.fail(error)


def snapshot(future: concurrent.futures.Future[Any]) -> Snapshot:
    """Read the base class's state, as `Future._get_snapshot` of newer versions of CPython does."""
    if future._state == "FINISHED":
        return True, False, future._result, future._exception
    with future._condition:
        if future._state == "FINISHED":
            return True, False, future._result, future._exception
        return False, future._state in ("CANCELLED", "CANCELLED_AND_NOTIFIED"), None, None


def copy_state(source: Any, dest: asyncio.Future[Any]) -> None:
    """Do what asyncio's function of that purpose does in newer versions of CPython."""
    if dest.cancelled():
        return
    assert not dest.done()
    done, cancelled, result, exception = source._get_snapshot()
    assert done
    if cancelled:
        dest.cancel()
    elif exception is not None:
        dest.set_exception(exception)
    else:
        dest.set_result(result)


@pytest.mark.parametrize("read", [snapshot, Operation._get_snapshot])
def test_a_done_callback_finds_the_outcome_in_the_base_class(read: Callable[[Any], Snapshot]) -> None:
    for value, error in ((5, None), (None, ValueError("x"))):
        operation, seen = operation_of(), list[Snapshot]()
        operation.add_done_callback(lambda one, seen=seen: seen.append(read(one)))  # type: ignore[misc]
        assert not read(operation)[0]
        finish(operation, value, error)
        assert seen == [(True, False, value, error)]
        operation.add_done_callback(lambda one, seen=seen: seen.append(read(one)))  # type: ignore[misc]
        assert seen[1] == seen[0]
        assert operation.exception() is error


def test_the_snapshot_needs_no_lock() -> None:
    """A wait that was interrupted may hold the lock for ever."""
    operation, seen = operation_of(), list[Snapshot]()
    operation.add_done_callback(lambda one: seen.append(one._get_snapshot()))
    with crew() as threads:
        held, free = threading.Event(), threading.Event()

        def hold() -> None:
            with operation._condition:
                held.set()
                assert free.wait(20)

        threads.start(hold)
        try:
            assert held.wait(20)
            finish(operation, 5)
            assert seen == [(True, False, 5, None)]
            assert operation.result() == 5
        finally:
            free.set()
    assert concurrent.futures.wait([operation], 20).done == {operation}


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (5, None, 5),
        (None, ZeroDivisionError("x"), ZeroDivisionError),
        (None, OperationCancelled("x"), asyncio.CancelledError),
    ],
)
def test_wrapped_for_asyncio(
    monkeypatch: pytest.MonkeyPatch, value: int | None, error: BaseException | None, expected: Any
) -> None:
    """`asyncio.wrap_future` ends with the operation, with CPython's newer way of copying the state."""
    monkeypatch.setattr(concurrent.futures.Future, "_get_snapshot", snapshot, raising=False)
    monkeypatch.setattr("asyncio.futures._copy_future_state", copy_state)

    async def program() -> None:
        operation = operation_of()
        wrapped = asyncio.wrap_future(operation)
        await asyncio.to_thread(finish, operation, value, error)
        async with asyncio.timeout(20):
            if isinstance(expected, type):
                with pytest.raises(expected):
                    await wrapped
            else:
                assert await wrapped == expected
        operation.exception()

    asyncio.run(program())


def test_a_thread_that_the_base_class_wakes_finds_the_operation_done() -> None:
    """The base class tells its waiters before the operation's own gate opens."""
    operation, seen = operation_of(), list[bool]()
    publish = operation._publish

    def ask_at_once() -> None:
        publish()
        seen.extend([operation.done(), not operation.running(), operation.result(timeout=0) == 5])

    operation._publish = ask_at_once  # type: ignore[method-assign]
    finish(operation, 5)
    assert seen == [True, True, True]
