"""Tests of `pgha demo` on a terminal: the picture, the keys, manual faults, and the command itself."""

from __future__ import annotations

import os
import pty
import re
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import pytest
from support.common import eventually, within
from support.terminal import PATIENCE as TERMINAL_PATIENCE
from support.terminal import Terminal, left_over

import pgha
from pgha import chaos
from pgha._rows.columns import NO_COLUMNS
from pgha.cli._demo.board import SAMPLES, Board, rows
from pgha.cli._demo.command import _view as view_for
from pgha.cli._demo.draw import frame
from pgha.cli._demo.faults import Fault, Refused, Saboteur
from pgha.cli._demo.glyphs import ASCII, UNICODE, Glyphs, glyphs_for, log_sparkline, sparkline
from pgha.cli._demo.keyboard import Decoder, listen, unbuffered
from pgha.cli._demo.live import LiveView
from pgha.cli._demo.summary import Options
from pgha.cli._demo.view import PlainView, View
from pgha.cli._demo.workload import Move, Recorder, Second

BOTH = pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
LOOPS = pytest.mark.parametrize("loop", ["asyncio", "trio"])


# The picture, from made-up data


def status(name: str, state: str = "up", latency: float | None = 0.0012) -> pgha.NodeStatus:
    return pgha.NodeStatus(
        name=name,
        state=state,  # type: ignore[arg-type]
        role="primary",
        state_for=1.0,
        reason="",
        latency=latency,
        server_version=180004,
        read_connections=2,
        write_connections=1,
        in_flight=0,
    )


def changed(node: str, before: str, state: str, reason: str = "") -> pgha.NodeStateChanged:
    return pgha.NodeStateChanged(at=0.0, node=node, state=state, before=before, reason=reason)  # type: ignore[arg-type]


def busy(nodes: int = 3, rate: float = 2345.6) -> Board:
    """Return a board in the middle of the workload; n2 was killed, with a long message of its server."""
    board = Board(f"{nodes} masters, asyncio, seed 4711", rows(f"n{i}" for i in range(1, nodes + 1)), 15)
    board.keys, board.running, board.elapsed, board.writer = True, True, 7.2, "n1"
    board.second, board.retried, board.gap = Second(7.0, rate, 0.0031, 0.0123), 12, 0.123
    for row in board.rows:
        row.port, row.status = 54321, status(row.name)
        row.rates.extend([rate] * 40)
        row.latencies.extend([0.0021, None] * 20)
    board.tell(None, "note", "n1, n2, n3 started in 0.8 s and replicate to each other.")
    board.fault(Fault(6.5, "kill", "n2", at_writer=True))
    board.rows[1].status = status("n2", "down")
    board.changed(6.51, changed("n2", "up", "down", "server closed the connection unexpectedly\n" * 9), "->")
    for second in range(4):
        board.tell(7.0 + second / 10, "move", f"writes continue on n1 after {second} ms")
    return board


def text(board: Board, width: int, height: int = 24, glyphs: Glyphs = UNICODE) -> str:
    return "\n".join(line.plain for line in frame(board, width, height, glyphs))


@BOTH
@pytest.mark.parametrize("stage", ["start", "load", "check", "end"])
@pytest.mark.parametrize("nodes", [2, 9])
def test_no_line_is_wider_than_the_terminal_and_none_is_too_many(
    glyphs: Glyphs, stage: str, nodes: int
) -> None:
    board = busy(nodes)
    if stage != "load":
        board.running, board.over = False, stage == "end"
        board.stage = "The faults are over. Waiting for replication, then checking every node"
    if stage == "start":
        for row in board.rows:
            row.status = row.port = None
    for width in range(1, 140):
        for height in (1, 4, 11, 24, 60):
            lines = frame(board, width, height, glyphs)
            assert len(lines) <= height
            assert max(line.cell_len for line in lines) <= width, (width, height)
            if glyphs is ASCII:
                assert all(line.plain.isascii() for line in lines)


ESSENTIAL = {"n1", "n2", "n3", "killed", "up", "0 errors", "2,346", "7.2 / 15 s", "k kill", "q end"}
AT_80 = {
    "role",
    "primary",
    "latency",
    "2.1 ms",
    "54321",
    "longest gap 123 ms",
    "kill n2, which takes the writes",
}


@BOTH
@pytest.mark.parametrize("width", [39, 79, 119])
def test_what_matters_is_shown_at_each_width(width: int, glyphs: Glyphs) -> None:
    board = busy()
    for row in board.rows:
        row.latencies.append(0.0021)
    shown = text(board, width, glyphs=glyphs)
    wanted = ESSENTIAL | (AT_80 if width >= 79 else set())
    wanted |= {"pgha sees", "runs", "down", "p99 12.3 ms"} if width >= 119 else set()
    assert {word for word in wanted if word not in shown} == set()
    assert glyphs.bars[-1] in shown
    assert f"n1 {glyphs.writes}" in shown


def test_nothing_moves_while_numbers_change() -> None:
    quiet, loud = text(busy(rate=0.0), 79).splitlines(), text(busy(rate=99_999.0), 79).splitlines()
    assert len(quiet) == len(loud)
    for before, after in zip(quiet[4:8], loud[4:8], strict=True):
        assert before.find("primary") == after.find("primary")
        assert len(before) == len(after)


def test_what_is_below_stands_still_while_more_happens() -> None:
    board = busy()
    many = len(text(board, 79).splitlines())
    board.happenings.clear()
    assert len(text(board, 79).splitlines()) == many


def test_an_error_is_not_shown_in_green() -> None:
    board = busy()
    for errors, style in ((0, "bold green"), (1, "bold white on red")):
        board.errors = errors
        numbers = frame(board, 79, 24, UNICODE)[2]
        start = numbers.plain.index(f"{errors} error")
        assert [span.style for span in numbers.spans if span.start == start] == [style]


def test_without_a_keyboard_no_keys_are_offered() -> None:
    board = busy()
    board.keys = False
    assert "kill  " not in text(board, 79).splitlines()[-1]
    assert "Ctrl-C end" in text(board, 79).splitlines()[-1]


def test_sparklines() -> None:
    assert sparkline([0, 50, None, 100, 200, -1], 0, 100, UNICODE) == "▁▅ ██▁"
    assert sparkline([0, 0], 0, 0, UNICODE) == "▁▁"
    assert log_sparkline([0.001, 0.01, 0.1, 9, 0], 0.001, 0.1, ASCII) == "_+##_"


@pytest.mark.parametrize(
    ("encoding", "environment", "expected"),
    [
        ("utf-8", {"LANG": "en_US.UTF-8"}, UNICODE),
        ("UTF8", {}, UNICODE),
        ("utf-8", {"LANG": "C", "LC_CTYPE": "C.UTF-8"}, ASCII),  # set by Python, not by the user
        ("utf-8", {"LANG": "en_US.UTF-8", "LC_ALL": "POSIX"}, ASCII),
        ("utf-8", {"LANG": "C", "LC_CTYPE": "de_DE.UTF-8"}, UNICODE),
        ("iso8859-1", {"LANG": "en_US.UTF-8"}, ASCII),
    ],
)
def test_characters_are_those_the_terminal_shows(
    encoding: str, environment: dict[str, str], expected: Glyphs
) -> None:
    assert glyphs_for(encoding, environment) is expected


# The record of events


def told(board: Board) -> list[str]:
    return [one.text for one in board.happenings]


def test_a_nodes_way_down_is_one_line_and_its_way_up_is_told_by_back() -> None:
    board = Board("", rows(["n1", "n2"]), 15)
    board.fault(Fault(1.0, "kill", "n1", at_writer=False, by_hand=True))
    board.changed(1.01, changed("n1", "up", "suspect", "FATAL\n  57P01"), "->")
    board.changed(1.02, changed("n1", "suspect", "down", "closed"), "->")
    board.changed(2.0, changed("n1", "down", "up"), "->")
    board.mending("n1")
    assert board.row("n1").held == "returning"
    board.back("n1", 2.1, 1.1)
    board.changed(2.1, changed("n1", "down", "up"), "->")
    assert board.row("n1").held is None
    assert told(board) == [
        "kill n1 by hand",
        "n1: up -> suspect -> down (FATAL 57P01)",
        "n1 is back after 1.1 s",
    ]


def test_a_change_without_a_fault_is_told() -> None:
    board = Board("", rows(["n1", "n2"]), 15)
    board.changed(1.0, changed("n1", "up", "suspect"), "->")
    board.changed(3.0, changed("n1", "suspect", "up"), "->")
    board.changed(3.1, changed("n2", "up", "down"), "->")
    assert told(board) == ["n1: up -> suspect", "n1: suspect -> up", "n2: up -> down"]


def test_happenings_are_in_the_order_of_time_and_bounded() -> None:
    board = Board("", rows(["n1"]), 15)
    board.tell(2.0, "note", "second")
    board.tell(1.0, "note", "first")
    board.tell(None, "note", "last")
    assert told(board) == ["first", "second", "last"]
    for number in range(1000):
        board.tell(float(number), "note", str(number))
    assert len(board.happenings) < 100
    assert board.happenings[-1].text == "999"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def answer(node: str, latency: float = 0.001) -> pgha.Result[tuple[int]]:
    return pgha.Result(
        [], columns=NO_COLUMNS, rowcount=0, command=b"", node=node, attempts=1, latency=latency
    )


def test_a_sample_counts_what_each_node_answered() -> None:
    clock, board = Clock(), Board("", rows(["n1", "n2", "n3"]), 15)
    recorder = Recorder(15.0, clock)
    recorder.begin()
    statuses = {"n1": status("n1"), "n2": status("n2"), "n3": status("n3", "down")}
    for latency in (0.001, 0.004, 0.002):
        recorder.succeeded("write", answer("n1", latency))
    clock.now += 0.1
    board.look(recorder, statuses, 5)
    assert not board.row("n1").rates  # too early for a sample
    clock.now += 0.9
    recorder.succeeded("write", answer("n2"))
    board.look(recorder, statuses, 5)
    assert [list(row.rates) for row in board.rows] == [[3.0], [1.0], [0.0]]
    # A node without answers has the latency of its pings, and a node that is down has none.
    assert [row.latencies[-1] for row in board.rows] == [0.002, 0.001, None]
    assert (board.rate, board.writer, board.retried, board.elapsed) == (4.0, "n2", 5, 1.0)
    assert recorder.moves == [Move(1.0, "n2", 1.0)]
    assert told(board) == ["writes continue on n2 after 1.0 s"]
    clock.now += 1.0
    board.look(recorder, statuses, 5)
    assert [list(row.rates) for row in board.rows] == [[3.0, 0.0], [1.0, 0.0], [0.0, 0.0]]
    assert len(told(board)) == 1
    for _ in range(2 * SAMPLES):
        clock.now += 0.5
        board.look(recorder, statuses, 5)
    assert len(board.row("n1").rates) == SAMPLES


def test_the_workload_can_be_ended_early() -> None:
    clock = Clock()
    recorder = Recorder(15.0, clock)
    recorder.begin()
    clock.now += 4.0
    before = recorder.over
    recorder.stop()
    assert (before, recorder.over) == (False, True)
    clock.now += 90.0
    recorder.stop()
    assert recorder.seconds == 4.0


# The keys


@pytest.mark.parametrize(
    ("chunks", "keys"),
    [
        ([b"2k"], ["2", "k"]),
        ([b"KFRQ"], ["k", "f", "r", "q"]),
        ([b"\x1b[A\x1b[B\x1bOA\x1b[C\x1b[D\t\x1b[Z"], ["up", "down", "up", "down", "up", "down", "up"]),
        ([b"\x1b", b"[", b"A", b"k"], ["up", "k"]),
        ([b"\x1b[15~\x1b[1;5Bk\x1b\x1b[Ak"], ["k", "up", "k"]),
        ([b"\x1a"], ["suspend"]),
        ([b" \r\n\x00\xff\xc3\xa4;."], []),
        ([b"\x1b[" + b";" * 40 + b"k"], ["k"]),
    ],
)
def test_bytes_become_keys(chunks: list[bytes], keys: list[str]) -> None:
    decoder = Decoder()
    assert [key for chunk in chunks for key in decoder.feed(chunk)] == keys


@contextmanager
def a_pty() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    try:
        yield ours, theirs
    finally:
        os.close(theirs)
        os.close(ours)


@pytest.mark.anyio
async def test_keys_are_heard_without_enter_and_the_terminal_is_as_it_was() -> None:
    with a_pty() as (ours, theirs), within(30):
        before = termios.tcgetattr(theirs)
        heard: list[str] = []
        with pytest.raises(KeyError), unbuffered(theirs):
            os.write(ours, b"2k\x1a\x13q")  # without Enter; Ctrl-Z and Ctrl-S are keys
            async with anyio.create_task_group() as tasks:

                def pressed(key: str) -> None:
                    heard.append(key)
                    if key == "q":
                        tasks.cancel_scope.cancel()

                tasks.start_soon(listen, theirs, pressed)
            assert not termios.tcgetattr(theirs)[tty.LFLAG] & termios.ECHO
            raise KeyError
        assert heard == ["2", "k", "suspend", "q"]
        assert termios.tcgetattr(theirs) == before


@pytest.mark.anyio
async def test_a_terminal_that_hangs_up_ends_the_keys() -> None:
    ours, theirs = pty.openpty()
    with within(30), unbuffered(theirs):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen, theirs, lambda key: None)
            await anyio.wait_all_tasks_blocked()
            os.close(ours)
    os.close(theirs)


# Manual faults


class Silent:
    """A view that records the faults instead of showing them."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def fault(self, fault: Fault) -> None:
        self.seen.append(f"{fault.kind} {fault.node}")

    def mending(self, node: str) -> None:
        self.seen.append(f"mending {node}")

    def back(self, node: str, at: float, away: float) -> None:
        assert 0 < away <= at
        self.seen.append(f"back {node}")


@pytest.mark.anyio
async def test_a_fault_by_hand_spares_the_last_healthy_node_and_is_healed() -> None:
    with within(60):
        async with chaos.masters(2) as nodes, anyio.create_task_group() as tasks:
            recorder, view = Recorder(60.0), Silent()
            recorder.begin()
            saboteur = Saboteur(nodes, recorder, view)
            with pytest.raises(Refused, match="no faults while no workload runs"):
                saboteur.strike("kill", "n1")
            named = [pgha.Node(node.dsn, name=node.name) for node in nodes]
            async with pgha.open_cluster(*named, min_ready=2) as cluster, cluster.events() as events:
                tasks.start_soon(saboteur.run, cluster, [])
                await anyio.wait_all_tasks_blocked()
                saboteur.strike("kill", "n1")
                with pytest.raises(Refused, match="n1 is already away"):
                    saboteur.strike("freeze", "n1")
                with pytest.raises(Refused, match="n2 is the last healthy node"):
                    saboteur.strike("freeze", "n2")
                async for event in events:
                    if isinstance(event, pgha.NodeStateChanged) and (event.node, event.state) == (
                        "n1",
                        "down",
                    ):
                        break
                await eventually(lambda: not nodes["n1"].running, 30)  # pgha may notice first
                assert nodes["n2"].running and not nodes["n2"].frozen
                saboteur.stop()  # stopping ends the hold now
                await eventually(lambda: "back n1" in view.seen, 30)
                assert cluster.nodes["n1"].state == "up"
            assert view.seen == ["kill n1", "mending n1", "back n1"]
            assert [(fault.kind, fault.node, fault.by_hand) for fault in saboteur.done] == [
                ("kill", "n1", True)
            ]
            assert recorder.errors == 0
            with pytest.raises(Refused, match="no faults while no workload runs"):
                saboteur.strike("kill", "n2")


# The command, on a terminal


@LOOPS
def test_a_key_kills_a_node_under_load_and_nobody_notices(loop: str) -> None:
    # The workload is long: its planned faults begin after minutes, so no node fails before the key.
    with Terminal("demo", "--seconds", "6000", "--loop", loop) as terminal:
        terminal.until("ops/s  ", "k kill")
        terminal.press("2")
        terminal.until("▸2 n2")
        terminal.press("k")
        terminal.until("kill n2 by hand", "✗ killed")
        terminal.press("\x1a")
        terminal.until("Ctrl-Z would spoil")
        terminal.until("n2 is back")
        terminal.press("q")
        assert terminal.end() == 0, terminal.text
        assert terminal.unchanged
    everything = terminal.everything
    assert ", 1 of them by hand" in everything
    assert "Nothing was lost, nothing doubled, and no caller saw an error." in everything
    assert "anyio.run(main)" in everything
    assert "Traceback" not in everything
    assert not terminal.cursor_hidden
    assert left_over(terminal) == []


def test_q_ends_the_workload_and_the_data_is_checked() -> None:
    with Terminal("demo", "--seconds", "600", "--nodes", "2", size=(40, 20)) as terminal:
        terminal.until("ops/s")
        terminal.press("q")
        assert terminal.end() == 0, terminal.text
    assert "Nothing was lost" in terminal.everything
    assert left_over(terminal) == []


@pytest.mark.parametrize(
    ("loop", "moment"),
    [
        ("asyncio", "Starting"),
        ("asyncio", "1-2 choose"),
        ("trio", "1-2 choose"),
        pytest.param("trio", "Starting", marks=pytest.mark.thorough),
    ],
)
def test_ctrl_c_leaves_the_terminal_as_it_was_and_nothing_behind(loop: str, moment: str) -> None:
    with Terminal("demo", "--nodes", "2", "--loop", loop) as terminal:
        terminal.until(moment)
        terminal.press("\x03")
        assert terminal.end() == 128 + signal.SIGINT, terminal.text
        assert terminal.unchanged
        assert not terminal.cursor_hidden
        assert "Traceback" not in terminal.everything
    assert left_over(terminal) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_signal_leaves_the_terminal_as_it_was(number: signal.Signals) -> None:
    with Terminal("demo", "--nodes", "2") as terminal:
        terminal.until("1-2 choose")
        terminal.process.send_signal(number)
        assert terminal.end() == 128 + number, terminal.text
        assert terminal.unchanged
        assert not terminal.cursor_hidden
    assert left_over(terminal) == []


def test_a_terminal_that_hangs_up_leaves_nothing_behind() -> None:
    with Terminal("demo", "--nodes", "2") as terminal:
        terminal.until("1-2 choose")
        terminal.hang_up()
        assert terminal.process.wait(TERMINAL_PATIENCE) != 0
    assert left_over(terminal) == []


def test_servers_that_do_not_start_are_told_in_one_line() -> None:
    with Terminal("demo", environment={"PGHA_BINDIR": "/nowhere"}) as terminal:
        assert terminal.end() == 1
        lines = [line for line in terminal.text.splitlines() if line.strip()]
        assert " ".join(lines).startswith("pgha demo: PGHA_BINDIR=/nowhere holds no PostgreSQL")
        assert len(lines) == 2  # of 80 columns
        assert terminal.unchanged
    assert left_over(terminal) == []


@pytest.mark.parametrize("arguments", [("--plain",), pytest.param((), marks=pytest.mark.thorough)])
def test_lines_when_asked_for_or_when_the_terminal_is_dumb(
    arguments: tuple[str, ...],
) -> None:
    environment = {} if arguments else {"TERM": "dumb"}
    with Terminal("demo", "--nodes", "2", "--seconds", "1", *arguments, environment=environment) as terminal:
        assert terminal.end() == 0, terminal.text
    assert "\x1b" not in terminal.raw
    assert re.search(r" 1\.\d\d s ", terminal.raw)
    assert left_over(terminal) == []


@pytest.mark.parametrize(
    ("terminal", "plain", "expected"),
    [("xterm-256color", False, LiveView), ("xterm-256color", True, PlainView), ("dumb", False, PlainView)],
)
def test_the_picture_is_for_terminals_that_can_move_their_cursor(
    terminal: str, plain: bool, expected: type[View], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", terminal)
    with a_pty() as (_, theirs), open(theirs, "w", closefd=False) as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert type(view_for(Options(15, 3, 1, "asyncio"), plain)) is expected


@pytest.mark.parametrize("colour", [True, False])
def test_a_picture_without_colour(colour: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    if colour:
        monkeypatch.delenv("NO_COLOR", raising=False)
    else:
        monkeypatch.setenv("NO_COLOR", "1")
    with a_pty() as (_, theirs), open(theirs, "w", closefd=False) as output:
        monkeypatch.setattr(sys, "stdout", output)
        view = view_for(Options(15, 3, 1, "asyncio"), False)
        assert isinstance(view, LiveView)
        with view._console.capture() as shown:
            for line in frame(busy(), 79, 24, UNICODE):
                view._console.print(line)
    assert ("\x1b[1;31m" in shown.get()) is colour
    assert any(code in shown.get() for code in COLOURS) is colour


COLOURS = {f"\x1b[{more}{code}m" for more in ("", "1;", "2;") for code in range(30, 48)}


@pytest.mark.thorough
def test_without_colour_there_is_none() -> None:
    environment = {"NO_COLOR": "1", "LANG": "C", "LC_ALL": "C"}
    with Terminal("demo", "--nodes", "2", "--seconds", "1", environment=environment) as terminal:
        assert terminal.end() == 0, terminal.text
    assert not [colour for colour in COLOURS if colour in terminal.raw]
    assert terminal.raw.isascii()
    assert left_over(terminal) == []
