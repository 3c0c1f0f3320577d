"""Moments against exact fractions: every split of every kind of values, scalar and column functions."""

from __future__ import annotations

import math
import random
import statistics
from fractions import Fraction

import numpy as np
import pytest

from featurestore.algebra import EventOrder, Kurtosis, Skew, StdDev, Variance
from featurestore.algebra.columns import merge_ranges, partial_at, reduce_groups
from featurestore.datatypes import DataType

AT = EventOrder(0, 0)
DICE = random.Random(8)
N = 400
DOUBLES = {
    "normal": [DICE.gauss(0, 1) for _ in range(N)],
    "near 1e9": [1e9 + DICE.random() for _ in range(N)],
    "near -1e12": [-1e12 + DICE.random() for _ in range(N)],
    "near 1e16": [1e16 + DICE.choice((0, 2, 4, 6)) for _ in range(N)],
    "one step apart": [1.0, math.nextafter(1.0, 2.0), 1.0, math.nextafter(1.0, 2.0), 1.0],
    "heavy tail": [DICE.lognormvariate(0, 3) for _ in range(N)],
    "cancelling": [DICE.choice((-1e16, 1e16, DICE.random())) for _ in range(N)],
    "rising far out": [1e9 + i * 0.001 for i in range(N)],
    "tiny": [1e-30 * DICE.random() for _ in range(N)],
    "huge": [1e30 * DICE.random() for _ in range(N)],
    "two": [1e9, 1e9 + 0.1],
}
INTEGERS = {
    "small": [DICE.randrange(10) for _ in range(N)],
    "beyond doubles": [2**62 + DICE.randrange(5) for _ in range(N)],
    "ends": [2**63 - 1, 2**63 - 2, 2**63 - 1, 2**63 - 4],
    "both ends": [-(2**63), 2**63 - 1, 0, 5],
}
CASES = [
    *(pytest.param(DataType.FLOAT64, values, id=name) for name, values in DOUBLES.items()),
    *(pytest.param(DataType.INT64, values, id=f"integers {name}") for name, values in INTEGERS.items()),
    pytest.param(DataType.BOOL, [True, False, False, True, False], id="bool"),
]


def exact(values):
    """Return the central moments m2, m3, m4 of the population as fractions."""
    numbers = [Fraction(value) for value in values]
    mean = sum(numbers) / len(numbers)
    return [sum((x - mean) ** power for x in numbers) / len(numbers) for power in (2, 3, 4)]


def merges(aggregate, values):
    """Return partials of all values, merged one by one, in pairs and by a segment tree in columns, and at random."""
    partials = [aggregate.prepare(value, AT) for value in values]
    in_order = aggregate.empty()
    for partial in partials:
        in_order = aggregate.merge(in_order, partial)
    pile, dice = list(partials), random.Random(3)
    while len(pile) > 1:
        pile.append(aggregate.merge(pile.pop(dice.randrange(len(pile))), pile.pop(dice.randrange(len(pile)))))
    kind = np.float64 if aggregate.value_type == DataType.FLOAT64 else np.int64
    rows = len(values)
    columns = aggregate.prepare_columns(
        np.array(values, dtype=kind), np.ones(rows, bool), np.zeros(rows, np.int64), np.arange(rows)
    )
    pairs = reduce_groups(aggregate, columns, np.array([0]))
    tree = merge_ranges(aggregate, columns, np.array([0]), np.array([rows]))
    return [in_order, pile[0], partial_at(pairs, 0), partial_at(tree, 0)]


def results(aggregate, values):
    """Return the value of every merge, from the scalar and from the column function."""
    found = []
    for partial in merges(aggregate, values):
        columns = tuple(np.array([x], dtype=slot) for x, slot in zip(partial, aggregate.slots, strict=True))
        value, valid = aggregate.finalize_columns(columns)
        found += [aggregate.finalize(partial), value.item(0) if valid[0] else None]
    return found


@pytest.mark.parametrize(("kind", "values"), CASES)
def test_variances_are_exact_to_the_last_digits_in_every_split(kind, values):
    n, m2 = len(values), exact(values)[0]
    population, sample = Variance("x", population=True).bind(kind), Variance("x").bind(kind)
    assert results(population, values) == pytest.approx([float(m2)] * 8, rel=1e-14, abs=0)
    assert results(sample, values) == pytest.approx([float(m2 * n / (n - 1))] * 8, rel=1e-14, abs=0)


@pytest.mark.parametrize(("kind", "values"), CASES)
def test_standard_deviations_are_the_roots_of_exact_variances(kind, values):
    deviations = results(StdDev("x", population=True).bind(kind), values)
    assert deviations == pytest.approx([math.sqrt(exact(values)[0])] * 8, rel=1e-14, abs=0)
    assert statistics.stdev(values) == pytest.approx(results(StdDev("x").bind(kind), values)[0], rel=1e-14)


@pytest.mark.parametrize(("kind", "values"), CASES)
def test_skewness_and_kurtosis_keep_the_errors_they_state(kind, values):
    m2, m3, m4 = exact(values)
    # the root of a fraction far outside the range of a float's cube: by the ratio of squares
    skewness = math.copysign(math.sqrt(m3 * m3 / (m2 * m2 * m2)), m3) if m3 else 0.0
    kurtosis = float(m4 / (m2 * m2) - 3)
    assert results(Skew("x").bind(kind), values) == pytest.approx(
        [skewness] * 8, rel=1e-9, abs=1e-12 * math.sqrt(len(values))
    )
    assert [value + 3 for value in results(Kurtosis("x").bind(kind), values)] == pytest.approx(
        [kurtosis + 3] * 8, rel=1e-12
    )


@pytest.mark.parametrize("kind", [Variance, StdDev, Skew, Kurtosis])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_makes_nan(kind, bad):
    aggregate = kind("x").bind(DataType.FLOAT64)
    assert results(aggregate, [1.0, bad, 3.0, 1e300]) == pytest.approx([math.nan] * 8, nan_ok=True)
    assert results(aggregate, [bad, bad]) == pytest.approx([math.nan] * 8, nan_ok=True)


@pytest.mark.parametrize(
    ("aggregate", "of_none", "of_one", "of_equal"),
    [
        (Variance("x"), None, None, 0.0),
        (Variance("x", population=True), None, 0.0, 0.0),
        (StdDev("x"), None, None, 0.0),
        (StdDev("x", population=True), None, 0.0, 0.0),
        (Skew("x"), None, None, None),
        (Kurtosis("x"), None, None, None),
    ],
    ids=repr,
)
def test_too_few_values_and_values_without_spread(aggregate, of_none, of_one, of_equal):
    for kind, value in ((DataType.FLOAT64, 0.1), (DataType.INT64, 2**63 - 1), (DataType.BOOL, True)):
        bound = aggregate.bind(kind)
        assert bound.finalize(bound.merge(bound.empty(), bound.prepare(None, AT))) is of_none
        assert results(bound, [value]) == [of_one] * 8
        assert results(bound, [value] * 7) == [of_equal] * 8


def test_a_single_value_that_is_not_finite_has_no_population_variance_but_no_sample_either():
    assert results(Variance("x", population=True).bind(DataType.FLOAT64), [math.inf])[0] != 0.0
    assert results(Variance("x").bind(DataType.FLOAT64), [math.nan]) == [None] * 8


def test_squares_beyond_a_double_are_infinite_in_every_order_and_shapes_nan():
    values = [1.7e308, -1.7e308, 1.0, 5e307, -3.0]
    assert results(Variance("x").bind(DataType.FLOAT64), values) == [math.inf] * 8
    assert results(StdDev("x").bind(DataType.FLOAT64), values) == [math.inf] * 8
    for kind in (Skew, Kurtosis):
        for wide in (values, [0.0, 1e75, 2e75, 5e74]):
            assert results(kind("x").bind(DataType.FLOAT64), wide) == pytest.approx([math.nan] * 8, nan_ok=True)


def test_spread_below_the_squares_of_doubles_is_none():
    for values in ([0.0, 1e-75, 2e-75], [0.0, 5e-324, 1e-160]):
        for kind in (Skew, Kurtosis):
            assert results(kind("x").bind(DataType.FLOAT64), values) == [None] * 8


def test_the_variance_of_a_condition_is_p_times_1_minus_p():
    assert results(Variance("x", population=True).bind(DataType.BOOL), [True, False, False, False])[0] == 0.1875


def test_a_growing_partial_merged_with_one_value_at_a_time_stays_accurate():
    """The least accurate order: every step rounds the mean and M2 of all values so far."""
    aggregate = Kurtosis("x").bind(DataType.FLOAT64)
    values = [1e9 + i * 0.1 for i in range(9)] + [1e9 + 50]
    total = aggregate.empty()
    for i in range(100_000):
        total = aggregate.merge(total, aggregate.prepare(values[i % 10], AT))
    m2, _, m4 = exact(values)
    assert total[3] / total[0] == pytest.approx(float(m2), rel=1e-11)
    assert aggregate.finalize(total) + 3 == pytest.approx(float(m4 / (m2 * m2)), rel=1e-11)


def test_slots_and_sharing():
    assert len({Variance("x").partial_identity, StdDev("x", population=True).partial_identity}) == 1
    assert len({Skew("x").partial_identity, Kurtosis("x").partial_identity}) == 1
    assert [8 * len(kind("x").slots) for kind in (Variance, StdDev, Skew, Kurtosis)] == [32, 32, 48, 48]


@pytest.mark.parametrize("kind", [Variance, Skew])
@pytest.mark.parametrize("counts", [(2**53 + 4, 1), (1, 2**53 + 1), (2**60 + 3, 2**53 + 1)])
def test_counts_that_no_double_holds_are_merged_in_columns_as_they_are_one_by_one(kind, counts):
    aggregate = kind("x").bind(DataType.FLOAT64)
    powers = [1.5] * aggregate.powers
    a, b = ((n, mean, 0.0, *powers) for n, mean in zip(counts, (19.25, -3.7), strict=True))
    columns = [
        tuple(np.array([x], dtype=slot) for x, slot in zip(each, aggregate.slots, strict=True)) for each in (a, b)
    ]
    merged = aggregate.merge(a, b)
    assert merged[0] == sum(counts)
    assert partial_at(aggregate.merge_columns(*columns), 0) == merged
