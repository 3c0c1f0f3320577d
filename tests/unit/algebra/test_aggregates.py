"""First, Histogram, SecondsSince*, Rate: their values, edges, nulls and refusals."""

from __future__ import annotations

import json
import math
import random
from itertools import pairwise

import numpy as np
import pytest

from featurestore.algebra import (
    AGGREGATES,
    Count,
    EventOrder,
    Exact,
    First,
    Histogram,
    Hopping,
    Last,
    Lifetime,
    Mean,
    Rate,
    Sawtooth,
    SecondsSinceFirst,
    SecondsSinceLast,
    StdDev,
    Sum,
    Tumbling,
    Variance,
    Windowed,
)
from featurestore.datatypes import DataType
from featurestore.definitions.layout import ViewLayout, aggregate_from_dict, aggregate_to_dict
from featurestore.errors import DefinitionError, WindowError
from featurestore.timeline import HOUR, MINUTE, SECOND
from tests.conformance.cases import MOMENTS, TIMED


def merged(aggregate, values, times=None):
    """Return the partial of values at times, by scalars; columns give the same, or this fails."""
    times = list(range(len(values))) if times is None else times
    total = aggregate.empty()
    for i, (value, time) in enumerate(zip(values, times, strict=True)):
        total = aggregate.merge(total, aggregate.prepare(value, EventOrder(time, i)))
    return total


def both(aggregate, partial, t, window):
    """Return the value at t, the same from scalars and columns."""
    columns = tuple(np.array([x], dtype=slot) for x, slot in zip(partial, aggregate.slots, strict=True))
    value, valid = aggregate.value_columns(columns, np.array([t], dtype=np.int64), window)
    found = aggregate.value(partial, t, window)
    assert (value.item(0) if valid[0] else None) == found
    return found


# ------------------------------------------------------------------------------------------------- first


@pytest.mark.parametrize(
    ("values", "times", "expected"),
    [
        ([7, 5], [20, 10], 5),
        ([None, 5, 6], [0, 10, 10], 5),  # a tie is decided by the sequence, nulls are skipped
        ([1, 2], [-5, -6], 2),
        ([None], [3], None),
        ([], [], None),
        ([0, 1], [1, 2], 0),
    ],
)
def test_first_is_the_oldest_value_that_is_not_null(values, times, expected):
    assert First("x").bind(DataType.INT64).finalize(merged(First("x").bind(DataType.INT64), values, times)) == expected


def test_first_keeps_nan_bools_and_times_as_they_are():
    number, flag, time = (First("x").bind(kind) for kind in (DataType.FLOAT64, DataType.BOOL, DataType.TIMESTAMP))
    assert math.isnan(number.finalize(merged(number, [math.nan, 1.0])))
    assert flag.finalize(merged(flag, [False, True])) is False
    assert time.finalize(merged(time, [-5, 3])) == -5


def test_first_and_last_of_one_event_agree_and_keep_partials_of_their_own():
    first, last = First("x").bind(DataType.INT64), Last("x").bind(DataType.INT64)
    assert first.finalize(merged(first, [4])) == last.finalize(merged(last, [4])) == 4
    assert first.partial_identity != last.partial_identity


# ------------------------------------------------------------------------------------------------- histogram


@pytest.mark.parametrize(
    ("value", "place"),
    [(-0.1, 0), (0.0, 1), (-0.0, 1), (0.999, 1), (1.0, 2), (9.999, 2), (10.0, 3), (math.inf, 3), (-math.inf, 0)],
)
def test_a_bin_holds_its_lower_edge_and_not_its_upper_one(value, place):
    histogram = Histogram("x", edges=(0, 1, 10)).bind(DataType.FLOAT64)
    assert histogram.finalize(histogram.prepare(value, None)) == [int(i == place) for i in range(4)]


def test_inner_bins_are_those_of_numpy_but_for_its_closed_last_edge():
    dice = random.Random(1)
    values = [dice.uniform(-2, 12) for _ in range(500)]
    edges = [-1.0, 0.0, 0.25, 3.0, 10.0]
    histogram = Histogram("x", edges=edges).bind(DataType.FLOAT64)
    counts = histogram.finalize(merged(histogram, values))
    assert counts[1:-1] == np.histogram(values, edges)[0].tolist()
    assert counts[0] == sum(v < -1 for v in values)
    assert sum(counts) == 500


def test_nan_and_null_fall_into_no_bin_and_no_values_are_zeros():
    histogram = Histogram("x", edges=[0]).bind(DataType.FLOAT64)
    assert histogram.finalize(merged(histogram, [math.nan, None, 1.0])) == [0, 1]
    assert histogram.finalize(histogram.empty()) == [0, 0]
    assert histogram.result_type == DataType.LIST_INT64


def test_integers_are_compared_with_edges_exactly():
    histogram = Histogram("x", edges=[0.5, 2.0**53, 2.0**53 + 2, 2.0**63]).bind(DataType.INT64)
    values = [0, 1, 2**53 - 1, 2**53, 2**53 + 1, 2**53 + 2, 2**63 - 1]
    assert histogram.finalize(merged(histogram, values)) == [1, 2, 2, 2, 0]
    columns = histogram.prepare_columns(
        np.array(values), np.ones(7, bool), np.zeros(7, np.int64), np.zeros(7, np.int64)
    )
    assert [int(column.sum()) for column in columns] == [1, 2, 2, 2, 0]


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ((), r"0 edges, allowed are 1 to 256\. Hint: for example"),
        (range(257), "257 edges, allowed are 1 to 256"),
        ([0, 0], r"edge 0\.0 follows 0\.0; edges must ascend"),
        ([0.0, -0.0], "must ascend"),
        ([1, 0], r"edge 0\.0 follows 1\.0"),
        ([0, math.inf], "edge inf is not a finite number"),
        ([math.nan], "edge nan is not"),
        (["0"], "edge '0' is not"),
        ([None], "edge None is not"),
        ([2**53 + 1], "edge 9007199254740993 is not"),
        ("01", "edges='01' is not a list"),
        (3, "edges=3 is not a list"),
    ],
)
def test_edges_that_make_no_bins_are_refused(edges, message):
    with pytest.raises(DefinitionError, match=message):
        Histogram("x", edges=edges)


def test_as_many_edges_as_allowed():
    assert len(Histogram("x", edges=range(256)).slots) == 257


# ------------------------------------------------------------------------------------------------- seconds since


def test_seconds_since_grow_with_the_question():
    age, pause = SecondsSinceFirst(), SecondsSinceLast()
    times = [3 * SECOND, -SECOND, SECOND + 1]
    for t in (4 * SECOND, 10 * SECOND):
        assert both(age, merged(age, [None] * 3, times), t, Lifetime()) == t / SECOND + 1
        assert both(pause, merged(pause, [None] * 3, times), t, Lifetime()) == t / SECOND - 3


def test_seconds_since_are_null_without_events_and_skip_null_inputs():
    for kind in (SecondsSinceFirst, SecondsSinceLast):
        assert both(kind(), kind().empty(), 5, Lifetime()) is None
        of_text = kind("x").bind(DataType.STRING)
        assert both(of_text, merged(of_text, [None, None]), 5, Lifetime()) is None
        assert both(of_text, merged(of_text, [None, "", None], [0, SECOND, 2 * SECOND]), 3 * SECOND, Lifetime()) == 2.0


def test_seconds_since_are_exact_to_the_microsecond_and_hold_in_the_first_years():
    pause = SecondsSinceLast()
    assert both(pause, merged(pause, [None], [1_700_000_000_000_000]), 1_700_000_000_000_001, Lifetime()) == 1e-6
    assert both(pause, merged(pause, [None], [-62_135_596_800_000_000]), 0, Lifetime()) == 62_135_596_800.0


def test_a_delayed_window_answers_as_it_stood_then():
    pause = SecondsSinceLast()
    partial = merged(pause, [None], [7 * SECOND])
    assert both(pause, partial, 20 * SECOND, Sawtooth("10s", delay="5s")) == 8.0
    assert both(pause, partial, 20 * SECOND, Hopping("10s", hop="5s")) == 13.0  # an edge in between changes nothing


# ------------------------------------------------------------------------------------------------- rate


@pytest.mark.parametrize(
    ("window", "t", "covered"),
    [
        (Sawtooth("1h"), 10 * HOUR, HOUR),
        (Sawtooth("1h"), 10 * HOUR - 1, HOUR + 5 * MINUTE - 1),
        (Sawtooth("1h"), 10 * HOUR + 4 * MINUTE, HOUR + 4 * MINUTE),
        (Exact("1h"), 10 * HOUR + 7, HOUR),
        (Hopping("1h", hop="5m"), 10 * HOUR + 7, HOUR),
        (Tumbling("1h", delay="3m"), 10 * HOUR + 7, HOUR),
        (Sawtooth("1h", delay="2m"), 10 * HOUR + 4 * MINUTE, HOUR + 2 * MINUTE),
        (Sawtooth("1h"), -7 * MINUTE, HOUR + 3 * MINUTE),
    ],
)
def test_a_rate_divides_by_what_the_window_covers(window, t, covered):
    assert both(Rate(), (30,), t, window) == pytest.approx(30 * SECOND / covered, rel=1e-15)
    assert both(Rate(per="1m"), (30,), t, window) == pytest.approx(30 * MINUTE / covered, rel=1e-15)


def test_the_rate_of_steady_events_does_not_show_the_hop():
    """One event every minute: a count over 1h varies between 60 and 64, the rate stays one per minute."""
    window, rate, count = Sawtooth("1h"), Rate(per="1m"), Count()
    rates, counts = set(), set()
    for t in range(10 * HOUR, 11 * HOUR, MINUTE):
        times = [time for time in range(8 * HOUR, 11 * HOUR, MINUTE) if time in window.interval(t)]
        rates.add(both(rate, merged(rate, [None] * len(times), times), t, window))
        counts.add(count.finalize(merged(count, [None] * len(times), times)))
    assert rates == {1.0}
    assert counts == {60, 61, 62, 63, 64}


def test_a_rate_is_zero_without_events_and_null_without_values():
    assert both(Rate(), Rate().empty(), HOUR, Sawtooth("1h")) == 0.0
    for kind in (DataType.INT64, DataType.FLOAT64, DataType.BOOL):
        spending = Rate("x").bind(kind)
        assert both(spending, merged(spending, [None]), HOUR, Sawtooth("1h")) is None
    of_bool = Rate("x", per="1h").bind(DataType.BOOL)
    assert both(of_bool, merged(of_bool, [True, False, True]), HOUR, Sawtooth("1h")) == 2.0


def test_a_rate_of_integers_beyond_int64_does_not_saturate():
    rate = Rate("x", per="1h").bind(DataType.INT64)
    assert both(rate, merged(rate, [2**63 - 1] * 4), HOUR, Exact("1h")) == pytest.approx(2.0**65, rel=1e-15)


def test_a_rate_that_is_not_finite_follows_ieee_754():
    rate = Rate("x").bind(DataType.FLOAT64)
    assert both(rate, merged(rate, [math.inf, 1.0]), HOUR, Exact("1h")) == math.inf
    assert math.isnan(rate.value(merged(rate, [math.inf, -math.inf]), HOUR, Exact("1h")))


def test_a_rate_over_a_lifetime_is_refused_however_it_is_written():
    message = (
        r"Rate\(per='1s'\) over 'lifetime': a lifetime has no length to divide by\. Hint: use a window with a length"
    )
    with pytest.raises(WindowError, match=message):
        Rate().over("1h", "lifetime")
    with pytest.raises(WindowError, match=message):
        Windowed(Rate(), (Lifetime(),))
    with pytest.raises(WindowError, match="no length"):
        Rate("amount", per="1h").over(Lifetime(delay="1d"))


def test_a_unit_of_time_that_is_none_is_refused():
    for per in ("minute", "", "0s", 5):
        with pytest.raises(DefinitionError, match="duration"):
            Rate(per=per)


def test_one_unit_has_one_spelling():
    assert Rate(per="60s") == Rate(per="1m")


# ------------------------------------------------------------------------------------------------- partials


def test_aggregates_that_read_the_same_partial_share_it():
    assert Rate(per="1m").partial_identity == Rate().partial_identity == Count().partial_identity
    assert (
        Rate("x", where="y").partial_identity
        == Sum("x", where="y").partial_identity
        == Mean("x", where="y").partial_identity
    )
    assert Histogram("x", edges=[1]).partial_identity != Histogram("x", edges=[2]).partial_identity
    assert SecondsSinceFirst().partial_identity != SecondsSinceLast().partial_identity
    assert len(TIMED.layout.measures) < len({(f.measure, f.aggregate) for f in TIMED.layout.features})


def test_a_condition_of_its_own_keeps_partials_apart():
    for kind, parameters in ((Variance, {}), (StdDev, {}), (Rate, {}), (Histogram, {"edges": [0]})):
        assert kind("x", **parameters).partial_identity != kind("x", where="y", **parameters).partial_identity


@pytest.mark.parametrize("view", [MOMENTS, TIMED], ids=lambda view: view.name)
def test_a_layout_survives_json(view):
    assert ViewLayout.from_dict(json.loads(json.dumps(view.layout.to_dict()))) == view.layout


@pytest.mark.parametrize(
    "aggregate",
    [Histogram("x", edges=[0, 0.1, 3]), Rate("x", per="90s"), Variance("x", population=True), StdDev("x")],
    ids=repr,
)
def test_parameters_survive_json(aggregate):
    data = json.loads(json.dumps(aggregate_to_dict(aggregate)))
    assert aggregate_from_dict(data) == aggregate
    assert aggregate_to_dict(aggregate_from_dict(data)) == aggregate_to_dict(aggregate)


def test_numeric_aggregates_refuse_texts_and_times():
    for name in ("Variance", "StdDev", "Skew", "Kurtosis", "Rate"):
        for kind in (DataType.STRING, DataType.TIMESTAMP):
            with pytest.raises(DefinitionError, match=rf"{name} takes bool, float64, int64, but 'x' is {kind}"):
                AGGREGATES[name]("x").bind(kind)


def test_pairs_of_edges_cover_the_line_once():
    edges = (-3.0, 0.0, 0.1, 7.0)
    histogram = Histogram("x", edges=edges).bind(DataType.FLOAT64)
    for low, high in pairwise(edges):
        inside = histogram.finalize(merged(histogram, [low, math.nextafter(high, low)]))
        assert max(inside) == 2


# -------------------------------------------------------------------------------------------------- mean


@pytest.mark.parametrize("values", [[2**53 + 1, 2**53, 1], [2**62 + 5, 2**62 + 3, 7], [-(2**63), -(2**63) + 3, 4]])
def test_a_mean_of_integers_that_no_double_holds_is_rounded_once(values):
    mean = Mean("x").bind(DataType.INT64)
    assert both(mean, merged(mean, values), 10, Lifetime()) == sum(values) / len(values)
