"""Hostile streams: events on which windowed features go wrong, drawn for given views from a seed.

What is forced, besides random times: events at t, just before and after it, on ``t - w``, ``start(t)`` and ``end(t)``
of every window and one hop further, just around hop edges; ties, and whole events that come twice; times before 1970,
leap days, leap seconds and the hours in which clocks change; nulls, NaN, infinities, signed zeros and sums that cancel;
one hot key among several, and a key without events; late events, some later than every window; events ahead of their
arrival, up to the allowed skew; arrivals out of order, several partitions. The same seed always gives the same stream.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from featurestore.datatypes import DataType
from featurestore.engines.rows import Event, rows_of
from featurestore.engines.shape import Shaped, shape
from featurestore.events.arrow_types import ARROW_TYPES
from featurestore.testing.texts import fitting_texts
from featurestore.timeline import HOUR, SECOND, Instant, floor_to

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.algebra import Window
    from featurestore.definitions.contract import ContractField
    from featurestore.definitions.source import EventSource
    from featurestore.definitions.view import FeatureView

_ANCHORS: tuple[Instant, ...] = (
    0, -1, 1_357_016_400_000_000, 1_357_017_300_000_001, -86_400_000_000, 3_599_999_999,
    1_362_898_800_000_000,  # 2013-03-10T07:00Z: New York's clocks go forward
    1_383_458_400_000_000,  # 2013-11-03T06:00Z: and back
    1_711_846_800_000_000,  # 2024-03-31T01:00Z: Europe's go forward
    1_709_164_800_000_000,  # 2024-02-29, a leap day
    951_868_799_999_999,  # the last microsecond of 2000-02-29
    1_483_228_800_000_000,  # 2017-01-01, after a leap second
)  # fmt: skip
_FLOATS = (0.0, -0.0, 0.1, 0.2, 0.3, 1.0, -1.0, 1e16, -1e16, 2.5, -7.25, 1e-9, 99.99)
_INTS = (0, 1, -1, 2, 3, -7, 1_000, 2**53 + 1, -(2**53) - 1, 2**31)
_TEXTS = ("", "a", "b", "ü", "A")


@dataclass(frozen=True)
class HostileStream:
    """Events and the questions to ask about them.

    Attributes:
        events: In order of arrival; offsets of every partition ascend from 0 without gaps.
        probes: (key values, t) pairs, edges of windows among them; some keys have no event.
    """

    events: tuple[Event, ...]
    probes: tuple[tuple[tuple[Any, ...], Instant], ...]


def hostile_stream(
    view: FeatureView, *, seed: int, events: int = 120, probes: int = 40, partitions: int = 2, nan: float = 0.02
) -> HostileStream:
    """Return a stream for a view.

    Args:
        view: The definition; its windows, conditions and key columns decide what is hostile.
        seed: Chooses everything.
        events: How many events.
        probes: How many (key, t) pairs.
        partitions: Number of source partitions.
        nan: Share of doubles that are NaN; a quarter as many are infinite.
    """
    dice = random.Random(seed)  # noqa: S311 - not for secrets
    source = view.source
    windows = [feature.window for feature in view.layout.features]
    longest = max((_back(window) for window in windows if _back(window)), default=HOUR)
    anchor = dice.choice(_ANCHORS) + dice.choice((0, longest))
    edges = _edges(windows, anchor)
    pools = {
        field.name: _pool(field if field.array is None else _element(field), view, dice)
        for field in source.contract.fields
    }
    keys = [tuple(dice.choice(pools[column]) for column in view.key_columns) for _ in range(3)]
    drawn: list[tuple[Instant, Instant, dict[str, Any]]] = []
    for _ in range(events):
        if drawn and dice.random() < 0.03:
            _, time, row = dice.choice(drawn)
            drawn.append((time + _delay(dice, longest, source.allowed_skew_us), time, row))
            continue
        time = _event_time(dice, edges, drawn, anchor, longest)
        row = _row(source, pools, dice, time, nan)
        if dice.random() < 0.85:
            row = with_key(view, row, keys[0 if dice.random() < 0.6 else dice.randrange(3)], dice)
        row[source.event_time] = time
        drawn.append((time + _delay(dice, longest, source.allowed_skew_us), time, row))
    drawn.sort(key=lambda one: one[0])
    offsets = [0] * partitions
    made = []
    for arrival, time, row in drawn:
        partition = dice.randrange(partitions)
        made.append(Event(row, time, arrival, partition, offsets[partition]))
        offsets[partition] += 1
    return HostileStream(tuple(made), tuple(_probes(view, made, keys, edges, probes, dice)))


def _row(
    source: EventSource, pools: dict[str, list[Any]], dice: random.Random, time: Instant, nan: float
) -> dict[str, Any]:
    """Return the columns of an event: those of one array have one length, none of them or all are null."""
    sizes: dict[str, int | None] = {
        name: None if columns[0].nullable and dice.random() < 0.15 else dice.choice((0, 1, 1, 2, 3, 5))
        for name, columns in source.contract.arrays.items()
    }
    row: dict[str, Any] = {}
    for field in source.contract.fields:
        if field.array is None:
            row[field.name] = _value(field, pools[field.name], dice, time, nan)
            continue
        size, one = sizes[field.array], _element(field)
        row[field.name] = None if size is None else [_value(one, pools[field.name], dice, time, 0) for _ in range(size)]
    return row


def _element(field: ContractField) -> ContractField:
    """Return the field of one element of an array."""
    return replace(field, type=field.type.element or field.type, nullable=field.element_nullable, array=None)


def with_key(view: FeatureView, row: dict[str, Any], key: tuple[Any, ...], dice: random.Random) -> dict[str, Any]:
    """Return the row as one of a key; where a key is an array's, most of its elements are."""
    made = dict(row)
    inside = {one.name for one in view.exploded}
    for column, value in zip(view.key_columns, key, strict=True):
        if column not in inside:
            made[column] = value
        elif row[column] is not None:
            made[column] = [value if dice.random() < 0.8 else each for each in row[column]]
    return made


def shape_events(view: FeatureView, events: Sequence[Event]) -> Shaped:
    """Return events as the fast paths see them, by way of Arrow."""
    return shape(
        view,
        to_batch(view.source, events),
        np.array([event.event_time for event in events], dtype=np.int64),
        np.array([event.order.sequence for event in events], dtype=np.int64),
        np.array([event.arrival for event in events], dtype=np.int64),
    )


def to_batch(source: EventSource, events: Sequence[Event]) -> pa.RecordBatch:
    """Return the rows of events as the contract's Arrow columns."""
    fields = source.contract.fields
    return pa.record_batch(
        [pa.array([event.row[field.name] for event in events], ARROW_TYPES[field.type]) for field in fields],
        schema=pa.schema([(field.name, ARROW_TYPES[field.type]) for field in fields]),
    )


def _edges(windows: Sequence[Window], anchor: Instant) -> list[Instant]:
    """Return the instants around which windows of a lookup at or near ``anchor`` begin and end."""
    edges = {anchor}
    for window in windows:
        start, end, late = window.start(anchor), window.end(anchor), anchor - window.delay
        edges |= {end, late}
        if start is not None and window.length is not None and window.hop is not None:
            hop = floor_to(anchor, window.hop)
            edges |= {start, start + window.hop, late - window.length, anchor - window.length}
            edges |= {hop, hop - window.length, anchor + window.hop, end + window.hop}
    return sorted({edge + step for edge in edges for step in (-1, 0, 1)})


def _back(window: Window) -> int:
    """Return how far before t a window can begin; for lifetime, its delay."""
    return (window.length or 0) + (window.hop or 0) + window.delay


def _event_time(
    dice: random.Random, edges: Sequence[Instant], drawn: Sequence[tuple[Any, ...]], anchor: Instant, longest: int
) -> Instant:
    kind = dice.random()
    if kind < 0.45:
        return dice.choice(edges)
    if kind < 0.6 and drawn:
        return int(dice.choice(drawn)[1])
    if kind < 0.7:
        return anchor + dice.randrange(-90 * SECOND, 30 * SECOND)
    if kind < 0.75:
        return anchor - 3 * longest - dice.randrange(longest)
    return anchor - dice.randrange(longest + longest // 4)


def _delay(dice: random.Random, longest: int, skew: int) -> int:
    """Return arrival minus event time."""
    kind = dice.random()
    if kind < 0.55:
        return dice.randrange(2 * SECOND)
    if kind < 0.65:
        return 0
    if kind < 0.75:
        return -dice.choice((skew, dice.randrange(1, skew + 1)))
    return dice.randrange(longest if kind < 0.95 else 3 * longest)


def _pool(field: ContractField, view: FeatureView, dice: random.Random) -> list[Any]:
    """Return the few values a column takes; texts that conditions speak of among them."""
    if "enum" in field.bounds:
        return [value for value in field.bounds["enum"] if value is not None]
    conditions = [
        view.where,
        *view.columns.values(),
        *(part for m in view.layout.measures for part in (m.where, m.input)),
    ]
    quoted = re.findall(r"'([^']*)'", " ".join(filter(None, conditions)))
    pools: dict[DataType, list[Any]] = {
        DataType.INT64: [*_INTS, dice.randrange(-1_000, 1_000)],
        DataType.FLOAT64: [*_FLOATS, *(round(dice.uniform(-100, 100), 2) for _ in range(6))],
        DataType.BOOL: [True, False],
        DataType.STRING: [],
        DataType.TIMESTAMP: [0, -1, 1_357_016_400_000_000],
    }
    pool = pools[field.type]
    if field.type == DataType.STRING:
        fine = fitting_texts(field, [*quoted, *_TEXTS])
        pool = fine + [text for text in quoted if text in fine] * 2
    low = field.bounds.get("minimum", field.bounds.get("exclusiveMinimum", -math.inf))
    high = field.bounds.get("maximum", field.bounds.get("exclusiveMaximum", math.inf))
    if field.type in (DataType.INT64, DataType.FLOAT64):
        within = [
            value
            for value in pool
            if low < value < high or value in (field.bounds.get("minimum"), field.bounds.get("maximum"))
        ]
        pool = within or [
            value for value in (field.bounds.get("minimum"), field.bounds.get("maximum")) if value is not None
        ]
    return pool + ([None] if field.nullable else [])


def _value(field: ContractField, pool: Sequence[Any], dice: random.Random, time: Instant, nan: float) -> Any:
    if field.type == DataType.FLOAT64 and not field.bounds and nan:
        kind = dice.random()
        if kind < nan:
            return math.nan
        if kind < 1.25 * nan:
            return dice.choice((math.inf, -math.inf))
    if field.nullable and dice.random() < 0.15:
        return None
    if field.type == DataType.TIMESTAMP and dice.random() < 0.7:
        return time + dice.randrange(-HOUR, HOUR)
    return dice.choice(pool)


def _probes(
    view: FeatureView,
    events: Sequence[Event],
    keys: Sequence[tuple[Any, ...]],
    edges: Sequence[Instant],
    count: int,
    dice: random.Random,
) -> list[tuple[tuple[Any, ...], Instant]]:
    seen = [tuple(event.row[column] for column in view.entity.keys) for event in rows_of(view, events)]
    newest = max((event.event_time for event in events), default=edges[-1])
    probes = []
    for _ in range(count):
        kind = dice.random()
        if kind < 0.4:
            t = dice.choice(edges)
        elif kind < 0.6 and events:
            t = dice.choice(events).event_time + dice.choice((-1, 0, 1))
        elif kind < 0.9:
            t = newest + dice.choice((1, 2, SECOND, dice.randrange(1, HOUR)))
        else:
            t = newest + dice.randrange(1, 2 * (edges[-1] - edges[0]) + 2)
        probes.append((dice.choice(keys) if dice.random() < 0.7 or not seen else dice.choice(seen), t))
    return probes
