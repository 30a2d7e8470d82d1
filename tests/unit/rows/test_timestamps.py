"""Tests of PostgreSQL's dates and timestamps as ISO 8601 and as seconds, against separate arithmetic."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgha._rows.timestamps import NotIso, epoch, iso

quick = settings(deadline=None, max_examples=300)

BEGINNING, END = -4712, 294276
"""PostgreSQL's years in astronomical counting: 0 is 1 BC."""
DAY = 86_400


def days(year: int, month: int, day: int) -> int:
    """Return the days since 1970 in the unlimited Gregorian calendar (Hinnant's days_from_civil)."""
    year -= month <= 2
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


def seconds(text: str) -> Decimal:
    """Return the number that `epoch` wrote: a JSON number without an exponent."""
    number = epoch(text)
    assert "e" not in number.lower() and not number.startswith("+") and not number.endswith(".")
    return Decimal(number)


def server_date(year: int, month: int, day: int, time: str = "") -> str:
    """Return the text that PostgreSQL's EncodeDateTime writes in DateStyle ISO."""
    shown = year if year > 0 else 1 - year
    return f"{shown:04d}-{month:02d}-{day:02d}{time}{' BC' if year <= 0 else ''}"


def server_offset(minutes_east: int, second: int = 0) -> str:
    sign = "-" if minutes_east < 0 or second < 0 else "+"
    hours, minutes = divmod(abs(minutes_east), 60)
    text = f"{sign}{hours:02d}"
    if minutes or second:
        text += f":{minutes:02d}"
    return text + (f":{abs(second):02d}" if second else "")


dates = st.tuples(st.integers(BEGINNING, END), st.integers(1, 12), st.integers(1, 28))
fractions = st.integers(0, 999_999)


def shown_fraction(microsecond: int) -> str:
    """Return the fraction without zeros at the end, like the server."""
    return f".{microsecond:06d}".rstrip("0") if microsecond else ""


@quick
@given(dates)
@example((0, 2, 28))
@example((1, 1, 1))
@example((9999, 12, 28))
@example((10000, 1, 1))
@example((-4712, 1, 1))
def test_epoch_of_dates(when: tuple[int, int, int]) -> None:
    assert seconds(server_date(*when)) == days(*when) * DAY


@pytest.mark.parametrize("year", [-4712, -400, -4, 0, 4, 400, 1600, 2000, 2024, 10000, 200000])
def test_leap_days(year: int) -> None:
    """Convert leap days of years before 1 and after 9999 too; 1 BC is a leap year."""
    assert seconds(server_date(year, 2, 29)) == days(year, 2, 29) * DAY
    assert iso(server_date(year, 2, 29)).endswith('-02-29"')


@quick
@given(dates, st.integers(0, DAY - 1), fractions, st.none() | st.integers(-15 * 60, 15 * 60))
@example((1969, 12, 31), DAY - 1, 500_000, None)
@example((1969, 12, 31), DAY - 1, 999_999, 0)
@example((1, 1, 1), 0, 0, 330)
@example((9999, 12, 28), DAY - 1, 999_999, -330)
@example((0, 12, 28), DAY - 1, 1, -900)
def test_epoch_of_timestamps(
    when: tuple[int, int, int], second: int, microsecond: int, offset: int | None
) -> None:
    clock = str(timedelta(seconds=second)).rjust(8, "0")
    zone = "" if offset is None else server_offset(offset)
    text = server_date(*when, f" {clock}{shown_fraction(microsecond)}{zone}")
    expected = Decimal(days(*when) * DAY + second - (offset or 0) * 60)
    assert seconds(text) == expected + Decimal(microsecond) / 1_000_000


@quick
@given(st.datetimes(timezones=st.none()), st.integers(-900, 900), st.integers(-59, 59))
def test_offsets_with_seconds(moment: datetime, minutes: int, second: int) -> None:
    """Convert offsets with seconds, which local mean times had before there were time zones."""
    second = abs(second) if minutes >= 0 else -abs(second)
    offset = timedelta(minutes=minutes, seconds=second)
    text = (
        f"{moment.year:04d}-{moment:%m-%d %H:%M:%S}{shown_fraction(moment.microsecond)}"
        f"{server_offset(minutes, second)}"
    )
    naive = moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    assert seconds(text) == Decimal((naive - offset) // timedelta(microseconds=1)) / 1_000_000
    assert datetime.fromisoformat(iso(text)[1:-1]) == moment.replace(tzinfo=timezone(offset))


@quick
@given(st.datetimes())
def test_iso_is_what_python_reads(moment: datetime) -> None:
    text = f"{moment.year:04d}-{moment:%m-%d %H:%M:%S}{shown_fraction(moment.microsecond)}"
    assert datetime.fromisoformat(iso(text)[1:-1]) == moment
    assert iso(text)[1:-1] == text.replace(" ", "T")


@quick
@given(st.dates())
def test_iso_dates(day: date) -> None:
    text = day.isoformat()
    assert iso(text) == f'"{text}"'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2020-01-02", "2020-01-02"),
        ("2020-01-02 03:04:05", "2020-01-02T03:04:05"),
        ("2020-01-02 03:04:05.5", "2020-01-02T03:04:05.5"),
        ("2020-01-02 03:04:05.000001", "2020-01-02T03:04:05.000001"),
        ("2020-01-02 03:04:05+00", "2020-01-02T03:04:05+00:00"),
        ("2020-01-02 03:04:05.123456-11", "2020-01-02T03:04:05.123456-11:00"),
        ("2020-01-02 03:04:05+05:30", "2020-01-02T03:04:05+05:30"),
        ("2020-01-02 03:04:05.25-03:30", "2020-01-02T03:04:05.25-03:30"),
        ("1900-01-02 03:04:05-00:43:08", "1900-01-02T03:04:05-00:43:08"),
        ("0044-03-15 BC", "-0043-03-15"),
        ("0001-03-15 BC", "0000-03-15"),
        ("4713-11-24 BC", "-4712-11-24"),
        ("0044-03-15 12:00:00 BC", "-0043-03-15T12:00:00"),
        ("0044-03-15 12:00:00.5 BC", "-0043-03-15T12:00:00.5"),
        ("0044-03-15 12:00:00+00 BC", "-0043-03-15T12:00:00+00:00"),
        ("0044-03-15 12:00:00.5-00:43:08 BC", "-0043-03-15T12:00:00.5-00:43:08"),
        ("10000-01-01", "+10000-01-01"),
        ("10000-01-01 00:00:00", "+10000-01-01T00:00:00"),
        ("294276-12-31 23:59:59.999999+00", "+294276-12-31T23:59:59.999999+00:00"),
        ("294276-12-31 23:59:59.999999+05:30", "+294276-12-31T23:59:59.999999+05:30"),
    ],
)
def test_iso(text: str, expected: str) -> None:
    assert iso(text) == f'"{expected}"'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01", "0"),
        ("1970-01-01 00:00:00+00", "0"),
        ("1969-12-31 23:59:59.5", "-0.5"),
        ("1969-12-31 23:59:59.999999+00", "-0.000001"),
        ("1970-01-01 00:00:00.000001", "0.000001"),
        ("1970-01-01 00:00:00.1", "0.1"),
        ("1970-01-01 05:30:00+05:30", "0"),
        ("1969-12-31 23:16:52-00:43:08", "0"),
        ("294276-12-31 23:59:59.999999", "9224318015999.999999"),
        ("4714-11-24 00:00:00 BC", "-210866803200"),
    ],
)
def test_epoch(text: str, expected: str) -> None:
    """Convert timestamps to seconds. The last two are PostgreSQL's texts of its last and first timestamp."""
    assert epoch(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "01/02/2020",
        "02.01.2020",
        "01-02-2020",
        "01/02/2020 03:04:05",
        "01/02/2020 03:04:05.25 UTC",
        "02.01.2020 03:04:05 CET",
        "Thu Jan 02 03:04:05 2020",
        "Thu 02 Jan 03:04:05.25 2020 UTC",
        "15-03-0044 BC",
        "01-02-12020",
        "infinity",
        "-infinity",
        "",
        "2020",
    ],
)
def test_other_styles(text: str) -> None:
    for write in (iso, epoch):
        with pytest.raises(NotIso, match="DateStyle") as caught:
            write(text)
        assert repr(text) in str(caught.value)
