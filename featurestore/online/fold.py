"""Folding tails into bases, many keys at once. Pure numpy.

Steps, per ladder, with n keys (see ``codec`` for the layout):
    1. tail records -> their hop, merged per (key, hop), then suffix-merged per key: T[key, hop] = that hop and newer
    2. the union of base hops and tail hops, per key, without hops that no later lookup can reach
    3. new row (key, hop) = base row at the first base hop >= hop, merged with the tail row at the first tail hop >= hop
Records from ahead of the clock stay in the tail as they are, until their time has come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featurestore.algebra.columns import (
    empty_columns,
    first_not_less,
    merge_suffixes,
    reduce_groups,
    starts_of_runs,
    take,
)
from featurestore.algebra.tiles import TileRows, columns_at, words_of
from featurestore.online.codec import HEADER, MAGIC, VERSION, counts_size, parse_frame
from featurestore.timeline import MAX_INSTANT, MIN_INSTANT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.algebra.aggregate import Aggregate, Columns
    from featurestore.definitions.layout import Ladder, ViewLayout
    from featurestore.engines.shape import Shaped
    from featurestore.timeline import Instant


def fold(layout: ViewLayout, blobs: Sequence[bytes], *, clock: Instant = MAX_INSTANT) -> list[bytes]:
    """Return every blob with its tail folded into its base.

    Args:
        layout: The view.
        blobs: The stored bytes of one key each.
        clock: Records that reach beyond this instant stay in the tail.

    Raises:
        CodecError: A blob is not one of this view.
    """
    frames = [parse_frame(blob, layout) for blob in blobs]
    count = len(blobs)
    width = 3 + len(layout.slots)
    raw = [np.frombuffer(blob, "<i8", offset=frame.base_length) for blob, frame in zip(blobs, frames, strict=True)]
    sizes = np.array([len(words) // width for words in raw], dtype=np.int64)
    table = np.concatenate(raw).reshape(-1, width) if count else np.zeros((0, width), np.int64)
    tail = TileRows(np.repeat(np.arange(count), sizes), table[:, 0], table[:, 1], table[:, 2], tuple(table[:, 3:].T))
    due = tail.newest <= clock
    folded, kept = tail.take(np.flatnonzero(due)), tail.take(np.flatnonzero(~due))
    newest = np.array([frame.newest for frame in frames], dtype=np.int64)
    np.maximum.at(newest, folded.key, folded.newest)

    ladders = [
        _fold_ladder(layout, index, blobs, [frame.ladders[index] for frame in frames], folded, newest)
        for index in range(len(layout.ladders))
    ]
    kept_by_key = np.searchsorted(kept.key, np.arange(count + 1))
    result = []
    fixed = HEADER.size + counts_size(len(layout.ladders))
    for key in range(count):
        parts = []
        counts = []
        for starts, hops, words in ladders:
            rows = slice(starts[key], starts[key + 1])
            counts.append(starts[key + 1] - starts[key])
            parts += [hops[rows].tobytes(), words[rows].tobytes()]
        body = b"".join(parts)
        packed = np.array(counts, dtype="<u4").tobytes().ljust(counts_size(len(counts)), b"\0")
        header = HEADER.pack(
            MAGIC, VERSION, 0, fixed + len(body), int(layout.fingerprint, 16), int(newest[key]), frames[key].folds + 1
        )
        rest = kept.take(slice(kept_by_key[key], kept_by_key[key + 1])).table().astype("<i8", copy=False).tobytes()
        result.append(header + packed + body + rest)
    return result


def drop_unreachable(layout: ViewLayout, events: Shaped, rows: TileRows) -> TileRows:
    """Return the rows of a batch that a lookup after the key's newest event can still reach.

    An event ahead of its arrival does not count as newest: lookups before its time are still to come. Where rows are
    dropped, the key's newest row is made to reach back over them (its ``oldest``), so that a lookup for an instant in
    between is refused instead of answered without them.

    Args:
        layout: The view.
        events: The events of the batch.
        rows: Their tiles (``shape.tiles``).
    """
    reach = layout.reach
    if reach is None or not len(rows):
        return rows
    newest = np.full(len(events.keys), MIN_INSTANT + reach, dtype=np.int64)
    settled = events.event_time <= events.arrival
    np.maximum.at(newest, events.key[settled], events.event_time[settled])
    keep = rows.tile + layout.tile > newest[rows.key] - reach
    dropped, kept = rows.take(np.flatnonzero(~keep)), rows.take(np.flatnonzero(keep))
    back = np.full(len(events.keys), MAX_INSTANT, dtype=np.int64)
    np.minimum.at(back, dropped.key, dropped.oldest)
    oldest = np.where(kept.newest == newest[kept.key], np.minimum(kept.oldest, back[kept.key]), kept.oldest)
    return kept.with_oldest(oldest)


def _fold_ladder(  # noqa: PLR0917
    layout: ViewLayout,
    index: int,
    blobs: Sequence[bytes],
    placed: Sequence[tuple[int, int]],
    tail: TileRows,
    newest: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (first row of every key and the end, hop ids, rows as words) of one ladder after folding."""
    ladder = layout.ladders[index]
    count = len(blobs)
    words = sum(len(layout.measures[measure].slots) for measure in ladder.measures)
    base_rows = np.array([rows for _, rows in placed], dtype=np.int64)
    base_key = np.repeat(np.arange(count), base_rows)
    base_hops = _gather(blobs, [(offset, rows) for offset, rows in placed], 1)[:, 0]
    base_words = _gather(blobs, [(offset + 8 * rows, rows) for offset, rows in placed], words)
    reachable = _first_reachable(ladder, newest)

    hop = tail.tile // ladder.hop if ladder.hop is not None else np.zeros(len(tail.tile), dtype=np.int64)
    alive = np.flatnonzero(hop >= reachable[tail.key])
    alive = alive[np.lexsort((hop[alive], tail.key[alive]))]
    tail_key, tail_hop = tail.key[alive], hop[alive]
    runs = starts_of_runs(tail_key, tail_hop)
    tail_key, tail_hop, tail_words = tail_key[runs], tail_hop[runs], tail.words[alive]

    keys = np.concatenate([base_key, tail_key])
    hops = np.concatenate([base_hops, tail_hop])
    keep = np.flatnonzero(hops >= reachable[keys])
    keep = keep[np.lexsort((hops[keep], keys[keep]))]
    keep = keep[starts_of_runs(keys[keep], hops[keep])]
    keys, hops = keys[keep], hops[keep]

    base_at = _find(base_key, base_hops, keys, hops, count)
    tail_at = _find(tail_key, tail_hop, keys, hops, count)
    tail_starts = starts_of_runs(tail_key)
    columns: list[np.ndarray] = []
    begin = 0
    for measure in ladder.measures:
        aggregate = layout.measures[measure]
        base = _or_empty(aggregate, columns_at(base_words, aggregate, begin), base_at)
        merged = reduce_groups(aggregate, columns_at(tail_words, aggregate, layout.slot_offsets[measure]), runs)
        suffix = merge_suffixes(aggregate, merged, tail_starts)
        columns += words_of(aggregate.merge_columns(base, _or_empty(aggregate, suffix, tail_at)))
        begin += len(aggregate.slots)
    rows = np.column_stack(columns) if len(hops) else np.zeros((0, words), dtype=np.int64)
    return np.searchsorted(keys, np.arange(count + 1)), hops, rows


def _gather(blobs: Sequence[bytes], placed: Sequence[tuple[int, int]], width: int) -> np.ndarray:
    parts = [
        np.frombuffer(blob, "<i8", count=rows * width, offset=offset)
        for blob, (offset, rows) in zip(blobs, placed, strict=True)
        if rows
    ]
    return np.concatenate(parts).reshape(-1, width) if parts else np.zeros((0, width), dtype=np.int64)


def _first_reachable(ladder: Ladder, newest: np.ndarray) -> np.ndarray:
    """Return the oldest hop that a lookup after ``newest`` can still read, per key."""
    if ladder.hop is None or ladder.reach is None:
        return np.full(len(newest), MIN_INSTANT, dtype=np.int64)
    never = newest == MIN_INSTANT
    return np.where(never, MIN_INSTANT, (np.where(never, 0, newest) + 1 - ladder.reach) // ladder.hop)


def _find(key: np.ndarray, hop: np.ndarray, wanted_key: np.ndarray, wanted_hop: np.ndarray, count: int) -> np.ndarray:
    """Return for every wanted (key, hop) the first row with that key and a hop not before it, or -1."""
    bounds = np.searchsorted(key, np.arange(count + 1))
    low, high = bounds[wanted_key], bounds[wanted_key + 1]
    at = first_not_less(hop, low, high, wanted_hop)
    return np.where(at < high, at, -1)


def _or_empty(aggregate: Aggregate, columns: Columns, rows: np.ndarray) -> Columns:
    """Return the chosen rows, the empty partial where the row is -1."""
    if not len(columns[0]):
        return empty_columns(aggregate, len(rows))
    chosen = take(columns, np.maximum(rows, 0))
    missing = rows < 0
    for column, value in zip(chosen, aggregate.empty(), strict=True):
        column[missing] = value
    return chosen
