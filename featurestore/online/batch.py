"""Reading a view's blobs of many keys at once. Pure numpy; gives to the bit what ``reader.ViewReader`` gives key by key.

All blobs are one array of 8-byte words. Headers, ladders and tails of all keys are found by arithmetic on it, the row of
every key and window by one binary search over all keys. What is merged and finalized alike goes through the aggregates'
column functions in one call, whatever its column, condition or window: a *cell* is a (window, measure), a group the cells
of one kind of partial. So the number of numpy calls is that of the kinds of aggregates, not of features.

That holds for views of one part whose rows have one size and whose windows all end at t; ``BatchReader.serves`` tells, and
others are read key by key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.algebra import Aggregate
from featurestore.algebra.rows import row_format
from featurestore.datatypes import DataType
from featurestore.online.codec import HEADER, MAGIC, VERSION, counts_size, empty_base, parse_frame, record_size
from featurestore.online.reader import ViewValues
from featurestore.timeline import MIN_INSTANT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.algebra import Window
    from featurestore.definitions.layout import ViewLayout
    from featurestore.online.reader import ViewReader
    from featurestore.timeline import Instant

_HEADER_WORDS = HEADER.size // 8


@dataclass(frozen=True, slots=True)
class Block:
    """Features that were finalized together.

    Attributes:
        features: Their places in the view.
        data: The values, shape (keys, features); what stands at a null means nothing.
        valid: Which of them are not null; same shape.
    """

    features: np.ndarray
    data: np.ndarray
    valid: np.ndarray


@dataclass(frozen=True, slots=True)
class ViewColumns:
    """What a view says about many keys at one time, by feature.

    Attributes:
        blocks: Together they hold every feature once.
        known: Whether the key has a record at all, one per key.
        as_of: The newest event time inside the values, one per key; ``MIN_INSTANT`` without events.
    """

    blocks: list[Block]
    known: np.ndarray
    as_of: np.ndarray


def lists_of(blocks: Sequence[Block], features: int) -> list[list[Any]]:
    """Return one list of Python values per feature, None where null."""
    found: list[list[Any]] = [[]] * features
    for block in blocks:
        columns = zip(block.features.tolist(), block.data.T.tolist(), block.valid.T, strict=True)
        for feature, column, valid in columns:
            if not valid.all():
                for row in np.flatnonzero(~valid).tolist():
                    column[row] = None
            found[feature] = column
    return found


@dataclass(frozen=True, slots=True)
class _Group:
    """Cells whose partials are merged alike.

    Attributes:
        aggregate: Merges and has the empty partial of all of them.
        window: Of every cell, its window's number.
        in_row: First word in a row of its ladder.
        in_record: First word in a tail record.
        reads: What is finalized alike: its aggregate, its window where the value depends on it, cells, features.
    """

    aggregate: Aggregate
    window: np.ndarray
    in_row: np.ndarray
    in_record: np.ndarray
    reads: list[tuple[Aggregate, Window | None, np.ndarray, np.ndarray]]


@dataclass(frozen=True, slots=True)
class _Blobs:
    """Blobs of n keys as words, and after them an empty row of every ladder.

    Attributes:
        words: All blobs, one after the other.
        hops: First word of the hop ids, shape (ladders, keys).
        rows: Number of rows, same shape.
        empty: First word of the empty rows.
        newest: Newest event time in the base, per key.
        ends: The word after the last, per key.
        tails: Number of tail records, per key.
        record: First word of every tail record, of all keys in order.
        record_key: The key it belongs to.
    """

    words: np.ndarray
    hops: np.ndarray
    rows: np.ndarray
    empty: int
    newest: np.ndarray
    ends: np.ndarray
    tails: np.ndarray
    record: np.ndarray
    record_key: np.ndarray


class BatchReader:
    """Reads one view for many keys. Immutable after construction; safe to share between threads."""

    def __init__(self, reader: ViewReader) -> None:
        self._reader = reader
        self._layout: ViewLayout = reader.layout
        part = self._part = self._layout.parts[0]
        self._record_words = record_size(part) // 8
        row_words = [size // 8 for size in part.row_sizes]
        self._row_words = np.array(row_words, dtype=np.int64)[:, None]
        self._fixed_words = (HEADER.size + counts_size(len(part.ladders))) // 8
        self._expected = int.from_bytes(MAGIC + bytes((VERSION, part.number)), "little")
        self._fingerprint = int(np.array(part.fingerprint_word, dtype=np.uint64).view(np.int64))
        self._no_key = empty_base(part)
        self._empty_rows = b"".join(
            row_format(part.ladder_slots(ladder)).pack(
                tuple(value for measure in ladder.measures for value in part.measures[measure].empty())
            )
            for ladder in part.ladders
        )
        self._empty_at = np.cumsum([0, *row_words[:-1]])[:, None]
        windows: dict[tuple[int, Window], int] = {}
        groups: dict[Any, dict[tuple[int, int], int]] = {}
        reads: dict[Any, dict[Any, list[tuple[int, int]]]] = {}
        for read in part.reads:
            feature = self._layout.features[read.feature]
            number = windows.setdefault((read.ladder, feature.window), len(windows))
            kind, _, _, value_type, kept = part.measures[read.measure].partial_identity
            cells = groups.setdefault((kind, value_type, kept), {})
            cell = cells.setdefault((number, read.measure), len(cells))
            one = feature.aggregate
            depends = type(one).value_columns is not Aggregate.value_columns
            alike = (type(one), tuple(one.parameters.items()), feature.window if depends else None)
            reads.setdefault((kind, value_type, kept), {}).setdefault(alike, []).append((cell, read.feature))
        self._ladder_of = np.array([ladder for ladder, _ in windows], dtype=np.int64)
        self._ladder_hop = np.array([part.ladders[ladder].hop or 1 for ladder, _ in windows], dtype=np.int64)[:, None]
        self._back = np.array([w.delay + (w.length or 0) for _, w in windows], dtype=np.int64)[:, None]
        self._window_hop = np.array([w.hop or 1 for _, w in windows], dtype=np.int64)[:, None]
        self._endless = np.array([w.length is None for _, w in windows])
        by_number = list(windows)
        self._groups = [self._group(cells, reads[key], by_number) for key, cells in groups.items()]

    def _group(
        self,
        cells: dict[tuple[int, int], int],
        reads: dict[Any, list[tuple[int, int]]],
        windows: list[tuple[int, Window]],
    ) -> _Group:
        part = self._part
        in_row = []
        for number, measure in cells:
            held = part.ladders[windows[number][0]].measures
            in_row.append(sum(len(part.measures[each].slots) for each in held[: held.index(measure)]))
        found = []
        for pairs in reads.values():
            first = self._layout.features[pairs[0][1]]
            cell, feature = np.array(pairs, dtype=np.int64).T
            depends = type(first.aggregate).value_columns is not Aggregate.value_columns
            found.append((first.aggregate, first.window if depends else None, cell, feature))
        return _Group(
            part.measures[next(iter(cells))[1]],
            np.array([number for number, _ in cells], dtype=np.int64),
            np.array(in_row, dtype=np.int64),
            np.array([3 + part.slot_offsets[measure] for _, measure in cells], dtype=np.int64),
            found,
        )

    @staticmethod
    def serves(layout: ViewLayout) -> bool:
        """Return whether a view can be read this way."""
        return (
            len(layout.parts) == 1
            and layout.parts[0].is_fixed
            and all(ladder.is_suffix for ladder in layout.parts[0].ladders)
        )

    def read(self, blobs: Sequence[bytes | None], t: Instant, *, exact_time: bool) -> list[ViewValues]:
        """Return the features of every key; arguments and errors as of ``ViewReader.read``, with one blob per key."""
        found = self.columns(blobs, t, exact_time=exact_time)
        return [
            ViewValues(values, known, None if newest == MIN_INSTANT else newest)
            for values, known, newest in zip(
                zip(*lists_of(found.blocks, len(self._layout.features)), strict=True),
                found.known.tolist(),
                found.as_of.tolist(),
                strict=True,
            )
        ]

    def columns(self, blobs: Sequence[bytes | None], t: Instant, *, exact_time: bool) -> ViewColumns:
        """Return the features of every key by feature; arguments and errors as of ``read``."""
        if None in blobs:
            known = np.array([blob is not None for blob in blobs])
            opened = self._open([self._no_key if blob is None else blob for blob in blobs])
        else:
            known = np.ones(len(blobs), dtype=bool)
            opened = self._open(blobs)  # type: ignore[arg-type]
        at, as_of = self._times(opened, t, exact_time=exact_time)
        return ViewColumns(self._blocks(opened, at), known, as_of)

    def _open(self, blobs: Sequence[bytes]) -> _Blobs:
        """Return the blobs as words; CodecError, told by the reader of one, when any is not one of this view."""
        keys = len(blobs)
        sizes = np.fromiter(map(len, blobs), dtype=np.int64, count=keys)
        if int(sizes.min()) < 8 * self._fixed_words or (sizes & 7).any():
            self._refuse(blobs, (sizes < 8 * self._fixed_words) | (sizes % 8 != 0))
        words = np.frombuffer(b"".join([*blobs, self._empty_rows]), dtype="<i8")
        sizes >>= 3
        ends = np.cumsum(sizes)
        begin = ends - sizes
        head = words[begin]
        wrong = (head & 0xFFFFFFFF) != self._expected
        wrong |= words[begin + 1] != self._fingerprint
        number = np.arange(len(self._row_words))[:, None]
        rows = words.view("<u4")[2 * (begin + _HEADER_WORDS) + number].astype(np.int64)
        after = np.cumsum(rows * (1 + self._row_words), axis=0)
        after += begin + self._fixed_words
        hops = np.vstack((begin + self._fixed_words, after[:-1]))
        tail = after[-1]
        tails, rest = np.divmod(ends - tail, self._record_words)
        wrong |= (tail - begin) << 3 != (head >> 32) & 0xFFFFFFFF
        wrong |= (tails < 0) | (rest != 0)
        if wrong.any():
            self._refuse(blobs, wrong)
        record_key = np.repeat(np.arange(keys), tails)
        place = np.arange(len(record_key)) - np.repeat(np.cumsum(tails) - tails, tails)
        record = tail[record_key] + place * self._record_words
        return _Blobs(words, hops, rows, int(ends[-1]), words[begin + 2], ends, tails, record, record_key)

    def _refuse(self, blobs: Sequence[bytes], wrong: np.ndarray) -> None:
        for row in np.flatnonzero(wrong).tolist():
            parse_frame(blobs[row], self._part)
        raise AssertionError("the two readers disagree on what a blob is")

    def _times(self, found: _Blobs, t: Instant, *, exact_time: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the time to read at, of all keys or one for every key, and per key the newest event time before it."""
        oldest, newest = found.words[found.record + 1], found.words[found.record + 2]
        at = np.array([t], dtype=np.int64)
        while True:
            as_of = found.newest.copy()
            counts = oldest < (at if len(at) == 1 else at[found.record_key])
            np.maximum.at(as_of, found.record_key[counts], newest[counts])
            late = as_of >= at
            if not late.any():
                return at, as_of
            if exact_time:
                raise self._reader.past(t, int(as_of[np.argmax(late)]))
            at = np.where(late, as_of + 1, at)

    def _blocks(self, found: _Blobs, at: np.ndarray) -> list[Block]:
        """Return all features of all keys."""
        words, keys = found.words, len(found.newest)
        low = at - self._back
        low -= low % self._window_hop  # of every window its start; shape (windows, keys or 1)
        row = self._rows(found, low // self._ladder_hop)
        low[self._endless] = MIN_INSTANT
        # With the longest tails first, the keys that have an n-th record are the first ones: slices, not copies.
        order = np.argsort(-found.tails, kind="stable")
        back = np.empty_like(order)
        back[order] = np.arange(keys)
        row = row[:, order].T
        steps = self._steps(found, at, low, order)
        doubles = words.view(np.float64)
        blocks = []
        for group in self._groups:
            aggregate, width = group.aggregate, len(group.window)
            sources = [words if slot == "i8" else doubles for slot in aggregate.slots]
            first = row.take(group.window, axis=1)
            first += group.in_row
            partial = tuple(source.take(first + slot).ravel() for slot, source in enumerate(sources))
            for record, covered in steps:
                counts = covered.take(group.window, axis=1).ravel()
                if not counts.any():
                    continue
                place = (record + group.in_record).ravel()
                more = tuple(source.take(place + slot) for slot, source in enumerate(sources))
                mine = tuple(column[: len(counts)] for column in partial)
                for column, merged in zip(mine, aggregate.merge_columns(mine, more), strict=True):
                    np.copyto(column, merged, where=counts)
            for one, window, cell, feature in group.reads:
                place = (back * width)[:, None] + cell
                chosen = tuple(column.take(place.ravel()) for column in partial)
                times = np.repeat(np.broadcast_to(at, keys), len(cell)) if window is not None else at
                result, valid = one.value_columns(chosen, times, window)  # type: ignore[arg-type]
                if one.result_type == DataType.BOOL:
                    result = result != 0
                blocks.append(Block(feature, result.reshape(place.shape), valid.reshape(place.shape)))
        return blocks

    def _rows(self, found: _Blobs, wanted: np.ndarray) -> np.ndarray:
        """Return the first word of the row of every window and key; that of an empty row where there is none.

        The row is the first whose hop id is not less than ``wanted``: a binary search of all at once.
        """
        hops, rows = found.hops[self._ladder_of], found.rows[self._ladder_of]
        low = hops.copy()
        left = np.where(self._endless[:, None] | (found.words[low] >= wanted), 0, rows)
        while left.any():
            half = left >> 1
            middle = low + half
            less = (found.words[middle] < wanted) & (left > 0)
            low = np.where(less, middle + 1, low)
            left = np.where(less, left - half - 1, half)
        place = low - hops
        width = self._row_words[self._ladder_of]
        return np.where(place < rows, hops + rows + place * width, found.empty + self._empty_at[self._ladder_of])

    def _steps(
        self, found: _Blobs, at: np.ndarray, low: np.ndarray, order: np.ndarray
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the tail in steps: the n-th record of every key that has one, and the windows it counts in.

        Shapes: (keys, 1) and (keys, windows), of the first keys in ``order``.
        """
        if not len(found.record):
            return []
        tails = found.tails[order]
        first = (found.ends - found.tails * self._record_words)[order]
        if low.shape[1] > 1:
            low, at = low[:, order], at[order]
        steps = []
        for place in range(int(tails[0])):
            keys = int(np.searchsorted(-tails, -place))
            record = first[:keys] + place * self._record_words
            start, oldest = found.words.take(record), found.words.take(record + 1)
            covered = (start >= low[:, :keys]) & (oldest < at[:keys])
            if covered.any():
                steps.append((record[:, None], covered.T))
        return steps
