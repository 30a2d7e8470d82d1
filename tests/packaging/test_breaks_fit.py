"""Check in a second that no rename has hidden the code that the chaos suite breaks on purpose."""

from __future__ import annotations

import pytest
from support.breaks import BREAKS, Break


@pytest.mark.parametrize("broken", BREAKS, ids=lambda one: f"{one.rule}-{one.how.__name__}")
def test_it_can_be_broken(broken: Break) -> None:
    with pytest.MonkeyPatch.context() as patch:
        broken.how(patch)


def test_every_rule_is_broken() -> None:
    assert {one.rule for one in BREAKS} == set(range(1, 10))
