"""Merging many ranges of one sequence of partials, for every measure of a view: the core of a training set.

A range [low, high) of at least two rows is split where its first and last row part ways: m, the only multiple inside it
of the largest power of two that has one. Left of m it is the end of an aligned block of 2**j rows, right of m it is the
beginning of one, where 2**j is the smallest power that covers the longer side. With

    S_j[i]   the merge of rows i .. end of i's aligned block of 2**j rows
    P_j[i]   the merge of rows beginning of that block .. i

its value is merge(S_j[low], P_j[high - 1]): one merge per range, whatever its length (the disjoint sparse table, level by
level, so that only one level is held). A level costs one merge per row, and there are log2(longest range) levels. Rows of
keys with few events need few levels: with the longest sequences first, a level is computed only as far as it is asked for.

Nothing is subtracted, so it serves every aggregate. Where merging adds integers slot by slot (``Aggregate.adds``),
differences of running totals are the same numbers for less, and are used instead. Rows are in the order of their events, so
what keeps one event alone (``Aggregate.picks``) is found without merging.

Partials of bytes cost far more to merge two by two than all at once (``Aggregate.merge_groups``): each merge reads and writes
a whole sketch. So their ranges are cut into blocks of a tree of wide nodes, and all blocks of a range are merged in one go;
a range that is asked for many times is merged once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featurestore.algebra.columns import empty_columns, reduce_groups, take

if TYPE_CHECKING:
    from featurestore.algebra.aggregate import Aggregate, Columns


_WIDTHS = (32, 4)
"""Rows of a leaf block of the tree for partials of bytes, and children of every other node."""
_GATHERED = 1 << 20
"""Blocks that are gathered before they are merged."""


class Ranges:
    """Many ranges [low, high) of one sequence, laid out once and merged for any number of measures.

    The rows of each range ascend by (event time, sequence).

    Args:
        low: First row of every range.
        high: The row after the last; a range with low >= high is empty.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        self.low = low
        self.high = np.maximum(low, high)
        asked = np.flatnonzero(self.high > low)
        first, last = low[asked], high[asked] - 1
        differ = first ^ last
        # frexp gives the number of bits, exactly below 2**53
        middle = (last >> np.maximum(_bits(differ) - 1, 0)) << np.maximum(_bits(differ) - 1, 0)
        level = _bits(np.maximum(middle - first, last + 1 - middle) - 1)
        level = np.where(differ == 0, 0, level + 1).astype(np.uint8)
        # level 0: one row, nothing to merge; level j + 1: S_j and P_j
        order = np.argsort(level, kind="stable")
        self._asked, self._first, self._last = asked[order], first[order], last[order]
        self._bounds = np.searchsorted(level[order], np.arange(int(level.max(initial=0)) + 2))
        # how far rows are asked for at a level or any later one
        ends = [int(self._last[begin:].max(initial=-1)) + 1 for begin in self._bounds[:-1]]
        self._ends = ends

    def __len__(self) -> int:
        return len(self.low)

    def merge(self, aggregate: Aggregate, columns: Columns) -> Columns:
        """Return the merge of every range, in order."""
        if aggregate.adds:
            return self._differences(columns)
        if aggregate.picks:
            return self._picked(aggregate, columns)
        if not aggregate.is_fixed:
            return self._gathered(aggregate, columns)
        result = empty_columns(aggregate, len(self))
        rows = self._rows(0)
        _put(result, self._asked[rows], take(columns, self._first[rows]))
        # both are changed in place from level to level
        suffix = tuple(column.copy() for column in take(columns, slice(0, self._ends[0])))
        prefix = tuple(column.copy() for column in suffix)
        for level in range(1, len(self._bounds) - 1):
            suffix, prefix = take(suffix, slice(0, self._ends[level])), take(prefix, slice(0, self._ends[level]))
            if level > 1:
                _double(aggregate, suffix, prefix, 1 << (level - 2))
            rows = self._rows(level)
            merged = aggregate.merge_columns(take(suffix, self._first[rows]), take(prefix, self._last[rows]))
            _put(result, self._asked[rows], merged)
        return result

    def _gathered(self, aggregate: Aggregate, columns: Columns) -> Columns:
        """Return the merge of every range, all of its blocks at once; for partials that are bytes."""
        step = int(self.high.max(initial=0)) + 1
        different, place = np.unique(self.low * step + self.high, return_inverse=True)
        low, high = different // step, different % step
        level, size = take(columns, slice(0, step)), 1
        levels = [level]
        longest = int((high - low).max(initial=0))
        while size * _WIDTHS[len(levels) > 1] <= longest:
            width = _WIDTHS[len(levels) > 1]
            whole = len(level[0]) // width * width
            level = reduce_groups(aggregate, take(level, slice(0, whole)), np.arange(0, whole, width))
            levels.append(level)
            size *= width
        begins = np.cumsum([0, *(len(each[0]) for each in levels[:-1])])
        every = tuple(np.concatenate(slot) for slot in zip(*levels, strict=True))
        result = empty_columns(aggregate, len(low))
        for rows in _pieces(np.flatnonzero(low < high), 2 * sum(_WIDTHS) * len(levels)):
            owner, block = _blocks(low[rows], high[rows], begins)
            counts = np.bincount(owner)
            merged = reduce_groups(
                aggregate, take(every, block[np.argsort(owner, kind="stable")]), np.cumsum(counts) - counts
            )
            _put(result, rows, merged)
        return take(result, place)

    def _picked(self, aggregate: Aggregate, columns: Columns) -> Columns:
        """Return for every range its last row that is not empty, or its first; see ``Aggregate.picks``."""
        rows = np.arange(len(columns[0]))
        counts = columns[0] != aggregate.empty()[0]
        asked = np.flatnonzero(self.low < self.high)
        if aggregate.picks > 0:
            found = np.maximum.accumulate(np.where(counts, rows, -1))[self.high[asked] - 1]
            inside = found >= self.low[asked]
        else:
            found = np.minimum.accumulate(np.where(counts, rows, len(rows))[::-1])[::-1][self.low[asked]]
            inside = found < self.high[asked]
        result = empty_columns(aggregate, len(self))
        _put(result, asked[inside], take(columns, found[inside]))
        return result

    def _rows(self, level: int) -> slice:
        return slice(int(self._bounds[level]), int(self._bounds[level + 1]))

    def _differences(self, columns: Columns) -> Columns:
        result = []
        for column in columns:
            running = np.zeros(len(column) + 1, np.int64)
            np.cumsum(column, out=running[1:])
            result.append(running[self.high] - running[self.low])
        return tuple(result)


def _pieces(rows: np.ndarray, each: int) -> list[np.ndarray]:
    """Return rows in pieces that gather a bounded number of blocks."""
    size = max(1, _GATHERED // each)
    return [rows[begin : begin + size] for begin in range(0, len(rows), size)]


def _blocks(low: np.ndarray, high: np.ndarray, begins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the blocks that make up each range: whose they are, and their places; ``begins`` are the places of levels."""
    owners, places = [], []

    def add(level: int, first: np.ndarray, last: np.ndarray) -> None:
        sizes = np.maximum(last - first, 0)
        owner = np.repeat(np.arange(len(sizes)), sizes)
        owners.append(owner)
        places.append(np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + first[owner] + begins[level])

    for level in range(len(begins)):
        width = _WIDTHS[level > 0]
        inner, outer = -(-low // width), high // width
        if level == len(begins) - 1:
            add(level, low, high)
            break
        whole = inner < outer
        add(level, low, np.where(whole, inner * width, high))
        add(level, np.where(whole, outer * width, high), high)
        low, high = np.where(whole, inner, 0), np.where(whole, outer, 0)
    return np.concatenate(owners), np.concatenate(places)


def _bits(values: np.ndarray) -> np.ndarray:
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


def _put(result: Columns, rows: np.ndarray, values: Columns) -> None:
    for column, made in zip(result, values, strict=True):
        column[rows] = made


def _double(aggregate: Aggregate, suffix: Columns, prefix: Columns, block: int) -> None:
    """Turn suffixes and prefixes of blocks into those of blocks of twice the length, in place."""
    rows = len(suffix[0])
    pairs = rows // (2 * block)
    whole = pairs * 2 * block
    if pairs:
        _join(aggregate, [column[:whole].reshape(pairs, 2, block) for column in suffix], left=True)
        _join(aggregate, [column[:whole].reshape(pairs, 2, block) for column in prefix], left=False)
    if rows - whole > block:
        middle = whole + block
        left, right = take(suffix, slice(whole, middle)), take(prefix, slice(middle, rows))
        total, head = take(suffix, slice(middle, middle + 1)), take(prefix, slice(middle - 1, middle))
        rest = aggregate.merge_columns(head, right)
        begun = aggregate.merge_columns(left, total)
        _put(suffix, np.arange(whole, middle), begun)
        _put(prefix, np.arange(middle, rows), rest)


def _join(aggregate: Aggregate, blocks: list[np.ndarray], *, left: bool) -> None:
    """Merge the second block's total into the first block's suffixes, or the first's into the second's prefixes."""
    pairs, _, block = blocks[0].shape
    mine = tuple(np.ascontiguousarray(each[:, 0 if left else 1, :]).reshape(-1) for each in blocks)
    total = tuple(np.repeat(each[:, 1, 0] if left else each[:, 0, -1], block) for each in blocks)
    merged = aggregate.merge_columns(mine, total) if left else aggregate.merge_columns(total, mine)
    for each, values in zip(blocks, merged, strict=True):
        each[:, 0 if left else 1, :] = values.reshape(pairs, block)
