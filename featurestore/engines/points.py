"""Point-in-time values of many (key, t) at once, from the shaped events of one view. Pure numpy.

Events are sorted by (key, event time, sequence). A window of a point is then one range of events, found by two binary
searches, and its value one range merge (``algebra.ranges``): no rows x events product, no state, and the searches are shared
by all measures. With ``visible_at``, events are split into prompt ones, whose delay is within the 99 % quantile, and
stragglers. Of the prompt ones only the newest few of a range can be unseen; those and the stragglers are looked at one by
one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featurestore.algebra.columns import empty_columns, first_not_less, reduce_groups, starts_of_runs, take
from featurestore.algebra.ranges import Ranges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.algebra import Window
    from featurestore.algebra.aggregate import Aggregate, Columns
    from featurestore.definitions.layout import ViewLayout
    from featurestore.engines.shape import Shaped

_PAIRS = 4_000_000
_BITS = 62


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
        key: Key code of every point, in the events' codes; -1, or a code no event has, for a key without events.
        t: Time of every point, microseconds; events at or after it do not count. Searches are fastest when points are sorted
            by key and time.
        visible_at: Per point, hides the events that arrived later.
    """
    order, timeline = in_order(events.key, events.event_time, events.sequence)
    events = events.take(order)
    if visible_at is None:
        groups = [_Sorted(events, timeline, key, t)]
    else:
        delay = events.arrival - events.event_time
        usual = int(np.quantile(delay, 0.99, method="higher")) if len(delay) else 0
        groups = [
            _Sorted(events.take(rows), timeline.take(rows), key, t, visible_at, limit)
            for rows, limit in ((np.flatnonzero(delay <= usual), usual), (np.flatnonzero(delay > usual), None))
        ]
    windows: dict[int, list[Window]] = {}
    for feature in layout.features:
        mine = windows.setdefault(feature.measure, [])
        if feature.window not in mine:
            mine.append(feature.window)
    merged: dict[tuple[int, Window], Columns] = {}
    for measure, over in windows.items():
        aggregate = layout.measures[measure]
        parts = [group.merge(aggregate, measure, tuple(over)) for group in groups]
        total = parts[0]
        for part in parts[1:]:
            total = aggregate.merge_columns(total, part)
        for place, window in enumerate(over):
            merged[measure, window] = take(total, slice(place * len(t), (place + 1) * len(t)))
    return [
        feature.aggregate.value_columns(merged[feature.measure, feature.window], t, feature.window)
        for feature in layout.features
    ]


def bounds_of(window: Window, t: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return ``start`` and ``end`` of a window for many instants; None where it has no start, and where it ends at ``t``."""
    edge = t - window.delay
    start = None
    if window.length is not None and window.hop is not None:
        start = (edge - window.length) // window.hop * window.hop
    if window.ends_at_t:
        return start, None
    return start, edge // window.hop * window.hop if window.is_closed and window.hop is not None else edge


class Timeline:
    """Where (key, time) lies among sorted events.

    Key and time are packed into one integer where they fit into 62 bits (a thousand keys over a century), so that sorting and
    searching see one array; where they do not fit, time is searched within the key's rows.
    """

    def __init__(self, key: np.ndarray, time: np.ndarray, packed: np.ndarray | None, begin: int, bits: int) -> None:
        self._key, self._time, self._packed = key, time, packed
        self._begin, self._bits = begin, bits

    def take(self, rows: np.ndarray) -> Timeline:
        """Return the timeline of the chosen events, which stay in order."""
        packed = None if self._packed is None else self._packed[rows]
        return Timeline(self._key[rows], self._time[rows], packed, self._begin, self._bits)

    def position(self, key: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Return for every query the first event that is not before (key, time)."""
        if self._packed is not None:
            within = np.clip(time - self._begin, 0, 1 << self._bits)
            found: np.ndarray = np.searchsorted(self._packed, (key << self._bits) + within).astype(np.int64)
            return found
        low, high = np.searchsorted(self._key, key), np.searchsorted(self._key, key, side="right")
        return first_not_less(self._time, low, high, time)


def in_order(key: np.ndarray, time: np.ndarray, sequence: np.ndarray) -> tuple[np.ndarray, Timeline]:
    """Return the order of events by (key, time, sequence), and the timeline of the events in that order."""
    begin = int(time.min(initial=0)) if not len(time) else int(time.min())
    bits = 0 if not len(time) else (int(time.max()) - begin).bit_length()
    if bits + int(key.max(initial=0)).bit_length() > _BITS:
        order = np.lexsort((sequence, time, key))
        return order, Timeline(key[order], time[order], None, begin, bits)
    packed = (key << bits) + (time - begin)
    order = np.argsort(packed)
    ordered = packed[order]
    equal = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(equal):
        tied = np.unique(np.concatenate((equal, equal + 1)))
        rows = order[tied]
        order[tied] = rows[np.lexsort((sequence[rows], ordered[tied]))]
    return order, Timeline(key[order], time[order], ordered, begin, bits)


class _Sorted:
    """Events in order, and where each point's key and time lie among them."""

    def __init__(
        self,
        events: Shaped,
        timeline: Timeline,
        key: np.ndarray,
        t: np.ndarray,
        visible_at: np.ndarray | None = None,
        usual_delay: int | None = None,
    ) -> None:
        self.events = events
        self.visible_at = visible_at
        self._timeline, self._key, self._t = timeline, key, t
        self._ranges: dict[tuple[Window, ...], tuple[Ranges, np.ndarray, np.ndarray]] = {}
        self._usual_delay = usual_delay

    def _edges(self, windows: tuple[Window, ...]) -> tuple[Ranges, np.ndarray, np.ndarray]:
        """Return, windows one after the other, the ranges surely seen, and begin and end of what has to be looked at."""
        if windows not in self._ranges:
            known = self._key >= 0
            newest = np.where(known, self._timeline.position(self._key, self._t), 0)
            oldest = np.where(known, self._timeline.position(self._key, np.full(len(self._key), -(2**62))), 0)
            lows, sures, ends = [], [], []
            for window in windows:
                begin, until = bounds_of(window, self._t)
                low = oldest if begin is None else np.where(known, self._timeline.position(self._key, begin), 0)
                end = newest if until is None else np.where(known, self._timeline.position(self._key, until), 0)
                lows.append(low)
                ends.append(end)
                if self.visible_at is not None:
                    sures.append(low if self._usual_delay is None else self._sure(low, end))
            low, end = np.concatenate(lows), np.concatenate(ends)
            sure = np.concatenate(sures) if sures else end
            self._ranges[windows] = Ranges(low, sure), np.maximum(low, sure), end
        return self._ranges[windows]

    def _sure(self, low: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Return up to where every event must have arrived."""
        assert self.visible_at is not None  # noqa: S101
        assert self._usual_delay is not None  # noqa: S101
        seen = self._timeline.position(self._key, self.visible_at - self._usual_delay + 1)
        sure: np.ndarray = np.clip(seen, np.minimum(low, end), end)
        return sure

    def merge(self, aggregate: Aggregate, measure: int, windows: tuple[Window, ...]) -> Columns:
        """Return the partials of every point, windows one after the other."""
        columns = self.events.columns[measure]
        ranges, begin, end = self._edges(windows)
        total = ranges.merge(aggregate, columns)
        if self.visible_at is None:
            return total
        visible_at = np.tile(self.visible_at, len(windows))
        for rows in _chunks(end - begin):
            part = self._merge_seen(aggregate, columns, visible_at[rows], begin[rows], end[rows])
            combined = aggregate.merge_columns(take(total, rows), part)
            for column, values in zip(total, combined, strict=True):
                column[rows] = values
        return total

    def _merge_seen(
        self, aggregate: Aggregate, columns: Columns, visible_at: np.ndarray, begin: np.ndarray, end: np.ndarray
    ) -> Columns:
        """Return the partial of events [begin, end) that had arrived, looking at each."""
        sizes = end - begin
        point = np.repeat(np.arange(len(sizes)), sizes)
        event = np.arange(len(point)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + np.repeat(begin, sizes)
        seen = self.events.arrival[event] <= visible_at[point]
        point, event = point[seen], event[seen]
        result = empty_columns(aggregate, len(sizes))
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
