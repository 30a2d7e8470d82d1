"""Each rule of the design is broken on purpose, and the suite has to notice: its findings are asserted.

One event loop is enough: the suite is under test here, not pgha.
"""

from __future__ import annotations

import gc

import pytest
from support.breaks import BREAKS, Break, close_what_was_left

from pgha._trials.scenarios import find


@pytest.fixture(autouse=True)
def no_defect() -> None:
    """Replace the fixture of the same name: pgha is broken here on purpose, and may report a defect."""


# psycopg warns in a finalizer about connections that a break leaves open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("broken", BREAKS, ids=lambda one: f"{one.rule}-{one.how.__name__}")
async def test_it_is_noticed(broken: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    broken.how(monkeypatch)
    trial = await find(broken.scenario).run()
    close_what_was_left()
    gc.collect()
    caught = {violation.rule for violation in trial.violations}
    assert broken.caught_by <= caught, trial.complaint() or "nothing was noticed"
