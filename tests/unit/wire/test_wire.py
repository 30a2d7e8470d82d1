"""Tests of one direction of a proxied connection: every byte, in order, no sooner than its wire allows."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgha.chaos import ChaosError
from pgha.chaos._proxy.direction import CLEAN, ByteStream, Cut, Ending, Wire

seconds = st.floats(min_value=0, max_value=3)
wires = st.builds(
    Wire,
    latency=st.just(0.0) | seconds,
    jitter=st.just(0.0) | seconds,
    bandwidth=st.none() | st.floats(min_value=0.1, max_value=1e6),
    drop=st.sampled_from([False, False, False, True]),
    chunk=st.none() | st.integers(1, 20),
    coalesce=st.none() | st.tuples(st.integers(1, 60), seconds),
    close_delay=st.just(0.0) | seconds,
)
stalls = st.builds(Cut, st.integers(0, 100), st.just("stall"), st.just("up"))
cuts = st.builds(Cut, st.integers(0, 100), st.sampled_from(["eof", "reset"]), st.just("up"))
pieces = st.lists(st.tuples(st.binary(min_size=1, max_size=50), seconds), max_size=12)


class Rig:
    """A byte stream with a clock, polled whenever the stream is due."""

    def __init__(self, wire: Wire = CLEAN, cut: Cut | None = None, start: float = 100.0) -> None:
        self.now = self.start = start
        self.line = ByteStream(wire, cut, random.Random(1).random)
        self.fed, self.out = b"", b""
        self.log: list[tuple[float, bytes]] = []
        self.ended: Ending | Cut | None = None

    def feed(self, data: bytes) -> None:
        self.line.feed(self.now, data)
        self.fed += data

    def look(self, most: int = 1 << 20) -> bool:
        """Send one packet, of which the kernel takes at most `most` bytes; return whether there was one."""
        due = self.line.due()
        ready = self.line.ready(self.now)
        self.check_due(ready, due)
        if isinstance(ready, memoryview):
            packet = bytes(ready[:most])
            self.line.sent(len(packet))
            self.log.append((self.now, packet))
            self.out += packet
            return True
        self.ended = ready
        return False

    def check_due(self, ready: object, due: float) -> None:
        """Check that waiting until the stream is due neither misses data nor loops without progress."""
        if ready is None:
            assert self.line.due() > self.now
        else:
            assert due <= self.now

    def advance(self, until: float) -> None:
        while True:
            while self.look():
                pass
            if self.ended is not None or self.line.due() > until:
                break
            self.now = self.line.due()
        self.now = max(self.now, until)

    def run(self) -> None:
        """Advance the clock until the stream has ended or nothing more is due."""
        while self.ended is None and self.line.due() < math.inf:
            self.advance(self.line.due())
        self.look()

    def check(self) -> None:
        assert self.fed.startswith(self.out)
        assert self.line.passed == len(self.out)
        assert self.line.queued == len(self.fed) - len(self.out)


def given_pieces(rig: Rig, parts: list[tuple[bytes, float]]) -> None:
    for data, wait in parts:
        rig.feed(data)
        rig.advance(rig.now + wait)
        rig.check()


steps = st.one_of(
    st.tuples(st.just("feed"), st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("look"), st.integers(1, 30)),
    st.tuples(st.just("wait"), seconds),
    st.tuples(st.just("set"), st.tuples(wires, st.none() | stalls)),
)
"""Any event of a byte stream except its end."""


def perform(rig: Rig, kind: str, what: Any) -> None:
    match kind:
        case "feed":
            rig.feed(what)
        case "look":
            rig.look(what)
        case "wait":
            rig.advance(rig.now + what)
        case "set":
            rig.line.configure(rig.now, *what)


@given(st.lists(steps, max_size=30), wires, st.sampled_from(["eof", "reset"]))
def test_whatever_happens_healed_all_is_there_and_at_once(
    script: list[tuple[str, Any]], wire: Wire, end: Ending
) -> None:
    rig = Rig(wire)
    for step in script:
        perform(rig, *step)
        rig.check()
        assert rig.ended is None
    rig.line.end(rig.now, end)
    healed = rig.now
    rig.line.configure(rig.now, CLEAN, None)
    rig.run()
    assert rig.out == rig.fed
    assert rig.ended == end
    assert rig.now == healed


@given(wires, pieces)
def test_every_wire_but_a_dropping_one_delivers_all_in_the_end(
    wire: Wire, parts: list[tuple[bytes, float]]
) -> None:
    rig = Rig(replace(wire, drop=False))
    given_pieces(rig, parts)
    rig.line.end(rig.now, "eof")
    rig.run()
    assert rig.out == rig.fed
    assert rig.ended == "eof"


@given(wires, pieces)
def test_no_byte_is_early(wire: Wire, parts: list[tuple[bytes, float]]) -> None:
    """Each byte leaves after its latency, and no earlier than the bandwidth allows."""
    rig = Rig(replace(wire, drop=False))
    came: list[float] = []
    for data, wait in parts:
        came += [rig.now] * len(data)
        rig.feed(data)
        rig.advance(rig.now + wait)
    rig.run()
    offset = 0
    for when, packet in rig.log:
        assert when >= came[offset + len(packet) - 1] + wire.latency - 1e-9
        offset += len(packet)
        if wire.bandwidth is not None:
            assert offset <= (when - rig.start) * wire.bandwidth * (1 + 1e-9) + 1e-3
        if wire.chunk is not None:
            assert len(packet) <= wire.chunk


@given(pieces, seconds, seconds)
def test_latency_delays_each_piece_apart(
    parts: list[tuple[bytes, float]], latency: float, jitter: float
) -> None:
    """A piece does not wait for the latency of another piece, however many are on their way."""
    rig = Rig(Wire(latency=latency, jitter=jitter))
    came = []
    for data, wait in parts:
        came.append(rig.now)
        rig.feed(data)
        rig.advance(rig.now + wait)
    rig.run()
    assert [packet for _, packet in rig.log] == [data for data, _ in parts]
    for (when, _), began in zip(rig.log, came, strict=True):
        latest = max(one for one in came if one <= began) + latency + jitter
        assert began + latency <= when + 1e-9
        assert when <= latest + 1e-9


@given(pieces, cuts, wires)
def test_a_cut_lets_exactly_so_many_bytes_through(
    parts: list[tuple[bytes, float]], cut: Cut, wire: Wire
) -> None:
    rig = Rig(replace(wire, drop=False), cut)
    given_pieces(rig, parts)
    rig.line.end(rig.now, "eof")
    rig.run()
    assert rig.out == rig.fed[: cut.after]
    assert rig.ended == (cut if len(rig.fed) >= cut.after else "eof")


@given(pieces, stalls, wires)
def test_a_stall_does_and_flows_on_when_healed(
    parts: list[tuple[bytes, float]], stall: Cut, wire: Wire
) -> None:
    wire = replace(wire, drop=False)
    rig = Rig(wire, stall)
    given_pieces(rig, parts)
    rig.run()
    assert rig.out == rig.fed[: stall.after]
    rig = Rig(wire, stall)
    given_pieces(rig, parts)
    rig.line.configure(rig.now, wire, None)
    rig.run()
    assert rig.out == rig.fed


@given(pieces, wires)
def test_nothing_passes_a_dropping_wire_neither_bytes_nor_ends(
    parts: list[tuple[bytes, float]], wire: Wire
) -> None:
    rig = Rig(replace(wire, drop=True))
    given_pieces(rig, parts)
    rig.line.end(rig.now, "reset")
    rig.run()
    assert (rig.out, rig.ended) == (b"", None)


def test_a_line_is_clear_while_nothing_stands_in_between() -> None:
    rig = Rig()
    clear = [rig.line.clear]
    rig.line.went_past(3)
    rig.line.feed(rig.now, b"ab")
    clear.append(rig.line.clear)
    for _ in range(2):
        rig.line.sent(1)
        clear.append(rig.line.clear)
    assert clear == [True, False, False, True]
    assert rig.line.passed == 5


@pytest.mark.parametrize(("wire", "cut"), [(Wire(latency=1), None), (CLEAN, Cut(9, "eof", "up"))])
def test_a_line_with_a_fault_is_not_clear(wire: Wire, cut: Cut | None) -> None:
    line = Rig().line
    clear = []
    for settings in ((wire, cut), (CLEAN, None)):
        line.configure(0.0, *settings)
        clear.append(line.clear)
    assert clear == [False, True]


def test_what_passed_before_counts_for_a_cut() -> None:
    rig = Rig()
    rig.line.went_past(10)
    rig.line.configure(rig.now, CLEAN, Cut(12, "reset", "up"))
    rig.feed(b"abcdef")
    rig.run()
    assert rig.log == [(rig.start, b"ab")]
    assert rig.ended == Cut(12, "reset", "up")


def test_a_connection_past_the_offset_is_cut_at_once() -> None:
    rig = Rig()
    rig.line.went_past(10)
    cut = Cut(3, "eof", "up")
    rig.line.configure(rig.now, Wire(drop=True), cut)
    assert rig.line.due() <= rig.now
    assert rig.line.ready(rig.now) == cut


def test_coalesced_by_size() -> None:
    rig = Rig(Wire(coalesce=(6, 5.0)))
    for data in (b"ab", b"cd"):
        rig.feed(data)
        assert not rig.look()
    assert rig.line.due() == rig.start + 5
    rig.feed(b"efg")
    rig.run()
    assert rig.log == [(rig.start, b"abcdefg")]


def test_coalesced_by_time_from_the_oldest_on() -> None:
    rig = Rig(Wire(coalesce=(100, 5.0), latency=1.0))
    rig.feed(b"ab")
    rig.advance(rig.now + 3)
    rig.feed(b"cd")
    rig.advance(rig.now + 20)
    rig.feed(b"ef")
    rig.run()
    assert rig.log == [(rig.start + 6, b"abcd"), (rig.start + 29, b"ef")]


def test_an_end_releases_what_is_held() -> None:
    rig = Rig(Wire(coalesce=(100, 5.0)))
    rig.feed(b"ab")
    rig.line.end(rig.now, "eof")
    rig.run()
    assert (rig.now, rig.out, rig.ended) == (rig.start, b"ab", "eof")


@pytest.mark.parametrize("wire", [CLEAN, Wire(coalesce=(3, 60.0))])
def test_another_setting_releases_what_is_held(wire: Wire) -> None:
    rig = Rig(Wire(coalesce=(100, 60.0)))
    rig.feed(b"abc")
    rig.line.configure(rig.now, wire, None)
    rig.run()
    assert rig.log == [(rig.start, b"abc")]


def test_an_end_of_file_is_held_back_and_a_reset_is_not() -> None:
    rig = Rig(Wire(close_delay=2.0, latency=1.0))
    rig.line.end(rig.now, "eof")
    assert rig.line.due() == rig.start + 3
    rig.line.end(rig.now, "reset")
    assert rig.line.due() == rig.start + 1
    rig.line.end(rig.now, "eof")
    rig.run()
    assert (rig.now, rig.ended) == (rig.start + 1, "reset")


def test_an_end_comes_after_all_bytes_even_later_ones() -> None:
    rig = Rig(Wire(latency=1.0))
    rig.feed(b"ab")
    rig.line.end(rig.now, "reset")
    rig.feed(b"cd")
    rig.run()
    assert (rig.out, rig.ended) == (b"abcd", "reset")


def test_a_bandwidth_gives_no_credit_for_the_past() -> None:
    rig = Rig(Wire(drop=True))
    rig.feed(bytes(1000))
    rig.now += 60
    rig.line.configure(rig.now, Wire(bandwidth=100.0), None)
    rig.advance(rig.now + 1)
    assert 98 <= len(rig.out) <= 100


def test_woken_late_it_makes_up_for_that() -> None:
    rig = Rig(Wire(bandwidth=100.0))
    rig.feed(bytes(1000))
    rig.now += 2
    rig.look()
    assert len(rig.out) == 200


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Wire(latency=-1), "latency must be a finite number of seconds, at least 0, not -1"),
        (lambda: Wire(latency=math.nan), "latency"),
        (lambda: Wire(jitter=math.inf), "jitter"),
        (lambda: Wire(close_delay=-0.1), "close_delay"),
        (lambda: Wire(bandwidth=0), "bandwidth must be a finite number of bytes per second, above 0, not 0"),
        (lambda: Wire(bandwidth=-5), "bandwidth"),
        (lambda: Wire(chunk=0), "chunk must be a whole number, at least 1, not 0"),
        (lambda: Wire(chunk=1.5), "chunk"),  # type: ignore[arg-type]
        (lambda: Wire(coalesce=(0, 1.0)), "coalesce's size"),
        (lambda: Wire(coalesce=(1, -1.0)), "coalesce's wait"),
        (lambda: Cut(-1, "eof", "up"), "a cut's offset must be a whole number, at least 0, not -1"),
        (lambda: Cut(1, "bang", "up"), "a cut's how must be one of eof, reset, stall, not 'bang'"),  # type: ignore[arg-type]
        (lambda: Cut(1, "eof", "left"), "a direction must be one of up, down, not 'left'"),  # type: ignore[arg-type]
        (lambda: Cut(1, "eof", "up", -1), "a connection's number"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ChaosError) as caught:
        make()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whom_a_cut_concerns() -> None:
    assert Cut(1, "eof", "up").concerns("up", 7)
    assert not Cut(1, "eof", "up").concerns("down", 7)
    assert Cut(1, "eof", "down", 7).concerns("down", 7)
    assert not Cut(1, "eof", "down", 7).concerns("down", 8)
