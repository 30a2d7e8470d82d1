"""Convert PostgreSQL's ISO output of dates and timestamps to ISO 8601 or to seconds since 1970.

PostgreSQL supports the years from 4713 BC to 294276, Python's datetime only 1 to 9999.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_SHAPE = re.compile(
    r"(\d{4,})-(\d\d)-(\d\d)(?: (\d\d:\d\d:\d\d)(?:\.(\d{1,6}))?([+-]\d\d(?::\d\d){0,2})?)?( BC)?"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_CYCLE = 400
"""Years after which the calendar repeats: 146097 days."""
_CYCLE_MICROSECONDS = 146_097 * 86_400 * 1_000_000


class NotIso(ValueError):
    """Raised for a text that is not in PostgreSQL's ISO form."""


def _taken_apart(text: str) -> tuple[str | None, ...]:
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise NotIso(f"{text!r} is not in ISO form: set the connection's DateStyle to ISO")
    return match.groups()


def iso(text: str) -> str:
    """Return quoted ISO 8601; years outside of 1 to 9999 in the expanded form (-0043 is 44 BC)."""
    if text[4:5] == "-":
        # The common forms, handled quickly: a timestamptz (its offset gets minutes: some parsers reject +00),
        # a date, a timestamp.
        if text[10:11] == " " and text[-3] in "+-":
            return f'"{text[:10]}T{text[11:]}:00"'
        if len(text) == 10:
            return f'"{text}"'
        if len(text) == 19 or text[20:].isdigit():
            return f'"{text[:10]}T{text[11:]}"'
    year, month, day, time, fraction, offset, bc = _taken_apart(text)
    number = -(int(year or "") - 1) if bc else int(year or "")
    sign = "+" if number > 9999 else "-" if number < 0 else ""
    written = f"{sign}{abs(number):04d}-{month}-{day}"
    if time is not None:
        written += f"T{time}" + (f".{fraction}" if fraction else "")
        if offset is not None:
            written += offset if len(offset) > 3 else f"{offset}:00"
    return f'"{written}"'


def epoch(text: str) -> str:
    """Return seconds since 1970, exact to the microsecond.

    A value without a time zone is taken as UTC, as PostgreSQL's ``extract(epoch FROM ...)`` does.
    """
    year, month, day, time, fraction, offset, bc = _taken_apart(text)
    number = -(int(year or "") - 1) if bc else int(year or "")
    cycles = 0 if 1 < number < 9999 else number // _CYCLE - 5
    moment = datetime.fromisoformat(
        f"{number - cycles * _CYCLE:04d}-{month}-{day}T{time or '00:00:00'}"
        f".{(fraction or '').ljust(6, '0')}{offset or '+00:00'}"
    )
    microseconds = (moment - _EPOCH) // _MICROSECOND + cycles * _CYCLE_MICROSECONDS
    seconds, rest = divmod(abs(microseconds), 1_000_000)
    sign = "-" if microseconds < 0 else ""
    return f"{sign}{seconds}" + (f".{rest:06d}".rstrip("0") if rest else "")
