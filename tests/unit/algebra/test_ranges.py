"""Ranges: one merge per range gives what merging its rows one by one gives, for ranges of every place and length."""

from __future__ import annotations

import numpy as np
import pytest

from featurestore.algebra import Count, Last, Max, Min, Sum
from featurestore.algebra.columns import merge_ranges
from featurestore.algebra.ranges import Ranges
from featurestore.datatypes import DataType

AGGREGATES = [
    Count(),
    *(kind("x").bind(each) for kind in (Sum, Min, Max, Last) for each in (DataType.INT64, DataType.FLOAT64)),
]


def prepared(aggregate, rows, seed=0):
    random = np.random.default_rng(seed)
    values = random.integers(-(2**62), 2**62, rows)
    if aggregate.value_type == DataType.FLOAT64:
        values = random.normal(size=rows) * 10.0 ** random.integers(-8, 16, rows)
    return aggregate.prepare_columns(values, random.random(rows) < 0.9, np.arange(rows), np.zeros(rows, np.int64))


@pytest.mark.parametrize("aggregate", AGGREGATES, ids=repr)
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 7, 8, 9, 31, 33])
def test_every_range_of_a_short_sequence(aggregate, rows):
    low, high = (each.ravel() for each in np.meshgrid(np.arange(rows + 1), np.arange(rows + 1)))
    columns = prepared(aggregate, rows)
    before = [column.copy() for column in columns]
    found = aggregate.finalize_columns(Ranges(low, high).merge(aggregate, columns))
    expected = aggregate.finalize_columns(merge_ranges(aggregate, columns, low, high))
    assert found[1].tolist() == expected[1].tolist()
    exact = aggregate.tolerance == 0 or aggregate.value_type != DataType.FLOAT64
    np.testing.assert_allclose(found[0][found[1]], expected[0][found[1]], rtol=0 if exact else 1e-9)
    for column, kept in zip(columns, before, strict=True):
        assert column.tolist() == kept.tolist(), "the arguments changed"


@pytest.mark.parametrize("aggregate", AGGREGATES, ids=repr)
def test_random_ranges_of_a_long_sequence(aggregate):
    random = np.random.default_rng(5)
    rows = 5000
    low = random.integers(0, rows + 1, 2000)
    high = np.minimum(low + random.geometric(0.01, 2000) - 1, rows)
    high[:50] = rows
    columns = prepared(aggregate, rows)
    found = aggregate.finalize_columns(Ranges(low, high).merge(aggregate, columns))
    expected = aggregate.finalize_columns(merge_ranges(aggregate, columns, low, high))
    assert found[1].tolist() == expected[1].tolist()
    exact = aggregate.tolerance == 0 or aggregate.value_type != DataType.FLOAT64
    np.testing.assert_allclose(found[0][found[1]], expected[0][found[1]], rtol=0 if exact else 1e-9)


def test_no_ranges_and_no_rows_are_fine():
    nothing = np.zeros(0, np.int64)
    assert len(Ranges(nothing, nothing).merge(Count(), prepared(Count(), 3))[0]) == 0
    assert Ranges(np.array([2, 3]), np.array([1, 3])).merge(Min("x").bind(DataType.INT64), prepared(AGGREGATES[3], 4))[
        0
    ].tolist() == [0, 0]
