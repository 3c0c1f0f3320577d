"""Shaping: decoded events -> keys and prepared partials of one view. The one row-level step of every fast path.

n events of a source, as Arrow columns, become

    keys      the distinct encoded entity keys
    key       n codes into ``keys``
    columns   for every measure of the view, n prepared partials (``prepare_columns``)

The hot query, the archive query, backfills and training sets all start from here, inside Arrow workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.algebra import element_sequence
from featurestore.algebra.columns import take
from featurestore.algebra.tiles import TileRows, tile_events
from featurestore.datatypes import DataType
from featurestore.definitions.keys import encode_parts
from featurestore.engines.arrow import evaluate

if TYPE_CHECKING:
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
    columns: Sequence[Columns]

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
            columns=self.columns.take(rows)
            if isinstance(self.columns, Prepared)
            else tuple(take(columns, rows) for columns in self.columns),
        )


@dataclass(frozen=True, slots=True)
class Inputs:
    """The events that enter a view, as what its aggregates take: smaller than partials, so it is what a shuffle carries.

    Attributes:
        keys: The entity's key columns, as they are.
        event_time: Microseconds, int64.
        sequence: Source partition and offset as one ordered int64.
        arrival: Microseconds, int64.
        values: One array per distinct (input, condition) of the view's measures, as ``input_ids`` numbers them: the input's
            value, null where the condition is not true; ``true`` or null where there is no input.
    """

    keys: list[pa.Array]
    event_time: np.ndarray
    sequence: np.ndarray
    arrival: np.ndarray
    values: list[pa.Array]


class Prepared(Sequence["Columns"]):
    """The prepared partials of every measure, made from the inputs when they are asked for: they take far more memory."""

    def __init__(
        self,
        view: FeatureView,
        arrays: Sequence[tuple[np.ndarray, np.ndarray]],
        event_time: np.ndarray,
        sequence: np.ndarray,
    ) -> None:
        self._view, self._arrays, self._order = view, arrays, (event_time, sequence)

    def __len__(self) -> int:
        return len(self._view.layout.measures)

    def __getitem__(self, measure: Any) -> Any:
        """Return the partials of a measure, one row per event."""
        values, valid = self._arrays[input_ids(self._view)[measure]]
        return self._view.layout.measures[measure].prepare_columns(values, valid, *self._order)

    def take(self, rows: np.ndarray) -> Prepared:
        """Return the chosen events."""
        event_time, sequence = self._order
        arrays = [(values[rows], valid[rows]) for values, valid in self._arrays]
        return Prepared(self._view, arrays, event_time[rows], sequence[rows])


def input_ids(view: FeatureView) -> tuple[int, ...]:
    """Return for every measure of a view the number of its input: those of one input and condition share it."""
    found: dict[tuple[str | None, str | None], int] = {}
    return tuple(found.setdefault((m.input, m.where), len(found)) for m in view.layout.measures)


def inputs_of(
    view: FeatureView,
    events: pa.RecordBatch | pa.Table,
    event_time: np.ndarray,
    sequence: np.ndarray,
    arrival: np.ndarray,
) -> Inputs:
    """Return the events that enter the view, with what its aggregates take; arguments as of ``shape``."""
    if view.explode is not None:
        events, parents, sequence = exploded(view, events, sequence)
        event_time, arrival = event_time[parents], arrival[parents]
    if view.condition is not None:
        rows = np.flatnonzero(_is_true(view.condition, events))
        if len(rows) < events.num_rows:
            events = events.take(pa.array(rows))
            event_time, sequence, arrival = event_time[rows], sequence[rows], arrival[rows]
    values: list[pa.Array] = []
    for number, (expression, condition) in zip(input_ids(view), view.expressions, strict=True):
        if number < len(values):
            continue
        made = pa.repeat(True, events.num_rows) if expression is None else _evaluate(expression, events)
        if condition is not None:
            made = pc.if_else(pa.array(_is_true(condition, events)), made, pa.scalar(None, made.type))
        values.append(made)
    keys = [events.column(name) for name in view.key_columns]
    return Inputs(keys, event_time, sequence, arrival, values)


def exploded(
    view: FeatureView, events: pa.RecordBatch | pa.Table, sequence: np.ndarray
) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """Return a row for every element of the view's array: what the view reads, each row's event, and its place.

    Elements stand in the order of events, then in their own. A null or empty array has none.
    """
    lists = {one.name for one in view.exploded}
    columns = {name: _whole(events.column(name)) for name in view.reads}
    parents = pc.list_parent_indices(columns[view.exploded[0].name]).to_numpy(zero_copy_only=False).astype(np.int64)
    position = np.arange(len(parents)) - np.searchsorted(parents, parents)
    rows = pa.array(parents)
    made = {name: column.flatten() if name in lists else column.take(rows) for name, column in columns.items()}
    return pa.table(made), parents, element_sequence(sequence[parents], position)


def _whole(column: Any) -> Any:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def prepared(view: FeatureView, values: Sequence[Any], event_time: np.ndarray, sequence: np.ndarray) -> Prepared:
    """Return the partials of every measure from the values of ``inputs_of``."""
    kinds = dict(zip(input_ids(view), (expression for expression, _ in view.expressions), strict=True))
    arrays = []
    for number, column in enumerate(values):
        expression = kinds[number]
        if expression is None:
            valid = pc.is_valid(column).to_numpy(zero_copy_only=False)
            arrays.append((np.zeros(len(valid), np.int64), valid))
        else:
            arrays.append(to_numpy(column, expression.type))
    return Prepared(view, arrays, event_time, sequence)


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
    found = inputs_of(view, events, event_time, sequence, arrival)
    keys, key = encode_columns(found.keys, [DataType(kind) for kind in view.entity.keys.values()])
    columns = prepared(view, found.values, found.event_time, found.sequence)
    return Shaped(keys, key, found.event_time, found.sequence, found.arrival, tuple(columns))


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


def encode_columns(columns: Sequence[Any], types: Sequence[DataType]) -> tuple[list[bytes], np.ndarray]:
    """Return the distinct encoded keys of parallel Arrow columns, and every row's index among them."""
    parts: list[list[bytes]] = []
    codes: list[np.ndarray] = []
    for column, kind in zip(columns, types, strict=True):
        encoded = _whole(column).dictionary_encode(null_encoding="encode")
        parts.append(encode_parts(_plain_values(encoded.dictionary, kind), kind))
        codes.append(encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64))
    if len(parts) == 1:
        return parts[0], codes[0]
    code = np.zeros(len(codes[0]), np.int64)
    first = code
    for part, of_row in zip(parts, codes, strict=True):
        _, first, code = np.unique(code * len(part) + of_row, return_index=True, return_inverse=True)
    chosen = [[part[row] for row in of_row[first].tolist()] for part, of_row in zip(parts, codes, strict=True)]
    return [b"".join(key) for key in zip(*chosen, strict=True)], code.astype(np.int64)


def _plain_values(array: pa.Array, kind: DataType) -> list[Any]:
    """Return the values of a key column as ``encode_parts`` takes them."""
    if kind == DataType.STRING:
        return list(array.cast(pa.binary()).to_pylist())
    return list((array.cast(pa.int64()) if kind == DataType.TIMESTAMP else array).to_pylist())


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
