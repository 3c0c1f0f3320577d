from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import DefinitionError
from featurestore.timeline import (
    DAY,
    HOUR,
    MAX_INSTANT,
    MIN_INSTANT,
    MINUTE,
    WEEK,
    Interval,
    SystemClock,
    VirtualClock,
    floor_to,
    format_duration,
    format_instant,
    parse_duration,
    to_datetime,
    to_instant,
)

INSTANTS = st.integers(MIN_INSTANT, MAX_INSTANT)
DURATIONS = st.integers(1, 10_000 * 366 * DAY)


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("1us", 1),
        ("250ms", 250_000),
        ("5m", 5 * MINUTE),
        ("1h30m", 90 * MINUTE),
        ("30m1h", 90 * MINUTE),
        (" 24h ", DAY),
        ("7d", WEEK),
        ("1w", WEEK),
        (timedelta(hours=2), 2 * HOUR),
    ],
)
def test_a_duration_is_its_microseconds(text, duration):
    assert parse_duration(text) == duration


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "m",
        "5 m",
        "-5m",
        "1.5h",
        "5M",
        "1y",
        "0s",
        "0h0m",
        "٣m",
        "5m\n5",
        timedelta(0),
        timedelta(-1),
        300,
        None,
        "9" * 30 + "d",
    ],
)
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(DefinitionError, match="duration"):
        parse_duration(text)


@given(DURATIONS)
def test_a_formatted_duration_parses_back(duration):
    assert parse_duration(format_duration(duration)) == duration


@given(INSTANTS, DURATIONS)
def test_floor_is_the_newest_multiple_not_after(instant, hop):
    floor = floor_to(instant, hop)
    assert floor % hop == 0
    assert floor <= instant < floor + hop


@pytest.mark.parametrize(
    ("moment", "instant"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1969-12-31T23:59:59.999999Z", -1),
        ("2013-01-01T00:15:00-05:00", 1_357_017_300_000_000),
        (datetime(2013, 1, 1, 5, 15, tzinfo=UTC), 1_357_017_300_000_000),
        (datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))), 0),
        (-5, -5),
    ],
)
def test_a_moment_with_an_offset_is_an_instant(moment, instant):
    assert to_instant(moment) == instant


@pytest.mark.parametrize(
    "moment",
    ["2013-01-01T05:15:00", "2013-01-01", datetime(2013, 1, 1), "yesterday", "", 1.5, True, None, date(2013, 1, 1)],
)
def test_a_naive_or_foreign_moment_is_refused(moment):
    with pytest.raises(DefinitionError, match="now"):
        to_instant(moment, name="now")


@given(st.datetimes(timezones=st.just(UTC)))
def test_instants_and_datetimes_are_the_same_thing(moment):
    assert to_datetime(to_instant(moment)) == moment
    assert to_instant(format_instant(to_instant(moment))) == to_instant(moment)


def test_an_instant_beyond_the_calendar_is_still_written():
    assert format_instant(MIN_INSTANT) == "-9223372036854775808us"
    assert format_instant(MAX_INSTANT) == "9223372036854775807us"


def test_an_interval_holds_its_start_and_not_its_end():
    interval = Interval(-10, 0)
    assert [-11 in interval, -10 in interval, -1 in interval, 0 in interval] == [False, True, True, False]
    assert MIN_INSTANT in Interval(None, 0)
    assert 0 not in Interval(0, 0)


def test_a_virtual_clock_stands_still_and_never_goes_back():
    clock = VirtualClock(5)
    assert clock.now() == clock.now() == 5
    clock.advance_to(5)
    clock.advance_to(9)
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance_to(8)
    assert clock.now() == 9


def test_the_system_clock_tells_microseconds():
    assert abs(SystemClock().now() - to_instant(datetime.now(UTC))) < MINUTE
