r"""Point-in-time evaluation inside Spark's Arrow workers, in one pass for all views.

    event logs --shape (Arrow worker)--> (view, key, event time, sequence, arrival, words)  \
                                                                      partition by (view, key) -> values_at_points
    spine      --encode keys----------> (view, key, t, visible_at, row)                     /
                                                                      -> (row, view, packed values)
                                                      partition by row -> one column per feature -> joined to the spine

Every class here is a picklable function over Arrow batches, for ``mapInArrow``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from featurestore.algebra import sequence_of
from featurestore.algebra.tiles import columns_at, words_of
from featurestore.datatypes import DataType
from featurestore.engines.points import values_at_points
from featurestore.engines.shape import Shaped, encode_columns, shape

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from featurestore.definitions.view import FeatureView

ROW = "__row"
SHUFFLED = "view int, kind tinyint, key binary, at bigint, sequence bigint, arrival bigint, row bigint, words binary"
PACKED = f"{ROW} bigint, view int, packed binary"
_ARROW_TYPES = {
    DataType.INT64: pa.int64(),
    DataType.FLOAT64: pa.float64(),
    DataType.BOOL: pa.bool_(),
    DataType.TIMESTAMP: pa.timestamp("us", "UTC"),
}
_SPARK_TYPES = {
    DataType.INT64: "bigint",
    DataType.FLOAT64: "double",
    DataType.BOOL: "boolean",
    DataType.TIMESTAMP: "timestamp",
}


@dataclass(frozen=True)
class ShapeEvents:
    """Event log rows of one source -> shuffled rows of its views: kind 0, all measures' slots as bytes."""

    views: tuple[FeatureView, ...]
    source: str

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the shaped events of every batch, view by view."""
        for batch in batches:
            if not batch.num_rows:
                continue
            place = batch.column("_partition").to_numpy().astype(np.int64) * sequence_of(1, 0)
            sequence = place | batch.column("_offset").to_numpy()
            event_time, arrival = batch.column("_event_time").to_numpy(), batch.column("_arrival").to_numpy()
            for index, view in enumerate(self.views):
                if view.source.name != self.source:
                    continue
                shaped = shape(view, batch, event_time, sequence, arrival)
                if len(shaped):
                    yield _shuffled(
                        index, 0, shaped.keys, shaped.key, shaped.event_time, shaped.arrival, sequence=shaped.sequence,
                        words=np.column_stack([word for columns in shaped.columns for word in words_of(columns)]),
                    )  # fmt: skip


@dataclass(frozen=True)
class EncodePoints:
    """Spine rows -> shuffled rows of every view: kind 1."""

    views: tuple[FeatureView, ...]

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the points of every batch, view by view."""
        for batch in batches:
            if not batch.num_rows:
                continue
            at, visible = batch.column("__at").to_numpy(), batch.column("__visible").to_numpy()
            row = batch.column(ROW).to_numpy()
            for index, view in enumerate(self.views):
                types = [DataType(kind) for kind in view.entity.keys.values()]
                keys, code = encode_columns([batch.column(name) for name in view.entity.keys], types)
                yield _shuffled(index, 1, keys, code, at, visible, row=row)


def _shuffled(
    view: int,
    kind: int,
    keys: list[bytes],
    code: np.ndarray,
    at: np.ndarray,
    arrival: np.ndarray,
    *,
    sequence: np.ndarray | None = None,
    row: np.ndarray | None = None,
    words: np.ndarray | None = None,
) -> pa.RecordBatch:
    count = len(code)
    nothing = np.zeros(count, np.int64)
    return pa.RecordBatch.from_pydict(
        {
            "view": pa.array(np.full(count, view, np.int32)),
            "kind": pa.array(np.full(count, kind, np.int8)),
            "key": pa.array(keys, pa.binary()).take(pa.array(code)),
            "at": at,
            "sequence": nothing if sequence is None else sequence,
            "arrival": arrival,
            "row": nothing if row is None else row,
            "words": pa.nulls(count, pa.binary()) if words is None else _binary(words.astype("<i8", copy=False)),
        }
    )


def _binary(rows: np.ndarray) -> pa.Array:
    """Return the rows of a matrix as binary values of one length."""
    data = np.ascontiguousarray(rows)
    size = data.shape[1] * data.itemsize
    offsets = np.arange(len(data) + 1, dtype=np.int32) * np.int32(size)
    return pa.Array.from_buffers(pa.binary(), len(data), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _matrix(values: pa.Array, dtype: str, width: int) -> np.ndarray:
    """Return binary values of one length as a matrix; the inverse of ``_binary``."""
    return np.frombuffer(b"".join(values.to_pylist()), dtype).reshape(len(values), width)


@dataclass(frozen=True)
class Evaluate:
    """All rows of some keys -> for every point its view's values, 9 bytes a feature: the value's word, and validity."""

    views: tuple[FeatureView, ...]
    as_served: bool

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the values of this partition's points, view by view."""
        held = [batch for batch in batches if batch.num_rows]
        if not held:
            return
        table = pa.Table.from_batches(held)
        view_of = table.column("view").to_numpy()
        for index in np.unique(view_of).tolist():
            one = table.take(pa.array(np.flatnonzero(view_of == index))).combine_chunks()
            evaluated = self._evaluate(self.views[index], one)
            if evaluated is not None:
                row, packed = evaluated
                yield pa.RecordBatch.from_arrays(
                    [row, pa.array(np.full(len(row), index, np.int32)), packed], [ROW, "view", "packed"]
                )

    def _evaluate(self, view: FeatureView, table: pa.Table) -> tuple[pa.Array, pa.Array] | None:
        layout = view.layout
        is_point = table.column("kind").to_numpy() == 1
        points, rows = np.flatnonzero(is_point), np.flatnonzero(~is_point)
        if not len(points):
            return None
        keys = table.column("key").combine_chunks().dictionary_encode()
        if isinstance(keys, pa.ChunkedArray):
            keys = keys.combine_chunks()
        code = keys.indices.to_numpy().astype(np.int64)
        at, sequence = table.column("at").to_numpy(), table.column("sequence").to_numpy()
        arrival = table.column("arrival").to_numpy()
        words = _matrix(table.column("words").take(pa.array(rows)), "<i8", len(layout.slots))
        events = Shaped(
            keys=keys.dictionary.to_pylist(),
            key=code[rows],
            event_time=at[rows],
            sequence=sequence[rows],
            arrival=arrival[rows],
            columns=tuple(
                columns_at(words, measure, begin)
                for measure, begin in zip(layout.measures, layout.slot_offsets, strict=False)
            ),
        )
        values = values_at_points(layout, events, code[points], at[points], arrival[points] if self.as_served else None)
        words_and_valid = np.zeros((len(points), 9 * len(values)), np.uint8)
        for position, (column, valid) in enumerate(values):
            begin = 9 * position
            word = np.ascontiguousarray(column).view(np.uint8).reshape(len(points), 8)
            words_and_valid[:, begin : begin + 8] = word
            words_and_valid[:, begin + 8] = valid
        return table.column("row").take(pa.array(points)).combine_chunks(), _binary(words_and_valid)


def assembled_schema(views: Sequence[FeatureView]) -> str:
    """Return the Spark schema of what ``Assemble`` yields."""
    columns = [
        f"`{view.name}.{feature.name}` {_SPARK_TYPES[feature.aggregate.result_type]}"
        for view in views
        for feature in view.layout.features
    ]
    return ", ".join([f"{ROW} bigint", *columns])


@dataclass(frozen=True)
class Assemble:
    """The packed values of all views of some rows -> one row each, one column per feature."""

    views: tuple[FeatureView, ...]

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of this partition, whole."""
        held = [batch for batch in batches if batch.num_rows]
        if not held:
            return
        table = pa.Table.from_batches(held)
        row, view_of = table.column(ROW).to_numpy(), table.column("view").to_numpy()
        order = np.lexsort((row, view_of))
        table, row, view_of = table.take(pa.array(order)), row[order], view_of[order]
        bounds = np.searchsorted(view_of, np.arange(len(self.views) + 1))
        columns = [pa.array(row[bounds[0] : bounds[1]])]
        names = [ROW]
        for index, view in enumerate(self.views):
            features = view.layout.features
            part = table.column("packed").slice(bounds[index], bounds[index + 1] - bounds[index])
            packed = _matrix(part, "u1", 9 * len(features))
            for position, feature in enumerate(features):
                begin = 9 * position
                word = np.ascontiguousarray(packed[:, begin : begin + 8]).view("<i8")[:, 0]
                columns.append(_arrow_column(word, packed[:, begin + 8] == 1, feature.aggregate.result_type))
            names += view.layout.feature_ids
        yield pa.RecordBatch.from_arrays(columns, names)


def _arrow_column(words: np.ndarray, valid: np.ndarray, kind: DataType) -> pa.Array:
    if kind == DataType.FLOAT64:
        return pa.array(words.view(np.float64), mask=~valid)
    array = pa.array(words, mask=~valid)
    return array.cast(_ARROW_TYPES[kind])
