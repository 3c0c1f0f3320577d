"""Tiles: the events of one key in one grid step, merged early.

Shapes: n events with parallel arrays of key codes, event times and one ``Columns`` per measure become m <= n rows, sorted
by (key, tile), whose columns are the slots of all measures side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from featurestore.algebra.columns import SLOT_TYPES, reduce_groups, starts_of_runs, take

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.algebra.aggregate import Aggregate, Columns
    from featurestore.timeline import Duration

RECORD_SLOTS = ("i8", "i8", "i8")
"""What stands before a tile's own slots where tiles are stored as rows: tile, oldest, newest."""


@dataclass(frozen=True, slots=True)
class TileRows:
    """Partials per (key, tile): parallel arrays of n rows.

    Attributes:
        key: Key codes, whatever they stand for.
        tile: Start of the tile, an instant.
        oldest: Oldest event time merged into the row.
        newest: Newest event time merged into the row.
        columns: The slots of all measures, in order.
    """

    key: np.ndarray
    tile: np.ndarray
    oldest: np.ndarray
    newest: np.ndarray
    columns: Columns

    def __len__(self) -> int:
        return len(self.key)

    def take(self, rows: np.ndarray | slice) -> TileRows:
        """Return the chosen rows."""
        return TileRows(self.key[rows], self.tile[rows], self.oldest[rows], self.newest[rows], take(self.columns, rows))

    def with_oldest(self, oldest: np.ndarray) -> TileRows:
        """Return the rows reaching back to other instants."""
        return replace(self, oldest=oldest)

    @property
    def records(self) -> Columns:
        """Tile, oldest, newest and all slots: a store's tail records (``RECORD_SLOTS`` before the measures' slots)."""
        return (self.tile, self.oldest, self.newest, *self.columns)


def tile_events(
    measures: Sequence[Aggregate],
    tile: Duration,
    key: np.ndarray,
    event_time: np.ndarray,
    columns: Sequence[Columns],
    *,
    apart: np.ndarray | None = None,
) -> TileRows:
    """Return the events merged per (key, tile), sorted by both.

    Args:
        measures: The bound aggregates.
        tile: Grid step in microseconds.
        key: Key code of every event.
        event_time: Event time of every event.
        columns: For every measure, ``prepare_columns`` of the events.
        apart: Events for which it is true become rows of their own (events ahead of the clock).
    """
    start = event_time - event_time % tile
    alone = np.where(apart, np.arange(len(key)), -1) if apart is not None else np.full(len(key), -1)
    order = np.lexsort((event_time, alone, start, key))
    runs = starts_of_runs(key[order], start[order], alone[order])
    ends = np.append(runs[1:], len(order)) - 1
    merged: list[np.ndarray] = []
    for aggregate, prepared in zip(measures, columns, strict=True):
        if len(runs):
            merged += reduce_groups(aggregate, take(prepared, order), runs)
        else:
            merged += [np.zeros(0, SLOT_TYPES[slot]) for slot in aggregate.slots]
    first, last = order[runs], order[ends] if len(order) else order
    return TileRows(
        key=key[first],
        tile=start[first],
        oldest=event_time[first],
        newest=event_time[last],
        columns=tuple(merged),
    )
