from __future__ import annotations

import math
from datetime import timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.algebra import Count, Exact, Hopping, Lifetime, Sawtooth, Series, Tumbling, Window, as_window
from featurestore.algebra.windows import _HOPS
from featurestore.errors import DefinitionError, WindowError
from featurestore.timeline import DAY, HOUR, MINUTE, SECOND


@pytest.mark.parametrize(
    ("t", "start"),
    [
        (12 * HOUR, 11 * HOUR),  # t - w on an edge: that edge
        (12 * HOUR - 1, 11 * HOUR - 5 * MINUTE),  # just before it: one hop earlier
        (12 * HOUR + 1, 11 * HOUR),
        (12 * HOUR + 5 * MINUTE - 1, 11 * HOUR),
        (12 * HOUR + 5 * MINUTE, 11 * HOUR + 5 * MINUTE),
        (0, -HOUR),
        (-1, -HOUR - 5 * MINUTE),
        (HOUR - 1, -5 * MINUTE),
        (HOUR, 0),
    ],
)
def test_lo_of_a_sawtooth_hour_at_its_edges(t, start):
    window = Sawtooth("1h")
    assert window.start(t) == start
    interval = window.interval(t)
    assert start in interval
    assert start - 1 not in interval
    assert t - 1 in interval
    assert t not in interval


@given(st.integers(-(2**53), 2**53), st.sampled_from(["1m", "1h", "24h", "7d", "30d", "90d", "365d", "100ms"]))
def test_a_sawtooth_covers_at_least_its_length_and_less_than_a_hop_more(t, text):
    window = Sawtooth(text)
    start = window.start(t)
    assert window.length <= t - start < window.length + window.hop
    assert start % window.hop == 0


@pytest.mark.parametrize(
    ("text", "hop"),
    [
        ("1m", 5 * SECOND), ("2m", 5 * SECOND), ("3m", 15 * SECOND), ("5m", 15 * SECOND), ("10m", 30 * SECOND),
        ("15m", MINUTE), ("30m", MINUTE), ("1h", 5 * MINUTE), ("2h", 5 * MINUTE), ("3h", 15 * MINUTE),
        ("6h", 30 * MINUTE), ("12h", HOUR), ("24h", 2 * HOUR), ("1d", 2 * HOUR), ("2d", 2 * HOUR), ("3d", 6 * HOUR),
        ("7d", 12 * HOUR), ("14d", DAY), ("28d", DAY), ("30d", DAY), ("60d", DAY), ("90d", DAY), ("84d", 7 * DAY),
        ("365d", DAY),
    ],
)  # fmt: skip
def test_the_default_hop_of_common_windows(text, hop):
    assert Sawtooth(text).hop == hop


@given(st.integers(1, 365 * 24 * 60))
def test_the_default_hop_divides_the_window_and_covers_a_twelfth_too_much_at_most(minutes):
    window = Sawtooth(f"{minutes}m")
    assert window.length % window.hop == 0
    assert Fraction(window.hop, window.length) <= Fraction(1, 12)
    coarser = [hop for hop in _HOPS if hop > window.hop and window.length % hop == 0 and 12 * hop <= window.length]
    assert coarser == []


def test_the_hops_to_choose_from_are_ascending():
    assert list(_HOPS) == sorted(_HOPS)


def test_a_hop_that_does_not_divide_is_refused_with_those_that_do():
    with pytest.raises(WindowError, match="hop '7m' does not divide window '1h'") as caught:
        Sawtooth("1h", hop="7m")
    assert "5m" in str(caught.value)
    with pytest.raises(WindowError):
        Sawtooth("1h", hop="2h")


def test_a_stated_hop_or_bound_is_used():
    assert Sawtooth("1h", hop="20m").hop == 20 * MINUTE
    assert Sawtooth("1h", hop="1h").hop == HOUR
    assert Sawtooth("1h", max_error=1).hop == HOUR
    assert Sawtooth("1h", max_error=0.02).hop == MINUTE


@pytest.mark.parametrize("bound", [0, -1, math.nan, math.inf, 1e-12])
def test_a_bound_that_cannot_be_reached_is_refused(bound):
    with pytest.raises(WindowError, match="max_error"):
        Sawtooth("1h", max_error=bound)


def test_a_window_too_short_for_any_hop_is_refused():
    with pytest.raises(WindowError, match="'1us'"):
        Sawtooth("1us")


def test_lifetime_has_no_start():
    assert Lifetime().start(5) is None
    assert -(2**63) in Lifetime().interval(0)


def test_short_forms_are_windows():
    assert as_window("1h") == Sawtooth("1h") == Sawtooth("60m") == Sawtooth(timedelta(hours=1))
    assert as_window(" lifetime ") == Lifetime()
    assert as_window(Sawtooth("1h", hop="1m")).hop == MINUTE
    assert [as_window("60m").label, Sawtooth(timedelta(hours=1)).label] == ["60m", "1h"]
    for wrong in (3600, None, "1 hour", ""):
        with pytest.raises(DefinitionError):
            as_window(wrong)


@pytest.mark.parametrize("window", [Sawtooth("24h"), Sawtooth("1h", hop="1m"), Lifetime()])
def test_a_window_survives_being_written_as_data(window):
    twin = Window.from_dict(window.to_dict())
    assert twin == window
    assert twin.label == window.label


def test_the_same_window_twice_is_refused():
    with pytest.raises(WindowError, match="'1h' twice"):
        Count().over("1h", "1h")
    with pytest.raises(DefinitionError, match="at least one window"):
        Count().over()


# ------------------------------------------------------------------------------------------ the other kinds

NINE, TEN = 9 * HOUR, 10 * HOUR
M = MINUTE


@pytest.mark.parametrize(
    ("window", "t", "start", "end"),
    [
        (Exact("1h"), TEN, NINE, TEN),
        (Exact("1h"), TEN + 1, NINE + 1, TEN + 1),
        (Exact("1h"), 0, -HOUR, 0),
        (Exact("1h"), -1, -HOUR - 1, -1),
        (Exact("1h", delay="30m"), TEN, NINE - 30 * M, TEN - 30 * M),
        (Hopping("1h", hop="5m"), TEN, NINE, TEN),
        (Hopping("1h", hop="5m"), TEN - 1, NINE - 5 * M, TEN - 5 * M),
        (Hopping("1h", hop="5m"), TEN + 5 * M - 1, NINE, TEN),
        (Hopping("1h", hop="5m"), TEN + 5 * M, NINE + 5 * M, TEN + 5 * M),
        (Hopping("1h", hop="5m"), -1, -HOUR - 5 * M, -5 * M),
        (Hopping("1h", hop="5m", delay="1m"), TEN, NINE - 5 * M, TEN - 5 * M),
        (Hopping("1h", hop="5m", delay="1m"), TEN + M, NINE, TEN),
        (Tumbling("1d"), 10 * DAY, 9 * DAY, 10 * DAY),
        (Tumbling("1d"), 10 * DAY - 1, 8 * DAY, 9 * DAY),
        (Tumbling("1d"), 0, -DAY, 0),
        (Tumbling("1d"), -1, -2 * DAY, -DAY),
        (Tumbling("1d", delay="7d"), 10 * DAY + HOUR, 2 * DAY, 3 * DAY),
        (Sawtooth("1h", delay="7m"), TEN, NINE - 10 * M, TEN - 7 * M),
        (Sawtooth("1h", delay="1h"), TEN, NINE - HOUR, NINE),
        (Lifetime(delay="1h"), TEN, None, NINE),
        (Lifetime(), TEN, None, TEN),
    ],
)
def test_every_window_is_the_half_open_interval_of_its_kind(window, t, start, end):
    assert (window.start(t), window.end(t)) == (start, end)
    interval = window.interval(t)
    assert end - 1 in interval
    assert end not in interval
    assert t not in interval
    if start is not None:
        assert start in interval
        assert start - 1 not in interval


KINDS = [
    Sawtooth("1h"), Exact("1h"), Hopping("1h", hop="5m"), Hopping("1h", hop="1h"), Tumbling("1h"), Sawtooth("10s"),
    Tumbling("365d"), Exact("3650d"), Hopping("365d", hop="1d"), Tumbling("1s"), Sawtooth("1h", hop="20m"),
]  # fmt: skip


@given(st.integers(-(2**53), 2**53), st.sampled_from(KINDS), st.sampled_from([0, 1, MINUTE, 7 * DAY + 1]))
def test_windows_cover_their_length_and_never_go_back(t, window, delay):
    late = Window(window.kind, window.length, window.hop, "x", delay)
    start, end = late.start(t), late.end(t)
    assert (start, end) == (window.start(t - delay), window.end(t - delay))
    assert end <= t - delay < end + (window.hop if window.is_closed else 1)
    assert window.length <= end - start < window.length + window.hop
    if window.kind != "sawtooth":
        assert end - start == window.length
    assert late.start(t + 1) >= start
    assert late.end(t + 1) >= end
    assert late.ends_at_t == (end == t == late.end(t) and not window.is_closed)


@given(st.integers(-(2**53), 2**53))
def test_a_tumbling_window_is_a_hopping_one_with_its_length_as_hop(t):
    assert Tumbling("1h").interval(t) == Hopping("1h", hop="1h").interval(t)


@pytest.mark.parametrize(
    ("window", "label"),
    [
        (Exact("1h"), "1h_exact"),
        (Hopping("1h", hop="5m"), "1h_hop5m"),
        (Tumbling("1d"), "1d_tumbling"),
        (Sawtooth("1h", delay="7d"), "1h_delay7d"),
        (Sawtooth("1h", hop="1m"), "1h"),
        (Lifetime(delay="1w"), "lifetime_delay1w"),
        (Exact(timedelta(hours=1), delay=timedelta(minutes=90)), "1h_exact_delay90m"),
        (Hopping(" 60m ", hop=timedelta(minutes=5), delay="1s"), "60m_hop5m_delay1s"),
    ],
)
def test_labels_name_the_kind_and_the_delay(window, label):
    assert window.label == label


def test_a_series_is_closed_windows_side_by_side_newest_first():
    series = Series("7d", every="1d")
    assert [window.label for window in series] == [f"1d_{i}" for i in range(7)]
    t = 100 * DAY + 5 * HOUR
    intervals = [window.interval(t) for window in series]
    assert intervals[0].end == 100 * DAY
    assert [(i.start, i.end) for i in intervals] == [((99 - n) * DAY, (100 - n) * DAY) for n in range(7)]
    windowed = Count().over("1h", series, "lifetime")
    assert [window.label for window in windowed.windows] == ["1h", *(f"1d_{i}" for i in range(7)), "lifetime"]
    late = Series("2h", every="1h", delay="30m")
    assert [window.label for window in late] == ["1h_0_delay30m", "1h_1_delay30m"]
    assert late[1].interval(TEN) == late[0].interval(NINE) == Tumbling("1h").interval(NINE - 30 * M)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Hopping("1h", hop="7m"), r"hop '7m' does not divide window '1h'.*use one of .*5m"),
        (lambda: Hopping("1h", hop="2h"), "hop '2h' does not divide"),
        (lambda: Hopping("1us", hop="1ms"), "use 1us"),
        (lambda: Series("7d", every="2d"), "every '2d' does not divide window '7d'"),
        (lambda: Series("1d", every="1s"), "86400 windows, at most 1000"),
        (lambda: Exact("0s"), "not positive"),
        (lambda: Tumbling("1 day"), "not understood"),
        (lambda: Lifetime(delay="0s"), "not positive"),
        (lambda: Sawtooth("1h", delay="-1h"), "not understood"),
        (lambda: Exact("1h", delay="20000y"), "not understood"),
        (lambda: Count().over(Series("2d", every="1d"), Series("3d", every="1d")), "'1d_0' twice"),
        (lambda: Count().over(()), "at least one window"),
        (lambda: Count().over((1,)), "1 is not a window"),
    ],
)
def test_what_is_no_window_is_refused(make, message):
    with pytest.raises(DefinitionError, match=message):
        make()


@pytest.mark.parametrize(
    "window",
    [
        *KINDS,
        Exact("1h", delay="5m"),
        Lifetime(delay="1d"),
        Hopping("1h", hop="5m", delay="1us"),
        *Series("2d", every="1d"),
    ],
)
def test_every_kind_survives_being_written_as_data(window):
    twin = Window.from_dict(window.to_dict())
    assert twin == window
    assert twin.label == window.label
    assert ("delay_us" in window.to_dict()) == bool(window.delay)
