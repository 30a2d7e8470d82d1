"""The reasons in the errors of the ledger."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from pgha._core.ledger_rules import LATE, LIFE
from pgha._core.outcome import Facts, ServerError
from pgha._dispatch.failure import ledger_error
from pgha._node.callbacks import SegmentFailure
from pgha._operation.operation import AttemptState
from pgha._wire.segment import Answer


def reason(waited: float) -> str:
    """Return the reason why the guard refused an attempt that was sent after ``waited`` seconds."""
    operation = cast(Any, SimpleNamespace(started_at=100.0, attempts=[AttemptState("n1", 100.0 + waited)]))
    facts = Facts(error=ServerError(LATE, "ERROR"), at_ledger=True)
    failure = SegmentFailure(facts, Answer(), False, False, False, None)
    return str(ledger_error(operation, failure, None))


@pytest.mark.parametrize("waited", [LIFE - 1.0, LIFE + 1.0, 3 * LIFE])
def test_a_keyed_write_that_waited_too_long_is_told_so(waited: float) -> None:
    assert "waited for 60 minutes" in reason(waited)
    assert "clock" not in reason(waited)


@pytest.mark.parametrize("waited", [0.0, 60.0, LIFE / 2])
def test_a_guard_that_refuses_what_is_in_time_is_blamed_on_the_clock(waited: float) -> None:
    assert "its clock moves" in reason(waited)
