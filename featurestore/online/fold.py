"""Folding tails into bases, many keys at once. Pure numpy.

Steps, per ladder, with n keys (see ``codec`` for the layout):
    1. tail records -> their hop, merged per (key, hop)
    2. the union of base hops and tail hops, per key, without hops that no later lookup can reach
    3. suffix ladders: the tail is suffix-merged per key, T[key, hop] = that hop and newer; the new row (key, hop) is the
       base row at the first base hop >= hop, merged with the tail row at the first tail hop >= hop
       plain ladders: base rows and tail rows of one (key, hop) are merged
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
from featurestore.algebra.tiles import TileRows
from featurestore.online.codec import record_format
from featurestore.online.pieces import Pieces, Rung, join_blobs
from featurestore.timeline import MAX_INSTANT, MIN_INSTANT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.algebra.aggregate import Aggregate, Columns
    from featurestore.definitions.parts import Ladder, Part
    from featurestore.engines.shape import Shaped
    from featurestore.timeline import Instant


def fold(part: Part, blobs: Sequence[bytes], *, clock: Instant = MAX_INSTANT) -> list[bytes]:
    """Return every blob with its tail folded into its base.

    Args:
        part: The part of the view.
        blobs: The stored bytes of one key each.
        clock: Records that reach beyond this instant stay in the tail.

    Raises:
        CodecError: A blob is not one of this part.
    """
    count = len(blobs)
    if not count:
        return []
    found = Pieces(part, blobs)
    sizes, columns = found.tails()
    tail = TileRows(np.repeat(np.arange(count), sizes), columns[0], columns[1], columns[2], columns[3:])
    due = tail.newest <= clock
    folded, kept = tail.take(np.flatnonzero(due)), tail.take(np.flatnonzero(~due))
    newest = found.newest.copy()
    np.maximum.at(newest, folded.key, folded.newest)

    rungs = [_fold_ladder(part, index, found, folded, newest) for index in range(len(part.ladders))]
    rests, rest_ends = record_format(part).encode(kept.records)
    rest = rest_ends[np.searchsorted(kept.key, np.arange(count + 1))] // 8
    return join_blobs(part, newest, found.folds + np.uint64(1), rungs, (np.frombuffer(rests, "<i8"), rest))


def drop_unreachable(part: Part, events: Shaped, rows: TileRows) -> TileRows:
    """Return the rows of a batch that a lookup after the key's newest event can still reach.

    An event ahead of its arrival does not count as newest: lookups before its time are still to come. Where rows are
    dropped, the key's newest row is made to reach back over them (its ``oldest``), so that a lookup for an instant in
    between is refused instead of answered without them.

    Args:
        part: The part of the view.
        events: The events of the batch.
        rows: Their tiles (``shape.tiles``).
    """
    reach = part.reach
    if reach is None or not len(rows):
        return rows
    newest = np.full(len(events.keys), MIN_INSTANT + reach, dtype=np.int64)
    settled = events.event_time <= events.arrival
    np.maximum.at(newest, events.key[settled], events.event_time[settled])
    keep = rows.tile + part.tile > newest[rows.key] - reach
    dropped, kept = rows.take(np.flatnonzero(~keep)), rows.take(np.flatnonzero(keep))
    back = np.full(len(events.keys), MAX_INSTANT, dtype=np.int64)
    np.minimum.at(back, dropped.key, dropped.oldest)
    return kept.with_oldest(
        np.where(kept.newest == newest[kept.key], np.minimum(kept.oldest, back[kept.key]), kept.oldest)
    )


def _fold_ladder(
    part: Part,
    index: int,
    found: Pieces,
    tail: TileRows,
    newest: np.ndarray,
) -> Rung:
    """Return the rows of one ladder."""
    ladder = part.ladders[index]
    count = len(newest)
    base_rows, base_hops, base = found.ladder(index)
    base_key = np.repeat(np.arange(count), base_rows)
    reachable = _first_reachable(ladder, newest)

    hop = tail.tile // ladder.hop if ladder.hop is not None else np.zeros(len(tail.tile), dtype=np.int64)
    if ladder.settled is not None:
        # What every later lookup covers becomes one row, just before the first hop that one may not.
        first_open = newest + 1 - ladder.settled
        hop = np.where(hop < first_open[tail.key], first_open[tail.key] - 1, hop)
        base_hops = np.where(base_hops < first_open[base_key], first_open[base_key] - 1, base_hops)
    alive = np.flatnonzero(hop >= reachable[tail.key])
    alive = alive[np.lexsort((hop[alive], tail.key[alive]))]
    tail_key, tail_hop = tail.key[alive], hop[alive]
    runs = starts_of_runs(tail_key, tail_hop)
    tail_key, tail_hop = tail_key[runs], tail_hop[runs]

    merged: list[np.ndarray] = []
    for measure in ladder.measures:
        begin, end = part.slot_offsets[measure : measure + 2]
        merged += reduce_groups(part.measures[measure], take(tail.columns[begin:end], alive), runs)
    both = _Both(base_key, base_hops, base, tail_key, tail_hop, tuple(merged), reachable, count)
    keys, hops, columns = _merge_suffix(part, ladder, both) if ladder.is_suffix else _merge_plain(part, ladder, both)
    return Rung(np.searchsorted(keys, np.arange(count + 1)), hops, columns)


class _Both:
    """Rows of the base and of the tail, each sorted by (key, hop)."""

    def __init__(
        self,
        base_key: np.ndarray,
        base_hop: np.ndarray,
        base: Columns,
        tail_key: np.ndarray,
        tail_hop: np.ndarray,
        tail: Columns,
        reachable: np.ndarray,
        count: int,
    ) -> None:
        self.base_key, self.base_hop, self.base = base_key, base_hop, base
        self.tail_key, self.tail_hop, self.tail = tail_key, tail_hop, tail
        self.count = count
        keys, hops = np.concatenate([base_key, tail_key]), np.concatenate([base_hop, tail_hop])
        keep = np.flatnonzero(hops >= reachable[keys])
        self.order = keep[np.lexsort((hops[keep], keys[keep]))]
        """Reachable rows of base and tail by (key, hop), as indices into both, one after the other."""
        self.runs = starts_of_runs(keys[self.order], hops[self.order])
        self.keys, self.hops = keys[self.order][self.runs], hops[self.order][self.runs]


def _merge_suffix(part: Part, ladder: Ladder, both: _Both) -> tuple[np.ndarray, np.ndarray, Columns]:
    base_at = _find(both.base_key, both.base_hop, both.keys, both.hops, both.count)
    tail_at = _find(both.tail_key, both.tail_hop, both.keys, both.hops, both.count)
    starts = starts_of_runs(both.tail_key)
    columns: list[np.ndarray] = []
    begin = 0
    for measure in ladder.measures:
        aggregate = part.measures[measure]
        slots = slice(begin, begin + len(aggregate.slots))
        base = _or_empty(aggregate, both.base[slots], base_at)
        suffix = merge_suffixes(aggregate, both.tail[slots], starts)
        columns += aggregate.merge_columns(base, _or_empty(aggregate, suffix, tail_at))
        begin = slots.stop
    return both.keys, both.hops, tuple(columns)


def _merge_plain(part: Part, ladder: Ladder, both: _Both) -> tuple[np.ndarray, np.ndarray, Columns]:
    columns: list[np.ndarray] = []
    begin = 0
    for measure in ladder.measures:
        aggregate = part.measures[measure]
        slots = slice(begin, begin + len(aggregate.slots))
        pairs = zip(both.base[slots], both.tail[slots], strict=True)
        together = tuple(np.concatenate([base, tail])[both.order] for base, tail in pairs)
        columns += reduce_groups(aggregate, together, both.runs)
        begin = slots.stop
    return both.keys, both.hops, tuple(columns)


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
