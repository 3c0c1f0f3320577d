"""Every aggregate x every input type x every law; and aggregates broken on purpose, which the law kit must catch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.algebra import (
    AGGREGATES,
    Count,
    EventOrder,
    First,
    Histogram,
    Kurtosis,
    Last,
    Max,
    Mean,
    Min,
    Rate,
    SecondsSinceFirst,
    SecondsSinceLast,
    Sum,
    Variance,
)
from featurestore.datatypes import SCALARS, DataType
from featurestore.testing.laws import HOSTILE_VALUES, LawViolationError, check_laws
from tests.effort import tries
from tests.laws.wide import Longest, Texts

INT64 = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, -1, 1, 2**63 - 1, -(2**63), 2**32, -(2**32) - 1])
VALUES = {
    DataType.INT64: INT64,
    DataType.TIMESTAMP: INT64,
    DataType.BOOL: st.booleans(),
    DataType.FLOAT64: st.floats(-1e300, 1e300)
    | st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 1e16, 1.0, -1e16]),
    DataType.STRING: st.text(max_size=2),
}
VARIANTS = {
    "Histogram": ({"edges": (0,)}, {"edges": (-1e300, -1.0, 0.1, 1, 2**53, 2.0**62)}, {"edges": (-1e19, 1e19)}),
    "Rate": ({}, {"per": "1m"}),
    "StdDev": ({}, {"population": True}),
    "Variance": ({}, {"population": True}),
}
"""Parameters of the aggregates that have some; every other is tried as it is."""
CASES = [
    pytest.param(
        kind("x", **parameters).bind(value_type), id=f"{name}-{'-'.join(map(str, parameters.values()))}{value_type}"
    )
    for name, kind in sorted(AGGREGATES.items())
    for parameters in VARIANTS.get(name, ({},))
    for value_type in sorted(kind.accepts)
] + [
    pytest.param(kind("x").bind(value_type), id=f"{kind.__name__}-{value_type}")
    for kind in (Texts, Longest)
    for value_type in sorted(kind.accepts)
]


@pytest.mark.parametrize("aggregate", CASES)
def test_laws_hold_on_hostile_values(aggregate):
    for seed in range(tries(4)):
        check_laws(aggregate, seed=seed, rounds=max(5, tries(25)))


@pytest.mark.parametrize("aggregate", CASES)
def test_laws_hold_on_generated_events(aggregate):
    events = st.lists(st.tuples(st.none() | VALUES[aggregate.value_type], st.integers(-30, 30)), max_size=12)

    @settings(max_examples=tries(30), deadline=None)
    @given(events=events, seed=st.integers(0, 2**16))
    def check(events, seed):
        check_laws(aggregate, [value for value, _ in events], [time for _, time in events], seed=seed, rounds=6)

    check()


@pytest.mark.parametrize("aggregate", [Count(), Rate(), SecondsSinceFirst(), SecondsSinceLast()], ids=repr)
def test_laws_hold_for_events_without_an_input(aggregate):
    check_laws(aggregate.bind(None), [None, 1, None], [0, 0, -1])


@pytest.mark.parametrize("aggregate", CASES)
def test_laws_hold_without_events_and_with_nulls_only(aggregate):
    check_laws(aggregate, [])
    check_laws(aggregate, [None, None])


def test_hostile_values_cover_every_type():
    assert set(HOSTILE_VALUES) == SCALARS


def whole(aggregate, values):
    partial = aggregate.empty()
    for i, value in enumerate(values):
        partial = aggregate.merge(partial, aggregate.prepare(value, EventOrder(0, i)))
    columns = tuple(np.array([x], dtype=slot) for x, slot in zip(partial, aggregate.slots, strict=True))
    result, valid = aggregate.finalize_columns(columns)
    return aggregate.finalize(partial), result[0].item() if valid[0] else None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2**63 - 1, 1], 2**63 - 1),
        ([-(2**63), -1], -(2**63)),
        ([2**63 - 1, 2**63 - 1, -(2**63), -(2**63)], -2),
        ([2**63 - 1, 1, -1], 2**63 - 1),
        ([-(2**63)], -(2**63)),
        ([2**63 - 1], 2**63 - 1),
        ([-1, -1], -2),
        ([], None),
        ([None], None),
    ],
)
def test_sum_of_integers_is_exact_and_saturates_when_read(values, expected):
    assert whole(Sum("x").bind(DataType.INT64), values) == (expected, expected)


def test_mean_of_many_small_negative_integers_stays_exact_in_columns():
    """hi and lo cancel: without carrying lo into hi first, doubles lose 5e-7 from some millions of events on."""
    n = 10_000_019
    partial = (n, -n, n * (2**32 - 1) - n // 3)  # n values of -1, a third of them -2
    aggregate = Mean("x").bind(DataType.INT64)
    columns = tuple(np.array([x], dtype=slot) for x, slot in zip(partial, aggregate.slots, strict=True))
    assert aggregate.finalize_columns(columns)[0][0] == pytest.approx(aggregate.finalize(partial), rel=1e-15)


def test_compensated_sum_keeps_what_plain_addition_loses():
    assert whole(Sum("x").bind(DataType.FLOAT64), [1e16, 1.0, 1.0, 1.0, -1e16]) == (3.0, 3.0)
    assert whole(Mean("x").bind(DataType.FLOAT64), [1e300, 1.0, -1e300, 2.0]) == (0.75, 0.75)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([math.inf, 1.0], math.inf),
        ([math.inf, -math.inf], math.nan),
        ([math.nan, 1.0], math.nan),
        ([-math.inf], -math.inf),
    ],
)
def test_sum_follows_ieee_754_for_what_is_not_finite(values, expected):
    assert whole(Sum("x").bind(DataType.FLOAT64), values) == pytest.approx((expected, expected), nan_ok=True)


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (Min, [math.nan, 1.0], 1.0),
        (Min, [math.nan, math.nan], math.nan),
        (Max, [1.0, math.nan, 2.0], math.nan),
        (Max, [None, -math.inf], -math.inf),
        (Min, [math.inf], math.inf),
        (Last, [1.0, math.nan, None], math.nan),
        (Last, [math.nan, 2.0], 2.0),
    ],
)
def test_nan_is_the_greatest_value_and_a_value_of_its_own(kind, values, expected):
    assert whole(kind("x").bind(DataType.FLOAT64), values) == pytest.approx((expected, expected), nan_ok=True)


def test_bool_extremes_and_last_are_bool():
    for kind, expected in ((Min, False), (Max, True), (Last, False)):
        value, _ = whole(kind("x").bind(DataType.BOOL), [True, None, False])
        assert value is expected


def test_last_is_decided_by_sequence_when_times_tie():
    last = Last("x").bind(DataType.INT64)
    early, late = last.prepare(1, EventOrder(5, 1)), last.prepare(2, EventOrder(5, 2))
    assert last.finalize(last.merge(late, early)) == last.finalize(last.merge(early, late)) == 2


# ------------------------------------------------------------------------------- broken on purpose


@dataclass(frozen=True, repr=False)
class MeanOfMeans(Mean):
    def merge(self, a, b):
        if not a[0] or not b[0]:
            return b if not a[0] else a
        return (a[0] + b[0], (a[1] / a[0] + b[1] / b[0]) / 2 * (a[0] + b[0]), 0.0)


@dataclass(frozen=True, repr=False)
class LastByArrival(Last):
    def merge(self, a, b):
        return b if b[0] >= a[0] else a


@dataclass(frozen=True, repr=False)
class MinOfZero(Min):
    def merge(self, a, b):
        return (a[0] + b[0], min(a[1], b[1]))


@dataclass(frozen=True, repr=False)
class MaxWithoutNan(Max):
    @staticmethod
    def stays(x, y):
        return (x >= y) | (y != y)


@dataclass(frozen=True, repr=False)
class MaxFirstOperand(Max):
    def merge(self, a, b):
        if not a[0] or not b[0]:
            return a if a[0] else b
        return (a[0] + b[0], max(a[1], b[1]))


@dataclass(frozen=True, repr=False)
class PlainSum(Sum):
    def merge(self, a, b):
        return (a[0] + b[0], a[1] + b[1], 0.0)

    def merge_columns(self, a, b):
        with np.errstate(invalid="ignore"):
            return a[0] + b[0], a[1] + b[1], np.zeros(len(a[0]))


@dataclass(frozen=True, repr=False)
class SumInPlace(Sum):
    def merge_columns(self, a, b):
        for x, y in zip(a, b, strict=True):
            np.add(x, y, out=x)
        return a


@dataclass(frozen=True, repr=False)
class WrappingSum(Sum):
    def finalize_columns(self, partial):
        return (partial[1] << 32) + partial[2], partial[0] > 0


@dataclass(frozen=True, repr=False)
class CountOfNulls(Count):
    def prepare(self, value, at):
        return (1,)


@dataclass(frozen=True, repr=False)
class TextsInOrderOfMerging(Texts):
    @staticmethod
    def pack(values):
        return json.dumps(list(dict.fromkeys(values))).encode() if values else b""


@dataclass(frozen=True, repr=False)
class TextsAsBytearray(Texts):
    def prepare(self, value, at):
        return self.empty() if value is None else (1, bytearray(self.pack([value])))


@dataclass(frozen=True, repr=False)
class TextsInPlace(Texts):
    def merge_columns(self, a, b):
        merged = super().merge_columns(a, b)
        a[1][:] = merged[1]
        return merged


@dataclass(frozen=True, repr=False)
class ListSum(Sum):
    def merge(self, a, b):
        return list(super().merge(a, b))


@dataclass(frozen=True, repr=False)
class SumOfSquares(Variance):
    """(n, sum, unused, sum of squares): the textbook formula, which loses what the values have in common."""

    def prepare(self, value, at):
        return self.empty() if value is None else (1, float(value), 0.0, float(value) * float(value))

    def merge(self, a, b):
        return tuple(x + y for x, y in zip(a, b, strict=True))

    def finalize(self, partial):
        n = partial[0]
        return max(partial[3] - partial[1] * partial[1] / n, 0.0) / (n - 1) if n > 1 else None

    def prepare_columns(self, values, valid, event_time, sequence):
        kept = np.where(valid, values, 0).astype(np.float64)
        with np.errstate(over="ignore"):
            return valid.astype(np.int64), kept, np.zeros(len(kept)), kept * kept

    def merge_columns(self, a, b):
        with np.errstate(invalid="ignore", over="ignore"):
            return tuple(x + y for x, y in zip(a, b, strict=True))

    def finalize_columns(self, partial):
        n = np.maximum(partial[0], 2)
        with np.errstate(invalid="ignore", over="ignore"):
            return np.maximum(partial[3] - partial[1] * partial[1] / n, 0.0) / (n - 1), partial[0] > 1


@dataclass(frozen=True, repr=False)
class MeanInOneDouble(Variance):
    def merge(self, a, b):
        n, mean, _, m2 = super().merge(a, b)
        return (n, mean, 0.0, m2)

    def merge_columns(self, a, b):
        n, mean, rest, m2 = super().merge_columns(a, b)
        return n, mean, np.zeros_like(rest), m2


@dataclass(frozen=True, repr=False)
class VarianceOfVariances(Variance):
    def merge(self, a, b):
        n, mean, rest, _ = super().merge(a, b)
        return (n, mean, rest, a[3] + b[3])


@dataclass(frozen=True, repr=False)
class KurtosisWithoutCross(Kurtosis):
    def merge(self, a, b):
        merged = super().merge(a, b)
        return (*merged[:5], merged[5] + a[4] * b[3])


@dataclass(frozen=True, repr=False)
class FirstByArrival(First):
    def merge(self, a, b):
        return b if b[0] <= a[0] else a


@dataclass(frozen=True, repr=False)
class HistogramWithNan(Histogram):
    def prepare_columns(self, values, valid, event_time, sequence):
        return super().prepare_columns(np.where(np.isnan(values), 0.0, values), valid, event_time, sequence)


@dataclass(frozen=True, repr=False)
class SinceTheEpoch(SecondsSinceLast):
    def value_columns(self, partial, t, window):
        return self.finalize_columns(partial)


@pytest.mark.parametrize(
    ("aggregate", "value_type", "law"),
    [
        (MeanOfMeans, DataType.FLOAT64, "associativity|split"),
        (LastByArrival, DataType.INT64, "commutativity|associativity"),
        (MinOfZero, DataType.INT64, "identity"),
        (MaxWithoutNan, DataType.FLOAT64, "columns"),
        (MaxFirstOperand, DataType.FLOAT64, "commutativity|associativity"),
        (PlainSum, DataType.FLOAT64, "associativity|commutativity|split"),
        (SumInPlace, DataType.INT64, "immutability"),
        (WrappingSum, DataType.INT64, "finalize"),
        (CountOfNulls, DataType.INT64, "null inputs"),
        (ListSum, DataType.INT64, "partials"),
        (SumOfSquares, DataType.FLOAT64, "associativity|split"),
        (MeanInOneDouble, DataType.FLOAT64, "associativity|commutativity|split"),
        (MeanInOneDouble, DataType.INT64, "identity"),
        (VarianceOfVariances, DataType.BOOL, "columns: merge"),
        (KurtosisWithoutCross, DataType.INT64, "associativity|commutativity|split"),
        (FirstByArrival, DataType.INT64, "commutativity|associativity"),
        (partial(HistogramWithNan, edges=[1]), DataType.FLOAT64, "columns"),
        (SinceTheEpoch, DataType.STRING, "columns: value"),
        (TextsInOrderOfMerging, DataType.STRING, "commutativity|associativity|split"),
        (TextsAsBytearray, DataType.STRING, "partials"),
        (TextsInPlace, DataType.STRING, "immutability"),
    ],
)
def test_a_broken_aggregate_is_caught(aggregate, value_type, law):
    def check_with_some_seeds():
        for seed in range(5):
            check_laws(aggregate("x").bind(value_type), seed=seed)

    with pytest.raises(LawViolationError, match=law):
        check_with_some_seeds()


def test_values_and_times_must_pair_up():
    with pytest.raises(ValueError, match="2 values need as many times"):
        check_laws(Count("x").bind(DataType.INT64), [1, 2], [0])
