"""Tests of the reading of a server's status: by the names of the columns, and whatever is missing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgha._core.server_status import Columns, ServerStatus, server_status

quick = settings(deadline=None, max_examples=150)

PRIMARY: Columns = {
    "in_recovery": b"f",
    "read_only": b"off",
    "clock": b"1700000000.25",
    "system": b"7300000000000000001",
    "position": b"16/B374D848",
    "durable": b"16/B374D000",
    "wal_file": b"0000000A0000001600000B37",
    "replay_age": None,
    "received_timeline": None,
    "checkpoint_timeline": None,
}
STANDBY: Columns = {
    "in_recovery": b"t",
    "read_only": b"off",
    "clock": b"1700000000.25",
    "system": b"7300000000000000001",
    "position": b"0/30000A0",
    "durable": b"0/3000100",
    "wal_file": None,
    "replay_age": b"1.5",
    "received_timeline": b"3",
    "checkpoint_timeline": b"2",
}


def test_a_primary() -> None:
    assert server_status(PRIMARY) == ServerStatus(
        in_recovery=False,
        read_only=False,
        system=7300000000000000001,
        timeline=10,
        position=0x16B374D848,
        durable=0x16B374D000,
        replay_age=None,
        clock=1700000000.25,
    )
    assert server_status(PRIMARY).role == "primary"


def test_a_standby() -> None:
    assert server_status(STANDBY) == ServerStatus(
        in_recovery=True,
        read_only=False,
        system=7300000000000000001,
        timeline=3,
        position=0x30000A0,
        durable=0x3000100,
        replay_age=1.5,
        clock=1700000000.25,
    )
    assert server_status(STANDBY).role == "standby"


def test_the_order_of_the_columns_is_of_no_matter() -> None:
    assert server_status(dict(reversed(list(STANDBY.items())))) == server_status(STANDBY)


def test_read_only_is_apart_from_standby() -> None:
    for columns, role in ((PRIMARY, "primary"), (STANDBY, "standby")):
        status = server_status({**columns, "read_only": b"on"})
        assert (status.read_only, status.role) == (True, role)


def test_a_promoted_server_whose_control_file_is_behind() -> None:
    assert server_status({**PRIMARY, "checkpoint_timeline": b"9"}).timeline == 10


def test_a_standby_whose_receiver_may_not_be_read() -> None:
    assert server_status({**STANDBY, "received_timeline": None}).timeline == 2


def test_nothing_told() -> None:
    assert server_status({}) == ServerStatus()


@pytest.mark.parametrize("name", PRIMARY)
@pytest.mark.parametrize("value", [b"", b"x", b"-1", b"0", b"/", b"G/0", b"0/", b"nan", b"inf", b"\xff"])
def test_what_is_not_understood_tells_nothing(name: str, value: bytes) -> None:
    """No answer, however strange, is an error: the node would go down because of it."""
    status = server_status({**STANDBY, name: value})
    assert isinstance(status, ServerStatus)
    assert status.system in (None, 7300000000000000001)
    assert status.timeline in (2, 3)


@quick
@given(st.dictionaries(st.sampled_from(list(PRIMARY)), st.none() | st.binary(max_size=24)))
def test_any_answer(columns: dict[str, bytes | None]) -> None:
    status = server_status(columns)
    assert status.role == ("standby" if columns.get("in_recovery") == b"t" else "primary")
    assert status.timeline is None or status.timeline > 0
    assert status.system is None or status.system > 0


@quick
@given(st.integers(0, 2**64 - 1), st.integers(1, 2**32 - 1))
def test_positions_and_timelines(position: int, timeline: int) -> None:
    columns = {
        "position": b"%X/%X" % (position >> 32, position & 0xFFFFFFFF),
        "wal_file": b"%08X%08X%08X" % (timeline, position >> 32, (position & 0xFFFFFFFF) >> 24),
    }
    status = server_status(columns)
    assert (status.position, status.timeline) == (position, timeline)
