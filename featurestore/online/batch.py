"""Reading a view's blobs of many keys at once. Pure numpy; gives to the bit what ``reader.ViewReader`` gives key by key.

All blobs are one array of 8-byte words. Headers, ladders and tails of all keys are found by arithmetic on it, the row of
every key and window by one binary search over all keys. What is merged and finalized alike goes through the aggregates'
column functions in one call, whatever its column, condition or window (``batch_plan``). So the number of numpy calls is
that of the kinds of aggregates, not of features.

    rows       one gather of all slots of all cells, shape (slots, keys)
    tails      one gather of all slots of all measures, shape (steps, slots, keys): step 0 is every key's newest record;
               then the running merge along the steps, once per measure and not per window
    together   a window covers the newest records up to some step: its row is merged with that step, if there is one

That holds for views of one part whose rows have one size and whose windows all end at t; ``BatchReader.serves`` tells, and
others are read key by key. So are blobs whose numbers leave the range in which numpy's arithmetic is Python's: a sum that
would leave int64, a division by what cannot be a count. Nothing that was written here does; bytes that were spoiled do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featurestore.datatypes import DataType
from featurestore.online.batch_plan import UnusualError, check_sums, gather_plan
from featurestore.online.codec import (
    HEADER,
    SHORT,
    SHORT_VERSION,
    counts_size,
    empty_base,
    empty_rows,
    fingerprint_word,
    head_word,
    parse_frame,
    record_format,
    record_size,
)
from featurestore.online.columns import Block, ViewColumns, ViewValues, lists_of, newest_of, view_columns
from featurestore.timeline import MAX_INSTANT, MIN_INSTANT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.definitions.layout import ViewLayout
    from featurestore.online.reader import ViewReader
    from featurestore.timeline import Instant

_HEADER_WORDS = HEADER.size // 8
_MOST_STEPS = 60
"""So many integers in [-LIMIT, LIMIT) add up within int64."""
_STEPS = np.arange(_MOST_STEPS)[:, None]
_STAMPS = np.arange(3)[:, None, None]
_FEW_ROWS = 64
"""Up to so many rows, looking at all of them is quicker than searching."""
_ROWS = np.arange(_FEW_ROWS)[:, None]


@dataclass(frozen=True, slots=True)
class _Blobs:
    """Blobs of n keys as words; after them an empty row of every ladder, all of them short, and an empty tail record.

    Attributes:
        words: All blobs, one after the other.
        form: Which column of what is by form, whole or short, is that of every key's rows; one for all where they agree.
        hops: First word of the hop ids, shape (ladders, keys).
        rows: Number of rows, same shape.
        after: The word after the last blob, where the empty rows begin.
        newest: Newest event time in the base, per key.
        records: First word of the tail records, shape (steps, keys): the last one of every key, the one before, ...; of
            a key that has none left, the empty record.
    """

    words: np.ndarray
    form: np.ndarray | slice
    hops: np.ndarray
    rows: np.ndarray
    after: int
    newest: np.ndarray
    records: np.ndarray


@dataclass(frozen=True, slots=True)
class _Tails:
    """The tail records that count, of k keys that have some.

    Attributes:
        keys: Which keys; None for all.
        running: Slots, shape (steps, slots, k): step 0 is the newest record, every other one is merged with those before.
        count: How many of the newest a window covers, shape (windows, k).
    """

    keys: np.ndarray | None
    running: np.ndarray
    count: np.ndarray


class BatchReader:
    """Reads one view for many keys. Immutable after construction; safe to share between threads."""

    def __init__(self, reader: ViewReader) -> None:
        self._reader = reader
        self._layout: ViewLayout = reader.layout
        part = self._part = self._layout.parts[0]
        self._record_words = record_size(part) // 8
        self._row_words = np.array((part.row_sizes, part.short_sizes), dtype=np.int64).T // 8  # by ladder and form
        self._row_space = self._row_words + 1  # with the hop id
        self._fixed_words = (HEADER.size + counts_size(len(part.ladders))) // 8
        self._expected = head_word(part)
        self._fingerprint = fingerprint_word(part)
        self._no_key = empty_base(part)
        self._empties = b"".join(empty_rows(part)) + record_format(part).pack(
            (MIN_INSTANT, MAX_INSTANT, MIN_INSTANT, *(v for measure in part.measures for v in measure.empty()))
        )
        ends = np.cumsum(self._row_words.T)  # all whole ones, then all short ones
        self._no_record = int(ends[-1])
        self._head = np.arange(self._fixed_words)
        self._step_words = (_STEPS + 1) * self._record_words
        plan = self._plan = gather_plan(self._layout)
        ladder_of = self._ladder_of = np.array([ladder for ladder, _ in plan.windows], dtype=np.int64)
        windows = [window for _, window in plan.windows]
        self._ladder_hop = np.array([part.ladders[ladder].hop or 1 for ladder in ladder_of], dtype=np.int64)[:, None]
        self._window_row = self._row_words[ladder_of]
        self._window_empty = (ends.reshape(2, -1).T - self._row_words)[ladder_of]
        self._back = np.array([w.delay + (w.length or 0) for w in windows], dtype=np.int64)[:, None]
        self._window_hop = np.array([w.hop or 1 for w in windows], dtype=np.int64)[:, None]
        self._endless = np.array([w.length is None for w in windows])
        self._has_endless = bool(self._endless.any())

    @staticmethod
    def serves(layout: ViewLayout) -> bool:
        """Return whether a view can be read this way."""
        return (
            len(layout.parts) == 1
            and layout.parts[0].is_fixed
            and all(ladder.is_suffix for ladder in layout.parts[0].ladders)
        )

    def read(
        self, blobs: Sequence[bytes | None], t: Instant | Sequence[Instant], *, exact_time: bool
    ) -> list[ViewValues]:
        """Return the features of every key; arguments and errors as of ``ViewReader.read``, with one blob per key.

        The time is one for all, or, where it is not exact, one per key.
        """
        return self.values(self.columns(blobs, t, exact_time=exact_time))

    def values(self, found: ViewColumns) -> list[ViewValues]:
        """Return what was found of every key."""
        rows = zip(*lists_of(found.blocks, len(self._layout.features)), strict=True)
        return list(map(ViewValues, rows, found.known.tolist(), newest_of(found)))

    def columns(
        self, blobs: Sequence[bytes | None], t: Instant | Sequence[Instant], *, exact_time: bool
    ) -> ViewColumns:
        """Return the features of every key by feature; arguments and errors as of ``read``."""
        if self._reader.compiled is not None:
            found = self._reader.compiled.columns(blobs, t, exact_time=exact_time)
            if found is not None:
                return found
        known = np.ones(len(blobs), dtype=bool)
        present: Sequence[bytes] = blobs  # type: ignore[assignment]
        if None in blobs:
            known = np.array([blob is not None for blob in blobs])
            present = [self._no_key if blob is None else blob for blob in blobs]
        try:
            with np.errstate(divide="raise", invalid="raise", over="ignore"):
                opened = self._open(present)
                at, as_of, records = self._times(opened, t, exact_time=exact_time)
                return ViewColumns(self._blocks(opened, at, records), known, as_of)
        except (FloatingPointError, UnusualError):
            return self._one_by_one(blobs, t, exact_time=exact_time)

    def _one_by_one(
        self, blobs: Sequence[bytes | None], t: Instant | Sequence[Instant], *, exact_time: bool
    ) -> ViewColumns:
        times = [t] * len(blobs) if isinstance(t, int) else t
        found = [self._reader.read([blob], at, exact_time=exact_time) for blob, at in zip(blobs, times, strict=True)]
        return view_columns(found, [feature.aggregate.result_type for feature in self._layout.features])

    def _open(self, blobs: Sequence[bytes]) -> _Blobs:
        """Return the blobs as words; CodecError, told by the reader of one, when any is not one of this view."""
        sizes = np.fromiter(map(len, blobs), dtype=np.int64, count=len(blobs))
        if np.minimum.reduce(sizes) < 8 * self._fixed_words or np.bitwise_or.reduce(sizes) & 7:
            self._refuse(blobs, (sizes < 8 * self._fixed_words) | (sizes % 8 != 0))
        words = np.frombuffer(b"".join([*blobs, self._empties]), dtype="<i8")
        sizes >>= 3
        ends = np.add.accumulate(sizes)
        begin = ends - sizes
        head = words.take(begin[:, None] + self._head)
        rows = head[:, _HEADER_WORDS:].view("<u4").T[: len(self._row_words)].astype(np.int64)
        is_short = (head[:, 0] >> 16) & 0xFF == SHORT_VERSION
        form: np.ndarray | slice = is_short.astype(np.int64)
        if np.count_nonzero(is_short) in (0, len(blobs)):
            form = slice(int(is_short[0]), int(is_short[0]) + 1)
        space = rows * self._row_space[:, form]
        hops = np.add.accumulate(space)
        base = hops[-1] + self._fixed_words
        # The base length stands there in bytes, 32 bits up.
        wrong = head[:, 0] != (base << 35) + self._expected + is_short * SHORT
        wrong |= head[:, 1] != self._fingerprint
        sizes -= base
        tails = sizes // self._record_words
        wrong |= tails * self._record_words != sizes
        if np.count_nonzero(wrong) or np.minimum.reduce(tails) < 0:
            self._refuse(blobs, wrong | (tails < 0))
        hops += begin + self._fixed_words
        hops -= space
        after = int(ends[-1])
        steps = int(np.maximum.reduce(tails))
        if steps > _MOST_STEPS:
            raise UnusualError
        records = np.where(_STEPS[:steps] < tails, ends - self._step_words[:steps], after + self._no_record)
        return _Blobs(words, form, hops, rows, after, head[:, 2], records)

    def _refuse(self, blobs: Sequence[bytes], wrong: np.ndarray) -> None:
        for row in np.flatnonzero(wrong).tolist():
            parse_frame(blobs[row], self._part)
        raise AssertionError("the two readers disagree on what a blob is")

    def _times(
        self, found: _Blobs, t: Instant | Sequence[Instant], *, exact_time: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the time to read at, of all keys or one for every key, the newest event time before it, and the records.

        The records are those that count then, newest tile first, as in ``_Blobs``.
        """
        at = np.array([t] if isinstance(t, int) else t, dtype=np.int64)
        tile, oldest, newest = found.words.take(found.records + _STAMPS)
        if self._has_endless and ((tile == MIN_INSTANT) & (found.records < found.after)).any():
            raise UnusualError  # it would pass for the empty record
        while True:
            counts = oldest < at
            as_of = found.newest
            if len(counts):
                as_of = np.maximum(as_of, np.maximum.reduce(np.where(counts, newest, MIN_INSTANT)))
            late = as_of >= at
            if not np.count_nonzero(late):
                break
            if exact_time:
                raise self._reader.past(int(at[0]), int(as_of[np.argmax(late)]))
            if int(as_of.max()) == MAX_INSTANT:
                raise UnusualError
            at = np.where(late, as_of + 1, at)
        if not len(counts):
            return at, as_of, found.records
        records = found.records
        if np.count_nonzero(counts) < counts.size:
            tile = np.where(counts, tile, MIN_INSTANT)
            records = np.where(counts, records, found.after + self._no_record)
        if np.count_nonzero(tile[1:] > tile[:-1]):
            records = np.take_along_axis(records, np.argsort(~tile, axis=0, kind="stable"), axis=0)
        while len(records) and np.minimum.reduce(records[-1]) > found.after:
            records = records[:-1]  # no key has as many that count
        return at, as_of, records

    def _blocks(self, found: _Blobs, at: np.ndarray, records: np.ndarray) -> list[Block]:
        """Return all features of all keys; ``records`` are those that count."""
        keys = len(found.newest)
        low = at - self._back
        low -= low % self._window_hop  # of every window its start; shape (windows, keys or 1)
        row = self._rows(found, low // self._ladder_hop)
        if self._has_endless:
            low[self._endless] = MIN_INSTANT + 1  # all but the empty record
        place = row.take(self._plan.cell_window, axis=0)
        place += self._plan.cell_word[:, found.form]
        rows = found.words.take(place)
        check_sums(rows, self._plan.least_rows)
        tails = self._tails(found, records, low)
        if tails is not None:
            rows = self._merge(rows, tails)
        blocks = []
        for group, partial in zip(self._plan.groups, self._partials(rows), strict=True):
            for read in group.reads:
                chosen = partial
                if read.cells is not None:
                    chosen = tuple(column.reshape(-1, keys)[read.cells].reshape(-1) for column in partial)
                shape = (len(read.features), keys)
                times = np.tile(np.broadcast_to(at, keys), shape[0]) if read.window is not None else at
                result, valid = read.aggregate.value_columns(chosen, times, read.window)  # type: ignore[arg-type]
                if read.aggregate.result_type == DataType.BOOL:
                    result = result != 0
                blocks.append(Block(read.features, result.reshape(shape), valid.reshape(shape)))
        return blocks

    def _merge(self, rows: np.ndarray, tails: _Tails) -> np.ndarray:
        """Return the rows with the running tails merged in, where a window covers any."""
        _, width, keys = tails.running.shape
        step = np.maximum(tails.count - 1, 0).take(self._plan.cell_window, axis=0)
        step *= width
        step += self._plan.cell_tail
        step *= keys
        step += np.arange(keys)
        more = tails.running.reshape(-1).take(step)
        mine = rows if tails.keys is None else rows.take(tails.keys, axis=1)
        pairs = zip(self._plan.groups, self._partials(mine), self._partials(more), strict=True)
        merged = [column for group, a, b in pairs for column in group.aggregate.merge_columns(a, b)]
        covered = (tails.count > 0).take(self._plan.cell_window, axis=0)
        mine = np.where(covered, self._gathered(merged, (-1, keys)), mine)
        if tails.keys is None:
            return mine
        rows[:, tails.keys] = mine
        return rows

    def _gathered(self, columns: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        """Return the slots of all groups as one array of words in the order of the gathers, with the given shape."""
        parts = [column.view(np.int64).reshape(*shape[:-2], -1) for column in columns]
        whole = np.concatenate([parts[place] for place in self._plan.order], axis=-1)
        return whole.reshape(shape)

    def _partials(self, rows: np.ndarray) -> list[tuple[np.ndarray, ...]]:
        """Return per group the columns in a gather of rows: views, of shape (cells * keys,)."""
        doubles, keys = rows.view(np.float64).reshape(-1), rows.shape[1]
        words = rows.reshape(-1)
        return [
            tuple(
                (words if slot == "i8" else doubles)[cells.start * keys : cells.stop * keys]
                for slot, cells in zip(group.aggregate.slots, group.cells, strict=True)
            )
            for group in self._plan.groups
        ]

    def _rows(self, found: _Blobs, wanted: np.ndarray) -> np.ndarray:
        """Return the first word of the row of every window and key; that of an empty row where there is none.

        The row is the first whose hop id is not less than ``wanted``.
        """
        hops, rows = found.hops[self._ladder_of], found.rows[self._ladder_of]
        most = int(np.maximum.reduce(rows, axis=None))
        if most <= _FEW_ROWS:
            number = _ROWS[:most]
            less = found.words.take(hops[:, None, :] + number, mode="clip") < wanted[:, None, :]
            less &= number < rows[:, None, :]
            if np.count_nonzero(less[:, 1:] > less[:, :-1]):
                raise UnusualError  # they do not ascend
            place = np.add.reduce(less, axis=1, dtype=np.int64)
        else:
            place = _bisect(found.words, hops, rows, wanted)
        if self._has_endless:
            place[self._endless] = 0
        at = hops + rows + place * self._window_row[:, found.form]
        return np.where(place < rows, at, found.after + self._window_empty[:, found.form])

    def _tails(self, found: _Blobs, records: np.ndarray, low: np.ndarray) -> _Tails | None:
        """Return the tail records merged from the newest on; None without any."""
        if not len(records):
            return None
        keys = None
        has_some = records[0] < found.after
        if 2 * np.count_nonzero(has_some) < len(has_some):  # else leaving them out costs more than it saves
            keys = np.flatnonzero(has_some)
            records = records[:, keys]
            low = low if low.shape[1] == 1 else low[:, keys]
        covered = found.words.take(records) >= low[:, None, :]
        running = found.words.take(records[:, None, :] + self._plan.record_word)
        check_sums(running, self._plan.least_tails)
        if len(running) > 1:
            running = self._run(running)
        return _Tails(keys, running, np.add.reduce(covered, axis=1, dtype=np.int64))

    def _run(self, running: np.ndarray) -> np.ndarray:
        """Return every step merged with all before it."""
        steps, _, keys = running.shape
        words, doubles = running.reshape(steps, -1), running.view(np.float64).reshape(steps, -1)
        merged: list[np.ndarray] = []
        for group in self._plan.groups:
            merged += group.aggregate.running_columns(
                tuple(
                    (words if slot == "i8" else doubles)[:, measures.start * keys : measures.stop * keys]
                    for slot, measures in zip(group.aggregate.slots, group.measures, strict=True)
                )
            )
        return self._gathered(merged, (steps, -1, keys))


def _bisect(words: np.ndarray, low: np.ndarray, rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return for every search how many of ``rows`` ascending words from ``low`` on are less than ``wanted``.

    All at once, and where ``bisect_left`` looks, so that words that do not ascend give the same.
    """
    begin, left = low, rows
    for _ in range(int(left.max()).bit_length()):
        half = left >> 1
        middle = low + half
        less = words.take(middle, mode="clip") < wanted
        less &= left > 0
        low = np.where(less, middle + 1, low)
        left = np.where(less, left - half - 1, half)
    found: np.ndarray = low - begin
    return found
