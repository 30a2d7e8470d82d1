"""Tests of the races of `pgha.blocking`, each at its worst moment: mailbox and gate, without a loop."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from support.threads import crew, soon

import pgha
from pgha.blocking._call import Call
from pgha.blocking._gate import Gate
from pgha.blocking._mailbox import Job, Letter, Mailbox

REQUEST: Any = None


class Loop:
    """A stand-in for the event loop, which collects calls until `run`."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []
        self.interrupts = 0

    def soon(self, call: Callable[[], object]) -> None:
        if self.interrupts:
            self.interrupts -= 1
            raise KeyboardInterrupt
        self.calls.append(call)

    def run(self) -> None:
        while self.calls:
            self.calls.pop(0)()


def call() -> Call:
    return Call(REQUEST, lambda: None, 0.0)


def box_of(loop: Loop, started: list[Letter]) -> Mailbox:
    box = Mailbox(started.extend)
    box.open(loop.soon)
    loop.run()
    return box


def test_many_letters_are_one_wake_up() -> None:
    loop, started = Loop(), list[Letter]()
    box = box_of(loop, started)
    letters = [call() for _ in range(5)]
    for letter in letters:
        box.post(letter)
    assert (len(loop.calls), len(box)) == (1, 5)
    loop.run()
    assert started == letters
    box.post(call())
    assert len(loop.calls) == 1


def test_posted_before_the_loop_is_there() -> None:
    loop, started = Loop(), list[Letter]()
    box = Mailbox(started.extend)
    letter = call()
    box.post(letter)
    assert not loop.calls
    box.open(loop.soon)
    loop.run()
    assert started == [letter]


def test_posted_while_the_loop_looks() -> None:
    """A letter that arrives after the loop has taken the letters wakes the loop once more."""
    loop, started = Loop(), list[Letter]()
    late = call()

    def start(letters: list[Letter]) -> None:
        started.extend(letters)
        if late not in started:
            box.post(late)

    box = Mailbox(start)
    box.open(loop.soon)
    box.post(first := call())
    loop.run()
    assert started == [first, late]


def test_posted_while_the_letters_are_taken() -> None:
    loop, started = Loop(), list[Letter]()
    box = box_of(loop, started)
    late = call()

    class Letters(deque[Letter]):
        def popleft(self) -> Letter:
            letter = super().popleft()
            if letter is not late:
                box.post(late)
            return letter

    box._letters = Letters()
    box.post(first := call())
    loop.run()
    assert started == [first, late]


def test_an_interrupted_wake_up_is_made_up_for() -> None:
    loop, started = Loop(), list[Letter]()
    box = box_of(loop, started)
    loop.interrupts = 1
    letter = call()
    with pytest.raises(KeyboardInterrupt):
        box.post(letter)
    # No other call would wake the loop, since a wake-up counts as under way.
    loop.run()
    assert started == [letter]


def refused(letter: Call) -> bool:
    return isinstance(letter.error, pgha.ClusterClosed) and str(letter.error) == "closed"


def test_what_is_there_is_refused_and_what_comes() -> None:
    loop, started, told = Loop(), list[Letter](), list[str]()
    box = box_of(loop, started)
    before, after = call(), call()
    box.post(before)
    box.post(Job(lambda: told.append("run"), lambda: told.append("refused")))
    box.close("closed")
    assert refused(before)
    box.close("closed again")
    box.post(after)
    assert refused(after)
    loop.run()
    assert (started, told, len(box)) == ([], ["refused"], 0)


@pytest.mark.parametrize("first", ["close", "append"])
def test_closed_in_the_middle_of_a_post(first: str) -> None:
    """Refuse a letter once, whether the box is closed right before or right after the letter is added."""
    loop, started = Loop(), list[Letter]()
    box = box_of(loop, started)

    class Letters(deque[Letter]):
        def append(self, letter: Letter) -> None:
            if first == "close":
                box.close("closed")
            super().append(letter)
            if first == "append":
                box.close("closed")

    box._letters = Letters()
    told: list[str] = []
    letter = Call(REQUEST, lambda: told.append("resolved"), 0.0)
    box.post(letter)
    assert refused(letter)
    assert (told, len(box)) == (["resolved"], 0)


def test_no_letter_is_lost_or_taken_twice() -> None:
    """Post from several threads while another thread takes letters and closes the box."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(30):
            woken = threading.Semaphore(0)
            taken: list[Letter] = []
            box = Mailbox(taken.extend)
            box.open(lambda _, woken=woken: woken.release())  # type: ignore[misc]
            letters = [[call() for _ in range(200)] for _ in range(4)]

            def look(box: Mailbox = box, woken: threading.Semaphore = woken, taken: Any = taken) -> None:
                while len(taken) < 500:
                    assert woken.acquire(timeout=30), "a wake-up was lost"
                    box._look()
                box.close("closed")

            def post(mine: list[Call], box: Mailbox = box) -> None:
                for letter in mine:
                    box.post(letter)

            with crew() as threads:
                threads.start(look)
                for mine in letters:
                    threads.start(post, mine)
            everything = [letter for mine in letters for letter in mine]
            assert len(taken) == len(set(taken))
            assert set(taken) | {one for one in everything if refused(one)} == set(everything)
            assert not any(refused(one) for one in taken if isinstance(one, Call))
    finally:
        sys.setswitchinterval(interval)


def test_a_gate() -> None:
    gate, told = Gate(), list[int]()
    assert not gate.wait(0)
    assert not gate.wait(0.01)
    # A wait that timed out leaves nothing behind.
    assert not gate._then
    gate.then(lambda: told.append(1))
    with crew() as threads:
        for _ in range(10):
            threads.start(lambda: told.append(gate.wait(30)))
        soon(lambda: len(gate._then) == 11)
        assert told == []
        gate.open()
    assert told == [1, *[True] * 10]
    assert gate.wait()
    gate.then(lambda: told.append(2))
    assert told[-1] == 2


def test_a_gate_that_opens_while_somebody_comes() -> None:
    """The call runs once, whether `then` or `open` runs the call."""
    for moment in ("before", "after"):
        gate, told = Gate(), list[int]()

        class Calls(deque[Callable[[], object]]):
            def append(self, call: Callable[[], object], gate: Gate = gate, moment: str = moment) -> None:
                if moment == "before":
                    gate.open()
                super().append(call)
                if moment == "after":
                    gate.open()

        gate._then = Calls()
        gate.then(lambda told=told: told.append(1))  # type: ignore[misc]
        assert told == [1]


def test_an_interrupted_wait_leaves_nothing_at_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        """A lock at which every second acquisition is interrupted: that of the wait."""

        def __init__(self) -> None:
            self.taken = False

        def acquire(self, *given: object) -> bool:
            if self.taken:
                raise KeyboardInterrupt
            self.taken = True
            return True

        def release(self) -> None:
            pass

    monkeypatch.setattr("pgha.blocking._gate.allocate_lock", Interrupted)
    gate = Gate()
    for timeout in (None, 1.0, None):
        with pytest.raises(KeyboardInterrupt):
            gate.wait(timeout)
    assert not gate._then
