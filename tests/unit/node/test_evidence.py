"""Tests of a lane's conclusions from errors, and of the operations that a lane does not send."""

from __future__ import annotations

from typing import Any, cast

import pytest
from psycopg.rows import tuple_row

from pgha import nearest
from pgha._core.need import WRITE
from pgha._core.next_step import Case, NextStep, decide
from pgha._core.outcome import Outcome, ServerError
from pgha._node.callbacks import ServerFacts
from pgha._node.evidence import _by_order, _ends_all
from pgha._node.outgoing import Refusal, ledger_part
from pgha._operation.operation import AttemptState, Operation, OperationCallbacks, Request


@pytest.mark.parametrize(
    ("error", "by_order", "ends_all"),
    [
        (None, False, False),
        (ServerError("57P01", "FATAL"), True, True),
        (ServerError("57P01", "ERROR"), False, False),
        (ServerError("57P01", ""), False, False),
        (ServerError("08P01", "FATAL"), False, False),
        (ServerError("XX000", "PANIC"), False, True),
    ],
)
def test_only_a_fatal_tells_of_the_connection(
    error: ServerError | None, by_order: bool, ends_all: bool
) -> None:
    assert (_by_order(error), _ends_all(error)) == (by_order, ends_all)


def test_a_write_that_meets_another_server_goes_elsewhere() -> None:
    """The lane refuses it in the server's place, since only a server of its lineage knows its key."""
    request = Request((), WRITE, False, False, nearest(), tuple_row)
    operation: Operation[Any] = Operation(cast(OperationCallbacks, None), request, 0.0)
    operation.lineage, operation.doubted = 1, True
    attempt = AttemptState("n1", 1.0)
    attempt.system = 2
    refusal = ledger_part(operation, attempt, ServerFacts(), 1.0)
    assert isinstance(refusal, Refusal)
    case = Case(refusal.failure().facts, keyed=True, doubted=True)
    assert decide(case) == (Outcome.NOT_APPLIED, NextStep.AGAIN_ELSEWHERE)
