"""Reading a view's blobs of many keys at once. Pure numpy; gives to the bit what ``reader.ViewReader`` gives key by key.

All blobs are one array of 8-byte words. Headers, ladders and tails of all keys are found by arithmetic on it, the row of
every key and window by one binary search over all keys, and merging and finalizing are the aggregates' column functions.
That holds for views of one part whose rows have one size and whose windows all end at t; ``BatchReader.serves`` tells, and
others are read key by key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.algebra.columns import empty_columns, first_not_less, take
from featurestore.datatypes import DataType
from featurestore.online.codec import HEADER, MAGIC, VERSION, counts_size, parse_frame, record_size
from featurestore.online.reader import ViewValues
from featurestore.timeline import MIN_INSTANT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.algebra import Window
    from featurestore.algebra.aggregate import Columns
    from featurestore.definitions.layout import ViewLayout
    from featurestore.online.reader import ViewReader
    from featurestore.timeline import Instant

_HEADER_WORDS = HEADER.size // 8


@dataclass(frozen=True, slots=True)
class _Blobs:
    """Blobs of n keys as words.

    Attributes:
        words: All blobs, one after the other.
        ladders: Per ladder: first word of its hop ids and number of rows, per key.
        newest: Newest event time in the base, per key.
        record: First word of every tail record, of all keys in order.
        record_key: The key it belongs to.
    """

    words: np.ndarray
    ladders: list[tuple[np.ndarray, np.ndarray]]
    newest: np.ndarray
    record: np.ndarray
    record_key: np.ndarray


class BatchReader:
    """Reads one view for many keys. Immutable after construction; safe to share between threads."""

    def __init__(self, reader: ViewReader) -> None:
        self._reader = reader
        self._layout: ViewLayout = reader.layout
        part = self._part = self._layout.parts[0]
        self._record_words = record_size(part) // 8 if part.is_fixed else 0
        self._row_words = [size // 8 for size in part.row_sizes]
        self._fixed_words = (HEADER.size + counts_size(len(part.ladders))) // 8
        # Features that share measure, ladder and window share everything up to finalizing.
        self._reads: dict[tuple[int, Window], dict[int, list[int]]] = {}
        for read in part.reads:
            window = self._layout.features[read.feature].window
            self._reads.setdefault((read.ladder, window), {}).setdefault(read.measure, []).append(read.feature)

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
        present = [row for row, blob in enumerate(blobs) if blob is not None]
        if not present:
            return [self._reader.read([None], t)] * len(blobs)
        found = self._open([blob for blob in blobs if blob is not None])
        at, as_of = self._times(found, t, exact_time=exact_time)
        rows = zip(*self._values(found, at), strict=True)
        read = [
            ViewValues(values, known=True, as_of=None if newest == MIN_INSTANT else newest)
            for values, newest in zip(rows, as_of.tolist(), strict=True)
        ]
        if len(present) == len(blobs):
            return read
        results = [self._reader.read([None], t)] * len(blobs)
        for row, values in zip(present, read, strict=True):
            results[row] = values
        return results

    def _open(self, blobs: list[bytes]) -> _Blobs:
        """Return the blobs as words; CodecError, told by the reader of one, when any is not one of this view."""
        sizes = np.array([len(blob) for blob in blobs], dtype=np.int64)
        short = (sizes < 8 * self._fixed_words) | (sizes % 8 != 0)
        if short.any():
            self._refuse(blobs, short)
        words = np.frombuffer(b"".join(blobs), dtype="<i8")
        ends = np.cumsum(sizes // 8)
        begin = ends - sizes // 8
        head = words[begin]
        expected = int.from_bytes(MAGIC + bytes((VERSION, self._part.number)), "little")
        fingerprint = np.array(int(self._part.fingerprint, 16), dtype=np.uint64).view(np.int64)
        base = (head >> 32) & 0xFFFFFFFF
        wrong = ((head & 0xFFFFFFFF) != expected) | (words[begin + 1] != fingerprint)
        halves = words.view("<u4")
        at = begin + self._fixed_words
        ladders = []
        for number, width in enumerate(self._row_words):
            rows = halves[2 * (begin + _HEADER_WORDS) + number].astype(np.int64)
            ladders.append((at, rows))
            at = at + rows * (1 + width)
        tails, rest = np.divmod(ends - at, self._record_words)
        wrong |= (8 * (at - begin) != base) | (ends < at) | (rest != 0)
        if wrong.any():
            self._refuse(blobs, wrong)
        record_key = np.repeat(np.arange(len(blobs)), tails)
        place = np.arange(len(record_key)) - np.repeat(np.cumsum(tails) - tails, tails)
        return _Blobs(words, ladders, words[begin + 2], at[record_key] + place * self._record_words, record_key)

    def _refuse(self, blobs: list[bytes], wrong: np.ndarray) -> None:
        for row in np.flatnonzero(wrong):
            parse_frame(blobs[row], self._part)
        raise AssertionError("the two readers disagree on what a blob is")

    def _times(self, found: _Blobs, t: Instant, *, exact_time: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return per key the time to read at, and the newest event time before it."""
        oldest, newest = found.words[found.record + 1], found.words[found.record + 2]
        at = np.full(len(found.newest), t, dtype=np.int64)
        while True:
            as_of = found.newest.copy()
            counts = oldest < at[found.record_key]
            np.maximum.at(as_of, found.record_key[counts], newest[counts])
            late = as_of >= at
            if not late.any():
                return at, as_of
            if exact_time:
                raise self._reader.past(t, int(as_of[np.argmax(late)]))
            at = np.where(late, as_of + 1, at)

    def _values(self, found: _Blobs, at: np.ndarray) -> list[list[Any]]:
        """Return one list per feature, None where null."""
        keys = len(at)
        values: list[list[Any]] = [[]] * len(self._layout.features)
        counts = np.flatnonzero(found.words[found.record + 1] < at[found.record_key])
        record, record_key = found.record[counts], found.record_key[counts]
        for (number, window), measures in self._reads.items():
            ladder = self._part.ladders[number]
            begin, rows = found.ladders[number]
            low = None if ladder.hop is None else _start(window, at)
            index = begin
            if low is not None:
                index = first_not_less(found.words, begin, begin + rows, low // (ladder.hop or 1))
            has_row = index < begin + rows
            row = np.where(has_row, begin + rows + (index - begin) * self._row_words[number], 0)
            tail = slice(None) if low is None else found.words[record] >= low[record_key]
            steps = _one_per_key(record_key[tail])
            covered, covered_key = record[tail], record_key[tail]
            offset = 0
            for measure in ladder.measures:
                aggregate = self._part.measures[measure]
                slots = aggregate.slots
                if measure in measures:
                    partial = empty_columns(aggregate, keys)
                    _fill(partial, has_row, _gather(found.words, row[has_row] + offset, slots))
                    place = 3 + self._part.slot_offsets[measure]
                    for step in steps:
                        mine = covered_key[step]
                        merged = aggregate.merge_columns(
                            take(partial, mine), _gather(found.words, covered[step] + place, slots)
                        )
                        _fill(partial, mine, merged)
                    for feature in measures[measure]:
                        values[feature] = self._finalized(feature, partial, at)
                offset += len(slots)
        return values

    def _finalized(self, feature: int, partial: Columns, at: np.ndarray) -> list[Any]:
        one = self._layout.features[feature]
        result, valid = one.aggregate.value_columns(partial, at, one.window)
        made: list[Any] = (result != 0 if one.aggregate.result_type == DataType.BOOL else result).tolist()
        if not valid.all():
            for row in np.flatnonzero(~valid).tolist():
                made[row] = None
        return made


def _start(window: Window, at: np.ndarray) -> np.ndarray:
    """``window.start`` of many instants."""
    edge = at - window.delay - (window.length or 0)
    start: np.ndarray = edge - edge % (window.hop or 1)
    return start


def _gather(words: np.ndarray, first: np.ndarray, slots: Sequence[str]) -> Columns:
    """Return as columns the slots that lie one after the other from every ``first`` on."""
    return tuple(
        words[first + place] if slot == "i8" else words[first + place].view(np.float64)
        for place, slot in enumerate(slots)
    )


def _fill(columns: Columns, rows: np.ndarray, values: Columns) -> None:
    for column, filled in zip(columns, values, strict=True):
        column[rows] = filled


def _one_per_key(key: np.ndarray) -> list[np.ndarray]:
    """Return positions such that each step holds at most one of every key, in order: step 0 the first of each, and so on."""
    if not len(key):
        return []
    starts = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
    place = np.arange(len(key)) - np.repeat(starts, np.diff(np.append(starts, len(key))))
    return [np.flatnonzero(place == step) for step in range(int(place.max()) + 1)]
