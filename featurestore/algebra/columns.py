"""Merging many partials at once: groups, ranges, suffixes. Built on ``merge_columns`` alone, so they serve any aggregate.

Shapes: ``Columns`` of n rows; groups are contiguous rows, given by their first rows ``starts`` (ascending, starts[0] == 0).
Merging is done in pairs (a balanced tree), which costs n merges in log2(longest group) vector steps and keeps the error of
floating sums low.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.algebra.aggregate import Aggregate, Columns, Partial

SLOT_TYPES: dict[str, type] = {"i8": np.int64, "f8": np.float64, "b": object}
"""Slot -> the type of its column; the objects are bytes."""


def take(columns: Columns, rows: np.ndarray | slice) -> Columns:
    """Return the chosen rows."""
    return tuple(column[rows] for column in columns)


def empty_columns(aggregate: Aggregate, rows: int) -> Columns:
    """Return ``rows`` empty partials."""
    return tuple(
        np.full(rows, value, dtype=SLOT_TYPES[slot])
        for value, slot in zip(aggregate.empty(), aggregate.slots, strict=True)
    )


def to_columns(slots: Sequence[str], partials: Sequence[Partial]) -> Columns:
    """Return partials as columns, one array per slot."""
    columns = list(zip(*partials, strict=True)) or [()] * len(slots)
    return tuple(np.array(column, dtype=SLOT_TYPES[slot]) for column, slot in zip(columns, slots, strict=True))


def partial_at(columns: Columns, row: int) -> Partial:
    """Return one row of columns as a partial: Python ints, floats and bytes."""
    return tuple(column.item(row) for column in columns)


def ends_of(starts: np.ndarray, rows: int) -> np.ndarray:
    """Return the row after the last of every group."""
    return np.append(starts[1:], rows) if len(starts) else starts


def reduce_groups(aggregate: Aggregate, columns: Columns, starts: np.ndarray) -> Columns:
    """Return the merge of every group, one row per group, in order."""
    merged_groups = aggregate.merge_groups(columns, starts)
    if merged_groups is not None:
        return merged_groups
    rows = len(columns[0])
    lengths = ends_of(starts, rows) - starts
    while len(lengths) and lengths.max() > 1:
        position = np.arange(len(columns[0])) - np.repeat(starts, lengths)
        length = np.repeat(lengths, lengths)
        left = np.flatnonzero(position % 2 == 0)
        paired = position[left] + 1 < length[left]
        merged = aggregate.merge_columns(take(columns, left[paired]), take(columns, left[paired] + 1))
        columns = take(columns, left)
        for column, values in zip(columns, merged, strict=True):
            column[paired] = values
        lengths = (lengths + 1) // 2
        starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    return columns


def merge_ranges(aggregate: Aggregate, columns: Columns, low: np.ndarray, high: np.ndarray) -> Columns:
    """Return the merge of rows [low, high) for every query; empty where low >= high.

    An iterative segment tree: each level holds the merges of aligned blocks of twice the size, and a query takes at most
    two blocks of every level. Costs 2n merges to build and 2 log2(range) per query.
    """
    low, high = low.astype(np.int64), high.astype(np.int64)
    result = empty_columns(aggregate, len(low))
    level = columns
    while True:
        active = low < high
        if not active.any():
            return result
        for edge, step in ((low, 0), (high, -1)):
            rows = np.flatnonzero(active & (edge % 2 == 1) & (low < high))
            if len(rows):
                merged = aggregate.merge_columns(take(result, rows), take(level, edge[rows] + step))
                for column, values in zip(result, merged, strict=True):
                    column[rows] = values
                edge[rows] += 1 if step == 0 else -1
        low >>= 1
        high >>= 1
        pairs = len(level[0]) // 2
        level = aggregate.merge_columns(
            tuple(column[0 : 2 * pairs : 2] for column in level), tuple(column[1 : 2 * pairs : 2] for column in level)
        )


def merge_suffixes(aggregate: Aggregate, columns: Columns, starts: np.ndarray) -> Columns:
    """Return for every row the merge of itself and all later rows of its group.

    Doubling steps (Hillis and Steele, 1986): after k steps a row covers its next 2**k rows.
    """
    rows = len(columns[0])
    columns = tuple(column.copy() for column in columns)
    if not rows:
        return columns
    end = np.repeat(ends_of(starts, rows), ends_of(starts, rows) - starts)
    distance = 1
    longest = int((ends_of(starts, rows) - starts).max())
    while distance < longest:
        left = np.flatnonzero(np.arange(rows) + distance < end)
        merged = aggregate.merge_columns(take(columns, left), take(columns, left + distance))
        for column, values in zip(columns, merged, strict=True):
            column[left] = values
        distance *= 2
    return columns


def first_not_less(values: np.ndarray, low: np.ndarray, high: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return for every query the first row in [low, high) whose value is not less than ``wanted``, or ``high``.

    A binary search of many queries at once; ``values`` is ascending within every [low, high).
    """
    low, high = low.astype(np.int64), high.astype(np.int64)
    while True:
        open_ = low < high
        if not open_.any():
            return low
        middle = (low + high) >> 1
        right = open_ & (values[np.minimum(middle, len(values) - 1)] < wanted)
        low = np.where(right, middle + 1, low)
        high = np.where(open_ & ~right, middle, high)


def starts_of_runs(*keys: np.ndarray) -> np.ndarray:
    """Return the first row of every run of equal keys."""
    rows = len(keys[0])
    if not rows:
        return np.zeros(0, dtype=np.int64)
    changed = np.zeros(rows, dtype=bool)
    changed[0] = True
    for key in keys:
        changed[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(changed)
