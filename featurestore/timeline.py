"""Time, in one unit: an instant is an int of microseconds since 1970-01-01 UTC, an interval is half-open [start, end).

Rules:
    1. Inside the package every time is an ``Instant`` (int64 microseconds UTC, negative before 1970). Datetimes and texts
       are converted once, at the edge, and a naive one is refused.
    2. A duration is an int of microseconds too; users write "5m". The units are fixed lengths: a day is 86,400 s, in summer
       and winter, in leap years or not.
    3. Flooring goes towards minus infinity, so tiles before 1970 line up with those after it.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeAlias

from featurestore.errors import DefinitionError

Instant: TypeAlias = int
"""Microseconds since the epoch, UTC."""
Duration: TypeAlias = int
"""Microseconds."""

MICROSECOND: Duration = 1
MILLISECOND: Duration = 1_000
SECOND: Duration = 1_000_000
MINUTE: Duration = 60 * SECOND
HOUR: Duration = 60 * MINUTE
DAY: Duration = 24 * HOUR
WEEK: Duration = 7 * DAY

MIN_INSTANT: Instant = -(2**63)
"""Stands for 'no event yet' in stored partials; not a time anybody can pass in."""
MAX_INSTANT: Instant = 2**63 - 1

_UNITS: dict[str, Duration] = {"us": 1, "ms": MILLISECOND, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY, "w": WEEK}
_DURATION = re.compile(r"([0-9]+)(us|ms|s|m|h|d|w)")
_LONGEST: Duration = 10_000 * 366 * DAY
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_duration(text: str | timedelta) -> Duration:
    """Return the microseconds of a duration such as ``"5m"``, ``"1h30m"`` or a timedelta.

    Args:
        text: One or more of number + unit, largest unit first or not; units are us, ms, s, m, h, d (24 h) and w (7 d).

    Raises:
        DefinitionError: The text is empty, has another unit, or the duration is not positive or beyond 10,000 years.

    >>> parse_duration("5m")
    300000000
    >>> parse_duration("1h30m") == 90 * MINUTE
    True
    """
    if isinstance(text, timedelta):
        duration = text // timedelta(microseconds=1)
    else:
        if not isinstance(text, str) or not re.fullmatch(r"([0-9]+(us|ms|s|m|h|d|w))+", text.strip()):
            raise DefinitionError(
                f"duration {text!r} is not understood.",
                hint="write a number and a unit out of us, ms, s, m, h, d, w; for example '5m', '1h30m' or '7d'.",
            )
        duration = sum(int(number) * _UNITS[unit] for number, unit in _DURATION.findall(text.strip()))
    if duration <= 0:
        raise DefinitionError(f"duration {text!r} is not positive.")
    if duration > _LONGEST:
        raise DefinitionError(
            f"duration {text!r} is longer than 10,000 years.", hint='write "lifetime" for a window without end.'
        )
    return duration


def format_duration(duration: Duration) -> str:
    """Return the shortest text of a duration in one unit where that is exact, else in several.

    >>> format_duration(300_000_000), format_duration(90 * MINUTE), format_duration(DAY), format_duration(7 * DAY)
    ('5m', '90m', '1d', '7d')
    """
    for unit in ("d", "h", "m", "s", "ms"):
        if duration and duration % _UNITS[unit] == 0:
            return f"{duration // _UNITS[unit]}{unit}"
    return f"{duration}us"


def floor_to(instant: Instant, hop: Duration) -> Instant:
    """Return the newest multiple of ``hop`` that is not after ``instant``; a true floor, also before 1970.

    >>> floor_to(7, 5), floor_to(-1, 5), floor_to(-5, 5)
    (5, -5, -5)
    """
    return instant - instant % hop


def to_instant(moment: datetime | str | int, *, name: str = "time") -> Instant:
    """Return the instant of an aware datetime, an ISO 8601 text with an offset, or an int of microseconds.

    Args:
        moment: The time. ``2013-01-01T05:15:00Z`` and ``2013-01-01T00:15:00-05:00`` are the same instant.
        name: What the message calls it.

    Raises:
        DefinitionError: The time is naive, or the text is not ISO 8601.
    """
    if isinstance(moment, bool) or not isinstance(moment, (int, str, datetime)):
        raise DefinitionError(f"{name} {moment!r} is not a time.", hint="pass an aware datetime or microseconds.")
    if isinstance(moment, int):
        return moment
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError:
            raise DefinitionError(
                f"{name} {moment!r} is not ISO 8601.", hint="write it like 2013-01-01T05:15:00Z."
            ) from None
    if moment.tzinfo is None:
        raise DefinitionError(
            f"{name} {moment.isoformat()} has no time zone.",
            hint="append Z or an offset, or use datetime(..., tzinfo=UTC); a naive time means a different instant on "
            "every machine.",
        )
    return (moment - _EPOCH) // timedelta(microseconds=1)


def to_datetime(instant: Instant) -> datetime:
    """Return the aware UTC datetime of an instant."""
    return _EPOCH + timedelta(microseconds=instant)


def format_instant(instant: Instant) -> str:
    """Return ISO 8601 in UTC with a Z, seconds or microseconds as needed; outside the years 1 to 9999, the number.

    >>> format_instant(0), format_instant(1_500_000)
    ('1970-01-01T00:00:00Z', '1970-01-01T00:00:01.500000Z')
    """
    try:
        return to_datetime(instant).isoformat().replace("+00:00", "Z")
    except OverflowError:
        return f"{instant}us"


@dataclass(frozen=True, slots=True)
class Interval:
    """Half-open [start, end): start is in, end is out. ``start=None`` reaches back without end."""

    start: Instant | None
    end: Instant

    def __contains__(self, instant: Instant) -> bool:
        return (self.start is None or self.start <= instant) and instant < self.end


class Clock(Protocol):
    """Tells the time; injected wherever time is read, so that tests and replays own it."""

    def now(self) -> Instant:
        """Return the current instant."""


class SystemClock:
    """The machine's wall clock."""

    def now(self) -> Instant:
        """Return the current instant."""
        return time.time_ns() // 1_000


@dataclass(slots=True)
class VirtualClock:
    """A clock that stands still until it is moved, and never goes back."""

    instant: Instant = 0

    def now(self) -> Instant:
        """Return the instant it was last moved to."""
        return self.instant

    def advance_to(self, instant: Instant) -> None:
        """Move to an instant that is not before the current one."""
        if instant < self.instant:
            raise ValueError(f"a clock does not go back: {instant} is before {self.instant}")
        self.instant = instant
