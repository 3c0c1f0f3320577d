"""The pieces of many blobs at once: cut out of one array of 8-byte words, and put together in one, by arithmetic. Pure numpy.

    cut    n blobs, one after the other -> per ladder the hop ids and rows of all keys; the tail records of all keys
    join   per piece (head, hop ids, rows, ..., tail) the words of all keys -> n blobs, each with its words of every piece

Blobs of wide parts are cut one by one: where their rows end stands in each of them. What is a blob is ``codec``'s to say.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from featurestore.algebra.columns import SLOT_TYPES
from featurestore.errors import CodecError
from featurestore.online.codec import (
    HEADER,
    SHORT,
    SHORT_VERSION,
    counts_size,
    ends_of_rows,
    fingerprint_word,
    head_word,
    ladder_format,
    parse_frame,
    record_format,
    record_size,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.algebra.aggregate import Columns
    from featurestore.definitions.parts import Part

_HEADER_WORDS = HEADER.size // 8

Piece = tuple[np.ndarray, np.ndarray]
"""Words of n keys, one after the other, and n + 1 bounds: where those of each key begin, and the end."""


class Pieces:
    """The blobs of n keys, cut into their pieces.

    Attributes:
        newest: Per key, the newest event time folded into the base.
        folds: Per key, the fold counter.

    Raises:
        CodecError: A blob is not one of this part.
    """

    def __init__(self, part: Part, blobs: Sequence[bytes]) -> None:
        self._part, self._blobs = part, blobs
        if part.is_fixed:
            self._open_all()
            return
        frames = [parse_frame(blob, part) for blob in blobs]
        self._bases = np.array([frame.base_length for frame in frames], dtype=np.int64)
        placed = np.array([frame.ladders for frame in frames], dtype=np.int64).reshape(len(blobs), -1, 2)
        self._hops, self._rows = placed[:, :, 0].T, placed[:, :, 1].T
        self.newest = np.array([frame.newest for frame in frames], dtype=np.int64)
        self.folds = np.array([frame.folds for frame in frames], dtype=np.uint64)

    def _open_all(self) -> None:
        """Find the pieces of all blobs, in words from the first blob's begin on."""
        part, blobs = self._part, self._blobs
        fixed = (HEADER.size + counts_size(len(part.ladders))) // 8
        sizes = np.fromiter(map(len, blobs), np.int64, len(blobs))
        self._refuse((sizes < 8 * fixed) | (sizes % 8 != 0))
        words = self._words = np.frombuffer(b"".join(blobs), "<i8")
        sizes //= 8
        begin = np.cumsum(sizes) - sizes
        head = words[begin[:, None] + np.arange(fixed)]
        rows = self._rows = head[:, _HEADER_WORDS:].copy().view("<u4").T[: len(part.ladders)].astype(np.int64)
        self._is_short = (head[:, 0] >> 16) & 0xFF == SHORT_VERSION
        sizes_of = np.array((part.row_sizes, part.short_sizes), dtype=np.int64).T // 8
        self._sizes = sizes_of[:, self._is_short.astype(np.int64)]
        space = rows * (self._sizes + 1)
        self._hops = begin + fixed + np.cumsum(space, axis=0) - space
        bases = fixed + space.sum(axis=0)
        record = record_size(part) // 8
        self._refuse(
            (head[:, 0] != (8 * bases << 32) + head_word(part) + self._is_short * SHORT)
            | (head[:, 1] != fingerprint_word(part))
            | (bases > sizes)
            | ((sizes - bases) % record != 0)
        )
        self._bases, self._tails = begin + bases, (sizes - bases) // record
        self.newest, self.folds = head[:, 2], head[:, 3].astype(np.uint64)

    def _refuse(self, wrong: np.ndarray) -> None:
        for row in np.flatnonzero(wrong).tolist():
            parse_frame(self._blobs[row], self._part)
            raise AssertionError("two readers disagree on what a blob is")

    def tails(self) -> tuple[np.ndarray, Columns]:
        """Return how many tail records each key has, and those of all keys, in order."""
        form = record_format(self._part)
        if self._part.is_fixed:
            size = form.words.size // 8
            return self._tails, form.decode([self._cut(self._bases, self._tails * size)])
        each = [form.decode([blob[base:]]) for blob, base in zip(self._blobs, self._bases.tolist(), strict=True)]
        columns = tuple(np.concatenate(column) for column in zip(*each, strict=True)) or form.decode([])
        return np.array([len(one[0]) for one in each], dtype=np.int64), columns

    def ladder(self, index: int) -> tuple[np.ndarray, np.ndarray, Columns]:
        """Return how many rows each key has of a ladder, and hop ids and rows of all keys."""
        part, rows, begin = self._part, self._rows[index], self._hops[index]
        form = ladder_format(part, part.ladders[index])
        if part.is_fixed:
            hops = self._cut(begin, rows)
            found = self._rows_of(index, form.slots)
        else:
            pieces, bodies = [], []
            for blob, offset, count in zip(self._blobs, begin.tolist(), rows.tolist(), strict=True):
                size = ends_of_rows(blob, offset, count)[count - 1] if count else 0
                pieces.append(blob[offset : offset + 8 * count])
                bodies.append(blob[offset + 16 * count : offset + 16 * count + size])
            hops, found = b"".join(pieces), form.decode(bodies)
        hop_ids = np.frombuffer(hops, "<i8").astype(np.int64)
        if len(found[0]) != len(hop_ids):
            raise CodecError(f"view {part.view}: a ladder of {len(hop_ids)} hops has {len(found[0])} rows.")
        return rows, hop_ids, found

    def _rows_of(self, index: int, slots: tuple[str, ...]) -> Columns:
        """Return the rows of a ladder of all keys, whole or short."""
        part, rows = self._part, self._rows[index]
        ends = np.cumsum(rows)
        size = self._sizes[index]
        number = np.arange(rows.sum()) - np.repeat(ends - rows, rows)
        at = np.repeat(self._hops[index] + rows, rows) + number * np.repeat(size, rows)
        one = self._is_short
        is_short = one[:1].any() if one.all() == one.any() else np.repeat(one, rows)
        places = np.array((range(len(slots)), part.short_places[index])).T
        return tuple(
            self._words[at + np.where(is_short, short, whole)].astype(np.int64, copy=False).view(SLOT_TYPES[slot])
            for slot, (whole, short) in zip(slots, places.tolist(), strict=True)
        )

    def _cut(self, begin: np.ndarray, length: np.ndarray) -> bytes:
        """Return the words of all keys' spans, one after the other."""
        cut: bytes = self._words[_spans(begin, length)].tobytes()
        return cut


class Rung(NamedTuple):
    """The rows of one ladder of n keys.

    Attributes:
        starts: First row of every key, and the end.
        hops: Hop id of every row.
        rows: The partials of its measures.
    """

    starts: np.ndarray
    hops: np.ndarray
    rows: Columns


def join_blobs(part: Part, newest: np.ndarray, folds: np.ndarray, rungs: Sequence[Rung], tail: Piece) -> list[bytes]:
    """Return the blobs of n keys, with short rows where that says the same.

    Args:
        part: The part of the view.
        newest: Newest event time folded into each base.
        folds: Fold counter of each; it wraps.
        rungs: For each ladder its rows.
        tail: The tail records.
    """
    is_short = _are_short(part, rungs, len(newest))
    ladders: list[Piece] = []
    for index, (starts, hop_ids, rows) in enumerate(rungs):
        ladders.append((hop_ids.astype("<i8", copy=False), starts))
        form = ladder_format(part, part.ladders[index])
        if part.is_fixed:
            ladders.append(_stored(rows, form.slots, starts, part.short_places[index], is_short))
            continue
        data, ends = form.encode(rows)
        ladders.append((ends[1:] - np.repeat(ends[starts[:-1]], np.diff(starts)), starts))
        ladders.append((np.frombuffer(data, "<i8"), ends[starts] // 8))
    fixed = HEADER.size + counts_size(len(part.ladders))
    hops = ladders[:: 2 if part.is_fixed else 3]
    head = np.zeros((len(newest), fixed // 8), dtype="<i8")
    bases = fixed + 8 * np.sum([np.diff(bounds) for _, bounds in ladders], axis=0)
    head[:, 0] = (bases << 32) + head_word(part) + is_short * SHORT
    head[:, 1], head[:, 2], head[:, 3] = fingerprint_word(part), newest, folds.view(np.int64)
    counts = np.zeros((len(newest), (fixed - HEADER.size) // 4), dtype="<u4")
    counts[:, : len(hops)] = np.transpose([np.diff(bounds) for _, bounds in hops])
    head[:, _HEADER_WORDS:] = counts.view("<i8")
    pieces = [(head.ravel(), np.arange(len(newest) + 1) * (fixed // 8)), *ladders, tail]
    sizes = np.transpose([np.diff(bounds) for _, bounds in pieces])
    ends = np.cumsum(sizes).reshape(sizes.shape)
    joined = np.empty(sizes.sum(), dtype="<i8")
    for number, (words, _) in enumerate(pieces):
        joined[_spans(ends[:, number] - sizes[:, number], sizes[:, number])] = words
    data = joined.tobytes()
    return [data[low:high] for low, high in pairwise([0, *(8 * ends[:, -1]).tolist()])]


def _are_short(part: Part, rungs: Sequence[Rung], keys: int) -> np.ndarray:
    """Return of which keys short rows say all that whole ones do: counted measures agree in every row."""
    is_short = np.full(keys, part.is_fixed and part.short_sizes != part.row_sizes)
    for places, (starts, _, rows) in zip(part.short_places, rungs, strict=True):
        if not is_short.any():
            break
        differs = np.zeros(starts[-1], dtype=bool)
        for slot, place in enumerate(places):
            if (first := places.index(place)) != slot:
                differs |= rows[slot] != rows[first]
        is_short[np.repeat(np.arange(keys), np.diff(starts))[differs]] = False
    return is_short


def _stored(
    rows: Columns, slots: Sequence[str], starts: np.ndarray, places: Sequence[int], is_short: np.ndarray
) -> Piece:
    """Return the words of rows without "b" slots, short ones of those keys."""
    words = np.empty((len(rows[0]), len(rows)), dtype="<i8")
    for number, (column, slot) in enumerate(zip(rows, slots, strict=True)):
        words[:, number] = np.ascontiguousarray(column, dtype=SLOT_TYPES[slot]).view(np.int64)
    first = np.array([places.index(place) == slot for slot, place in enumerate(places)])
    many = np.diff(starts)
    sizes = np.where(is_short, np.count_nonzero(first), len(rows))
    if is_short.all():
        words = words[:, first]
    elif is_short.any():
        words = words[np.repeat(~is_short, many)[:, None] | first]
    return words.reshape(-1), np.concatenate(([0], np.cumsum(many * sizes)))


def _spans(begin: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Return begin, begin + 1, ... of every span, one span after the other."""
    ends = np.cumsum(length)
    places: np.ndarray = np.arange(length.sum()) + np.repeat(begin - ends + length, length)
    return places
