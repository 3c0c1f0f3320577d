"""Ranges: one merge per range gives what merging its rows one by one gives, for ranges of every place and length."""

from __future__ import annotations

import numpy as np
import pytest

from featurestore.algebra import (
    ApproxDistinct,
    ApproxQuantile,
    Count,
    DistinctCount,
    First,
    Last,
    LastK,
    Max,
    Min,
    SecondsSinceFirst,
    SecondsSinceLast,
    Sum,
    TopItems,
)
from featurestore.algebra import ranges as ranges_module
from featurestore.algebra.columns import empty_columns, merge_ranges, partial_at
from featurestore.algebra.ranges import Ranges
from featurestore.datatypes import DataType

AGGREGATES = [
    Count(),
    SecondsSinceFirst(),
    SecondsSinceLast("x").bind(DataType.INT64),
    *(kind("x").bind(each) for kind in (Sum, Min, Max, First, Last) for each in (DataType.INT64, DataType.FLOAT64)),
]


# in the smallest sizes at which they lose what they may lose, besides texts in slots of their own
OF_BYTES = [
    ApproxDistinct("x", 4).bind(DataType.INT64),
    ApproxQuantile("x", 0.5, k=8).bind(DataType.FLOAT64),
    TopItems("x", 2, capacity=4).bind(DataType.INT64),
    DistinctCount("x", 30).bind(DataType.INT64),
    LastK("x", 3).bind(DataType.INT64),
    *(kind("x").bind(DataType.STRING) for kind in (First, Last, Min, Max)),
]


def prepared(aggregate, rows, seed=0):
    random = np.random.default_rng(seed)
    if aggregate in OF_BYTES:
        values = random.integers(0, 40, rows)
        if aggregate.value_type == DataType.STRING:
            values = np.array([f"text {value}" for value in values.tolist()], dtype=object)
        elif aggregate.value_type == DataType.FLOAT64:
            values = values.astype(np.float64)
        return aggregate.prepare_columns(values, random.random(rows) < 0.9, np.arange(rows), np.zeros(rows, np.int64))
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
    assert Ranges(np.array([2, 3]), np.array([1, 3])).merge(
        Min("x").bind(DataType.INT64), prepared(Min("x").bind(DataType.INT64), 4)
    )[0].tolist() == [0, 0]


def checked(aggregate, rows, low, high):
    """Hold ranges to the merge of their rows, by the columns' own functions and, where nothing may differ, bit for bit."""
    columns = prepared(aggregate, rows)
    before = [column.copy() for column in columns]
    found = Ranges(low, high).merge(aggregate, columns)
    for column, kept in zip(columns, before, strict=True):
        assert column.tolist() == kept.tolist(), "the arguments changed"
    for query, (begin, end) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        expected = aggregate.empty()
        for row in range(begin, end):
            expected = aggregate.merge(expected, partial_at(columns, row))
        got = partial_at(found, query)
        if isinstance(aggregate, (ApproxQuantile, TopItems)):
            inputs = [aggregate.finalize(partial_at(columns, row)) for row in range(begin, end)]
            inputs = [each[0] if isinstance(each, list) else each for each in inputs]
            one, other = aggregate.finalize(got), aggregate.finalize(expected)
            assert one == other or aggregate.within_error(one, other, inputs), (begin, end, one, other)
        else:
            assert got == expected, (begin, end)


@pytest.mark.thorough
@pytest.mark.parametrize("aggregate", OF_BYTES, ids=repr)
@pytest.mark.parametrize(("leaf", "children"), [(2, 2), (3, 4), (32, 4)])
def test_partials_of_bytes_are_merged_by_blocks_of_any_size(aggregate, leaf, children, monkeypatch):
    monkeypatch.setattr(ranges_module, "_WIDTHS", (leaf, children))
    monkeypatch.setattr(ranges_module, "_GATHERED", 500)
    for rows in (0, 1, 7, 24):
        low, high = (each.ravel() for each in np.meshgrid(np.arange(rows + 1), np.arange(rows + 1)))
        checked(aggregate, rows, low, high)
    random = np.random.default_rng(3)
    low = random.integers(0, 300, 60)
    checked(aggregate, 300, low, np.minimum(low + random.integers(0, 300, 60), 300))


@pytest.mark.parametrize("kind", [First, Last, SecondsSinceFirst, SecondsSinceLast])
def test_the_first_and_the_last_of_ranges_without_any_value_are_empty(kind):
    aggregate = kind("x").bind(DataType.INT64)
    nothing = empty_columns(aggregate, 5)
    low, high = np.array([0, 2, 5, 3]), np.array([5, 2, 5, 1])
    found = Ranges(low, high).merge(aggregate, nothing)
    assert [partial_at(found, row) for row in range(4)] == [aggregate.empty()] * 4
