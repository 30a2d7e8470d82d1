"""The door runs one act after another, whoever enters, and wherever in its own code somebody enters."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from pgha._core.door import Door


class House:
    """The acts that ran, and whether one of them saw another one half done."""

    def __init__(self, settle: Callable[[], bool] = lambda: False) -> None:
        self.door = Door(settle)
        self.done: list[object] = []
        self.inside = 0

    def act(self, what: object) -> None:
        self.inside += 1
        assert self.inside == 1
        if callable(what):
            what()
        self.done.append(what)
        self.inside -= 1

    def enter(self, what: object) -> None:
        self.door.enter(self.act, what)


def test_an_act_runs_at_once() -> None:
    house = House()
    house.enter("a")
    assert house.done == ["a"]


def test_who_enters_in_an_act_comes_behind_it() -> None:
    house = House()

    def more() -> None:
        house.enter("b")
        house.enter("c")
        assert house.done == []

    house.enter(more)
    assert house.done == [more, "b", "c"]


def test_what_the_settling_causes_is_settled_too() -> None:
    house: House
    left = ["a", "b"]

    def settle() -> bool:
        if left:
            house.enter(left.pop(0))
            return True
        return False

    house = House(settle)
    house.enter("first")
    assert house.done == ["first", "a", "b"]


def test_a_failing_act_stops_neither_those_behind_it_nor_the_next_visitor() -> None:
    house = House()

    def fail() -> None:
        house.enter("behind")
        house.inside -= 1
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        house.enter(fail)
    house.enter("next")
    assert house.done == ["behind", "next"]


def test_the_settling_may_fail_as_well() -> None:
    failing = [True]

    def settle() -> bool:
        if failing:
            failing.clear()
            raise LookupError("mine")
        return False

    house = House(settle)
    with pytest.raises(LookupError):
        house.enter("a")
    house.enter("b")
    assert house.done == ["a", "b"]


def test_somebody_enters_between_any_two_bytecodes_of_the_door() -> None:
    """Whatever the moment, both acts run, one after the other, and nobody is left in the queue."""
    position = 0
    while True:
        house = House()
        seen = 0
        entered = False

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal seen, entered
            if frame.f_code.co_filename != Door.enter.__code__.co_filename:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode" and not entered:
                seen += 1
                if seen > position:  # noqa: B023 - the function is used in this round only
                    entered = True
                    house.enter("interrupting")  # noqa: B023 - nothing is traced in here
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            house.enter("interrupted")
        finally:
            sys.settrace(before)
        if not entered:
            break
        assert sorted(map(str, house.done)) == ["interrupted", "interrupting"], position
        position += 1
    assert position > 30
