from __future__ import annotations

import math
from datetime import timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.algebra import Count, Lifetime, Sawtooth, Window, as_window
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
