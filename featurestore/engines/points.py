"""Point-in-time values of many (key, t) at once, from the shaped events of one view. Pure numpy.

Events are sorted by (key, event time, sequence). A window of a row is then one range of events, found by two binary
searches, and its value one range merge (``algebra.columns.merge_ranges``): O((events + rows) log events), no rows x events
product and no state. With ``visible_at``, events are split into prompt ones, whose delay is within the 99 % quantile, and
stragglers. Of the prompt ones only the newest few of a range can be unseen; those and the stragglers are looked at one by
one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featurestore.algebra.columns import (
    empty_columns,
    first_not_less,
    merge_ranges,
    reduce_groups,
    starts_of_runs,
    take,
)
from featurestore.timeline import MIN_INSTANT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.algebra import Window
    from featurestore.algebra.aggregate import Aggregate, Columns
    from featurestore.definitions.layout import ViewLayout
    from featurestore.engines.shape import Shaped

_PAIRS = 4_000_000


def values_at_points(
    layout: ViewLayout,
    events: Shaped,
    key: np.ndarray,
    t: np.ndarray,
    visible_at: np.ndarray | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return, per feature, the values of all points and a mask of those that are not null.

    Args:
        layout: The view.
        events: Its shaped events, in any order.
        key: Key code of every point, in the events' codes; -1 for a key without events.
        t: Time of every point, microseconds; events at or after it do not count.
        visible_at: Per point, hides the events that arrived later.
    """
    order = np.lexsort((events.sequence, events.event_time, events.key))
    events = events.take(order)
    if visible_at is None:
        groups = [_Sorted(events, key, t)]
    else:
        delay = events.arrival - events.event_time
        usual = int(np.quantile(delay, 0.99, method="higher")) if len(delay) else 0
        prompt = delay <= usual
        groups = [
            _Sorted(events.take(np.flatnonzero(prompt)), key, t, visible_at, usual),
            _Sorted(events.take(np.flatnonzero(~prompt)), key, t, visible_at, None),
        ]
    results: list[tuple[np.ndarray, np.ndarray]] = []
    merged: dict[tuple[int, Window], Columns] = {}
    for feature in layout.features:
        aggregate, window = layout.measures[feature.measure], feature.window
        if (feature.measure, window) not in merged:
            start, end = bounds_of(window, t)
            pieces = [group.merge(aggregate, feature.measure, start, end) for group in groups]
            total = pieces[0]
            for piece in pieces[1:]:
                total = aggregate.merge_columns(total, piece)
            merged[feature.measure, window] = total
        results.append(feature.aggregate.value_columns(merged[feature.measure, window], t, window))
    return results


def bounds_of(window: Window, t: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return ``start`` and ``end`` of a window for many instants; the end is None where it is ``t`` itself."""
    edge = t - window.delay
    if window.length is None or window.hop is None:
        start = np.full(len(t), MIN_INSTANT)
    else:
        start = (edge - window.length) // window.hop * window.hop
    if window.ends_at_t:
        return start, None
    return start, edge // window.hop * window.hop if window.is_closed and window.hop is not None else edge


class _Sorted:
    """Events in order, and where each point's key and time lie among them."""

    def __init__(
        self,
        events: Shaped,
        key: np.ndarray,
        t: np.ndarray,
        visible_at: np.ndarray | None = None,
        usual_delay: int | None = None,
    ) -> None:
        self.events = events
        self.visible_at = visible_at
        known = np.maximum(key, 0)
        bounds = np.searchsorted(events.key, np.arange(len(events.keys) + 1))
        self.first = np.where(key < 0, 0, bounds[known]) if len(events.keys) else np.zeros(len(key), np.int64)
        last = np.where(key < 0, 0, bounds[np.minimum(known + 1, len(bounds) - 1)])
        self.end = first_not_less(events.event_time, self.first, np.maximum(self.first, last), t)
        if visible_at is None:
            self.sure = self.end
        elif usual_delay is None:
            self.sure = self.first
        else:
            seen = visible_at - usual_delay + 1
            self.sure = first_not_less(events.event_time, self.first, self.end, seen)

    def merge(self, aggregate: Aggregate, measure: int, start: np.ndarray, end: np.ndarray | None) -> Columns:
        """Return the partial of [start, end) for every point; of [start, t) when ``end`` is None."""
        columns, times = self.events.columns[measure], self.events.event_time
        last = self.end if end is None else first_not_less(times, self.first, self.end, end)
        low = first_not_less(times, self.first, last, start)
        total = merge_ranges(aggregate, columns, low, np.maximum(low, np.minimum(self.sure, last)))
        if self.visible_at is None:
            return total
        begin = np.maximum(low, self.sure)
        for rows in _chunks(last - begin):
            part = self._merge_seen(aggregate, columns, rows, begin[rows], last[rows])
            combined = aggregate.merge_columns(take(total, rows), part)
            for column, values in zip(total, combined, strict=True):
                column[rows] = values
        return total

    def _merge_seen(
        self, aggregate: Aggregate, columns: Columns, rows: np.ndarray, begin: np.ndarray, end: np.ndarray
    ) -> Columns:
        """Return the partial of events [begin, end) that had arrived, looking at each."""
        assert self.visible_at is not None  # noqa: S101
        sizes = end - begin
        point = np.repeat(np.arange(len(rows)), sizes)
        event = np.arange(len(point)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + np.repeat(begin, sizes)
        seen = self.events.arrival[event] <= self.visible_at[rows][point]
        point, event = point[seen], event[seen]
        result = empty_columns(aggregate, len(rows))
        runs = starts_of_runs(point)
        reduced = reduce_groups(aggregate, take(columns, event), runs)
        for column, values in zip(result, reduced, strict=True):
            column[point[runs]] = values
        return result


def _chunks(sizes: np.ndarray) -> Sequence[np.ndarray]:
    """Return the points with something to look at, in pieces of a bounded number of pairs."""
    rows = np.flatnonzero(sizes > 0)
    if not len(rows):
        return []
    piece = np.cumsum(sizes[rows]) // _PAIRS
    return np.split(rows, np.flatnonzero(np.diff(piece)) + 1)
