"""Shaping: decoded events -> keys and prepared partials of one view. The one row-level step of every fast path.

n events of a source, as Arrow columns, become

    keys      the distinct encoded entity keys
    key       n codes into ``keys``
    columns   for every measure of the view, n prepared partials (``prepare_columns``)

The hot query, the archive query, backfills and training sets all start from here, inside Arrow workers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.algebra.columns import take
from featurestore.algebra.tiles import TileRows, tile_events
from featurestore.datatypes import DataType
from featurestore.definitions.keys import encode_key
from featurestore.engines.arrow import evaluate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.algebra.aggregate import Columns
    from featurestore.definitions.expression import Expression
    from featurestore.definitions.parts import Part
    from featurestore.definitions.view import FeatureView


@dataclass(frozen=True, slots=True)
class Shaped:
    """Events of one view, ready to be merged. Arrays are parallel; ``key`` indexes ``keys``."""

    keys: list[bytes]
    key: np.ndarray
    event_time: np.ndarray
    sequence: np.ndarray
    arrival: np.ndarray
    columns: tuple[Columns, ...]

    def __len__(self) -> int:
        return len(self.key)

    def take(self, rows: np.ndarray) -> Shaped:
        """Return the chosen events; ``keys`` stays whole."""
        return replace(
            self,
            key=self.key[rows],
            event_time=self.event_time[rows],
            sequence=self.sequence[rows],
            arrival=self.arrival[rows],
            columns=tuple(take(columns, rows) for columns in self.columns),
        )


def shape(
    view: FeatureView,
    events: pa.RecordBatch | pa.Table,
    event_time: np.ndarray,
    sequence: np.ndarray,
    arrival: np.ndarray,
) -> Shaped:
    """Return the events that enter the view, as keys and prepared partials.

    Args:
        view: The definition.
        events: The contract's columns (at least those the view uses), one row per event.
        event_time: Event time in microseconds, int64.
        sequence: Source partition and offset as one ordered int64 (``algebra.sequence_of``).
        arrival: When each event was received, microseconds, int64.
    """
    if view.condition is not None:
        rows = np.flatnonzero(_is_true(view.condition, events))
        if len(rows) < events.num_rows:
            events = events.take(pa.array(rows))
            event_time, sequence, arrival = event_time[rows], sequence[rows], arrival[rows]
    keys, key = key_codes(view, events)
    columns = []
    for aggregate, (expression, condition) in zip(view.layout.measures, view.expressions, strict=True):
        count = events.num_rows
        if expression is None:
            values, valid = np.zeros(count, np.int64), np.ones(count, bool)
        else:
            values, valid = to_numpy(_evaluate(expression, events), expression.type)
        if condition is not None:
            valid = valid & _is_true(condition, events)
        columns.append(aggregate.prepare_columns(values, valid, event_time, sequence))
    return Shaped(keys, key, event_time, sequence, arrival, tuple(columns))


def tiles(part: Part, shaped: Shaped) -> TileRows:
    """Return a part's rows of shaped events, merged per (key, tile); events from ahead of their arrival stay apart."""
    return tile_events(
        part.measures,
        part.tile,
        shaped.key,
        shaped.event_time,
        [shaped.columns[measure] for measure in part.measure_ids],
        apart=shaped.event_time > shaped.arrival,
    )


def key_codes(view: FeatureView, events: pa.RecordBatch | pa.Table) -> tuple[list[bytes], np.ndarray]:
    """Return the distinct encoded entity keys of the rows, and every row's index among them."""
    types = [DataType(kind) for kind in view.entity.keys.values()]
    return encode_columns([events.column(name) for name in view.entity.keys], types)


def encode_columns(columns: Sequence[Any], types: Sequence[DataType]) -> tuple[list[bytes], np.ndarray]:
    """Return the distinct encoded keys of parallel Arrow columns, and every row's index among them."""
    code = np.zeros(len(columns[0]), np.int64)
    first: np.ndarray = np.zeros(min(1, len(code)), np.int64)
    for column, kind in zip(columns, types, strict=True):
        flat = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if kind == DataType.TIMESTAMP:
            flat = flat.cast(pa.int64())
        encoded = flat.dictionary_encode(null_encoding="encode")
        code = code * (len(encoded.dictionary) + 1) + encoded.indices.to_numpy(zero_copy_only=False)
        _, first, code = np.unique(code, return_index=True, return_inverse=True)
    rows = pa.array(first)
    parts = [_key_parts(column, kind, rows) for column, kind in zip(columns, types, strict=True)]
    return [encode_key(values, types) for values in zip(*parts, strict=True)], code.astype(np.int64)


def _key_parts(column: Any, kind: DataType, rows: pa.Array) -> list[Any]:
    taken = column.take(rows)
    return list((taken.cast(pa.int64()) if kind == DataType.TIMESTAMP else taken).to_pylist())


def to_numpy(array: pa.Array, kind: DataType) -> tuple[np.ndarray, np.ndarray]:
    """Return values and validity of an Arrow array; strings are objects, and what stands at a null means nothing."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    valid = pc.is_valid(array).to_numpy(zero_copy_only=False)
    if kind == DataType.STRING:
        return array.to_numpy(zero_copy_only=False), valid
    if kind == DataType.FLOAT64:
        return array.cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False), valid
    return array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False), valid


def _evaluate(expression: Expression, events: pa.RecordBatch | pa.Table) -> pa.Array:
    return evaluate(expression, {name: events.column(name) for name in expression.columns}, events.num_rows)


def _is_true(condition: Expression, events: pa.RecordBatch | pa.Table) -> np.ndarray:
    return np.asarray(_evaluate(condition, events).fill_null(False).to_numpy(zero_copy_only=False), dtype=bool)
