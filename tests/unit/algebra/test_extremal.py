"""Min and Max by columns are what they are one by one, to the bit: which of two zeros is kept is no matter of its place."""

from __future__ import annotations

import itertools
import struct

import numpy as np
import pytest

from featurestore.algebra import Max, Min
from featurestore.datatypes import DataType

PARTIALS = [(0, 0.0), (0, -0.0), *((1, value) for value in (0.0, -0.0, 1.0, -1.0, float("inf"), float("nan")))]
PLACES = range(1, 20)
"""Numbers of rows: numpy works on several at once, and on those that are left over one by one."""


def bits(partials):
    return [(n, struct.pack("<d", value)) for n, value in partials]


def columns_of(rows):
    return np.array([n for n, _ in rows], np.int64), np.array([value for _, value in rows], np.float64)


def rows_of(columns):
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("kind", [Min, Max])
@pytest.mark.parametrize("rows", PLACES)
def test_columns_merge_to_the_bit_what_merge_does(kind, rows):
    aggregate = kind("x").bind(DataType.FLOAT64)
    for a, b in itertools.product(PARTIALS, repeat=2):
        merged = rows_of(aggregate.merge_columns(columns_of([a] * rows), columns_of([b] * rows)))
        assert bits(merged) == bits([aggregate.merge(a, b)]) * rows, (a, b)


@pytest.mark.parametrize("kind", [Min, Max])
@pytest.mark.parametrize("rows", PLACES)
def test_running_columns_are_to_the_bit_what_merge_gives(kind, rows):
    aggregate = kind("x").bind(DataType.FLOAT64)
    for steps in itertools.product(PARTIALS, repeat=3):
        stacked = tuple(np.repeat(column[:, None], rows, axis=1) for column in columns_of(steps))
        running = aggregate.running_columns(stacked)
        for step, expected in enumerate(itertools.accumulate(steps, aggregate.merge)):
            assert bits(rows_of(tuple(column[step] for column in running))) == bits([expected]) * rows, steps
